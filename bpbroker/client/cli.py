"""``bpclient``: the client on a command line.

Standard output has the result and nothing else, and nothing at all when there
is none; everything said to a person goes to standard error. The exit code
tells a script what happened.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from bpbroker import __version__
from bpbroker.client import output
from bpbroker.client.answers import one_line
from bpbroker.client.api import Entry
from bpbroker.client.options import (
    FLAGS,
    Group,
    data_of,
    data_options,
    etag_option,
    if_match_option,
    name_option,
    raw_option,
)
from bpbroker.client.output import Output
from bpbroker.client.session import Session
from bpbroker.client.words import seconds, split_cols
from bpbroker.errors import BpbrokerError, NotFound, UsageError

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_EPILOG = """\b
Exit codes: 0 done, 1 other, 2 usage, 3 not found, 4 exists or precondition failed,
5 access refused, 6 cannot connect or wrong certificate, 7 several brokers answered, 124 timed out.
Options of bpclient may also stand after the commands."""


@click.group(name="bpclient", cls=Group, context_settings=_HELP, epilog=_EPILOG)
@click.version_option(__version__, prog_name="bpclient", message="%(prog)s %(version)s")
def bpclient() -> None:
    """Talk to a bpbroker: find it, register services and look them up, call its extensions."""


@bpclient.command()
@click.option("--data", default="", help="What the broker is to echo.")
@raw_option
@click.pass_context
def ping(context: click.Context, data: str, raw: bool) -> Output:
    """See whether the broker answers; it echoes the data."""
    session = _session(context)
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        answer = client.ping(data)
    return output.of_raw(answer) if raw else output.of_ping(answer)


@bpclient.command()
@click.option("--method", required=True, metavar="PKG.FUNC", help="Namespace and method, such as ossec.AddAgent.")
@data_options(required=False)
@click.pass_context
def execute(context: click.Context, method: str, data: str | None, data_raw: str | None) -> Output:
    """Call a method of an extension and print what it answers."""
    session = _session(context)
    sent = data_of(data, data_raw, required=False)
    client, _ = session.client()
    with client, session.waiting_for(f"{method} on {client.address}"):
        return output.of_body(client.execute(method, sent).body)


@bpclient.command()
@click.option("--name", required=True, help="The broker must hold an entry of this name.")
@click.option("--all", "everyone", is_flag=True, help="Print every broker that answers within the timeout.")
@click.option("--first", is_flag=True, help="Take the first answer, even if another broker answers too.")
@click.option("--wait", metavar="TIME", help="Keep asking for so long.")
@click.pass_context
def discover(context: click.Context, name: str, everyone: bool, first: bool, wait: str | None) -> Output:
    """Find the broker that holds a name, on the networks of this host, and print its address."""
    session = _session(context)
    if everyone and (first or wait):
        raise UsageError("--all takes neither --first nor --wait; --timeout says how long it listens")
    if everyone:
        return output.of_brokers(session.discover_all(name))
    return output.of_broker(session.discover(name, seconds(wait) if wait else 0.0, first=first))


@bpclient.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Look at everything on the way to a broker; exit code 1 when something failed."""
    from bpbroker.client.doctor import FAIL, examine, networks, of_findings
    from bpbroker.client.pins import KnownBrokers
    from bpbroker.client.transport import Trust

    session = _session(context)
    given = context.find_root().ensure_object(dict)
    key, fingerprint = session.secrets
    target = session.client()[0].address
    trust = Trust(fingerprint, given.get("cacert", ""), bool(given.get("insecure")))
    found = [networks(), *examine(target, trust, KnownBrokers(), key=key)]
    _print(output.render(of_findings(found), given.get("format", "text"), given.get("cols", ())))
    context.exit(1 if any(finding.level == FAIL for finding in found) else 0)


@bpclient.group()
def service() -> None:
    """Register services and look them up."""


@service.command()
@name_option
@data_options(required=True)
@click.option("--idempotent", is_flag=True, help="The same data, registered by this host before, is success.")
@etag_option
@raw_option
@click.pass_context
def register(context: click.Context, /, name: str, idempotent: bool, **options: Any) -> Output:
    """Create an entry; it must not exist."""
    return _write(context, "register", name, options, idempotent=idempotent)


@service.command()
@name_option
@data_options(required=True)
@if_match_option
@etag_option
@raw_option
@click.pass_context
def replace(context: click.Context, /, name: str, if_match: str, **options: Any) -> Output:
    """Create an entry or overwrite it."""
    return _write(context, "replace", name, options, if_match=if_match)


@service.command()
@name_option
@data_options(required=True)
@if_match_option
@etag_option
@raw_option
@click.pass_context
def update(context: click.Context, /, name: str, if_match: str, **options: Any) -> Output:
    """Merge data into an entry at every depth, creating it if absent."""
    return _write(context, "update", name, options, if_match=if_match)


@service.command()
@name_option
@click.option("--wait", metavar="TIME", help="Wait so long for it to exist, or to change.")
@click.option("--changed-from", metavar="ETAG", default="", help="Wait until its tag is not this one.")
@click.option("--field", metavar="KEY", help="Print only the value of this key.")
@etag_option
@raw_option
@click.pass_context
def get(
    context: click.Context,
    name: str,
    wait: str | None,
    changed_from: str,
    field: str | None,
    etag: bool,
    raw: bool,
) -> Output:
    """Print an entry."""
    session = _session(context)
    client, left = session.client(seconds(wait) if wait else 0.0)
    with client, session.waiting_for(f"entry '{name}' on {client.address}"):
        entry = client.get(name, wait=left, changed_from=changed_from)
        response = client.response
    if field is not None:
        if field not in entry:
            raise NotFound(f"Entry '{name}' has no field '{field}'")
        return output.of_value(field, entry[field])
    return _entry(entry, dict(response), etag=etag, raw=raw)


@service.command()
@name_option
@if_match_option
@raw_option
@click.pass_context
def delete(context: click.Context, name: str, if_match: str, raw: bool) -> Output:
    """Remove an entry; one that does not exist is removed already."""
    session = _session(context)
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        client.delete(name, if_match=if_match)
    return output.of_raw(client.response) if raw else output.of_response(client.response, b"")


@service.command(name="list")
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("--keys", is_flag=True, help="Names only.")
@raw_option
@click.pass_context
def list_(context: click.Context, prefix: str, keys: bool, raw: bool) -> Output:
    """Print the entries, sorted by name."""
    session = _session(context)
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        entries = client.list(prefix)
    if raw:
        return output.of_raw(client.response)
    return output.of_names(list(entries)) if keys else output.of_entries(entries)


@service.command()
@click.option("--prefix", required=True, help="Names must begin so.")
@click.option("--count", required=True, type=click.IntRange(1, 1_000_000), help="How many there must be.")
@click.pass_context
def wait(context: click.Context, prefix: str, count: int) -> Output:
    """Wait, for --timeout, until enough entries exist; then print their names."""
    session = _session(context)
    client, left = session.client(session.timeout(60.0))
    with client, session.waiting_for(f"{count} entries '{prefix}…' on {client.address}"):
        entries = client.list(prefix, at_least=count, wait=left)
    names = output.of_names(list(entries))
    return names._replace(value=entries)


def _session(context: click.Context) -> Session:
    return Session(context.find_root().ensure_object(dict))


def _write(context: click.Context, method: str, name: str, options: dict[str, Any], **how: Any) -> Output:
    """Do what register, replace and update have in common."""
    session = _session(context)
    data = data_of(options["data"], options["data_raw"], required=True)
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        entry = getattr(client, method)(name, data, **how)
    return _entry(entry, dict(client.response), etag=options["etag"], raw=options["raw"])


def _entry(entry: Entry, response: dict[str, Any], *, etag: bool, raw: bool) -> Output:
    if raw:
        return output.of_raw(response)
    return output.of_value("etag", entry.etag.strip('"')) if etag else output.of_entry(entry)


_COMMANDS = frozenset((*bpclient.commands, *service.commands))


def main() -> None:
    """Run ``bpclient`` and exit with its code."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    given: dict[str, Any] = {}
    try:
        words = list(split_cols(arguments, _COMMANDS, FLAGS))
        if "_BPCLIENT_COMPLETE" in os.environ:  # a shell asks what could be typed next
            bpclient.main(words, prog_name="bpclient")
        # Not main(): it answers an interrupt with an empty line.
        with bpclient.make_context("bpclient", words, obj=given) as context:
            result = bpclient.invoke(context)
        _print(output.render(result, given.get("format", "text"), given.get("cols", ())))
    except click.exceptions.Exit as done:
        return done.exit_code
    except BpbrokerError as error:
        return _failed(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return UsageError.exit_code
    except click.ClickException as error:
        return _failed(f"{error.format_message().rstrip('.')} (bpclient --help shows what there is)", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _failed("Interrupted", 130)
    return 0


def _print(data: bytes) -> None:
    """Write the result.

    Raises:
        BpbrokerError: it did not get through, such as on a full disk.
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise BpbrokerError(f"The result cannot be written to standard output: {error.strerror}") from None


def _failed(message: str, exit_code: int) -> int:
    sys.stderr.write(f"Fatal error: {one_line(message)}\n")
    return exit_code

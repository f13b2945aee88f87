"""The commands of ``bpclient``: options and action of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bpbroker.client.cli import output
from bpbroker.client.cli.output import Output
from bpbroker.client.cli.shared_options import (
    CONSISTENCY,
    DATA,
    DATA_NEEDED,
    DATA_RAW,
    ETAG,
    EVERYWHERE,
    IF_MATCH,
    JSON,
    LOCK,
    LOCK_NAME,
    NAME,
    OWN_IP,
    RAW,
    SESSION,
    SESSION_ID,
    TTL,
    TTL_LONG,
    UNSET,
    WAIT,
    Command,
    Option,
)
from bpbroker.client.cli.words import at_path, content, json_fault, seconds
from bpbroker.client.transport import CONNECT_SECS
from bpbroker.errors import ClientError, NotFound, NotShown, UsageError

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Final

    from bpbroker.client.api import Client
    from bpbroker.client.cli.session import Session
    from bpbroker.client.cli.shared_options import Action
    from bpbroker.recipes.coordination import Entry

COMMANDS: Final[dict[tuple[str, ...], Command]] = {}
"""Every command by its words, such as ``("service", "get")``."""
GROUPS: Final = {
    ("service",): "Register services and look them up.",
    ("session",): "Keep entries that go when their owner does.",
    ("trust",): "The certificates of brokers that were seen before.",
}
"""The words that begin several commands, and their help."""


def _command(words: str, *options: Option, acts: bool = False, runs: bool = False) -> Callable[[Action], Action]:
    """Make a function the command of these words."""

    def add(action: Action) -> Action:
        path = tuple(words.split())
        COMMANDS[path] = Command(path, options, action, acts=acts, runs=runs)
        return action

    return add


def _elsewhere(words: str, place: str, about: str, *options: Option, acts: bool = False, runs: bool = False) -> None:
    """Make a function of another module, which is loaded when it is called, the command of these words.

    Args:
        words: of the command.
        place: module and function, with a colon.
        about: what the help says.
        options: as of :class:`Command`, like what follows.
        acts: as there.
        runs: as there.
    """

    def action(session: Session, **values: Any) -> Output:
        from importlib import import_module

        module, _, name = place.partition(":")
        found: Output = getattr(import_module(f"bpbroker.client.cli.{module}"), name)(session, **values)
        return found

    action.__doc__ = about
    _command(words, *options, acts=acts, runs=runs)(action)


@_command("ping", Option("--data", default="", about="What the broker is to echo."), RAW)
def ping(session: Session, *, data: str, raw: bool) -> Output:
    """Check whether the broker answers; it echoes the data."""
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        answer = client.ping(data)
    return output.of_raw(answer) if raw else output.of_ping(answer)


@_command(
    "execute",
    Option(
        "--method",
        required=True,
        positional=True,
        metavar="PKG.FUNC",
        about="Namespace and method, such as ossec.AddAgent.",
    ),
    DATA,
    DATA_RAW,
    Option("--param", metavar="K=V", multiple=True, about="A further parameter; may be given again."),
    Option("--field", metavar="KEY", about="Print only the value of this key of the answer, or of a.b."),
    Option(
        "--output",
        key="file",
        metavar="FILE",
        about="Write the answer into this file, mode 0600, whole or not at all.",
    ),
    acts=True,
)
def execute(
    session: Session,
    *,
    method: str,
    data: str | None,
    data_raw: str | None,
    param: tuple[str, ...],
    field: str | None,
    file: str | None,
) -> Output:
    """Call a method of an extension and print what it answers."""
    sent = _data(data, data_raw)
    more = dict(_parameter(text) for text in param)
    if {"data", "method", "self"} & set(more):
        raise UsageError("--param takes no data, method or self; --data says the data")
    path = _writable(file) if file else None
    client, _ = session.client()
    with client, session.waiting_for(f"{method} on {client.address}"):
        result = client.execute(method, sent, **more)
    shown = output.of_body(result.body)
    if field is not None:
        try:
            shown = output.of_value(field, at_path(shown.value, field))
        except KeyError:
            raise NotFound(f"The call was carried out, but its answer has no field '{field}'") from None
    if path is None:
        if shown.text and not shown.text.endswith(b"\n") and session.at_terminal():
            shown.text += b"\n"
        return shown
    from bpbroker import files

    try:
        files.write_whole(path, [session.render(shown)])
    except OSError as error:
        raise NotShown(f"The call was carried out, but {path} cannot be written: {error.strerror or error}") from None
    return output.NOTHING


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--param {text[:80]!r} must be NAME=VALUE")
    return name, value


def _writable(name: str) -> Path:
    """Return the path of an output file, checked before anything is done.

    Raises:
        UsageError: its folder does not exist, or the name is not a file's.
    """
    from pathlib import Path

    path = Path(name)
    if not path.parent.is_dir():
        raise UsageError(f"--output {name}: there is no folder {path.parent}; nothing was sent")
    if path.exists() and not path.is_file():
        raise UsageError(f"--output {name}: that is no regular file; nothing was sent")
    return path


@_command(
    "discover",
    Option("--name", required=True, positional=True, about="The broker must hold an entry of this name."),
    Option("--all", key="everyone", flag=True, about="Print every broker that answers within the timeout."),
    Option("--first", flag=True, about="Take the first answer, even if another broker answers too."),
    Option("--wait", metavar="TIME", about="How long to keep asking."),
)
def discover(session: Session, *, name: str, everyone: bool, first: bool, wait: str | None) -> Output:
    """Find the broker that holds a name, on the networks of this host, and print its address."""
    if everyone and (first or wait):
        raise UsageError("--all takes neither --first nor --wait; --timeout says how long it listens")
    if everyone:
        return output.of_brokers(session.discover_all(name))
    return output.of_broker(session.discover(name, seconds(wait) if wait else 0.0, first=first))


@_command("whoami")
def whoami(session: Session) -> Output:
    """Print what the access key may do: its name, its rules, and until when."""
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        return output.of_caller(client.whoami())


@_command("doctor")
def doctor(session: Session) -> Output:
    """Check the whole way to a broker; exit code 1 when a check failed."""
    from bpbroker.client.doctor import examine, networks
    from bpbroker.client.pins import KnownBrokers

    client, _ = session.client(looks=True)
    try:
        client.connect(min(CONNECT_SECS, session.left() / 2))  # of several addresses, look at the one that is used
    except ClientError:
        pass
    client.close()
    findings = examine(
        client.address, session.trust, KnownBrokers(), key=session.secrets.key, total_secs=session.left()
    )
    return output.of_findings([networks(), *findings])


@_command(
    "service register",
    NAME,
    DATA_NEEDED,
    DATA_RAW,
    JSON,
    OWN_IP,
    Option("--idempotent", flag=True, about="The same data, registered by this host before, is success."),
    Option("--or-get", flag=True, about="If the entry exists, print it; exit code 0."),
    Option("--ttl", metavar="TIME", about="In a session of its own, which --raw prints and `session renew` renews."),
    SESSION,
    LOCK,
    ETAG,
    RAW,
    acts=True,
)
def register(session: Session, *, idempotent: bool, or_get: bool, ttl: str | None, **options: Any) -> Output:
    """Create an entry; it must not exist."""
    session.doubt_name(options["name"])
    if ttl is not None:
        if idempotent or or_get:
            raise UsageError("--ttl does not go with --idempotent or --or-get: a new session has no entry yet")
        from bpbroker.client.cli.session_entries import register_for

        return register_for(session, seconds(ttl), options, lambda own: _write(session, "register", {**options, **own}))
    if or_get:
        if idempotent:
            raise UsageError("--idempotent and --or-get exclude each other")
        return _write(session, "register_or_get", options)
    return _write(session, "register", options, idempotent=idempotent)


@_command("service replace", NAME, DATA_NEEDED, DATA_RAW, JSON, OWN_IP, IF_MATCH, SESSION, LOCK, ETAG, RAW, acts=True)
def replace(session: Session, *, if_match: str, **options: Any) -> Output:
    """Create an entry or overwrite it."""
    session.doubt_name(options["name"])
    return _write(session, "replace", options, if_match=if_match)


@_command("service update", NAME, DATA, UNSET, DATA_RAW, JSON, OWN_IP, IF_MATCH, SESSION, LOCK, ETAG, RAW, acts=True)
def update(session: Session, *, if_match: str, unset: tuple[str, ...], **options: Any) -> Output:
    """Merge data into an entry at every depth, creating it if absent; with --unset alone it must be there."""
    session.doubt_name(options["name"])
    if options["data"] is None and options["data_raw"] is None and not options["own_ip"]:
        if not unset:
            raise UsageError("Missing option '--data'; or say with '--unset' which keys to remove")
        options["data"] = "{}"
    return _write(session, "update", options, if_match=if_match, **({"unset": unset} if unset else {}))


@_command(
    "service get",
    NAME,
    Option("--wait", metavar="TIME", about="How long to wait until it exists, or changes."),
    Option("--changed-from", metavar="ETAG", default="", about="Wait until its tag is not this one."),
    Option("--gone", flag=True, about="Wait until the entry is gone."),
    Option("--field", metavar="KEY", about="Print only the value of this key, or of a.b; with --etag both."),
    CONSISTENCY,
    ETAG,
    RAW,
)
def get(
    session: Session,
    *,
    name: str,
    wait: str | None,
    changed_from: str,
    gone: bool,
    field: str | None,
    consistency: str,
    etag: bool,
    raw: bool,
) -> Output:
    """Print an entry."""
    if gone:
        if changed_from or field is not None or etag or raw or consistency != "strong":
            raise UsageError("--gone goes with --name and --wait alone: there will be nothing to print")
        from bpbroker.client.cli.watching import gone as wait_until_gone

        return wait_until_gone(session, name=name, wait=wait)
    if wait and consistency == "local":
        raise UsageError("--wait and --consistency local do not go together: a local read does not wait")
    client, left = session.client(seconds(wait) if wait else 0.0)
    with client, session.waiting_for(f"entry '{name}' on {client.address}"):
        entry = client.get(name, wait_secs=left, changed_from=changed_from, consistency=consistency)
        response = client.response
    _tell_age(session, response)
    if field is not None:
        try:
            found = at_path(entry, field)
        except KeyError:
            raise NotFound(f"Entry '{name}' has no field '{field}'") from None
        return output.of_tagged(entry.etag.strip('"'), field, found) if etag else output.of_value(field, found)
    return _entry(session, entry, dict(response), etag=etag, raw=raw)


@_command(
    "service delete",
    Option("--name", positional=True, about="The entry's name."),
    Option("--prefix", about="All entries whose names begin with this."),
    Option("--dry-run", flag=True, about="With --prefix: only say which."),
    IF_MATCH,
    LOCK,
    RAW,
    acts=True,
)
def delete(
    session: Session,
    *,
    name: str | None,
    prefix: str | None,
    dry_run: bool,
    if_match: str,
    fence: str | None,
    raw: bool,
) -> Output:
    """Remove an entry; no error if there is none."""
    if prefix is not None and name is None and not if_match:
        from bpbroker.client.cli.bulk import delete as delete_all

        return delete_all(session, prefix=prefix, dry_run=dry_run)
    if name is None or prefix is not None or dry_run:
        raise UsageError("Missing option '--name', or the word without it; or give --prefix, perhaps with --dry-run")
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        client.delete(name, if_match=if_match, lock=session.fenced_by(fence))
    return output.of_raw(client.response) if raw else output.of_response(client.response, b"")


@_command(
    "service list",
    Option("--prefix", default="", about="Only names that begin with this."),
    Option("--where", metavar="FIELD=VALUE", multiple=True, about="Only entries with this value; FIELD may be a.b."),
    Option("--lost", flag=True, about="Entries that ended with their session lately: last value, time, session."),
    Option("--keys", flag=True, about="Names only."),
    CONSISTENCY,
    RAW,
)
def list_(
    session: Session,
    *,
    prefix: str,
    where: tuple[str, ...],
    lost: bool,
    keys: bool,
    consistency: str,
    raw: bool,
) -> Output:
    """Print the entries, sorted by name."""
    if lost:
        if where or consistency != "strong":
            raise UsageError("--lost goes neither with --where nor with --consistency")
        from bpbroker.client.cli.session_entries import lost as list_lost

        return list_lost(session, prefix=prefix, keys=keys, raw=raw)
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        entries = client.list(prefix, consistency=consistency, where=where)
    _tell_age(session, client.response)
    if raw:
        return output.of_raw(client.response)
    return output.of_names(list(entries)) if keys else output.of_entries(entries)


@_command(
    "service wait",
    Option("--prefix", required=True, about="Count entries whose names begin with this."),
    Option("--count", required=True, bounds=(1, 1_000_000), about="How many there must be."),
    Option("--where", metavar="FIELD=VALUE", multiple=True, about="Only entries with this value; FIELD may be a.b."),
    Option("--fail-where", metavar="FIELD=VALUE", multiple=True, about="Fail at once when an entry has this value."),
    Option("--fail-lost", flag=True, about="Fail at once when an entry is lost with its session."),
)
def wait(
    session: Session,
    *,
    prefix: str,
    count: int,
    where: tuple[str, ...],
    fail_where: tuple[str, ...],
    fail_lost: bool,
) -> Output:
    """Wait, for --timeout, until enough entries exist; then print their names."""
    if where or fail_where or fail_lost:
        from bpbroker.client.cli.watching import wait as wait_for_all

        return wait_for_all(
            session, prefix=prefix, count=count, where=where, fail_where=fail_where, fail_lost=fail_lost
        )
    client, left = session.client(session.timeout(60.0))
    with client, session.waiting_for(f"{count} entries '{prefix}…' on {client.address}"):
        entries = client.list(prefix, at_least=count, wait_secs=left)
    return output.of_names(list(entries), entries)


@_command("trust list")
def trust_list(_session: Session) -> Output:
    """Print the brokers whose certificates are remembered, with these."""
    from bpbroker.client.pins import KnownBrokers, shown

    return output.of_pins({address: shown(pin) for address, pin in KnownBrokers().pins().items()})


@_command("trust forget", Option("--host", required=True, positional=True, metavar="HOST[:PORT]", about="The broker."))
def trust_forget(_session: Session, *, host: str) -> Output:
    """Forget a broker's certificate: its next one is pinned again."""
    from bpbroker.client.pins import KnownBrokers, means

    known = KnownBrokers()
    try:
        gone = known.forget(means(host))
    except OSError as error:
        raise NotShown(f"{known.path} cannot be changed: {error.strerror or error}") from None
    if not gone:
        raise NotFound(f"There is no certificate of {host} in {known.path}; `bpclient trust list` shows them")
    return output.of_names(gone)


_elsewhere(
    "session run",
    "session_lock_once:run",
    "Keep a session, and perhaps an entry, while a command runs, or until a signal. The exit code is the command's. "
    "BPBROKER_SESSION is set for it: what bpclient registers in it belongs to the session. If the session is lost, "
    "the command gets SIGTERM, then SIGKILL within 10 s, and the exit code is 111.",
    TTL_LONG,
    Option("--name", about="The entry's name."),
    DATA,
    DATA_RAW,
    runs=True,
)
_elsewhere("session renew", "session_lock_once:renew", "Renew a session once.", SESSION_ID, acts=True)
_elsewhere(
    "session close", "session_lock_once:close", "End a session, with its entries and locks.", SESSION_ID, acts=True
)
_elsewhere(
    "lock",
    "session_lock_once:lock",
    "Hold a lock while a command runs; exit codes: the command's, 124 not got in time, 111 lost. BPBROKER_LOCK is set "
    "for the command: what bpclient writes in it is refused (exit code 4) once another may have the lock. If the "
    "lock is lost, the command gets SIGTERM, and SIGKILL before another can have it.",
    LOCK_NAME,
    TTL,
    WAIT,
    DATA,
    DATA_RAW,
    Option("--limit", bounds=(1, 1_000_000), about="How many may hold it at once (1)."),
    runs=True,
)
_elsewhere(
    "lock holder",
    "session_lock_once:holder",
    "Print the data of a lock's holders; exit code 3 if there is none.",
    LOCK_NAME,
    Option("--wait", metavar="TIME", about="How long to wait for a holder, or for a change."),
    Option("--changed-from", metavar="TOKEN", default="", about="Wait until the token is not this one."),
    RAW,
)
_elsewhere(
    "once",
    "session_lock_once:once",
    "Run a command on one of all hosts that ask, once and for good; the others wait and end with 0, too. "
    "A crash between the work and the note that it is done repeats the work: write the command so that this does no "
    "harm. `service delete` of the entry makes it run again.",
    Option("--name", required=True, about="Name of the lock, and of the entry with the state of the work."),
    TTL_LONG,
    WAIT,
    Option("--attempts", bounds=(1, 1_000_000), about="How often the command is tried, by all hosts together (3)."),
    Option("--output", key="keep_output", flag=True, about="Keep the last 8 KiB of its output; print it everywhere."),
    runs=True,
)
_elsewhere(
    "number",
    "number_take:number",
    "Print the owner's number in a pool, always the same one; or the next one of a counter.",
    Option("--pool", positional=True, about="The pool, an entry."),
    Option("--for", key="owner", metavar="OWNER", about="The owner of the number."),
    Option("--from", key="first", bounds=(0, 999_999_999), about="The smallest number (1)."),
    Option("--to", key="last", bounds=(0, 999_999_999), about="The largest number (255)."),
    Option("--number", bounds=(0, 999_999_999), about="Only this number."),
    Option("--release", flag=True, about="Give the number back."),
    Option("--quarantine", metavar="TIME", about="With --release: for so long no other owner gets it."),
    Option("--counter", metavar="NAME", about="Use a counter instead; with --for, a repeat prints the same."),
    Option("--by", bounds=(1, 1_000_000), about="The counter's step (1)."),
    LOCK,
    acts=True,
)
_elsewhere(
    "service take",
    "number_take:take",
    "Print an entry that is for one receiver, and destroy it.",
    NAME,
    Option(
        "--for", key="receiver", required=True, metavar="RECEIVER", about="The receiver; no other one gets the entry."
    ),
    Option("--ack", flag=True, about="Destroy it once it was written out (the default)."),
    Option("--no-ack", flag=True, about="Do not destroy it: this receiver may take it again."),
    LOCK,
)
_elsewhere(
    "batch",
    "bulk:batch",
    "Carry out several operations, all or none.",
    Option("--file", required=True, metavar="FILE", about="A JSON list of operations; - for standard input."),
    Option("--no-atomic", flag=True, about="Each by itself: a refusal does not stop the others."),
    acts=True,
)
_elsewhere(
    "service export",
    "bulk:export",
    "Print entries, a line of JSON each.",
    Option("--prefix", default="", about="Only names that begin with this."),
)
_elsewhere(
    "service import",
    "bulk:import_",
    "Write the entries that standard input has, a line of JSON each.",
    Option("--prefix", default="", about="All names must begin with this; --prune removes no others."),
    Option("--prune", flag=True, about="Remove entries that standard input does not have."),
    Option("--dry-run", flag=True, about="Only say what would be done."),
    Option("--keep", flag=True, about="Do not change existing entries."),
    acts=True,
)
_elsewhere(
    "watch",
    "watching:watch",
    "Print every change, a line of JSON each, or run a command for each, one at a time. The command has the event on "
    "its standard input, and in BPBROKER_EVENT (put, delete, expire, take, reset), BPBROKER_NAME, BPBROKER_REVISION "
    "and BPBROKER_ENTRY; if its exit code is not 0, it is run again. --timeout ends the watch, with 124.",
    Option("--prefix", about="Changes of entries whose names begin with this."),
    Option("--name", about="Changes of this entry."),
    Option("--initial", flag=True, about="Begin with the existing entries."),
    Option("--cursor-file", metavar="FILE", about="Keep the position here; go on where the last run ended."),
    Option("--count", bounds=(1, 1_000_000), about="End after this number of changes."),
    Option("--keep-going", flag=True, about="Go on when the command fails, instead of trying again."),
    runs=True,
)
_elsewhere(
    "render",
    "rendering:render",
    "Make a file of a Jinja2 template and entries, and run a command when it has changed. Needs Jinja2. The "
    "template may also use env(NAME) and the filters json and shell; if an entry that it needs does not exist, the "
    "exit code is 3.",
    Option(
        "--template", required=True, metavar="FILE", about="It may use entry(NAME), entries(PREFIX), field(NAME, KEY)."
    ),
    Option("--out", required=True, metavar="FILE", about="The file to write."),
    Option("--mode", about="Its mode, such as 0644."),
    Option("--check", metavar="COMMAND", about="Must succeed; {} stands for the new file's path."),
    Option("--watch", flag=True, about="Write it again at every change."),
    Option("--wait", metavar="TIME", about="How long to wait for entries that the template needs."),
    runs=True,
)

WORDS: Final = frozenset(word for path in COMMANDS for word in path)
"""Every word of a command."""
FLAGS: Final = frozenset(
    (
        *("-h", "--help", "--version"),
        *(name for option in EVERYWHERE if option.flag for name in option.names),
        *(name for command in COMMANDS.values() for option in command.options if option.flag for name in option.names),
    )
)
"""Every option without a value; see :func:`bpbroker.client.cli.words.split_cols`."""


def _write(session: Session, method: str, options: dict[str, Any], **how: Any) -> Output:
    """Do the common part of register, replace and update."""
    data = _data(options["data"], options["data_raw"])
    own_ip = options["own_ip"]
    if data is None and own_ip:
        data = "{}"
    if data is None:
        raise UsageError("Missing option '--data'")
    fault = json_fault(data)
    if options["only_json"] and (fault or not data.lstrip().startswith("{")):
        raise UsageError(f"The data is no JSON object: {fault or 'it does not begin with {'}; nothing was sent")
    if own_ip:
        _object_without_ip(data)
    if fault:
        session.tell(f"Warning: the data looks like JSON and is not, so it is stored as text: {fault}")
    if not (options["etag"] or options["raw"]):
        session.see_that_a_shell_can_hold(data)
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        if own_ip:
            data = _with_own_ip(session, client, data)
        entry = getattr(client, method)(
            options["name"],
            data,
            session=session.belongs_to() if options["owner"] is None else options["owner"],
            lock=session.fenced_by(options["fence"]),
            **how,
        )
    return _entry(session, entry, dict(client.response), etag=options["etag"], raw=options["raw"])


def _object_without_ip(data: str) -> dict[str, Any]:
    """Return data as a JSON object.

    Raises:
        UsageError: the data is no JSON object, or has an ``ip`` already.
    """
    import json

    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or "ip" in value:
        raise UsageError("--own-ip needs data that is a JSON object without an ip of its own; nothing was sent")
    return value


def _with_own_ip(session: Session, client: Client, data: str) -> str:
    """Return data with ``ip``: this host's address, as the broker and so other hosts see it."""
    import json

    from bpbroker.discovery.interfaces import is_loopback, seen_by_others

    value = _object_without_ip(data)
    value["ip"] = seen_by_others(str(client.ping().get("src", "")))  # this is the broker's own host
    if is_loopback(value["ip"]):
        session.tell(f"Warning: the broker sees this host as {value['ip']}, which is of no use to other hosts")
    return json.dumps(value)


def _data(data: str | None, data_raw: str | None) -> str | None:
    """Return the value of ``--data`` or ``--data-raw``; None if neither was given.

    Raises:
        UsageError: both were, or it cannot be read.
    """
    if data is not None and data_raw is not None:
        raise UsageError("--data and --data-raw are both given; give one of them")
    return data_raw if data is None else content(data, "--data")


def _tell_age(session: Session, response: Mapping[str, Any]) -> None:
    """Say how old a local read is, unless it is new."""
    age = response.get("age_secs")
    if isinstance(age, (int, float)) and age > 1:
        session.tell(f"This was so {age:.0f} s ago")


def _entry(session: Session, entry: Entry, response: dict[str, Any], *, etag: bool, raw: bool) -> Output:
    if raw and etag:
        session.tell("Warning: --etag does nothing beside --raw")
    if raw:
        return output.of_raw(response)
    return output.of_value("etag", entry.etag.strip('"')) if etag else output.of_entry(entry)

"""``bpbroker certificate``, ``token`` and ``join-command``: what clients trust the broker by."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bpbroker.client.address import BrokerAddress, parse_address
from bpbroker.commands.keys import ALLOW, FROM, TTL, USES, add_key, ends_at, keys_in, unguarded
from bpbroker.commands.local import must_run, running
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.commands.tables import echo_json, format_option
from bpbroker.config import layers, schema
from bpbroker.discovery.interfaces import interfaces, is_loopback, reached_at
from bpbroker.discovery.jointoken import SECRET_DIGITS, JoinToken, canonical_fingerprint, make_token
from bpbroker.errors import ClientError, ConfigurationError, RequestError, StartError
from bpbroker.frontend import client_file
from bpbroker.server import host_certificate
from bpbroker.storage.lock_file import lock_path
from bpbroker.storage.sources import Loaded

_REGISTRY_SECS = 10.0
_ADDRESSES_MAX = 8
_ADDRESS = click.option(
    "--address", "addresses", multiple=True, metavar="HOST:PORT",
    help="Where clients reach the broker, instead of all addresses of this host; may be given again.",
)  # fmt: skip
"""A token has 2048 characters; a host with containers may have hundreds of addresses."""


@command("certificate", short_help="Show or renew the certificate")
@click.option("--renew", is_flag=True, help="Make a new certificate and key; clients' pins must change then.")
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME", help="With --renew: a further name or address of this host."
)
@format_option
@pass_scope
def certificate(scope: Scope, *, renew: bool, hosts: tuple[str, ...], form: str) -> None:
    """Show the names in the broker's certificate, its expiry and its fingerprint."""
    cert, key = _pair(scope, scope.sources().load())
    if renew:
        _renew(scope, cert, key, hosts)
    elif hosts:
        raise click.UsageError("--host is for --renew")
    found = host_certificate.read_certificate(cert)
    now = datetime.now(UTC)
    left, problem, lacks = found.days_left(now), found.problem(now), found.lacks()
    if form == "json":
        echo_json(
            {
                "file": str(cert),
                "subject": found.subject,
                "names": found.names,
                "lacks": lacks,
                "not_before": found.not_before.isoformat(),
                "not_after": found.not_after.isoformat(),
                "days_left": left,
                "fingerprint": found.fingerprint,
            }
        )
        return
    click.echo(f"file         {cert}")
    click.echo(f"subject      {found.subject}")
    click.echo(f"names        {', '.join(found.names)}")
    click.echo(f"valid from   {found.not_before:%Y-%m-%d %H:%M} UTC")
    click.echo(f"expires      {found.not_after:%Y-%m-%d %H:%M} UTC ({left} days left)")
    click.echo(f"fingerprint  {found.fingerprint}")
    if problem:
        click.echo(f"warning: it {problem}; renew it (--renew, if bpbroker made it)", err=True)
    if lacks:
        click.echo(
            f"warning: it lacks of this host's names and addresses: {', '.join(lacks)}; clients that check names"
            " refuse the broker there (--renew, if bpbroker made it)",
            err=True,
        )


def _pair(scope: Scope, loaded: Loaded) -> tuple[Path, Path]:
    """Return the paths of certificate and key.

    Raises:
        ConfigurationError: there are none yet.
    """
    if layers.has_shipped_pair(loaded.effective):
        own = layers.own_pair(scope.own)
        if not own[0].exists():
            raise ConfigurationError("There is no certificate yet; the first start of the broker makes one")
        return own
    return layers.named_pair(loaded.effective)


def _renew(scope: Scope, cert: Path, key: Path, hosts: tuple[str, ...]) -> None:
    if (cert, key) != layers.own_pair(scope.own):
        raise ConfigurationError(
            f"{cert} was not made by bpbroker: renew it where it comes from, put the new files in its place, "
            f"and have them taken up: {scope.command_line('reload')}"
        )
    names = list(dict.fromkeys((*host_certificate.own_names(), *hosts)))
    host_certificate.check_names(names)
    scope.act_as_owner()
    host_certificate.heal_pair(cert, key)
    for path in (cert, key):
        if path.exists():
            host_certificate.keep_older(path)
    host_certificate.make_pair(cert, key, names)
    click.echo(
        "The certificate is new: clients that pinned the old one refuse this broker until their pin, "
        "token or --fingerprint is changed.",
        err=True,
    )
    if running(scope) is not None:
        click.echo(f"The running broker still has the old one, until: {scope.command_line('reload')}", err=True)


@command("token", short_help="Print a join token for clients")
@click.option(
    "--namespace", default="services", show_default=True, metavar="NAME", help="The namespace whose access key it has."
)
@_ADDRESS
@click.option(
    "--fingerprint", "fingerprints", multiple=True, metavar="SHA256",
    help="Certificate of a further broker that shares the registry; may be given again.",
)  # fmt: skip
@click.option(
    "--renew-secret", is_flag=True,
    help="First make another discovery secret: earlier tokens discover nothing any more.",
)  # fmt: skip
@ALLOW
@TTL
@USES
@FROM
@pass_scope
def token(scope: Scope, /, *, renew_secret: bool, **options: Any) -> None:
    """Print one word with which bpclient --token needs nothing else: addresses, fingerprint, access key.

    It also has the secret that makes discovery authenticated; all brokers of a
    shared registry have the same. A machine that has the token can use the
    namespace: pass it on as a secret. With --allow it has a new key of its own,
    which may do that and no more.
    """
    click.echo(_token(scope, **options, renew_secret=renew_secret))


@command("join-command", short_help="Print the line that lets a bare machine join")
@_ADDRESS
@ALLOW
@TTL
@USES
@FROM
@pass_scope
def join_command(scope: Scope, /, *, addresses: tuple[str, ...], **options: Any) -> None:
    """Print a line for the shell of a machine that has nothing but Python 3.9 or newer.

    It fetches bpclient.pyz from this broker, checks its digest, and sets
    BPBROKER_TOKEN. The line has the token in it: pass it on as a secret.
    """
    broker = must_run(scope)
    digest = hashlib.sha256(broker.fetch("/bpclient.pyz")).hexdigest()
    reached = [str(parse_address(text)) for text in addresses]
    if not reached:
        listens = _listens(scope, scope.sources().load())
        if listens.alone:
            raise ConfigurationError(
                f"{listens.alone}; or give --address HOST:PORT if something leads from there to it"
            )
        reached = listens.addresses
    if not reached:
        raise ConfigurationError("This host has no address that others reach; give it with --address HOST:PORT")
    token = _token(scope, namespace="services", addresses=tuple(reached), fingerprints=(), **options)
    urls = [f"https://{address}/bpclient.pyz" for address in reached]
    click.echo(
        f"{shlex.join(('python3', '-c', f'exec({_FETCH!r})', digest, *urls))} &&"
        f" export BPBROKER_TOKEN={token} && python3 ./bpclient.pyz whoami"
    )


_FETCH = (
    "import hashlib,ssl,sys,urllib.request as r\n"
    "for u in sys.argv[2:]:\n"
    " try: b=r.build_opener(r.ProxyHandler({}),r.HTTPSHandler(context=ssl._create_unverified_context()))"
    ".open(u,timeout=5).read()\n"
    " except OSError as e: print(u,e,file=sys.stderr); continue\n"
    " if hashlib.sha256(b).hexdigest()!=sys.argv[1]: print(u,'is not what it should be',file=sys.stderr); continue\n"
    " open('bpclient.pyz','wb').write(b); break\n"
    "else: sys.exit(1)"
)
"""Fetches the client. It does not check the certificate, but the digest."""


def _say_that_it_has_no_key(scope: Scope, loaded: Loaded, namespace: str) -> None:
    """Say why there is no key in a token, and what to do if its namespace needs one."""
    stored = keys_in(loaded)
    broker = running(scope)
    if broker is not None:
        with contextlib.suppress(ClientError, RequestError, StartError):  # then what the file has is all that is known
            stored = broker.ask("Keys", timeout_secs=_REGISTRY_SECS)
    if namespace == "ping" or namespace in unguarded(loaded.effective, stored):
        click.echo(f"warning: {namespace} has no _access_key, so it is open to everybody", err=True)
        return
    click.echo(
        f"warning: there is no access key in this token, and {namespace} needs one: it is guarded by named keys. "
        f"To make a token with a key of its own: {scope.command_line('token --allow RULE')}",
        err=True,
    )


def _token(
    scope: Scope,
    *,
    namespace: str,
    addresses: tuple[str, ...],
    fingerprints: tuple[str, ...],
    allow: tuple[str, ...],
    ttl: str | None,
    uses: int | None,
    networks: tuple[str, ...],
    renew_secret: bool = False,
) -> str:
    """Return a new token."""
    loaded = scope.sources().load()
    there = ("services", "ping", *layers.namespaces(loaded.effective))
    if namespace not in there:
        why = "is no namespace that clients can call" if namespace in loaded.effective else "is no section"
        raise ConfigurationError(f"{namespace!r} {why} of {scope.own}; --namespace takes one of: {', '.join(there)}")
    keys = layers.access_keys(loaded.effective, namespace)
    until = 0
    if allow:
        name = f"token-{secrets.token_hex(4)}"
        made_key, stored = add_key(scope, must_run(scope), name, allow, ttl=ttl, uses=uses, networks=networks)
        keys = (made_key,)
        until = 0 if "until" not in stored else int(ends_at(stored))
        click.echo(f"The key in it is {name}; `{scope.command_line(f'key revoke {name}')}` ends it.", err=True)
    elif ttl or uses or networks:
        raise click.UsageError("--ttl, --uses and --from are for --allow: they are of a new key")
    if not keys:
        _say_that_it_has_no_key(scope, loaded, namespace)
    own = canonical_fingerprint(host_certificate.fingerprint(_pair(scope, loaded)[0]))
    reached = [str(parse_address(text)) for text in addresses]
    if not reached:
        listens = _listens(scope, loaded)
        reached = listens.addresses
        if listens.alone:
            click.echo(f"warning: {listens.alone}", err=True)
    made = JoinToken(
        reached,
        list(dict.fromkeys((own, *map(canonical_fingerprint, fingerprints)))),
        keys[0] if keys else "",
        _discovery_secret(scope, loaded, renew=renew_secret),
        _registry_id(scope, loaded),
        until,
    )
    # On stderr: standard output is the token alone.
    where = made.addresses[0] if made.addresses else "HOST:PORT"
    click.echo(f"the client is at https://{where}/bpclient.pyz, SHA-256 {client_file.digest()}", err=True)
    return make_token(made)


def _discovery_secret(scope: Scope, loaded: Loaded, *, renew: bool) -> str:
    """Return the discovery secret: that of a shared registry, else that of the settings; empty if it is not known.

    Args:
        scope: whose broker.
        loaded: its configuration.
        renew: whether to replace it by a new one first.

    Raises:
        ConfigurationError, RequestError: it cannot be renewed.
    """
    proposed = secrets.token_hex(SECRET_DIGITS // 2)
    if not layers.shares_registry(loaded.effective):
        if renew:
            must_run(scope).ask("RenewSecret", {"secret": proposed})
            return proposed
        found: str = schema.option(loaded.effective, "_discovery", "secret") or ""
        if not found:
            click.echo("warning: there is no discovery secret yet; the next start of the broker makes one", err=True)
        return found
    asked = {"secret": proposed, "renew": renew}
    if renew:
        return str(must_run(scope).ask("ShareSecret", asked)["secret"])
    broker = running(scope) if os.access(lock_path(scope.own), os.R_OK | os.W_OK) else None
    if broker is not None:
        with contextlib.suppress(ClientError, RequestError, StartError):  # the token is of use without
            return str(broker.ask("ShareSecret", asked, timeout_secs=_REGISTRY_SECS)["secret"])
    click.echo(
        "warning: there is no discovery secret in this token: the shared registry has it,"
        " and no broker runs here that could tell it",
        err=True,
    )
    return ""


def _registry_id(scope: Scope, loaded: Loaded) -> str:
    """Return the id of the registry; empty if it is shared and no broker runs that knows it."""
    broker = running(scope) if os.access(lock_path(scope.own), os.R_OK | os.W_OK) else None
    if broker is not None:
        try:
            return str(broker.ask("Registry", timeout_secs=_REGISTRY_SECS)["id"])
        except (ClientError, RequestError, StartError):
            pass  # it is starting or ill; the token is of use without
    if loaded.origin is None or layers.shares_registry(loaded.effective):
        return ""
    return loaded.origin.registry


@dataclass(frozen=True, slots=True)
class _Listens:
    """Where clients may reach the broker, as far as this host knows."""

    addresses: list[str]
    """``HOST:PORT`` each."""
    alone: str = ""
    """Why no other machine reaches it, and what to change; empty if one may."""


def _listens(scope: Scope, loaded: Loaded) -> _Listens:
    """Return where the running broker listens; without one, where the configuration lets the next one listen."""
    api = loaded.effective["api"]
    broker = running(scope) if os.access(lock_path(scope.own), os.R_OK | os.W_OK) else None
    note = {} if broker is None else broker.note
    port, ip = note.get("port", api["listen_port"]), note.get("listen_ip", api["listen_ip"])
    reached = reached_at(ip, interfaces())
    alone = ""
    if reached and all(map(is_loopback, reached)):
        change = f"set api.listen_ip in {scope.own} to an address of this host, or to nothing for all of them"
        if ip != api["listen_ip"]:
            change = "start the broker without --listen-ip and BPBROKER_LISTEN_IP"
            if is_loopback(api["listen_ip"]):
                change += f", and set api.listen_ip in {scope.own} to an address of this host, or to nothing"
        elif broker is not None:
            change += ", and start the broker again"
        alone = f"the broker listens on {ip} alone, so no other machine can join: {change}"
    return _Listens([str(BrokerAddress(each, port)) for each in reached[:_ADDRESSES_MAX]] if port else [], alone)

"""``bpbroker key …``: named access keys of the running broker, or of all brokers of a shared registry."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from bpbroker.client.cli.words import seconds
from bpbroker.commands.local import LocalBroker, must_run
from bpbroker.commands.scope import Scope, command, pass_scope, shared_options
from bpbroker.commands.tables import echo_json, echo_table, format_option
from bpbroker.config import layers
from bpbroker.errors import ConfigurationError, UsageError
from bpbroker.registry import named_keys, rights
from bpbroker.registry.named_keys import digest_of
from bpbroker.storage.sources import Loaded

_SECRET_BYTES = 32

ALLOW = click.option(
    "--allow", "allow", multiple=True, metavar="RULE",
    help="What it may do, such as services:get,list@foo/ or ossec.AddAgent or ping; may be given again.",
)  # fmt: skip
TTL = click.option("--ttl", metavar="TIME", help="How long it counts, such as 30m, 2h or 90d; for ever without it.")
USES = click.option("--uses", type=int, metavar="N", help="How many addresses may use it.")
FROM = click.option(
    "--from", "networks", multiple=True, metavar="CIDR", help="Network it may be used from; may be given again."
)


@click.group(
    "key",
    short_help="Add, list, rotate and revoke access keys with rights",
    params=list(shared_options(environment=False)),
)
def key() -> None:
    """Manage named access keys, while the broker runs.

    Each key may do what its rules allow, for a time, from some addresses. On a
    shared registry the keys are those of all its brokers.
    """


def add_key(
    scope: Scope,
    broker: LocalBroker,
    name: str,
    allow: Sequence[str],
    *,
    ttl: str | None,
    uses: int | None,
    networks: Sequence[str],
) -> tuple[str, Mapping[str, Any]]:
    """Add a key to the running broker. Return the key as clients send it, and its stored form.

    Raises:
        BadRequest: a part of it cannot be used; nothing was changed.
        AlreadyExists: there is or was a key of this name.
    """
    settings = scope.sources().load().effective
    known = ("services", "ping", "metrics", *layers.namespaces(settings))
    about = sorted(rights.parse(tuple(allow)).namespaces)
    for namespace in about:
        if namespace not in known:
            click.echo(f"warning: there is no namespace {namespace}: the configuration has no such section", err=True)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    asked: dict[str, Any] = {"name": name, "sha256": digest_of(secret).hex(), "allow": list(allow)}
    if ttl is not None:
        asked["ttl"] = _lifetime(ttl)
    if uses is not None:
        asked["uses"] = uses
    if networks:
        asked["from"] = list(networks)
    before = broker.ask("Keys")
    stored: Mapping[str, Any] = broker.ask("AddKey", asked)
    still_open = unguarded(settings, [*before, stored])
    for namespace in unguarded(settings, before):
        if namespace not in still_open:
            click.echo(f"warning: {namespace} was open to everybody; from now on it needs a key", err=True)
    return f"{name}.{secret}", stored


def unguarded(settings: Mapping[str, Any], stored: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the namespaces that are open to everybody.

    Args:
        settings: those in force.
        stored: all named keys; those that ended keep closed what they are about.
    """
    closed = {namespace for each in stored for namespace in rights.parse(each["allow"]).namespaces}
    return [
        name
        for name in ("services", *layers.namespaces(settings))
        if not layers.access_keys(settings, name) and (name not in closed or "_access_key" in settings.get(name, {}))
    ]


def keys_in(loaded: Loaded) -> list[dict[str, Any]]:
    """Return the named keys that the files of a stopped broker hold."""
    return [
        {"name": name.removeprefix(named_keys.PREFIX), **json.loads(value)}
        for name, value in loaded.entries.items()
        if name.startswith(named_keys.PREFIX)
    ]


@command("add", short_help="Add a key, and print it once")
@click.argument("name")
@ALLOW
@TTL
@USES
@FROM
@pass_scope
def add(
    scope: Scope, *, name: str, allow: tuple[str, ...], ttl: str | None, uses: int | None, networks: tuple[str, ...]
) -> None:
    """Add a key and print it. It is not stored, so this is the only time.

    A namespace that was open to everybody needs a key from then on, if a rule
    is about it and its section has no _access_key.
    """
    if not allow:
        raise click.UsageError("Missing option '--allow'")
    made, _ = add_key(scope, must_run(scope), name, allow, ttl=ttl, uses=uses, networks=networks)
    click.echo(made)


@command("list", short_help="List the keys")
@format_option
@pass_scope
def list_(scope: Scope, *, form: str) -> None:
    """List all keys, those that ended too."""
    found = must_run(scope).ask("Keys")
    if form == "json":
        echo_json([{**each, "state": state(each)} for each in found])
        return
    rows = [
        (
            each["name"],
            state(each),
            each.get("until", "-"),
            f"{len(each.get('used_by', {}))} of {each['uses']}" if "uses" in each else "-",
            each.get("last_used", "never"),
            " ".join(each["allow"]),
        )
        for each in found
    ]
    echo_table(("NAME", "STATE", "UNTIL", "USES", "LAST USED", "ALLOW"), rows)


@command("show", short_help="Show one key")
@click.argument("name")
@format_option
@pass_scope
def show(scope: Scope, *, name: str, form: str) -> None:
    """Show everything that is stored of a key, but not its digest."""
    found = next((each for each in must_run(scope).ask("Keys") if each["name"] == name), None)
    if found is None:
        raise ConfigurationError(f"There is no access key '{name}'; to list the keys: {scope.command_line('key list')}")
    shown = {**found, "state": state(found)}
    if form == "json":
        echo_json(shown)
        return
    for member, value in shown.items():
        if member == "previous":
            text = f"counts until {value['until']}"
        else:
            text = " ".join(map(str, value)) if isinstance(value, (list, dict)) else value
        click.echo(f"{member:<10} {text}")


@command("rotate", short_help="Give a key another secret, and print it once")
@click.argument("name")
@click.option("--overlap", default="1h", show_default=True, metavar="TIME", help="How long the old one counts as well.")
@pass_scope
def rotate(scope: Scope, *, name: str, overlap: str) -> None:
    """Make a new secret for a key and print the key."""
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    asked = {"name": name, "sha256": digest_of(secret).hex(), "overlap": seconds(overlap)}
    must_run(scope).ask("RotateKey", asked)
    click.echo(f"{name}.{secret}")


@command("revoke", short_help="Let a key count no more, at once")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also the last key that may do anything in a namespace.")
@pass_scope
def revoke(scope: Scope, *, name: str, force: bool) -> None:
    """Let a key count no more. What its callers wait for ends at once."""
    must_run(scope).ask("RevokeKey", {"name": name, "force": force})


@command("import", short_help="Turn a section's _access_key into a named key")
@click.argument("name")
@click.option("--namespace", default="services", show_default=True, metavar="NAME", help="Whose _access_key it is.")
@pass_scope
def import_(scope: Scope, *, name: str, namespace: str) -> None:
    """Turn the _access_key of a section into a named key that may do anything there.

    Clients go on sending it as they did. The section has no _access_key
    afterwards; several keys become NAME, NAME-2 and so on.
    """
    named_keys.check_name(name)
    sources = scope.sources()
    loaded = sources.load()
    if "_access_key" in loaded.lower.get(namespace, {}):
        raise ConfigurationError(
            f"{namespace}._access_key is in {sources.below}, which this broker only reads:"
            " take it out of there first, or move it to the broker's own file"
        )
    keys = layers.access_keys(loaded.saved, namespace)
    if not keys:
        raise ConfigurationError(f"{namespace} has no _access_key in {scope.own}")
    if namespace == "ping":
        raise UsageError("ping is open without an _access_key, so that stays where it is")
    broker = must_run(scope)
    for number, each in enumerate(keys, 1):
        why = named_keys.weakness(each, namespace)
        if why:
            click.echo(f"warning: the _access_key of {namespace} {why}: rotate the new key soon", err=True)
        to = name if number == 1 else f"{name}-{number}"
        digest = digest_of(each).hex()
        broker.ask("AddKey", {"name": to, "sha256": digest, "allow": [f"{namespace}.*"], "bare": True})
        click.echo(f"{to}: {namespace}.*", err=True)
    broker.ask("DropAccessKey", {"namespace": namespace, "digests": [digest_of(each).hex() for each in keys]})


for _command in (add, list_, show, rotate, revoke, import_):
    key.add_command(_command)


def _lifetime(text: str) -> float:
    """Return a lifetime in seconds; in days it may be longer than any wait.

    Raises:
        UsageError: the text is no duration.
    """
    days = text.strip().removesuffix("d")
    return int(days) * 86400.0 if days != text.strip() and days.isascii() and days.isdigit() else seconds(text)


def state(stored: Mapping[str, Any]) -> str:
    """Return whether a key counts, in a word."""
    if "revoked" in stored:
        return "revoked"
    if ends_at(stored) <= time.time():
        return "ended"
    if "uses" in stored and len(stored.get("used_by", {})) >= stored["uses"]:
        return "used up"
    return "in force"


def ends_at(stored: Mapping[str, Any]) -> float:
    """Return the Unix time at which a key ends; infinite if it does not."""
    return datetime.fromisoformat(stored["until"]).timestamp() if stored.get("until") else math.inf

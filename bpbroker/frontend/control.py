"""The requests under ``/_control``, from the local ``bpbroker`` command to the running broker. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from bpbroker import messages
from bpbroker.errors import BadRequest
from bpbroker.frontend.ask import Ask
from bpbroker.record import Record
from bpbroker.registry import discovery_secret, named_keys
from bpbroker.server import response
from bpbroker.server.response import Response

METRICS: Final = "Metrics"
REGISTRY: Final = "Registry"
"""Two methods that are not in :data:`CONTROL`: the application answers them itself, without a message to one actor."""
BULK_SECS: Final = 3600.0
"""Time limit of methods that read or write a file, which may take long on a slow disk. The broker checks that they go
on."""


def _show(value: Any) -> Response:
    return response.success_with(response.plain(value))


def _simple(actor: str, message: Callable[[], Any], timeout_secs: float = 60.0) -> _Action:
    return lambda _document: (actor, Ask(message(), _show, timeout_secs, heavy=True))


_Action = Callable[[Mapping[str, Any]], tuple[str, Ask]]


def _key(kind: Literal["add", "rotate", "revoke"]) -> _Action:
    """Return the function that makes the message for a change of a named key; the JSON object has the key's name."""

    def decide(document: Mapping[str, Any]) -> tuple[str, Ask]:
        name = document.get("name")
        if not isinstance(name, str):
            raise BadRequest("The name of the key must be text")
        given = {member: value for member, value in document.items() if member not in ("name", "force")}
        return "registry", Ask(messages.ChangeKey(named_keys.stored_name(name), kind, given), _show_key)

    return decide


def _share_secret(document: Mapping[str, Any]) -> tuple[str, Ask]:
    """Return the message that reads, renews or, if there is none, sets a shared registry's discovery secret."""
    message = messages.ShareSecret(str(document.get("secret")), document.get("renew") is True)
    return "registry", Ask(message, _show_secret)


def _show_secret(record: Record) -> Response:
    return response.success_with({"secret": discovery_secret.secret_of(record.json)})


def _show_key(record: Record) -> Response:
    return response.success_with(_without_digests(record))


def _show_keys(records: tuple[Record, ...]) -> Response:
    return response.success_with([_without_digests(record) for record in records])


def _without_digests(record: Record) -> dict[str, Any]:
    """Return what an operator may see of a key."""
    stored = json.loads(record.json)
    name = record.name.removeprefix(named_keys.PREFIX)
    if not any(named_keys.problems(name, stored)) and named_keys.is_common(named_keys.of(name, stored)):
        # Here, because the operator's command does not get the digest.
        stored["weak"] = "its secret is a common word"
    del stored["sha256"]
    if "previous" in stored:
        stored["previous"] = {"until": stored["previous"]["until"]}
    return {"name": name, **stored}


CONTROL: Final[Mapping[str, _Action]] = {
    "Status": _simple("healthcheck", lambda: messages.Health(folders=True)),
    "Backup": _simple("backup", messages.BackupNow, BULK_SECS),
    "Backups": _simple("backup", messages.ListBackups),
    "Keys": lambda _document: ("registry", Ask(messages.ListKeys(), _show_keys, heavy=True)),
    "AddKey": _key("add"),
    "RotateKey": _key("rotate"),
    "RevokeKey": _key("revoke"),
    "DropAccessKey": lambda document: (
        "broker",
        Ask(
            messages.DropAccessKey(str(document.get("namespace")), tuple(document.get("digests", ()))), _show, BULK_SECS
        ),
    ),
    "ShareSecret": _share_secret,
    "RenewSecret": lambda document: (
        "broker",
        Ask(messages.RenewSecret(str(document.get("secret"))), _show, BULK_SECS),
    ),
    "DropNamespace": lambda document: (
        "broker",
        Ask(messages.DropNamespace(str(document.get("namespace"))), _show, BULK_SECS),
    ),
    "Reload": _simple("broker", messages.Reload, BULK_SECS),
    "Stop": _simple("broker", messages.Stop),
    "ApplyConfiguration": lambda document: (
        "broker",  # which asks the config store, and replies when all parts use the new settings
        Ask(messages.ApplyConfiguration(document), _show, BULK_SECS, heavy=True),
    ),
}
"""Method to the actor that it asks and the function that makes the message of the request's JSON object."""

"""The built-in namespaces: what ``services`` and ``ping`` offer, as requests to messages. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bpbroker import entry, messages, responses
from bpbroker.messages import Condition, Record
from bpbroker.parameters import Parameters
from bpbroker.responses import Response

_WAIT_SLACK_SECS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How large parts of an entry may be."""

    name_bytes: int
    data_bytes: int
    depth: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A message for an actor and how its reply is shown."""

    message: Any
    show: Callable[[Any], Response]
    timeout_secs: float | None = None


Decide = Callable[[Parameters, Mapping[str, Any], str, Limits], Ask | Response]


@dataclass(frozen=True, slots=True)
class Action:
    """One method of a built-in namespace."""

    decide: Decide
    """Gives the message, or the answer, for parameters, WSGI environ, source address and limits."""
    allow: tuple[str, ...]
    """HTTP methods that it is called with."""


def _write(kind: type[messages.Register | messages.Replace | messages.Update]) -> Decide:
    def decide(parameters: Parameters, environ: Mapping[str, Any], source: str, limits: Limits) -> Ask:
        name = parameters.name(limits.name_bytes)
        data = parameters.data(limits.data_bytes, limits.depth)
        return Ask(kind(name, data, source, _condition(environ)), responses.entry)

    return decide


def _delete(parameters: Parameters, environ: Mapping[str, Any], _source: str, limits: Limits) -> Ask:
    name = parameters.name(limits.name_bytes)
    return Ask(messages.Delete(name, _condition(environ)), lambda _: responses.DELETED)


def _get(parameters: Parameters, environ: Mapping[str, Any], _source: str, limits: Limits) -> Ask:
    name = parameters.name(limits.name_bytes)
    wait = parameters.seconds("wait")
    tags = _tags(environ.get("HTTP_IF_NONE_MATCH"))
    if not tags:
        return Ask(messages.Get(name, wait), responses.entry, wait + _WAIT_SLACK_SECS)

    def show(record: Record) -> Response:
        if record.etag in tags or "*" in tags:
            return Response(304, b"", headers=(("ETag", record.etag),))
        return responses.entry(record)

    return Ask(messages.Get(name, wait, tags[0]), show, wait + _WAIT_SLACK_SECS)


def _list(parameters: Parameters, _environ: Mapping[str, Any], _source: str, _limits: Limits) -> Ask:
    wait = parameters.seconds("wait")
    prefix = parameters.text("prefix") or ""
    message = messages.List(prefix, parameters.count("count"), wait)
    return Ask(message, responses.entries, wait + _WAIT_SLACK_SECS)


def _ping(parameters: Parameters, _environ: Mapping[str, Any], source: str, limits: Limits) -> Response:
    if "data" not in parameters.values:
        echoed: dict[str, Any] = {entry.TEXT_KEY: ""}
    else:
        value = parameters.values["data"]
        # The echo holds no entry, so the keys reserved in entries are fine here.
        echoed = value if isinstance(value, dict) else _echo(str(parameters.text("data")), limits)
    return Response(200, json.dumps({"src": source, "data": echoed}, ensure_ascii=False).encode("utf-8", "replace"))


def _echo(text: str, limits: Limits) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            value = entry.strict_json(text, max_depth=limits.depth)
        except json.JSONDecodeError:
            return {entry.TEXT_KEY: text}
        return dict(value)
    return {entry.TEXT_KEY: text}


def _condition(environ: Mapping[str, Any]) -> Condition:
    match, none_match = environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH")
    if match is None and none_match is None:
        return messages.ALWAYS
    return Condition(_tags(match) or None, _tags(none_match) or None)


def _tags(header: str | None) -> tuple[str, ...]:
    """Give the entity tags in a header; a weak one (``W/``) never matches, ours are strong."""
    return tuple(tag for tag in (part.strip() for part in (header or "").split(",")) if tag)


_READ: Final = ("GET", "POST")
_CHANGE: Final = ("POST",)

BUILT_IN: Final[Mapping[str, Mapping[str, Action]]] = {
    "services": {
        "Register": Action(_write(messages.Register), _CHANGE),
        "Replace": Action(_write(messages.Replace), _CHANGE),
        "Update": Action(_write(messages.Update), _CHANGE),
        "Delete": Action(_delete, ("POST", "DELETE")),
        "Get": Action(_get, _READ),
        "List": Action(_list, _READ),
    },
    "ping": {"Ping": Action(_ping, _READ)},
}

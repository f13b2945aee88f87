"""The built-in namespaces: what ``services`` and ``ping`` offer, as requests to messages. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from bpbroker import messages
from bpbroker.errors import BadRequest, RequestError
from bpbroker.frontend.parameters import Parameters
from bpbroker.messages import Condition, Known, Record
from bpbroker.registry import entry
from bpbroker.registry.rights import Need
from bpbroker.server import response
from bpbroker.server.request import network_of
from bpbroker.server.response import Response

_WAIT_SLACK_SECS: Final = 30.0
_TAG: Final = re.compile(r'[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')


@dataclass(frozen=True, slots=True)
class EntryLimits:
    """How large parts of an entry may be."""

    name_bytes: int
    data_bytes: int
    depth: int


class Ask(NamedTuple):
    """A message for an actor and how its reply is shown."""

    message: Any
    show: Callable[[Any], Response]
    timeout_secs: float = 30.0
    heavy: bool = False
    """Whether ``show`` may take more than a millisecond."""
    patient: bool = False
    """Whether the client means to wait."""
    late: RequestError = response.LATE
    """The error when there was no reply in time."""
    size_of: Callable[[Any], int] | None = None
    """The size of what ``show`` makes of the reply, about, in bytes; None if it is small."""


Touches = Callable[[str, str, Parameters], Iterable[Need]]
"""Function of namespace, method and parameters to what that call does."""


def a_name(namespace: str, method: str, parameters: Parameters) -> tuple[Need, ...]:
    """Return what a method does that is about the name in its parameters."""
    return (Need(namespace, method, str(parameters.values.get("name", ""))),)


def a_prefix(namespace: str, method: str, parameters: Parameters) -> tuple[Need, ...]:
    """Return what a method does that is about all names with the prefix in its parameters."""
    return (Need(namespace, method, str(parameters.values.get("prefix", ""))),)


def no_name(namespace: str, method: str, _parameters: Parameters) -> tuple[Need, ...]:
    """Return what a method does that is about no names."""
    return (Need(namespace, method),)


Decide = Callable[[Parameters, Mapping[str, str], str, EntryLimits], Ask | Response]


@dataclass(frozen=True, slots=True)
class Action:
    """One method of a built-in namespace."""

    decide: Decide
    """Returns the message, or the response, for parameters, header fields, source address and limits."""
    allow: tuple[str, ...]
    """HTTP methods that it is called with."""
    touches: Touches
    """Returns what a call with these parameters does, for the rights of a named key."""


def _write(kind: type[messages.Register | messages.Replace | messages.Update]) -> Decide:
    def decide(parameters: Parameters, fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
        name = parameters.name(limits.name_bytes)
        data = parameters.data(limits.data_bytes, limits.depth)
        return Ask(kind(name, data, source, _condition(fields)), response.entry)

    return decide


def _delete(parameters: Parameters, fields: Mapping[str, str], _source: str, limits: EntryLimits) -> Ask:
    name = parameters.name(limits.name_bytes)
    return Ask(messages.Delete(name, _condition(fields)), lambda _: response.DELETED)


def _get(parameters: Parameters, fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    name = parameters.name(limits.name_bytes)
    wait, local = parameters.seconds("wait"), _is_local(parameters)
    header = fields.get("if-none-match")
    if header is None:
        message = messages.Get(name, wait, local=local, client=network_of(source))
        return Ask(message, response.entry, wait + _WAIT_SLACK_SECS, patient=wait > 0)
    # For a read, a tag that was made weak on its way still names what it did (RFC 9110, section 13.1.2).
    tags = tuple(tag.removeprefix("W/") for tag in _tags("If-None-Match", header))
    if wait and len(tags) > 1:
        raise BadRequest("With wait, If-None-Match takes one entity tag")

    def show(record: Record) -> Response:
        if record.etag in tags or "*" in tags:
            return Response(304, b"", headers=(("ETag", record.etag),))
        return response.entry(record)

    return Ask(
        messages.Get(name, wait, tags[0], local, network_of(source)), show, wait + _WAIT_SLACK_SECS, patient=wait > 0
    )


def _is_local(parameters: Parameters) -> bool:
    """Whether what this broker knows is enough; by default a read asks a shared registry.

    Raises:
        BadRequest: the parameter is something else, or goes with ``wait``.
    """
    consistency = parameters.text("consistency") or "strong"
    if consistency not in ("strong", "local"):
        raise BadRequest("The parameter consistency must be strong or local")
    if consistency == "local" and parameters.seconds("wait"):
        raise BadRequest("With wait, consistency must be strong")
    return consistency == "local"


def _list(parameters: Parameters, _fields: Mapping[str, str], source: str, _limits: EntryLimits) -> Ask:
    wait, local = parameters.seconds("wait"), _is_local(parameters)
    prefix = parameters.text("prefix") or ""
    try:
        prefix.encode()
    except UnicodeEncodeError:
        raise BadRequest("The prefix is not valid UTF-8") from None
    message = messages.List(prefix, parameters.count("count"), wait, local, network_of(source))
    show = _show_known if local else response.entries
    size_of = _size_of_known if local else response.size_of_entries
    return Ask(message, show, wait + _WAIT_SLACK_SECS, heavy=True, patient=wait > 0, size_of=size_of)


def _size_of_known(known: Known) -> int:
    return response.size_of_entries(known.records)


def _show_known(known: Known) -> Response:
    return response.entries(known.records, known.age_secs)


def _ping(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Response:
    value = parameters.values.get("data", "")
    if isinstance(value, dict):
        echoed: dict[str, Any] = value  # it holds no entry, so the keys reserved in entries are fine here
    elif isinstance(value, str):
        echoed = _echo(value, limits)
    else:
        echoed = {entry.TEXT_KEY: json.dumps(value, ensure_ascii=False)}
    return Response(200, json.dumps({"src": source, "data": echoed}, ensure_ascii=False).encode("utf-8", "replace"))


def _echo(text: str, limits: EntryLimits) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            value = entry.strict_json(text, max_depth=limits.depth)
        except json.JSONDecodeError:
            return {entry.TEXT_KEY: text}
        return dict(value)
    return {entry.TEXT_KEY: text}


def _condition(fields: Mapping[str, str]) -> Condition:
    match, none_match = fields.get("if-match"), fields.get("if-none-match")
    if match is None and none_match is None:
        return messages.ALWAYS
    return Condition(
        None if match is None else _tags("If-Match", match),
        None if none_match is None else _tags("If-None-Match", none_match),
    )


def _tags(field: str, header: str) -> tuple[str, ...]:
    """Return the entity tags in a header field; never none: a condition that was meant must not be lost.

    Raises:
        BadRequest: there is something else in it.
    """
    if header.strip() == "*":
        return ("*",)
    tags: list[str] = []
    position = 0
    while position < len(header) or not tags:
        match = _TAG.match(header, position)
        if match is None:
            raise BadRequest(f'{field} must be * or entity tags in double quotes, such as "0123abcd"')
        tags.append(match[1])
        position = match.end()
    return tuple(tags)


_READ: Final = ("GET", "POST")
_CHANGE: Final = ("POST",)

BUILT_IN: Final[Mapping[str, Mapping[str, Action]]] = {
    "services": {
        "Register": Action(_write(messages.Register), _CHANGE, a_name),
        "Replace": Action(_write(messages.Replace), _CHANGE, a_name),
        "Update": Action(_write(messages.Update), _CHANGE, a_name),
        "Delete": Action(_delete, ("POST", "DELETE"), a_name),
        "Get": Action(_get, _READ, a_name),
        "List": Action(_list, _READ, a_prefix),
    },
    "ping": {"Ping": Action(_ping, _READ, no_name)},
}

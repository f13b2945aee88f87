"""The methods of the built-in namespaces ``services`` and ``ping``: each makes a message of a request. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from bpbroker import messages
from bpbroker.errors import BadRequest
from bpbroker.frontend.ask import Action, Ask, Decide, EntryLimits, a_name, a_prefix, no_name, tags_of
from bpbroker.frontend.coordination import ACTIONS, asks_for_lost, fence, lost, session_of, update_of
from bpbroker.frontend.parameters import Parameters
from bpbroker.messages import Condition, Known
from bpbroker.record import Record
from bpbroker.registry import entry_values
from bpbroker.registry.filters import Conditions, sort
from bpbroker.registry.filters import parse as parse_filters
from bpbroker.registry.requests import Lost
from bpbroker.server import response
from bpbroker.server.request import network_of
from bpbroker.server.response import Response

_WAIT_SLACK_SECS: Final = 30.0


def _write(kind: type[messages.Register | messages.Replace]) -> Decide:
    def decide(parameters: Parameters, fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
        name = parameters.name(limits.name_bytes)
        data = parameters.data(limits.data_bytes, limits.depth)
        session = session_of(parameters) if "session" in parameters.values else None
        return Ask(kind(name, data, source, _condition(parameters, fields), session), response.entry)

    return decide


def _update(parameters: Parameters, fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    return Ask(update_of(parameters, source, limits, _condition(parameters, fields)), response.entry)


def _delete(parameters: Parameters, fields: Mapping[str, str], _source: str, limits: EntryLimits) -> Ask:
    name = parameters.name(limits.name_bytes)
    return Ask(messages.Delete(name, _condition(parameters, fields)), response.deleted)


def _get(parameters: Parameters, fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    name = parameters.name(limits.name_bytes)
    wait, local = 0.0, False
    if len(parameters.values) > 1:  # most reads say the name and no more
        wait, local = parameters.seconds("wait"), _is_local(parameters)
    header = fields.get("if-none-match")
    if header is None:
        message = messages.Get(name, wait, local=local, client=network_of(source))
        return Ask(message, response.entry, wait + _WAIT_SLACK_SECS, patient=wait > 0)
    # For a read, a tag that was made weak on its way still names what it did (RFC 9110, section 13.1.2).
    tags = tuple(tag.removeprefix("W/") for tag in tags_of("If-None-Match", header))
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
    """Whether a read may be answered from this broker's memory; by default a shared registry is asked.

    Raises:
        BadRequest: the parameter has another value, or comes together with ``wait``.
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
    if asks_for_lost(parameters):
        return Ask(Lost(prefix), lost, heavy=True)
    where = parse_filters(parameters.several("where"), "where") if "where" in parameters.values else ()
    failing = parse_filters(parameters.several("fail_where"), "fail_where") if "fail_where" in parameters.values else ()
    timeout_secs = wait + _WAIT_SLACK_SECS
    client, count = network_of(source), parameters.count("count")
    if wait > 0:
        message = messages.List(prefix, count, wait, local, client, where=where, fail_where=failing)
        show, size_of = response.entries, response.size_of_entries
        return Ask(message, show, timeout_secs, heavy=True, patient=True, size_of=size_of)
    fitting = _Fitting(where, failing)
    message = messages.List(prefix, count, 0.0, local, client)
    return Ask(message, fitting.show, timeout_secs, heavy=True, size_of=fitting.size_of)


class _Fitting:
    """Show the entries that a List found; for a List that does not wait.

    The conditions are checked here, in a worker's thread: all entries have to be parsed for that, and in the
    registry's thread all other calls would wait.
    """

    def __init__(self, where: Conditions, fail_where: Conditions) -> None:
        self._where = where
        self._fail_where = fail_where
        self._shown: tuple[Record, ...] | None = None

    def _of(self, found: tuple[Record, ...] | Known) -> tuple[Record, ...]:
        if self._shown is None:
            records = found.records if isinstance(found, Known) else found
            self._shown = sort(records, self._where, self._fail_where).listed if self._where else records
        return self._shown

    def size_of(self, found: tuple[Record, ...] | Known) -> int:
        return response.size_of_entries(self._of(found))

    def show(self, found: tuple[Record, ...] | Known) -> Response:
        return response.entries(self._of(found), found.age_secs if isinstance(found, Known) else None)


def _ping(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Response:
    value = parameters.values.get("data", "")
    if isinstance(value, dict):
        echoed: dict[str, Any] = value  # the body is no entry, so keys that are reserved in entries are allowed
    elif isinstance(value, str):
        echoed = _echo(value, limits)
    else:
        echoed = {entry_values.TEXT_KEY: json.dumps(value, ensure_ascii=False)}
    return Response(200, json.dumps({"src": source, "data": echoed}, ensure_ascii=False).encode("utf-8", "replace"))


def _echo(text: str, limits: EntryLimits) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            value = entry_values.strict_json(text, max_depth=limits.depth)
        except json.JSONDecodeError:
            return {entry_values.TEXT_KEY: text}
        return dict(value)
    return {entry_values.TEXT_KEY: text}


def _condition(parameters: Parameters, fields: Mapping[str, str]) -> Condition:
    match, none_match = fields.get("if-match"), fields.get("if-none-match")
    lock = fence(parameters) if "lock" in parameters.values else None
    if match is None and none_match is None and lock is None:
        return messages.ALWAYS
    return Condition(
        None if match is None else tags_of("If-Match", match),
        None if none_match is None else tags_of("If-None-Match", none_match),
        lock,
    )


_READ: Final = ("GET", "POST")
_CHANGE: Final = ("POST",)

BUILT_IN: Final[Mapping[str, Mapping[str, Action]]] = {
    "services": {
        "Register": Action(_write(messages.Register), _CHANGE, a_name),
        "Replace": Action(_write(messages.Replace), _CHANGE, a_name),
        "Update": Action(_update, _CHANGE, a_name),
        "Delete": Action(_delete, ("POST", "DELETE"), a_name),
        "Get": Action(_get, _READ, a_name, keeps_source=False),
        "List": Action(_list, _READ, a_prefix, keeps_source=False),
        **ACTIONS,
    },
    "ping": {"Ping": Action(_ping, _READ, no_name, keeps_source=False)},
}

"""The calls of ``services`` with which servers coordinate: sessions, locks, numbers, taking, batches, watches. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bpbroker import messages
from bpbroker.errors import BadRequest, RequestError, TooLarge
from bpbroker.frontend.ask import Action, Ask, Decide, EntryLimits, a_name, no_name, tags_of
from bpbroker.frontend.parameters import Parameters
from bpbroker.messages import Condition, Deleted
from bpbroker.record import Record
from bpbroker.registry import entry_values, sessions
from bpbroker.registry.requests import (
    Ack,
    Allocate,
    Batch,
    BatchDone,
    Check,
    CheckEmpty,
    Close,
    Done,
    Event,
    Holder,
    Lock,
    Next,
    Open,
    Release,
    Renew,
    Take,
    Unlock,
    Watch,
    Watched,
)
from bpbroker.registry.rights import Need
from bpbroker.server import response
from bpbroker.server.budget import SMALL_BYTES
from bpbroker.server.request import network_of
from bpbroker.server.response import Response

_SLACK_SECS: Final = 30.0
_TEXT_MAX_BYTES: Final = 256
_BATCH_MAX: Final = 100
_BATCH_MAX_BYTES: Final = 1024 * 1024
_BATCH_SMALL_BYTES: Final = _BATCH_MAX_BYTES // 8
"""A smaller body need not be measured: escapes and spaces make JSON at most six times as large."""
_NUMBER_MAX: Final = 2**53 - 1
_YEAR_SECS: Final = 366 * 86_400
_LOCK_DATA_MAX_BYTES: Final = 4096


def _done(done: Done) -> Response:
    return response.success_with(done.data, done.revision)


def _session(parameters: Parameters) -> str:
    if parameters.text("session") is None:
        raise BadRequest("Missing session parameter")
    return sessions.check_id(parameters.text("session"))


def _word(parameters: Parameters, name: str) -> str:
    """Return a short text that must be there, such as an owner or a receiver."""
    value = parameters.text(name)
    if value is None:
        raise BadRequest(f"Missing {name} parameter")
    if not value.strip() or not value.isprintable() or len(value.encode("utf-8", "replace")) > _TEXT_MAX_BYTES:
        raise BadRequest(f"The parameter {name} must be printable text of 1 to {_TEXT_MAX_BYTES} bytes")
    if value in (*entry_values.STAMP_KEYS, *entry_values.STORED_KEYS):
        raise BadRequest(f"The parameter {name} must not be {value}: this is a field of the broker's own")
    return value


def _number(parameters: Parameters, name: str, default: int | None, *, least: int = 0) -> int | None:
    text = parameters.text(name)
    if text is None or text == "":
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 16) or not least <= int(text) <= _NUMBER_MAX:
        raise BadRequest(f"The parameter {name} must be a whole number from {least} to {_NUMBER_MAX}")
    return int(text)


def _open(parameters: Parameters, _fields: Mapping[str, str], source: str, _limits: EntryLimits) -> Ask:
    session = _session(parameters)
    text = parameters.text("ttl") or ""
    try:
        ttl = float(text)
    except ValueError:
        ttl = -1.0
    if not sessions.TTL_MIN_SECS <= ttl <= sessions.TTL_MAX_SECS:
        raise BadRequest(
            f"The parameter ttl must be a number of seconds from {sessions.TTL_MIN_SECS:g} to {sessions.TTL_MAX_SECS:g}"
        )
    return Ask(Open(session, int(ttl) if ttl == int(ttl) else ttl, source), _done)


def _renew(parameters: Parameters, _fields: Mapping[str, str], _source: str, _limits: EntryLimits) -> Ask:
    return Ask(Renew(_session(parameters)), _renewed)


def _renewed(done: Done) -> Response:
    # Nothing is asked as often, and neither value needs an escape.
    data = b'{"session": "%b", "ttl": %b}' % (done.data["session"].encode(), str(done.data["ttl"]).encode())
    return response.success(data, revision=done.revision)


def _close(parameters: Parameters, _fields: Mapping[str, str], _source: str, _limits: EntryLimits) -> Ask:
    return Ask(Close(_session(parameters)), _done)


def _lock(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    name = parameters.name(limits.name_bytes)
    wait = parameters.seconds("wait")
    data = parameters.values.get("data")
    if isinstance(data, str):
        try:
            data = entry_values.strict_json(data, max_depth=limits.depth)
        except json.JSONDecodeError:
            pass  # plain text is allowed, too
    if len(json.dumps(data).encode()) > _LOCK_DATA_MAX_BYTES:
        raise TooLarge(f"The data of a lock is larger than {_LOCK_DATA_MAX_BYTES} bytes")
    most = _number(parameters, "limit", 1, least=1) or 1
    message = Lock(name, _session(parameters), source, most, data, wait, network_of(source))
    return Ask(message, _done, wait + _SLACK_SECS, patient=wait > 0)


def _unlock(parameters: Parameters, _fields: Mapping[str, str], _source: str, limits: EntryLimits) -> Ask:
    return Ask(Unlock(parameters.name(limits.name_bytes), _session(parameters)), _done)


def _holder(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    wait = parameters.seconds("wait")
    unless = _number(parameters, "changed_from", None)
    message = Holder(parameters.name(limits.name_bytes), wait, unless, network_of(source))
    return Ask(message, _done, wait + _SLACK_SECS, patient=wait > 0)


def _pool(parameters: Parameters, limits: EntryLimits) -> str:
    value = parameters.values.get("pool")
    if value is None:
        raise BadRequest("Missing pool parameter")
    return entry_values.check_name(value, max_bytes=limits.name_bytes)


def _allocate(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    low = _number(parameters, "from", 1)
    high = _number(parameters, "to", 255)
    number = _number(parameters, "number", None)
    if low is None or high is None or low > high:
        raise BadRequest(f"The parameter from must not be larger than to: {low} and {high}")
    if number is not None and not low <= number <= high:
        raise BadRequest(f"The parameter number must be from {low} to {high}")
    pool, owner, held = _pool(parameters, limits), _word(parameters, "owner"), _held(parameters)
    return Ask(Allocate(pool, owner, source, low, high, number, held), _done)


def _release(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    rest = _number(parameters, "quarantine", 0) or 0
    if rest > _YEAR_SECS:
        raise BadRequest(f"The parameter quarantine must be a number of seconds from 0 to {_YEAR_SECS}")
    pool, owner, held = _pool(parameters, limits), _word(parameters, "owner"), _held(parameters)
    return Ask(Release(pool, owner, source, float(rest), held), _done)


def _next(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    by = _number(parameters, "by", 1, least=-_NUMBER_MAX) or 0
    owner = _word(parameters, "owner") if parameters.text("owner") else ""
    return Ask(Next(parameters.name(limits.name_bytes), source, by, owner, _held(parameters)), _done)


def _take(parameters: Parameters, _fields: Mapping[str, str], _source: str, limits: EntryLimits) -> Ask:
    name, receiver = parameters.name(limits.name_bytes), _word(parameters, "receiver")
    return Ask(Take(name, receiver, _held(parameters)), response.entry)


def _ack(parameters: Parameters, _fields: Mapping[str, str], _source: str, limits: EntryLimits) -> Ask:
    name, receiver = parameters.name(limits.name_bytes), _word(parameters, "receiver")
    return Ask(Ack(name, receiver, _held(parameters)), _done)


# --- batches ---


def _batch(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    values = parameters.values
    operations, atomic, batch = values.get("operations"), values.get("atomic", True), values.get("id", "")
    if not isinstance(operations, list) or not operations:
        raise BadRequest('operations must be a list of objects, such as {"method": "Register", "name": …}')
    if len(operations) > _BATCH_MAX:
        raise BadRequest(f"A batch has at most {_BATCH_MAX} operations; these are {len(operations)}")
    if not isinstance(atomic, bool):
        raise BadRequest("atomic must be true or false")
    if not isinstance(batch, str) or (batch and not batch.isprintable()) or len(batch.encode()) > _TEXT_MAX_BYTES:
        raise BadRequest(f"id must be printable text of at most {_TEXT_MAX_BYTES} bytes")
    small = parameters.body_bytes is not None and parameters.body_bytes <= _BATCH_SMALL_BYTES
    if not small and len(json.dumps(operations).encode()) > _BATCH_MAX_BYTES:
        raise TooLarge(f"The operations of a batch are larger than {_BATCH_MAX_BYTES} bytes together")
    found, names = [], set()
    for number, operation in enumerate(operations):
        try:
            message = _operation(operation, source, limits)
            name = getattr(message, "name", None)
            if name is not None and name in names:
                raise BadRequest(f"The name '{name}' occurs twice in the batch")
        except RequestError as error:
            error.failed = number
            raise
        names.add(name)
        found.append(message)
    digest = hashlib.sha256(json.dumps(operations, sort_keys=True).encode()).hexdigest() if batch else ""
    return Ask(Batch(batch, tuple(found), atomic, digest), _show_batch, heavy=True)


def _operation(value: object, source: str, limits: EntryLimits) -> Any:
    if not isinstance(value, dict):
        raise BadRequest("An operation must be an object")
    method = value.get("method")
    decide = OPERATIONS.get(method) if isinstance(method, str) else None
    if not isinstance(method, str) or decide is None:
        raise BadRequest(f"method must be one of {', '.join(OPERATIONS)}")
    if not value.keys() <= _KEYS[method]:  # a condition with a typing error must not be ignored
        unknown = next(key for key in value if key not in _KEYS[method])
        raise BadRequest(f"{method} in a batch takes no {unknown!r}; it takes {', '.join(_TAKEN[method])}")
    return decide(Parameters(value, ()), _NO_FIELDS, source, limits)


_NO_FIELDS: Final[Mapping[str, str]] = {}
_EXPECTS: Final = ("if_match", "if_none_match", "lock")
_CONDITIONS: Final = frozenset(_EXPECTS)


def operation_condition(parameters: Parameters) -> Condition:
    """Return the condition in an operation's parameters, which have the tags in the form of the header fields."""
    if _CONDITIONS.isdisjoint(parameters.values):  # as most have none
        return messages.ALWAYS
    match, none_match = parameters.text("if_match"), parameters.text("if_none_match")
    lock = fence(parameters)
    if match is None and none_match is None and lock is None:
        return messages.ALWAYS
    return Condition(
        None if match is None else tags_of("if_match", _quoted(match)),
        None if none_match is None else tags_of("if_none_match", _quoted(none_match)),
        lock,
    )


def _quoted(tag: str) -> str:
    return tag if tag.strip() == "*" or '"' in tag else f'"{tag}"'


def fence(parameters: Parameters) -> tuple[str, int] | None:
    """Return the lock and the token that a write depends on; None if it names no lock.

    Raises:
        BadRequest: it is not NAME:TOKEN.
    """
    text = parameters.text("lock")
    if text is None:
        return None
    name, _, token = text.rpartition(":")
    if not name or not (token.isascii() and token.isdigit() and len(token) <= 16):
        raise BadRequest("The parameter lock must be NAME:TOKEN, as Lock answered")
    return name, int(token)


def _held(parameters: Parameters) -> Condition:
    """Return the condition of a write that may depend on a lock, but on nothing else."""
    lock = fence(parameters)
    return messages.ALWAYS if lock is None else Condition(lock=lock)


def update_of(
    parameters: Parameters, source: str, limits: EntryLimits, condition: messages.Condition
) -> messages.Update:
    """Return the message of an update, alone or in a batch."""
    name = parameters.name(limits.name_bytes)
    unset = parameters.unset()
    data = parameters.data(limits.data_bytes, limits.depth, needed=not unset)
    session = session_of(parameters) if "session" in parameters.values else None
    return messages.Update(name, data, source, condition, session, unset)


def _written(kind: type[messages.Register | messages.Replace]) -> Any:
    def decide(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Any:
        data = parameters.data(limits.data_bytes, limits.depth)
        name = parameters.name(limits.name_bytes)
        return kind(name, data, source, operation_condition(parameters), session_of(parameters))

    return decide


def session_of(parameters: Parameters) -> str | None:
    """Return the session that a write names. None: it names none; empty: take the entry out of its session."""
    session = parameters.text("session")
    return sessions.check_id(session) if session else session


def _check(parameters: Parameters, _fields: Mapping[str, str], _source: str, limits: EntryLimits) -> Check:
    condition = operation_condition(parameters)
    if condition is messages.ALWAYS:
        raise BadRequest("Check needs if_match, if_none_match or lock")
    return Check(parameters.name(limits.name_bytes), condition)


def _check_empty(parameters: Parameters, _fields: Mapping[str, str], _source: str, _limits: EntryLimits) -> CheckEmpty:
    prefix = parameters.text("prefix")
    if prefix is None or prefix.startswith("_"):
        raise BadRequest("CheckEmpty needs a prefix that does not begin with _")
    return CheckEmpty(prefix)


def _message_of(decide: Decide) -> Any:
    def message(parameters: Parameters, fields: Mapping[str, str], source: str, limits: EntryLimits) -> Any:
        asked = decide(parameters, fields, source, limits)
        return asked.message if isinstance(asked, Ask) else asked

    return message


OPERATIONS: Final[Mapping[str, Any]] = {
    "Register": _written(messages.Register),
    "Replace": _written(messages.Replace),
    "Update": lambda parameters, _fields, source, limits: update_of(
        parameters, source, limits, operation_condition(parameters)
    ),
    "Delete": lambda parameters, _fields, _source, limits: messages.Delete(
        parameters.name(limits.name_bytes), operation_condition(parameters)
    ),
    "Get": lambda parameters, _fields, _source, limits: messages.Get(parameters.name(limits.name_bytes)),
    "List": lambda parameters, _fields, _source, _limits: messages.List(parameters.text("prefix") or ""),
    "Check": _check,
    "CheckEmpty": _check_empty,
    "Allocate": _message_of(_allocate),
    "Release": _message_of(_release),
    "Next": _message_of(_next),
    "Take": _message_of(_take),
    "Ack": _message_of(_ack),
}

_TAKEN: Final[Mapping[str, tuple[str, ...]]] = {
    "Register": ("name", "data", "session", *_EXPECTS),
    "Replace": ("name", "data", "session", *_EXPECTS),
    "Update": ("name", "data", "unset", "session", *_EXPECTS),
    "Delete": ("name", *_EXPECTS),
    "Get": ("name",),
    "List": ("prefix",),
    "Check": ("name", *_EXPECTS),
    "CheckEmpty": ("prefix",),
    "Allocate": ("pool", "owner", "from", "to", "number", "lock"),
    "Release": ("pool", "owner", "quarantine", "lock"),
    "Next": ("name", "by", "owner", "lock"),
    "Take": ("name", "receiver", "lock"),
    "Ack": ("name", "receiver", "lock"),
}
"""The parameters of each operation of a batch."""
_KEYS: Final = {method: frozenset({"method", *taken}) for method, taken in _TAKEN.items()}


def _shown(found: Any) -> bytes:
    """Return the result of one operation of a batch as JSON; entries are copied as they are stored, not parsed."""
    if isinstance(found, Record):
        return b'{"status": 200, "data": %b, "revision": %d}' % (found.json, found.revision)
    if type(found) is tuple:  # the entries that a List found
        names = [response.as_json(each.name).encode() for each in found]
        entries = b", ".join([b"%b: %b" % (name, each.json) for name, each in zip(names, found, strict=True)])
        revisions = b", ".join([b"%b: %d" % (name, each.revision) for name, each in zip(names, found, strict=True)])
        newest = max([each.revision for each in found], default=0)
        return b'{"status": 200, "data": {%b}, "revisions": {%b}, "revision": %d}' % (entries, revisions, newest)
    shown: dict[str, Any]
    if isinstance(found, RequestError):
        shown = {"status": found.status, "message": str(found), "data": dict(found.data or {})}
        if found.entry_revision is not None:
            shown["revision"] = found.entry_revision
    elif isinstance(found, Deleted):
        shown = {"status": 200, "data": {}, "revision": found.revision}
    elif isinstance(found, Done):
        shown = {"status": 200, "data": dict(found.data), "revision": found.revision}
    else:
        shown = {"status": 500, "message": "This operation failed; the broker's log has the reason"}
    return response.as_json(shown).encode("utf-8", "replace")


def _show_batch(done: BatchDone) -> Response:
    return response.success(b'{"results": [%b]}' % b", ".join(map(_shown, done.results)), revision=done.revision)


# --- watches ---


def _watch(parameters: Parameters, _fields: Mapping[str, str], source: str, limits: EntryLimits) -> Ask:
    wait = parameters.seconds("wait")
    name = parameters.name(limits.name_bytes) if parameters.values.get("name") is not None else None
    prefix = parameters.text("prefix") or ""
    if name is not None and prefix:
        raise BadRequest("Watch takes a name or a prefix, not both")
    if prefix.startswith("_"):
        raise BadRequest("Names that begin with _ are the broker's own")
    most = _number(parameters, "limit", 1000, least=1) or 1000
    message = Watch(prefix, name, parameters.text("since"), wait, min(most, 10_000), network_of(source))
    return Ask(message, _show_watched, wait + _SLACK_SECS, patient=wait > 0, heavy_if=_has_many)


_FEW: Final = 100
"""Events that are shown in about half a millisecond."""


def _has_many(watched: Watched) -> bool:
    return len(watched.events) > _FEW or sum([len(e.record.json) for e in watched.events if e.record]) > SMALL_BYTES


_last_shown: tuple[Watched | None, Response | None] = (None, None)


def _show_watched(watched: Watched) -> Response:
    """Return the response to a watch. Many watches get the same one at the same time, so it is made once."""
    global _last_shown  # noqa: PLW0603 - a cache of one value, replaced as a whole
    known, shown = _last_shown
    if known is watched and shown is not None:
        return shown
    events = b", ".join(map(_event, watched.events))
    body = b'{"events": [%b], "cursor": %b}' % (events, json.dumps(watched.cursor).encode())
    revision = int(watched.cursor.rpartition(":")[2])
    shown = response.success(body, revision=revision)
    _last_shown = (watched, shown)
    return shown


def _event(event: Event) -> bytes:
    head = json.dumps({"type": event.type, "name": event.name, "revision": event.revision}, ensure_ascii=False).encode()
    return head if event.record is None else b'%b, "entry": %b}' % (head[:-1], event.record.json)


def asks_for_lost(parameters: Parameters) -> bool:
    """Return whether a List asks for entries that ended with their session, instead of those that exist.

    Raises:
        BadRequest: the parameter is neither 0 nor 1, or the call asks for both.
    """
    text = parameters.text("lost") or "0"
    if text not in ("0", "1"):
        raise BadRequest("The parameter lost must be 1 or 0")
    beside = next((name for name in ("where", "fail_where", "count", "wait") if name in parameters.values), None)
    if text == "1" and beside is not None:
        raise BadRequest(f"With lost, List takes no {beside}")
    return text == "1"


def lost(records: tuple[Record, ...]) -> Response:
    """Return the entries that ended with their session lately, by name."""
    newest = max([record.revision for record in records], default=0)
    return response.success_with({record.name: json.loads(record.json) for record in records}, newest)


_POST: Final = ("POST",)
_READ: Final = ("GET", "POST")


def _a_pool(namespace: str, method: str, parameters: Parameters) -> tuple[Need, ...]:
    return (Need(namespace, method, str(parameters.values.get("pool", ""))),)


def _a_name_or_prefix(namespace: str, method: str, parameters: Parameters) -> tuple[Need, ...]:
    found = parameters.values.get("name")
    return (Need(namespace, method, str(parameters.values.get("prefix", "") if found is None else found)),)


_CHECKS: Final = {"Check": "Get", "CheckEmpty": "List"}
"""The results of a batch's operations are shown as these methods show theirs."""

_ABOUT: Final = {"Allocate": "pool", "Release": "pool", "List": "prefix", "CheckEmpty": "prefix"}
"""The parameter with the subject of an operation, where that is not ``name``."""


def _operations(namespace: str, _method: str, parameters: Parameters) -> Iterator[Need]:
    """Yield the needs of a batch's operations; a value that is no operation is refused later."""
    operations = parameters.values.get("operations")
    for operation in operations if isinstance(operations, list) else ():
        method = operation.get("method") if isinstance(operation, dict) else None
        if isinstance(method, str) and method in OPERATIONS:
            about = operation.get(_ABOUT.get(method, "name"), "")
            yield Need(namespace, _CHECKS.get(method, method), str(about))


ACTIONS: Final[Mapping[str, Action]] = {
    "Open": Action(_open, _POST, no_name),
    "Renew": Action(_renew, _POST, no_name, keeps_source=False),
    "Close": Action(_close, _POST, no_name),
    "Lock": Action(_lock, _POST, a_name),
    "Unlock": Action(_unlock, _POST, a_name),
    "Holder": Action(_holder, _READ, a_name, keeps_source=False),
    "Allocate": Action(_allocate, _POST, _a_pool),
    "Release": Action(_release, _POST, _a_pool),
    "Next": Action(_next, _POST, a_name),
    "Take": Action(_take, _POST, a_name),
    "Ack": Action(_ack, _POST, a_name),
    "Batch": Action(_batch, _POST, _operations),
    "Watch": Action(_watch, _READ, _a_name_or_prefix, keeps_source=False),
}

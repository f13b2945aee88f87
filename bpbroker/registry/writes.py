"""What each kind of write does to the registry. Pure functions of the current state.

A write sees the state through a :class:`~bpbroker.registry.view.View` and changes it there. Its reads and changes
belong together: they are committed if all that it read is unchanged.

To add a kind of write:

1. its message in ``messages.py`` or ``registry/requests.py``, a frozen dataclass;
2. its function here or beside: ``(write, view, limits)`` → the reply, or a refusal that it raises;
3. one row in :data:`WRITES`.

The registry accepts it then, on each store: it decides the write on the staged state, commits it with others, decides
again after a conflict, and replies when the change is durable. CONTRIBUTING.md has the other steps: how clients and
extensions call it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from bpbroker.errors import AlreadyExists, BadRequest, NotFound, PreconditionFailed, RequestError, TooLarge
from bpbroker.messages import (
    ALWAYS,
    ChangeKey,
    Condition,
    Delete,
    Deleted,
    Get,
    List,
    Register,
    Replace,
    ShareSecret,
    Update,
)
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry import discovery_secret, entry_values, locks, named_keys, numbers, session_end, sessions, taking
from bpbroker.registry.requests import (
    Ack,
    Allocate,
    Batch,
    BatchDone,
    Check,
    CheckEmpty,
    Close,
    Done,
    Expire,
    Forget,
    Listing,
    Lock,
    Next,
    Open,
    Release,
    Rest,
    Take,
    Unlock,
)
from bpbroker.registry.view import Limits, View

Write = (
    Register | Replace | Update | Delete | Open | Close | Expire | Forget | Lock | Unlock | Allocate | Release | Next
    | Rest | Take | Ack | Batch | ChangeKey | ShareSecret
)  # fmt: skip


def _register(write: Register, view: View, _limits: Limits) -> Record:
    current = view.get(write.name)
    if current is not None:
        raise _about(current, AlreadyExists, lambda _: f"Entry '{write.name}' already exists")
    return _put(write, view, write.data, None)


def _replace(write: Replace, view: View, _limits: Limits) -> Record:
    return _put(write, view, write.data, view.get(write.name))


def _update(write: Update, view: View, limits: Limits) -> Record:
    own, current = write.data, view.get(write.name)
    if current is None and write.unset and not own:
        raise NotFound(f"Entry '{write.name}' not found")
    if current is not None:
        before = entry_values.without_stamp(json.loads(current.json))
        for path in write.unset:
            entry_values.unset(before, path)
        own = entry_values.deep_merge(before, own)
        if len(entry_values.encode(own)) > limits.data_bytes:
            raise TooLarge(f"The merged entry would be larger than {limits.data_bytes} bytes; nothing was changed")
    return _put(write, view, own, current)


def _put(write: Register | Replace | Update, view: View, own: Any, current: Record | None) -> Record:
    session = write.session
    if session:
        sessions.must_live(view, session)
    elif session is None:
        session = current.session if current is not None else ""
    return view.put(write.name, entry_values.stamped(own, write.source, view.now), session)


def _delete(write: Delete, view: View, _limits: Limits) -> Deleted:
    taking.destroy(view, write.name)
    if view.get(write.name) is None:
        return Deleted()
    view.delete(write.name)
    return Deleted(view.index)


def _get(read: Get, view: View, _limits: Limits) -> Record:
    found = view.get(read.name)
    if found is None:
        raise NotFound(f"Entry '{read.name}' not found")
    return found


def _list(read: List, view: View, _limits: Limits) -> tuple[Record, ...] | Listing:
    # The registry's own records, such as entries that were taken, are no entries.
    return () if read.prefix.startswith("_") else view.entries(read.prefix)


def _check(write: Check, view: View, limits: Limits) -> Done:
    _check_condition(write.name, write.condition, view, limits)
    return Done()


def _check_empty(write: CheckEmpty, view: View, _limits: Limits) -> Done:
    there = [name for name in view.names(write.prefix, _NAMED) if view.get(name) is not None]
    if there:
        raise PreconditionFailed(f"There are entries '{write.prefix}…': {entry_values.shown_names(there)}")
    view.must_stay_empty(write.prefix)
    return Done()


def _batch(write: Batch, view: View, limits: Limits) -> BatchDone:
    return _together(write, view, limits) if write.atomic else _each(write, view, limits)


def _each(write: Batch, view: View, limits: Limits) -> BatchDone:
    """Carry out operations that stand alone: each is done or refused by itself, and sees those before it."""
    results: list[Any] = []
    sure = set()
    for number, operation in enumerate(write.operations):
        try:
            found = decide(operation, view, limits, _ALONE)
            _check_size(_size_of(found))
        except RequestError as refused:
            found = refused
            view.changes.clear()
        results.append(found)
        if view.keep():
            sure.add(number)
    return BatchDone(tuple(results), sure=frozenset(sure))


def _together(write: Batch, view: View, limits: Limits) -> BatchDone:
    key = f"_batch/{write.id}"
    done = view.get(key) if write.id else None
    if done is not None:
        return _repeated(write, view, limits, done)
    results, size_bytes = [], 0
    for number, operation in enumerate(write.operations):
        try:
            results.append(decide(operation, view, limits, _OPERATIONS))
            size_bytes += _size_of(results[-1])
            _check_size(size_bytes)
        except RequestError as error:
            error.failed = number
            raise
    # Reads see the state after the whole batch.
    for number, operation in enumerate(write.operations):
        read = _READS.get(type(operation))
        if read is not None:
            try:
                results[number] = read(operation, view, limits)
                size_bytes += _size_of(results[number])
                _check_size(size_bytes)
            except RequestError as error:
                error.failed = number
                raise
    if write.id:
        noted = {"when": int(view.now), "operations": len(results), "digest": write.digest}
        view.put(key, json.dumps(noted).encode())
    return BatchDone(tuple(results), view.index if view.changes else 0)


def _size_of(found: Any) -> int:
    """Return the bytes of the entries that an operation made or read."""
    if type(found) is Record:
        return len(found.json)
    records = found if type(found) is tuple else (found,)
    return sum([len(record.json) for record in records if isinstance(record, Record)])


def _check_size(size_bytes: int) -> None:
    if size_bytes > _ENTRIES_MAX_BYTES:
        raise _too_large()


def _too_large() -> TooLarge:
    return TooLarge(
        f"The entries that this batch writes and reads have more than {_ENTRIES_MAX_BYTES} bytes together;"
        " make several of it, or read with List"
    )


def within_reply(operations: Sequence[Any], results: Sequence[Any]) -> tuple[Any, ...]:
    """Return the results of operations that stand alone; as many results of reads as fit into one reply."""
    kept, size_bytes = list(results), 0
    for number, found in enumerate(results):
        size_bytes += _size_of(found)
        if size_bytes > _ENTRIES_MAX_BYTES and type(operations[number]) in _READS:
            size_bytes -= _size_of(found)
            kept[number] = _too_large()
    return tuple(kept)


def _repeated(write: Batch, view: View, limits: Limits, done: Record) -> BatchDone:
    """Return the results of a batch that was carried out before: the current state, without refusals.

    Raises:
        AlreadyExists: another batch had this id.
    """
    if json.loads(done.json).get("digest", write.digest) != write.digest:
        raise AlreadyExists(
            f"Another batch of the id '{write.id}' was carried out, so nothing was changed: give each an id of its own"
        )
    results: list[Any] = []
    for operation in write.operations:
        if isinstance(operation, List):
            results.append(_list(operation, view, limits))
            continue
        name = getattr(operation, "name", "")
        found = view.get(name) if name else None
        results.append(found if found is not None else Done(revision=done.revision))
    return BatchDone(tuple(results), done.revision)


def _forget(write: Forget, view: View, _limits: Limits) -> Done:
    for name in write.names:
        if view.get(name) is not None:
            view.delete(name)
    return Done()


def _change_key(write: ChangeKey, view: View, _limits: Limits) -> Record:
    current = view.get(write.name)
    value = None if current is None else json.loads(current.json)
    after = named_keys.changed(write.kind, write.name.removeprefix(named_keys.PREFIX), value, write.given, view.now)
    if current is not None and after == value:
        return current
    return view.put(write.name, entry_values.encode(after))


def _share_secret(write: ShareSecret, view: View, _limits: Limits) -> Record:
    if not discovery_secret.is_secret(write.secret):
        raise BadRequest("A discovery secret is 64 lower-case hexadecimal digits")
    current = view.get(write.name)
    if current is not None and not write.renew and discovery_secret.secret_of(current.json):
        return current
    return view.put(write.name, entry_values.encode(discovery_secret.stored(write.secret, view.now)))


Rule = Callable[[Any, View, Limits], Any]

WRITES: Final[dict[type[Any], Rule]] = {
    Register: _register,
    Replace: _replace,
    Update: _update,
    Delete: _delete,
    Open: sessions.open_session,
    Close: session_end.close,
    Expire: session_end.expire,
    Forget: _forget,
    Lock: locks.lock,
    Unlock: locks.unlock,
    Allocate: numbers.allocate,
    Release: numbers.release,
    Rest: numbers.rest,
    Next: numbers.count,
    Take: taking.take,
    Ack: taking.ack,
    Batch: _batch,
    ChangeKey: _change_key,
    ShareSecret: _share_secret,
}
"""Message type to its rule."""


class Change(NamedTuple):
    """The outcome of a change, as it is logged."""

    method: str
    """As it is called, such as ``Register``."""
    name: str
    """Name of the entry, lock, pool or session that it is about; empty for a batch."""
    status: int
    """As of an HTTP response."""
    revision: int
    """0 if nothing was changed."""


def changes_of(write: Any, outcome: Any) -> Iterator[Change]:
    """Yield the outcome of a write; for a batch, of each write among its operations.

    Args:
        write: of a type that is in :data:`WRITES`.
        outcome: its reply, or the error that refused it.
    """
    if isinstance(write, Batch) and isinstance(outcome, BatchDone):
        pairs: Iterable[tuple[Any, Any]] = zip(write.operations, outcome.results, strict=True)
    else:
        pairs = ((write, outcome),)
    for message, result in pairs:
        kind = type(message)
        if kind not in WRITES:
            continue
        about = getattr(message, "name", None) or getattr(message, "pool", None) or getattr(message, "session", "")
        status = int(result.status) if isinstance(result, RequestError) else 200
        yield Change(kind.__name__, about or "", status, getattr(result, "revision", 0))
        if type(result) is Done:
            yield from ended_with(result.ended, result.revision)


def ended_with(names: Iterable[str], revision: int) -> Iterator[Change]:
    """Yield the changes by the end of a session: deleted entries, places in locks given back."""
    for name in names:
        is_lock = name.startswith(locks.PREFIX)
        yield Change("Unlock" if is_lock else "Delete", locks.lock_of(name) if is_lock else name, 200, revision)


_OPERATIONS: Final[dict[type[Any], Rule]] = {
    **{kind: WRITES[kind] for kind in (Register, Replace, Update, Delete, Allocate, Release, Next, Take, Ack)},
    Get: lambda *_: None,
    List: lambda *_: None,
    Check: _check,
    CheckEmpty: _check_empty,
}
"""Operations that a batch may have."""

_READS: Final[dict[type[Any], Rule]] = {Get: _get, List: _list}
"""Reads that a batch may have; they see all its writes."""

_ALONE: Final[dict[type[Any], Rule]] = {**_OPERATIONS, **_READS}
"""Operations that a batch may have if they stand alone."""

_ENTRIES_MAX_BYTES: Final = 8 * 1024 * 1024
"""The most bytes of entries that one batch may write and read: the registry's thread does nothing else meanwhile."""
_NAMED: Final = 11
"""How many names a refusal reads: one more than it shows."""
_NEW: Final = (Register, Replace, Update)


def decide(write: Any, view: View, limits: Limits, rules: dict[type[Any], Rule] = WRITES) -> Any:
    """Carry out a write on a view, and return its reply for the time when the commit is durable.

    Raises:
        RequestError: a refusal; the changes in the view must not be used.
    """
    kind = type(write)
    if kind in _NEW:
        entry_values.check_new_name(write.name)
        taking.must_be_free(view, write.name)
    condition = getattr(write, "condition", ALWAYS)
    if condition is not ALWAYS and kind is not Check:
        _check_condition(getattr(write, "name", ""), condition, view, limits)
    return rules[kind](write, view, limits)


def _check_condition(name: str, condition: Condition, view: View, limits: Limits) -> None:
    """Check ``If-Match`` and ``If-None-Match`` as RFC 9110, section 13.1, defines them, and a lock's token."""
    if condition.lock is not None:
        locks.must_hold(view, *condition.lock, limits)
    if condition.match is None and condition.none_match is None:
        return
    current = view.get(name)
    if condition.match is not None and (current is None or not _tagged(condition.match, current)):
        if current is None:
            raise PreconditionFailed(f"Entry '{name}' is not as expected: it does not exist")
        raise _about(
            current, PreconditionFailed, lambda there: f"Entry '{name}' is not as expected: its tag is {there.etag}"
        )
    # Weak comparison here, strong above: a weak tag must never allow a write.
    none_match = condition.none_match
    if none_match is not None and current is not None and _tagged((t.removeprefix("W/") for t in none_match), current):
        raise _about(
            current,
            PreconditionFailed,
            lambda there: f"Entry '{name}' is not as expected: it exists with tag {there.etag}",
        )


def _tagged(tags: Iterable[str], current: Record) -> bool:
    # What is not durable yet has no tag that a client could know.
    known = ("*", current.etag) if current.revision >= INDEX_MAX else ("*",)
    return any(tag in known for tag in tags)


def _about(current: Record, kind: type[RequestError], text: Callable[[Record], str]) -> RequestError:
    """Return a refusal for the state of an entry; it has the revision when its commit is durable."""
    error = kind(text(current))
    error.entry_revision = current.revision
    if current.revision < INDEX_MAX:
        error.when_durable = lambda revision: _about(current.at(revision), kind, text)
    return error

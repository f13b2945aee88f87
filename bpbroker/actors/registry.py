"""The registry actor: owns all entries and the store in which they last.

Group commit: a write is decided against the entries and the writes waiting
before it, staged, and one ``Flush`` is queued behind what is in the inbox
already. That flush commits everything staged in one transaction, then the
entries change and all callers are answered. What was decided on a staged
state, a refusal too, is answered only when that state is durable; a ``Get`` of
a staged name waits for the flush.
"""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from bpbroker import entry, schema
from bpbroker.actors.base import DEFERRED, Actor, Wake
from bpbroker.actors.waiting import Waiting
from bpbroker.errors import (
    AlreadyExists,
    BpbrokerError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    RequestError,
    StorageFailed,
    TooLarge,
    Unavailable,
)
from bpbroker.messages import (
    Condition,
    Delete,
    Exists,
    Get,
    List,
    Pong,
    Record,
    Register,
    Replace,
    Settings,
    SettingsChanged,
    Snapshot,
    SnapshotSaved,
    SnapshotTaken,
    Update,
    fail,
    settle,
)
from bpbroker.stores import Change, Conflict, Store

logger = logging.getLogger(__name__)

Write = Register | Replace | Update | Delete

_ATTEMPTS = 8
"""How often a write is decided again when a shared store turns out to hold something newer."""


@dataclass(frozen=True, slots=True)
class _Flush:
    """The registry to itself: commit what is staged."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A write that was decided and waits for the flush."""

    message: Write
    reply: Future[Any] | None
    verdict: Record | RequestError | None
    """What to answer once the state that it was decided on is durable."""
    attempt: int


class Registry(Actor):
    """Owns the entries.

    Args:
        open_store: makes the store; called in the actor's thread.
        settings: the settings in force.
    """

    def __init__(self, open_store: Callable[[], Store], settings: Settings) -> None:
        super().__init__()
        self._open_store = open_store
        self._store: Store | None = None
        self._entries: dict[str, Record] = {}
        self._names: list[str] | None = None
        """The names in order, or None since one came or went."""
        self._staged: dict[str, Record | None] = {}
        self._batch: list[_Pending] = []
        self._behind: list[tuple[Get, Future[Any]]] = []
        self._waiting = Waiting()
        self._problem = ""
        self._apply_settings(settings)
        self.handlers = {
            Register: self._write,
            Replace: self._write,
            Update: self._write,
            Delete: self._write,
            Get: self._get,
            List: self._list,
            Exists: lambda message: message.name in self._entries,
            Snapshot: self._snapshot,
            SnapshotSaved: self._snapshot_saved,
            SettingsChanged: lambda message: self._apply_settings(message.settings),
            _Flush: lambda _: self._flush(),
            Wake: lambda _: self._expire(),
        }

    def started(self) -> None:
        """Open the store and take its entries into memory."""
        self._store = self._open_store()
        self._entries = {name: _record(name, value) for name, value in self._store.load().items()}

    def stopped(self) -> None:
        """Commit what is staged, answer who waits, let go of the store."""
        self._flush()
        for waiter in self._waiting.all():
            fail(waiter.reply, Unavailable("The broker is stopping"))
        if self._store is not None:
            self._store.close()

    def status(self) -> Pong:
        """Give the number of entries and of waiting requests, and why writes fail if they do."""
        figures = {"entries": len(self._entries), "waiting": len(self._waiting), "inbox": self.actor_inbox.qsize()}
        return Pong(ok=not self._problem, detail=self._problem, figures=figures)

    def _apply_settings(self, settings: Settings) -> None:
        self._max_waiting: int = schema.option(settings, "api", "max_waiting")
        self._max_data_bytes: int = schema.option(settings, "api", "max_data_bytes")

    # --- writes ---

    def _write(self, message: Write) -> Any:
        self._decide(message, self.reply, attempt=1)
        return DEFERRED

    def _decide(self, message: Write, reply: Future[Any] | None, attempt: int) -> None:
        """Decide what a write does to the state as it will be after all writes before it, and stage that."""
        name = message.name
        staged = name in self._staged
        current = self._staged[name] if staged else self._entries.get(name)
        verdict: Record | RequestError | None
        try:
            verdict = self._outcome(message, current)
        except RequestError as error:
            if not staged:
                if reply is not None:
                    fail(reply, error)
                return
            verdict = error
        else:
            if verdict is not None or current is not None:
                self._staged[name] = verdict
            elif not staged:
                # Deleting what is not there changes nothing.
                if reply is not None:
                    settle(reply, None)
                return
        if not self._batch:
            self.tell_self(_Flush())
        self._batch.append(_Pending(message, reply, verdict, attempt))

    def _outcome(self, message: Write, current: Record | None) -> Record | None:
        """Give the entry after a write; pure but for the time of day."""
        _check_condition(message.name, message.condition, current)
        if isinstance(message, Delete):
            return None
        if isinstance(message, Register) and current is not None:
            raise AlreadyExists(f"Entry '{message.name}' already exists")
        own = message.data
        if isinstance(message, Update) and current is not None:
            own = entry.deep_merge(entry.without_stamp(json.loads(current.json)), own)
            if len(entry.encode(own)) > self._max_data_bytes:
                raise TooLarge(f"The merged entry would be larger than {self._max_data_bytes} bytes; nothing changed")
        return _record(message.name, entry.encode(entry.stamp(own, message.source, time.time())))

    def _flush(self) -> None:
        """Commit everything staged, then let it be seen."""
        batch, staged, behind = self._batch, self._staged, self._behind
        self._batch, self._staged, self._behind = [], {}, []
        lost: set[str] = set()
        if staged:
            changes = [
                Change(name, record.json if record else None, _tag(self._entries.get(name)))
                for name, record in staged.items()
            ]
            try:
                lost = self._commit(changes)
            except BpbrokerError as error:
                self._problem = str(error) if isinstance(error, StorageFailed) else ""
                for pending in batch:
                    if pending.reply is not None:
                        fail(pending.reply, error)
                batch = []
            else:
                for name, record in staged.items():
                    if name not in lost:
                        self._put(name, record)
        for pending in batch:
            if pending.message.name in lost:
                self._again(pending)
            elif pending.reply is not None:
                _answer(pending.reply, pending.verdict)
        for message, reply in behind:
            self._get_now(message, reply)

    def _commit(self, changes: list[Change]) -> set[str]:
        """Make the changes durable; give the names for which the store holds something newer than we knew."""
        if self._store is None:
            raise StorageFailed("The store is not open")
        lost = set()
        for change, outcome in zip(changes, self._store.commit(changes), strict=True):
            if isinstance(outcome, Conflict):
                self._put(change.name, None if outcome.value is None else _record(change.name, outcome.value))
                lost.add(change.name)
        return lost

    def _again(self, pending: _Pending) -> None:
        if pending.attempt < _ATTEMPTS:
            self._decide(pending.message, pending.reply, pending.attempt + 1)
        elif pending.reply is not None:
            fail(pending.reply, Overloaded(f"Entry '{pending.message.name}' changes too fast; nothing was changed"))

    def _put(self, name: str, record: Record | None) -> None:
        """Let a durable change be seen, and wake who waited for it."""
        before = self._entries.get(name)
        if record is None:
            self._entries.pop(name, None)
        else:
            self._entries[name] = record
        if (before is None) != (record is None):
            self._names = None
            for waiter in self._waiting.counted(name, 1 if before is None else -1):
                settle(waiter.reply, self._matching(waiter.message.prefix))
        if record is not None:
            for reply in self._waiting.appeared(name, record.etag):
                settle(reply, record)

    # --- reads ---

    def _get(self, message: Get) -> Any:
        if self.reply is None:
            return None
        if message.name in self._staged:
            self._behind.append((message, self.reply))
        else:
            self._get_now(message, self.reply)
        return DEFERRED

    def _get_now(self, message: Get, reply: Future[Any]) -> None:
        record = self._entries.get(message.name)
        if record is not None and (message.unless_etag is None or record.etag != message.unless_etag):
            settle(reply, record)
        elif message.wait_secs > 0:
            self._wait(message, reply, 0)
        else:
            _answer(reply, record if record is not None else _not_found(message.name))

    def _list(self, message: List) -> Any:
        records = self._matching(message.prefix)
        if len(records) >= message.at_least or message.wait_secs <= 0 or self.reply is None:
            return records
        self._wait(message, self.reply, len(records))
        return DEFERRED

    def _matching(self, prefix: str) -> tuple[Record, ...]:
        if self._names is None:
            self._names = sorted(self._entries)
        names, entries = self._names, self._entries
        if not prefix:
            return tuple(entries[name] for name in names)
        start = bisect_left(names, prefix)
        end = start
        while end < len(names) and names[end].startswith(prefix):
            end += 1
        return tuple(entries[name] for name in names[start:end])

    def _wait(self, message: Get | List, reply: Future[Any], count: int) -> None:
        if len(self._waiting) >= self._max_waiting:
            self._waiting.drop_cancelled()
        if len(self._waiting) >= self._max_waiting:
            fail(reply, Overloaded(f"{self._max_waiting} requests wait already (api.max_waiting)"))
            return
        self._waiting.add(message, reply, time.monotonic() + message.wait_secs, count)
        self.wake_at(self._waiting.next_deadline())

    def _expire(self) -> None:
        """Answer who has waited long enough with what there is."""
        for waiter in self._waiting.expired(time.monotonic()):
            if isinstance(waiter.message, List):
                settle(waiter.reply, self._matching(waiter.message.prefix))
            else:
                name = waiter.message.name
                _answer(waiter.reply, self._entries.get(name) or _not_found(name))
        if len(self._waiting):
            self.wake_at(self._waiting.next_deadline())

    # --- snapshots ---

    def _snapshot(self, _: Snapshot) -> SnapshotTaken:
        sequence = self._store.sequence if self._store is not None else 0
        return SnapshotTaken({name: record.json for name, record in self._entries.items()}, sequence)

    def _snapshot_saved(self, message: SnapshotSaved) -> None:
        """Forget a slice of the journal; go on with the next behind what waits in the inbox."""
        if self._store is not None and self._store.forget(message.sequence):
            if self.reply is not None:  # somebody waits for the end of it, so there is no traffic to let pass
                while self._store.forget(message.sequence):
                    pass
            else:
                self.tell_self(message)


def _record(name: str, encoded: bytes) -> Record:
    return Record(name, encoded, entry.etag(encoded))


def _tag(record: Record | None) -> str | None:
    return None if record is None else record.etag


def _not_found(name: str) -> NotFound:
    return NotFound(f"Entry '{name}' not found")


def _answer(reply: Future[Any], verdict: Record | BaseException | None) -> None:
    if isinstance(verdict, BaseException):
        fail(reply, verdict)
    else:
        settle(reply, verdict)


def _check_condition(name: str, condition: Condition, current: Record | None) -> None:
    """Check ``If-Match`` and ``If-None-Match``.

    Raises:
        PreconditionFailed: one of them does not hold.
    """
    if condition.match is not None and not _tagged(condition.match, current):
        raise PreconditionFailed(
            f"Entry '{name}' is not as expected: "
            + ("it does not exist" if current is None else f"its tag is {current.etag}")
        )
    if condition.none_match is not None and _tagged(condition.none_match, current):
        raise PreconditionFailed(f"Entry '{name}' is not as expected: it exists with tag {_tag(current)}")


def _tagged(tags: Iterable[str], current: Record | None) -> bool:
    return current is not None and any(tag in ("*", current.etag) for tag in tags)

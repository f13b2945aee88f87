"""The registry actor: owns all entries and the store in which they last.

Group commit: a write is decided against the entries and the writes waiting
before it, staged, and one ``Flush`` is queued behind what is in the inbox
already. That flush commits everything staged in one transaction, then the
entries change and all callers are answered. What was decided on a staged
state, a refusal too, is answered only when that state is durable; a ``Get`` of
a staged name waits for the flush.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from bpbroker import schema
from bpbroker.actors.base import DEFERRED, Actor, Wake
from bpbroker.actors.waiting import Waiter, Waiting
from bpbroker.errors import NotFound, Overloaded, RequestError, StorageFailed, StorageFull, Unavailable
from bpbroker.messages import (
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
from bpbroker.writes import Write, outcome, record

logger = logging.getLogger(__name__)

_ATTEMPTS = 8
"""How often a write is decided again when a shared store turns out to hold something newer."""


@dataclass(frozen=True, slots=True)
class _Flush:
    """The registry to itself: commit what is staged."""


@dataclass(frozen=True, slots=True)
class _Forget:
    """The registry to itself: let the journal forget the next piece."""


@dataclass(frozen=True, slots=True)
class _Left:
    """The registry to itself: nobody waits for this answer any more."""

    waiter: Waiter


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
        self._store: Store
        self._entries: dict[str, Record] = {}
        self._names: list[str] = []
        """The names in order: a narrow List must not look at all entries."""
        self._staged: dict[str, Record | None] = {}
        self._batch: list[_Pending] = []
        self._behind: list[tuple[Get, Future[Any]]] = []
        self._waiting = Waiting()
        self._saved = 0
        """The file holds everything up to this commit."""
        self._forgetting: list[Future[Any] | None] = []
        """Who is to hear when the journal has forgotten that; empty when there is nothing to forget."""
        self._problem: Unavailable | None = None
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
            Wake: lambda _: self._expire(),
            _Flush: lambda _: self._flush(),
            _Forget: lambda _: self._forget(),
            _Left: lambda message: self._waiting.remove(message.waiter),
        }

    def started(self) -> None:
        """Open the store and take its entries into memory."""
        self._store = self._open_store()
        self._entries = {name: record(name, value) for name, value in self._store.load().items()}
        self._names = sorted(self._entries)

    def stopped(self) -> None:
        """Commit what is staged, answer who waits, let go of the store."""
        if not hasattr(self, "_store"):  # it could not be opened
            return
        while self._batch:
            self._flush()
        while self._forgetting:  # no traffic any more that it could hold up
            self._forget()
        for waiter in self._waiting.all():
            fail(waiter.reply, Unavailable("The broker is stopping"))
        self._store.close()

    def status(self) -> Pong:
        """Give figures, and why writes fail if they do."""
        if isinstance(self._problem, StorageFull):
            try:
                self._store.probe()  # nobody may write for a while, but health shall see that there is space again
            except Unavailable as error:
                self._problem = error
            else:
                self._problem = None
        figures = {
            "entries": len(self._entries),
            "waiting": len(self._waiting),
            "inbox": self.actor_inbox.qsize(),
            **self._store.figures,
        }
        return Pong(ok=self._problem is None, detail=str(self._problem or ""), figures=figures)

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
            verdict = outcome(message, current, time.time(), self._max_data_bytes)
        except RequestError as error:
            if not staged:
                _answer(reply, error)
                return
            verdict = error
        else:
            if verdict is not None or current is not None:
                self._staged[name] = verdict
            elif not staged:  # deleting what is not there changes nothing
                _answer(reply, None)
                return
        if not self._batch:
            self.tell_self(_Flush())
        self._batch.append(_Pending(message, reply, verdict, attempt))

    def _flush(self) -> None:
        """Commit everything staged, then let it be seen and answer."""
        batch, staged, behind = self._batch, self._staged, self._behind
        self._batch, self._staged, self._behind = [], {}, []
        failure: Unavailable | None = None
        lost: set[str] = set()
        try:
            lost = self._commit(staged)
        except Unavailable as error:
            failure = error
        except Exception:  # whatever it is, everybody who waits must hear of it
            logger.exception("The store failed in a way that it should not")
            failure = StorageFailed("Whether this was changed is not known; the broker's log has the reason")
            failure.outcome_known = False
        if failure is None:
            self._problem = None
        elif isinstance(failure, (StorageFull, StorageFailed)):
            self._problem = failure
        for pending in batch:
            if failure is not None:
                _answer(pending.reply, _refusal(failure, decided=not isinstance(pending.verdict, RequestError)))
            elif pending.message.name in lost:
                self._again(pending)
            else:
                _answer(pending.reply, pending.verdict)
        for message, reply in behind:
            self._get_now(message, reply)

    def _commit(self, staged: Mapping[str, Record | None]) -> set[str]:
        """Make changes durable and visible; give the names for which the store holds something newer than we knew."""
        changes = []
        for name, after in staged.items():
            before = self._entries.get(name)
            changes.append(Change(name, after.json if after else None, before.etag if before else None))
        if not changes:
            return set()
        lost = set()
        for change, result in zip(changes, self._store.commit(changes), strict=True):
            if isinstance(result, Conflict):
                lost.add(change.name)
                self._put(change.name, None if result.value is None else record(change.name, result.value))
            else:
                self._put(change.name, staged[change.name])
        return lost

    def _again(self, pending: _Pending) -> None:
        if pending.attempt < _ATTEMPTS:
            self._decide(pending.message, pending.reply, pending.attempt + 1)
        else:
            changing = f"Entry '{pending.message.name}' changes too fast; nothing was changed"
            _answer(pending.reply, Overloaded(changing))

    def _put(self, name: str, after: Record | None) -> None:
        """Let a durable change be seen, and wake who waited for it."""
        before = self._entries.get(name)
        if after is not None:
            self._entries[name] = after
            if before is None:
                insort(self._names, name)
            for reply in self._waiting.appeared(name, after.etag):
                settle(reply, after)
        elif before is not None:
            del self._entries[name]
            del self._names[bisect_left(self._names, name)]
        if (before is None) != (after is None):
            for prefix, replies in self._waiting.counted(name, 1 if before is None else -1):
                matching = self._matching(prefix) if replies else ()
                for reply in replies:
                    settle(reply, matching)

    # --- reads ---

    def _get(self, message: Get) -> Any:
        if self.reply is not None:
            if message.name in self._staged:
                self._behind.append((message, self.reply))
            else:
                self._get_now(message, self.reply)
        return DEFERRED

    def _get_now(self, message: Get, reply: Future[Any]) -> None:
        found = self._entries.get(message.name)
        if message.wait_secs > 0 and (found is None or found.etag == message.unless_etag):
            self._wait(message, reply, 0)
        else:
            _answer(reply, found or _not_found(message.name))

    def _list(self, message: List) -> Any:
        records = self._matching(message.prefix)
        if len(records) >= message.at_least or message.wait_secs <= 0 or self.reply is None:
            return records
        self._wait(message, self.reply, len(records))
        return DEFERRED

    def _matching(self, prefix: str) -> tuple[Record, ...]:
        names, entries = self._names, self._entries
        start = end = bisect_left(names, prefix)
        while end < len(names) and names[end].startswith(prefix):
            end += 1
        return tuple(entries[name] for name in names[start:end])

    def _wait(self, message: Get | List, reply: Future[Any], count: int) -> None:
        if len(self._waiting) >= self._max_waiting:
            fail(reply, Overloaded(f"{self._max_waiting} requests wait already (api.max_waiting)"))
            return
        waiter = self._waiting.add(message, reply, time.monotonic() + message.wait_secs, count)
        self.wake_at(self._waiting.next_deadline())
        # Called in the thread of whoever gives up.
        reply.add_done_callback(lambda done: self.tell_self(_Left(waiter)) if done.cancelled() else None)

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
        return SnapshotTaken(_Entries(self._entries.copy(), self._names.copy()), self._store.sequence)

    def _snapshot_saved(self, message: SnapshotSaved) -> Any:
        self._saved = max(self._saved, message.sequence)
        self._forgetting.append(self.reply)
        if len(self._forgetting) == 1:
            self._forget()
        return DEFERRED

    def _forget(self) -> None:
        """Let the journal forget a piece; the next one queues behind what waits in the inbox."""
        if not self._forgetting:
            return
        failure = None
        try:
            if self._store.forget(self._saved):
                self.tell_self(_Forget())
                return
        except Unavailable as error:
            failure = error
            if isinstance(error, StorageFailed):
                self._problem = error
        waiting, self._forgetting = self._forgetting, []
        for reply in waiting:
            _answer(reply, failure and _refusal(failure, decided=True))


class _Entries(Mapping[str, bytes]):
    """A snapshot's entries, by name: copying takes a millisecond, taking 100,000 records apart would take 15."""

    def __init__(self, records: dict[str, Record], names: list[str]) -> None:
        self._records = records
        self._names = names

    def __getitem__(self, name: str) -> bytes:
        return self._records[name].json

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _not_found(name: str) -> NotFound:
    return NotFound(f"Entry '{name}' not found")


def _refusal(failure: Unavailable, *, decided: bool) -> Unavailable:
    """Give each caller an error of its own; a write that was refused anyway has certainly changed nothing."""
    result = type(failure)(str(failure) if decided else "Nothing was changed; a write before it could not be stored")
    result.outcome_known = failure.outcome_known or not decided
    return result


def _answer(reply: Future[Any] | None, verdict: Record | BaseException | None) -> None:
    if reply is None:
        return
    if isinstance(verdict, BaseException):
        fail(reply, verdict)
    else:
        settle(reply, verdict)

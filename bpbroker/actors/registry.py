"""The registry actor: owns all entries and the store in which they last.

Group commit: a write is decided against the entries and the writes waiting
before it, staged, and one ``Flush`` is queued behind what is in the inbox
already. That flush commits everything staged in one transaction, then the
entries change and all callers are answered. What was decided on a staged
state, a refusal too, is answered only when that state is durable; a ``Get`` of
a staged name waits for the flush.

What is different in a store that other brokers write to as well is in
:mod:`bpbroker.actors.shared_registry`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from bpbroker.actors.base import DEFERRED, Actor
from bpbroker.actors.inbox import Wake
from bpbroker.config import schema
from bpbroker.errors import NotFound, Overloaded, RequestError, StorageFailed, StorageFull, Unavailable
from bpbroker.messages import (
    Delete,
    Exists,
    Get,
    Known,
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
from bpbroker.registry.changes import Change, Conflict, Outcome
from bpbroker.registry.index import EntryIndex
from bpbroker.registry.replies import answer, failure_of, not_found, refusal
from bpbroker.registry.waiters import Waiter, Waiters
from bpbroker.registry.writes import Write, outcome, record
from bpbroker.storage.base import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Flush:
    """The registry to itself: commit what is staged."""


@dataclass(frozen=True, slots=True)
class _Forget:
    """The registry to itself: let the journal forget the next piece."""


@dataclass(frozen=True, slots=True)
class _Left:
    """The registry to itself: nobody waits for this answer any more."""

    waiter: Waiter


@dataclass(frozen=True, slots=True)
class Asked:
    """A write and where its answer goes."""

    message: Write
    reply: Future[Any] | None
    attempt: int = 1
    sure: bool = False
    """Whether the entry's state was looked at in a shared store since the write came."""


Decision = Record | RequestError | None
"""What to answer once the state that it was decided on is durable."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit carries."""

    decided: list[tuple[Asked, Decision]]
    staged: dict[str, Record | None]
    """Name to the entry as it will be, None for no entry."""


class Registry(Actor):
    """Owns the entries.

    Args:
        open_store: makes the store; called in the actor's thread.
        settings: the settings in force.
        registry_id: 32 hexadecimal digits.
    """

    def __init__(self, open_store: Callable[[], Store], settings: Settings, registry_id: str = "0" * 32) -> None:
        super().__init__()
        self._open_store = open_store
        self._store: Any
        self._id = registry_id
        self._book = EntryIndex()
        self._staged: dict[str, Record | None] = {}
        self._decided: list[tuple[Asked, Decision]] = []
        self._behind: list[tuple[Get, Future[Any]]] = []
        self._waiting = Waiters()
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
            Exists: self._exists,
            Snapshot: self._snapshot,
            SnapshotSaved: self._snapshot_saved,
            SettingsChanged: lambda message: self._apply_settings(message.settings),
            Wake: lambda _: self._wake(),
            Flush: lambda _: self._flush(),
            _Forget: lambda _: self._forget(),
            _Left: lambda message: self._waiting.remove(message.waiter),
        }

    def started(self) -> None:
        """Open the store and take its entries into memory."""
        self._store = self._open_store()
        self._book = EntryIndex(record(name, value) for name, value in self._store.load().items())

    def stopped(self) -> None:
        """Commit what is staged, answer who waits, let go of the store."""
        if not hasattr(self, "_store"):  # it could not be opened
            return
        while self._decided:
            self._flush()
        while self._forgetting:  # no traffic any more that it could hold up
            self._forget()
        for waiter in self._waiting.all():
            fail(waiter.reply, Unavailable("The broker is stopping"))
        self._store.close()

    def status(self) -> Pong:
        """Give figures, and why writes fail if they do."""
        if isinstance(self._problem, StorageFull):
            self._probe()  # nobody may write for a while, but health shall see that there is space again
        figures = {
            "entries": len(self._book),
            "waiting": len(self._waiting),
            "inbox": self.actor_inbox.qsize(),
            **getattr(self._store, "figures", {}),
        }
        return Pong(ok=self._problem is None, detail=str(self._problem or ""), figures=figures)

    def _probe(self) -> None:
        try:
            self._store.probe()
        except Unavailable as error:
            self._problem = error
        else:
            self._problem = None

    def _apply_settings(self, settings: Settings) -> None:
        self._max_waiting: int = schema.option(settings, "api", "max_waiting")
        self._max_data_bytes: int = schema.option(settings, "api", "max_data_bytes")

    # --- writes ---

    def _write(self, message: Write) -> Any:
        self._decide(Asked(message, self.reply))
        return DEFERRED

    def _decide(self, asked: Asked) -> None:
        """Decide what a write does to the state as it will be after all writes before it, and stage that."""
        name = asked.message.name
        staged = name in self._staged
        current = self._staged[name] if staged else self._book.get(name)
        verdict: Decision
        try:
            verdict = outcome(asked.message, current, time.time(), self._max_data_bytes)
        except RequestError as error:
            if not staged:
                self._change_nothing(asked, error)
                return
            verdict = error
        else:
            if verdict is not None or current is not None:
                self._staged[name] = verdict
            elif not staged:  # deleting what is not there changes nothing
                self._change_nothing(asked, None)
                return
        if not self._decided:
            self.tell_self(Flush())
        self._decided.append((asked, verdict))

    def _change_nothing(self, asked: Asked, verdict: RequestError | None) -> None:
        """Answer a write that changes nothing and was decided on a durable state."""
        answer(asked.reply, verdict)

    def _flush(self) -> None:
        """Commit everything staged, then let it be seen and answer."""
        batch, behind = self._take_batch(), self._behind
        self._behind = []
        changes = [Change(name, after.json if after else None) for name, after in batch.staged.items()]
        try:
            outcomes = self._store.commit(changes) if changes else ()
        except Exception as error:  # noqa: BLE001 - whatever it is, everybody who waits must hear of it
            failure = failure_of(error)
            self._committed(batch, [failure] * len(changes), failure)
        else:
            self._committed(batch, outcomes)
        for message, reply in behind:
            self._get_now(message, reply)

    def _take_batch(self) -> Batch:
        batch = Batch(self._decided, self._staged)
        self._decided, self._staged = [], {}
        return batch

    def _committed(self, batch: Batch, outcomes: Sequence[Outcome], failure: Unavailable | None = None) -> None:
        """Let what is durable now be seen, and answer; ``failure`` is of the whole commit."""
        met: dict[str, Outcome] = {}
        """What stood in the way of single changes."""
        for (name, after), result in zip(batch.staged.items(), outcomes, strict=True):
            if isinstance(result, (Unavailable, Conflict)):
                met[name] = result
                failure = failure or (result if isinstance(result, Unavailable) else None)
            self._settle(name, after, result)
        if failure is None:
            self._problem = None
        elif isinstance(failure, (StorageFull, StorageFailed)):
            self._problem = failure
        for asked, verdict in batch.decided:
            what = met.get(asked.message.name)
            if isinstance(what, Unavailable):
                answer(asked.reply, refusal(what, decided=not isinstance(verdict, RequestError)))
            elif isinstance(what, Conflict):
                self._again(asked)
            else:
                answer(asked.reply, verdict)

    def _settle(self, name: str, after: Record | None, result: Outcome) -> None:
        """Take what became of one change."""
        if not isinstance(result, (Unavailable, Conflict)):
            self._put(name, after)

    def _again(self, asked: Asked) -> None:
        """Decide a write again whose entry is not what was expected; without other writers this cannot be."""
        raise AssertionError(asked.message.name)

    def _put(self, name: str, after: Record | None) -> None:
        """Let a durable change be seen, and wake who waited for it."""
        before = self._book.put(name, after)
        if after is not None:
            for reply in self._waiting.appeared(name, after.etag):
                settle(reply, after)
        if (before is None) != (after is None):
            for prefix, replies in self._waiting.counted(name, 1 if before is None else -1):
                matching = self._book.matching(prefix) if replies else ()
                for reply in replies:
                    settle(reply, matching)

    # --- reads ---

    def _exists(self, message: Exists) -> str:
        return self._id if message.name in self._book else ""

    def _age_secs(self) -> float:
        """Give how old the entries in memory may be."""
        return 0.0

    def _get(self, message: Get) -> Any:
        if self.reply is not None:
            if message.local:
                self._get_local(message, self.reply)
            elif message.name in self._staged:
                self._behind.append((message, self.reply))
            else:
                self._get_now(message, self.reply)
        return DEFERRED

    def _get_local(self, message: Get, reply: Future[Any]) -> None:
        found, age = self._book.get(message.name), round(self._age_secs(), 3)
        if found is None:
            fail(reply, NotFound(f"{not_found(message.name)}; this was so {age:g} s ago"))
        else:
            settle(reply, replace(found, age_secs=age))

    def _get_now(self, message: Get, reply: Future[Any]) -> None:
        found = self._book.get(message.name)
        if message.wait_secs > 0 and (found is None or found.etag == message.unless_etag):
            self._wait(message, reply, 0)
        else:
            answer(reply, found or not_found(message.name))

    def _list(self, message: List) -> Any:
        records = self._book.matching(message.prefix)
        if message.local:
            return Known(records, round(self._age_secs(), 3))
        if len(records) >= message.at_least or message.wait_secs <= 0 or self.reply is None:
            return records
        self._wait(message, self.reply, len(records))
        return DEFERRED

    def _wait(self, message: Get | List, reply: Future[Any], count: int) -> None:
        if len(self._waiting) >= self._max_waiting:
            fail(reply, Overloaded(f"{self._max_waiting} requests wait already (api.max_waiting)"))
            return
        waiter = self._waiting.add(message, reply, time.monotonic() + message.wait_secs, count)
        self.wake_at(self._waiting.next_deadline())
        # Called in the thread of whoever gives up.
        reply.add_done_callback(lambda done: self.tell_self(_Left(waiter)) if done.cancelled() else None)

    def _wake(self) -> None:
        self._expire()

    def _expire(self) -> None:
        """Answer who has waited long enough with what there is."""
        for waiter in self._waiting.expired(time.monotonic()):
            if isinstance(waiter.message, List):
                settle(waiter.reply, self._book.matching(waiter.message.prefix))
            else:
                name = waiter.message.name
                answer(waiter.reply, self._book.get(name) or not_found(name))
        if len(self._waiting):
            self.wake_at(self._waiting.next_deadline())

    # --- snapshots ---

    def _snapshot(self, _: Snapshot) -> Any:
        return SnapshotTaken(self._book.snapshot(), self._store.sequence)

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
            answer(reply, failure and refusal(failure, decided=True))

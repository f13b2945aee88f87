"""The registry actor: owns all entries, and decides what each write does to them.

Group commit: a write is decided against the entries and the writes waiting
before it, staged, and one ``Flush`` is queued behind what is in the inbox
already. That flush commits everything staged together, then the entries change
and each write has its reply. What was decided on a staged state, a refusal
too, is replied only when that state is durable.

How a commit and a read are carried out is handed in as a backend. On a local
store both are done at once and memory is the truth. On a shared store they take
their time, and memory may be behind. So names under way are left alone until
their commit has ended, a write that met something newer is decided again, and
one that changes nothing is replied only after a look at the store. All of that
is here, for each backend; with a local store it just never happens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from bpbroker.actors.base import DEFERRED, Actor
from bpbroker.actors.inbox import Wake
from bpbroker.actors.registry_backend import Backend
from bpbroker.config import schema
from bpbroker.errors import NotFound, Overloaded, StorageFailed, StorageFull, Unavailable
from bpbroker.messages import (
    Exists,
    Get,
    Known,
    List,
    ListKeys,
    Pong,
    Record,
    Settings,
    SettingsChanged,
    Snapshot,
    fail,
    settle,
)
from bpbroker.registry.changes import Conflict, Outcome
from bpbroker.registry.memory import Batch, KeyView, Memory, PendingWrite
from bpbroker.registry.replies import not_found, refusal, send, write_failure
from bpbroker.registry.waiters import Waiter
from bpbroker.registry.writes import WRITES, Write

_ATTEMPTS: Final = 8
"""How often a write is decided because the store turns out to hold something newer."""


@dataclass(frozen=True, slots=True)
class Flush:
    """The registry to itself: commit what is staged."""


@dataclass(frozen=True, slots=True)
class _Left:
    """The registry to itself: the client of this waiting read has gone."""

    waiter: Waiter


class Registry(Actor):
    """Owns the entries.

    Args:
        backend: how it commits and reads.
        settings: the settings in force.
        key_view: told each named access key that comes, changes or goes.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        key_view: KeyView | None = None,
    ) -> None:
        super().__init__()
        self.memory = Memory()
        self.memory.key_view = key_view
        self._backend = backend
        self._under_way: Batch | None = None
        self._postponed: list[PendingWrite] = []
        """Writes to names whose commit is under way."""
        self._problem: Unavailable | None = None
        """Why writes cannot be stored, as far as the last one showed."""
        self._apply_settings(settings)
        self.handlers = {
            **dict.fromkeys(WRITES, self._write),
            Get: self._get,
            List: self._list,
            Exists: self._exists,
            ListKeys: lambda _: self.memory.keys.matching(""),
            Snapshot: self._snapshot,
            SettingsChanged: lambda message: self._apply_settings(message.settings),
            Wake: lambda _: self._wake(),
            Flush: self._flush,
            _Left: lambda message: self.memory.waiters.remove(message.waiter),
            **backend.handlers,
        }

    def started(self) -> None:
        """Open the store and take its entries into memory."""
        self._backend.open(self)
        self._set_alarm()

    def stopped(self) -> None:
        """Reply to all writes and waiting reads, and close the store."""
        self._backend.drain()
        while self.memory.batch.writes:
            self._flush()
        for waiter in self.memory.waiters.all():
            fail(waiter.reply, Unavailable("The broker is stopping"))
        self._backend.close()

    def status(self) -> Pong:
        """Return figures, and why the registry cannot be used as it should if so."""
        backend = self._backend
        if isinstance(self._problem, StorageFull):
            backend.probe()  # it may be that no client writes for a while, but health shall see that there is space
        figures = {
            "entries": len(self.memory.entries),
            "waiting": self.memory.waiters.size,
            "inbox": self.actor_inbox.qsize(),
            **backend.figures,
        }
        detail = backend.trouble or str(self._problem or "") or backend.take_notice()
        detail = detail or next(iter(backend.faults.values()), "")
        return Pong(not detail, detail, figures)

    def report(self, failure: Unavailable | None) -> None:
        """Take the last word on whether a write can be stored; an error of another kind says nothing on that."""
        if failure is None:
            self._problem = None
        elif isinstance(failure, (StorageFull, StorageFailed)):
            self._problem = failure

    def _apply_settings(self, settings: Settings) -> None:
        self._max_waiting: int = schema.option(settings, "api", "max_waiting")
        self._max_data_bytes: int = schema.option(settings, "api", "max_data_bytes")

    # --- writes ---

    def _write(self, message: Write) -> Any:
        self._decide(PendingWrite(message, self.reply))
        return DEFERRED

    def _decide(self, write: PendingWrite) -> None:
        """Decide what a write does to the state as it will be after all writes before it, and stage that."""
        name, backend = write.message.name, self._backend
        if self._under_way is not None and name in self._under_way.staged:
            self._postponed.append(write)
            return
        why = backend.away or backend.faults.get(name)
        if why:
            send(write.reply, Unavailable(f"Nothing was changed: {why}"))
            return
        first = not self.memory.batch.writes
        if self.memory.decide(write, time.time(), self._max_data_bytes):
            if first:
                self.tell_self(Flush())
        elif write.sure or backend.is_fresh(name):
            send(write.reply, write.decision)
        else:
            backend.read(name, partial(self._decide_surely, write))

    def _decide_surely(self, write: PendingWrite, failure: Unavailable | None) -> None:
        """Decide a write again after a look at the store."""
        if failure is not None:
            send(write.reply, Unavailable(f"Nothing was changed: {failure}"))
        else:
            write.sure = True
            self._decide(write)

    def _flush(self, _: Flush | None = None) -> None:
        """Commit everything staged, unless a commit is under way: its end flushes again."""
        if self._under_way is None and self.memory.batch.writes:
            batch = self._under_way = self.memory.take_batch()
            self._backend.commit(batch.changes(), self._commit_ended)

    def _commit_ended(self, result: Sequence[Outcome] | BaseException) -> None:
        """Let what is durable now be seen, and reply; then go on with the writes that came meanwhile."""
        batch, self._under_way = self._under_way, None
        if batch is None:
            return
        failed: dict[str, Unavailable | Conflict] = {}
        failure = None
        if isinstance(result, BaseException):
            failure = write_failure(result)
            failed = dict.fromkeys(batch.staged, failure)
        else:
            for (name, after), outcome in zip(batch.staged.items(), result, strict=True):
                if isinstance(outcome, Unavailable):
                    failed[name] = outcome
                    failure = failure or outcome
                    continue
                if isinstance(outcome, Conflict):
                    failed[name] = outcome
                self._backend.learn(name, after, outcome)
        if failure is not self._problem:
            self.report(failure)
        for write in batch.writes:
            what = failed.get(write.message.name) if failed else None
            if what is None:
                send(write.reply, write.decision)
            elif isinstance(what, Conflict):
                self._decide_again(write)
            else:
                send(write.reply, refusal(what, decided=not isinstance(write.decision, BaseException)))
        if self._postponed or self.memory.batch.writes:
            self._go_on(waste=isinstance(result, BaseException))

    def _decide_again(self, write: PendingWrite) -> None:
        """Decide a write whose name is not as it was thought to be."""
        if write.attempt < _ATTEMPTS:
            write.attempt += 1
            write.sure = False
            self._decide(write)
        else:
            send(write.reply, Overloaded(f"Entry '{write.message.name}' changes too fast; nothing was changed"))

    def decide_staged_again(self) -> None:
        """Decide all writes that no commit has begun with once more: the state that they met is gone."""
        for write in self.memory.take_batch().writes:
            write.sure = False
            self._decide(write)

    def _go_on(self, *, waste: bool) -> None:
        """Take up the writes that waited for a commit to end.

        Args:
            waste: it failed; while the store is in trouble they would only wait for the same once more.
        """
        trouble = self._backend.trouble if waste else ""
        postponed, self._postponed = self._postponed, []
        if trouble:
            for write in (*self.memory.take_batch().writes, *postponed):
                send(write.reply, refusal(Unavailable(f"Nothing was changed: {trouble}"), decided=True))
            return
        for write in postponed:
            self._decide(write)
        if self.memory.batch.writes:
            self.tell_self(Flush())

    # --- reads ---

    def _exists(self, message: Exists) -> str:
        known = not self._backend.trouble and message.name in self.memory.entries
        return self._backend.registry_id if known else ""

    def _get(self, message: Get) -> Any:
        if message.local:
            return self._get_local(message)
        reply = self.reply
        if reply is None:
            return None
        if not self._backend.is_fresh(message.name):
            self._backend.read(message.name, partial(self._get_now, message, reply))
            return DEFERRED
        if message.wait_secs <= 0:  # as most reads; the next lines are all that they cost
            found = self.memory.entries.get(message.name)
            if found is not None:
                return found
        self._get_now(message, reply, None)
        return DEFERRED

    def _get_local(self, message: Get) -> Record:
        age_secs = self._known_age_secs()
        found = self.memory.entries.get(message.name)
        if found is None:
            raise NotFound(f"{not_found(message.name)}; this was so {age_secs:g} s ago")
        return replace(found, age_secs=age_secs)

    def _get_now(self, message: Get, reply: Future[Any], failure: Unavailable | None) -> None:
        """Reply from memory, which is up to date for this name, or wait for another state."""
        found = self.memory.entries.get(message.name)
        if failure is not None:
            fail(reply, Unavailable(str(failure)))
        elif message.wait_secs > 0 and (found is None or found.etag == message.unless_etag):
            self._wait(message, reply, 0)
        elif found is not None:
            settle(reply, found)
        else:
            fail(reply, not_found(message.name))

    def _list(self, message: List) -> Any:
        if message.local:
            age_secs = self._known_age_secs()
            return Known(self.memory.entries.matching(message.prefix), age_secs)
        reply = self.reply
        if reply is not None:
            at_least = message.at_least if message.wait_secs > 0 else 0
            self._backend.list(message.prefix, at_least, partial(self._listed, message, reply))
        return DEFERRED

    def _listed(self, message: List, reply: Future[Any], found: tuple[Record, ...] | Unavailable) -> None:
        if isinstance(found, tuple) and len(found) < message.at_least and message.wait_secs > 0:
            self._wait(message, reply, len(found))
        else:
            send(reply, found)

    def _known_age_secs(self) -> float:
        """Return how old what memory holds may be.

        Raises:
            Unavailable: it holds nothing yet.
        """
        if self._backend.away:
            raise Unavailable(self._backend.away)
        return round(self._backend.age_secs(), 3)

    def _snapshot(self, _: Snapshot) -> Any:
        self._backend.snapshot(partial(send, self.reply))
        return DEFERRED

    # --- waiting reads ---

    def _wait(self, message: Get | List, reply: Future[Any], count: int) -> None:
        waiters = self.memory.waiters
        if not waiters.room(message.client, self._max_waiting):
            mine = f", {waiters.of(message.client)} of them from {message.client}" if message.client else ""
            fail(reply, Overloaded(f"{waiters.size} requests wait already{mine} (api.max_waiting)"))
            return
        waiter = waiters.add(message, reply, time.monotonic() + message.wait_secs, count)
        self._set_alarm()
        # Called in the thread of whoever cancels it.
        reply.add_done_callback(lambda done: self.tell_self(_Left(waiter)) if done.cancelled() else None)

    def _wake(self) -> None:
        """Reply to expired waits with the current entries, and see how the store is."""
        entries = self.memory.entries
        for waiter in self.memory.waiters.expired(time.monotonic()):
            if isinstance(waiter.message, List):
                settle(waiter.reply, entries.matching(waiter.message.prefix))
            else:
                name = waiter.message.name
                send(waiter.reply, entries.get(name) or not_found(name))
        self._set_alarm()

    def _set_alarm(self) -> None:
        moment = min(self._backend.look(), self.memory.waiters.next_deadline())
        if moment < float("inf"):
            self.wake_at(moment)

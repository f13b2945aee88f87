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

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from bpbroker.actors.base import DEFERRED, Actor
from bpbroker.actors.inbox import Wake
from bpbroker.actors.registry_backend import Backend
from bpbroker.config import schema
from bpbroker.errors import NotFound, Overloaded, RequestError, StorageFailed, StorageFull, Unavailable
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
from bpbroker.registry import locks, named_keys, sessions
from bpbroker.registry.changes import Committed, Conflict, Group, Outcome
from bpbroker.registry.filters import matches
from bpbroker.registry.memory import Fate, KeyView, Memory, PendingWrite
from bpbroker.registry.parked import Key, ParkedCall
from bpbroker.registry.replies import not_found, refusal, send, write_failure
from bpbroker.registry.requests import (
    Batch,
    BatchDone,
    Done,
    Expire,
    Forget,
    Holder,
    Lock,
    Lost,
    Open,
    Renew,
    Unlock,
    Watch,
    Watched,
)
from bpbroker.registry.waiters import Waiter, listed
from bpbroker.registry.writes import WRITES, Limits, Write

_ATTEMPTS: Final = 8
"""How often a write is decided because the store turns out to hold something newer."""

_LATE_SECS: Final = 0.5
"""Woken later than this, the registry could hear nobody for that time."""

_TIDY_SECS: Final = 60.0
_ENDED_AT_ONCE: Final = 50
"""Names that one commit of a shared store takes away when a session ends; each may be two operations of it."""
_BATCHES_KEPT_SECS: Final = 3600
"""So long a repeated batch is known again."""


@dataclass(frozen=True, slots=True)
class Flush:
    """The registry to itself: commit what is staged."""


@dataclass(frozen=True, slots=True)
class _Left:
    """The registry to itself: the client of this waiting read or call has gone."""

    waiter: Waiter | ParkedCall


class Registry(Actor):
    """Owns the entries.

    Args:
        backend: how it commits and reads.
        settings: the settings in force.
        key_view: told each named access key that comes, changes or goes.
    """

    def __init__(self, backend: Backend, settings: Settings, key_view: KeyView | None = None) -> None:
        super().__init__()
        self.memory = Memory()
        self.memory.key_view = key_view
        self._backend = backend
        self._groups: Sequence[Group] = ()
        """What the commit under way carries."""
        self._postponed: list[PendingWrite] = []
        """Writes to names whose commit is under way."""
        self._problem: Unavailable | None = None
        """Why writes cannot be stored, as far as the last one showed."""
        self._times = sessions.Times()
        self._alarm = float("inf")
        self._first_seen: dict[str, float] = {}
        """When records that are kept for a while were there first, in monotonic time."""
        self._tidy_at = time.monotonic() + _TIDY_SECS
        self._apply_settings(settings)
        memory = self.memory
        memory.session_began = self._session_began
        memory.session_ended = self._session_ended
        memory.lock_changed = self._lock_changed
        self.handlers = {
            **dict.fromkeys(WRITES, self._write),
            Get: self._get,
            List: self._list,
            Exists: self._exists,
            ListKeys: lambda _: self.memory.own.matching(named_keys.PREFIX),
            Open: self._open,
            Renew: self._renew,
            Lost: self._lost,
            Lock: self._lock,
            Holder: self._holder,
            Batch: self._batch,
            Watch: self._watch,
            Snapshot: self._snapshot,
            SettingsChanged: lambda message: self._apply_settings(message.settings),
            Wake: lambda _: self._wake(),
            Flush: self._flush,
            _Left: lambda message: self._left(message.waiter),
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
        waiting = [waiter.reply for waiter in self.memory.waiters.all()]
        for reply in (*waiting, *(call.reply for call in self.memory.parked.all())):
            fail(reply, Unavailable("The broker is stopping"))
        self._backend.close()

    def status(self) -> Pong:
        """Return figures, and why the registry cannot be used as it should if so."""
        backend = self._backend
        if isinstance(self._problem, StorageFull):
            backend.probe()  # it may be that no client writes for a while, but health shall see that there is space
        figures = {
            "entries": len(self.memory.entries),
            "waiting": self.memory.places.size,
            "sessions": self.memory.sessions,
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
        self._limits = Limits(
            data_bytes=schema.option(settings, "api", "max_data_bytes"),
            sessions=schema.option(settings, "_registry", "max_sessions"),
            places=schema.option(settings, "_registry", "max_places"),
            numbers=schema.option(settings, "_registry", "max_numbers"),
            ended_at_once=_ENDED_AT_ONCE if self._backend.leases else sys.maxsize,
        )
        self._keep_lost_secs: int = schema.option(settings, "_registry", "keep_lost_secs")
        self.memory.history.limit_bytes = schema.option(settings, "_registry", "history_bytes")

    # --- writes ---

    def _write(self, message: Write) -> Any:
        self._decide(PendingWrite(message, self.reply))
        return DEFERRED

    def _decide(self, write: PendingWrite) -> None:
        """Decide what a write does to the state as it will be after all writes before it, and stage that."""
        backend, memory = self._backend, self.memory
        if backend.away:
            send(write.reply, Unavailable(f"Nothing was changed: {backend.away}"))
            return
        first = not memory.batch.writes
        fate = memory.decide(write, time.time(), self._limits)
        if fate is Fate.STAGED:
            if first:
                self.tell_self(Flush())
        elif fate is Fate.LATER:
            self._postponed.append(write)
        elif write.sure or backend.is_fresh(write.names):
            send(write.reply, write.decision)
        else:
            backend.read(write.names, partial(self._decide_surely, write))

    def _decide_surely(self, write: PendingWrite, failure: Unavailable | None) -> None:
        """Decide a write again after a look at the store."""
        if failure is not None:
            send(write.reply, Unavailable(f"Nothing was changed: {failure}"))
        else:
            write.sure = True
            self._decide(write)

    def _flush(self, _: Flush | None = None) -> None:
        """Commit everything staged, unless a commit is under way: its end flushes again."""
        memory = self.memory
        if memory.under_way is None and memory.batch.writes:
            batch = memory.under_way = memory.take_batch()
            self._groups = batch.groups()
            self._backend.commit(self._groups, self._commit_ended)

    def _commit_ended(self, result: Sequence[Outcome] | BaseException) -> None:
        """Let what is durable now be seen, and reply; then go on with the writes that came meanwhile."""
        memory = self.memory
        batch, memory.under_way = memory.under_way, None
        if batch is None:
            return
        failed: dict[str, Unavailable | Conflict] = {}
        revisions: dict[str, int] = {}
        failure = None
        if isinstance(result, BaseException):
            failure = write_failure(result)
            failed = dict.fromkeys(batch.staged, failure)
        else:
            committed = []
            for group, outcome in zip(self._groups, result, strict=True):
                if isinstance(outcome, Committed):
                    committed.append((group, outcome))
                    for change in group.changes:
                        revisions[change.name] = outcome.revision
                    continue
                failed.update(dict.fromkeys(group.names, outcome))
                if isinstance(outcome, Unavailable):
                    failure = failure or outcome
                else:
                    self._backend.learn_conflict(outcome)
            self._backend.learn(committed)
        if failure is not self._problem:
            self.report(failure)
        for write in batch.writes:
            self._conclude(write, failed, revisions)
        if self._postponed or memory.batch.writes:
            self._go_on(waste=isinstance(result, BaseException))

    def _conclude(
        self, write: PendingWrite, failed: dict[str, Unavailable | Conflict], revisions: dict[str, int]
    ) -> None:
        """Reply to a write whose commit has ended, or decide it again."""
        what = next((failed[name] for name in write.names if name in failed), None) if failed else None
        decision = write.decision
        if what is None:
            if not isinstance(decision, BaseException):
                revision = next((revisions[name] for name in write.names if name in revisions), 0)
                decision = decision.at(revision)
            send(write.reply, decision)
        elif isinstance(what, Conflict):
            self._decide_again(write)
        else:
            send(write.reply, refusal(what, decided=not isinstance(decision, BaseException)))

    def _decide_again(self, write: PendingWrite) -> None:
        """Decide a write whose names are not as they were thought to be."""
        if write.attempt < _ATTEMPTS:
            write.attempt += 1
            write.sure = False
            self._decide(write)
        else:
            what = getattr(write.message, "name", "what this concerns")
            send(write.reply, Overloaded(f"Entry '{what}' changes too fast; nothing was changed"))

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

    def _ask_self(self, message: Any, then: Callable[[Any], None] = lambda _: None) -> None:
        """Make a write of the registry's own; ``then`` gets its reply or its error."""
        done: Future[Any] = Future()
        done.add_done_callback(lambda ended: then(ended.exception() or ended.result()))
        self._decide(PendingWrite(message, done))

    # --- batches ---

    def _batch(self, message: Batch) -> Any:
        """Decide a batch as one write, or each of its operations by itself."""
        reply = self.reply
        if message.atomic or reply is None:
            return self._write(message)
        results: list[Any] = [None] * len(message.operations)
        left = len(results)

        def taken(number: int, result: Any) -> None:
            nonlocal left
            results[number] = result.results[0] if isinstance(result, BatchDone) else result
            left -= 1
            if not left:
                settle(reply, BatchDone(tuple(results), self.memory.history.revision))

        if not results:
            return BatchDone(())
        for number, operation in enumerate(message.operations):
            self._ask_self(Batch("", (operation,)), partial(taken, number))
        return DEFERRED

    # --- sessions ---

    def _session_began(self, session: str, record: Record) -> None:
        if self._backend.leases:  # the store sees to its end
            return
        self._times.begin(session, json.loads(record.json)["ttl"], time.monotonic())
        self._set_alarm()

    def _session_ended(self, session: str) -> None:
        self._times.end(session)
        if self._backend.leases:  # a lease ended, and what belonged to it goes now; any broker may do it
            self._sweep(session)

    def _sweep(self, session: str) -> None:
        """Take away what a session of a shared store left, a part at a time."""
        names = len(self.memory.belongings.get(session, ()))
        if not names:
            return

        def gone(result: Any) -> None:
            if not isinstance(result, BaseException) and len(self.memory.belongings.get(session, ())) < names:
                self._sweep(session)

        self._ask_self(Expire(session), gone)

    def _open(self, message: Open) -> Any:
        if not self._backend.leases:
            self._times.renew(message.session, time.monotonic())
            return self._write(message)
        reply = self.reply
        there = self.memory.get(sessions.PREFIX + message.session) is not None
        if not there and self.memory.sessions >= self._limits.sessions:
            raise Overloaded(f"There are {self._limits.sessions} sessions already ({sessions.COUNT})")
        self._backend.open_session(message, partial(send, reply))
        return DEFERRED

    def _renew(self, message: Renew) -> Any:
        if self._backend.leases:
            self._backend.renew_session(message.session, partial(send, self.reply))
            return DEFERRED
        ttl = self._times.renew(message.session, time.monotonic())
        if ttl is None:
            raise sessions.over(message.session)
        return Done({"session": message.session, "ttl": ttl}, self.memory.history.revision)

    def _lost(self, message: Lost) -> tuple[Record, ...]:
        now, prefix = time.monotonic(), sessions.LOST + message.prefix
        return tuple(
            Record(found.name.removeprefix(sessions.LOST), found.json, found.revision)
            for found in self.memory.own.matching(prefix)
            if now - self._first_seen.get(found.name, now) <= self._keep_lost_secs
            and found.name.removeprefix(sessions.LOST) not in self.memory.entries
        )

    def _tidy(self) -> None:
        """Remove own records that are too old to be asked for, by a clock that does not jump."""
        now, seen = time.monotonic(), dict[str, float]()
        names: list[str] = []
        for prefix, secs in ((sessions.LOST, self._keep_lost_secs), ("_batch/", _BATCHES_KEPT_SECS)):
            for name in self.memory.names(prefix):
                seen[name] = self._first_seen.get(name, now)
                if now - seen[name] > secs:
                    names.append(name)
        self._first_seen = seen
        for start in range(0, len(names), 50):
            self._ask_self(Forget(tuple(names[start : start + 50])))

    # --- locks ---

    def _lock(self, message: Lock) -> Any:
        reply = self.reply
        if reply is not None:
            self._ask_self(message, partial(self._placed, message, reply))
        return DEFERRED

    def _placed(self, message: Lock, reply: Future[Any], result: Any) -> None:
        """Reply if the place holds the lock, else let the call wait."""
        if isinstance(result, BaseException):
            fail(reply, result)
            return
        queue = self._queue(message.name)
        place = queue.place_of(message.session)
        if place is None:  # given back or expired meanwhile
            fail(reply, sessions.over(message.session))
        elif queue.holds(message.session) is not None:
            settle(reply, _granted(message.session, place))
        elif message.wait_secs <= 0:
            fail(reply, locks.held(message.name, queue))
        elif not self._park(("lock", message.name), message, reply):
            self._give_back(message)

    def _give_back(self, message: Lock) -> None:
        """Give a place back, unless another call of its session waits for it."""
        if not any(call.message.session == message.session for call in self.memory.parked.at(("lock", message.name))):
            self._ask_self(Unlock(message.name, message.session))

    def _lock_changed(self, name: str, record: Record | None) -> None:
        """Reply to the calls that waited for this change of a lock."""
        parked = self.memory.parked
        waiting, looking = parked.at(("lock", name)), parked.at(("holder", name))
        if not waiting and not looking:
            return
        queue = locks.parse(record)
        for call in waiting:
            place = queue.holds(call.message.session)
            if place is not None and parked.remove(call):
                settle(call.reply, _granted(call.message.session, place))
            elif queue.place_of(call.message.session) is None and parked.remove(call):
                fail(call.reply, NotFound(f"The place in the lock '{name}' is gone: its session is over"))
        for call in looking:
            shown = queue.shown()
            if shown["token"] != call.message.unless_token and parked.remove(call):
                settle(call.reply, Done(shown, record.revision if record is not None else 0))

    def _queue(self, name: str) -> locks.Queue:
        return locks.parse(self.memory.get(locks.PREFIX + name))

    def _holder(self, message: Holder) -> Any:
        reply = self.reply
        if reply is not None:
            name = locks.PREFIX + message.name
            self._backend.read((name,), partial(self._look_at_holder, message, reply))
        return DEFERRED

    def _look_at_holder(self, message: Holder, reply: Future[Any], failure: Unavailable | None) -> None:
        record = self.memory.get(locks.PREFIX + message.name)
        shown = locks.parse(record).shown()
        if failure is not None:
            fail(reply, Unavailable(str(failure)))
        elif message.wait_secs > 0 and shown["token"] == message.unless_token:
            self._park(("holder", message.name), message, reply)
        else:
            settle(reply, Done(shown, record.revision if record is not None else 0))

    # --- watches ---

    def _watch(self, message: Watch) -> Any:
        trouble = self._backend.away
        if trouble:
            raise Unavailable(trouble)
        watched = self.memory.history.read(message)
        reply = self.reply
        if watched.events or message.since is None or message.wait_secs <= 0 or reply is None:
            return watched
        key = ("prefix", message.prefix) if message.name is None else ("name", message.name)
        self._park(key, message, reply)
        return DEFERRED

    def _park(self, key: Key, message: Any, reply: Future[Any]) -> bool:
        """Let a call wait; return False if there was no room, which it has been told then."""
        if not self._has_room(message.client, reply):
            return False
        call = self.memory.parked.add(key, message, reply, time.monotonic() + message.wait_secs)
        self._set_alarm()
        # Called in the thread of whoever cancels it.
        reply.add_done_callback(lambda done: self.tell_self(_Left(call)) if done.cancelled() else None)
        return True

    def _has_room(self, client: str, reply: Future[Any]) -> bool:
        places = self.memory.places
        if places.room(client, self._max_waiting):
            return True
        mine = f", {places.of(client)} of them from {client}" if client else ""
        fail(reply, Overloaded(f"{places.size} requests wait already{mine} (api.max_waiting)"))
        return False

    def _left(self, waiter: Waiter | ParkedCall) -> None:
        if isinstance(waiter, Waiter):
            self.memory.waiters.remove(waiter)
        else:
            self.memory.parked.remove(waiter)

    def _waited(self, call: ParkedCall) -> None:
        """Reply to a call that has waited long enough."""
        message = call.message
        if isinstance(message, Watch):
            self._answer_watch(message, call.reply)
        elif isinstance(message, Holder):
            shown = self._queue(message.name).shown()
            settle(call.reply, Done(shown, self.memory.history.revision))
        else:
            fail(call.reply, locks.held(message.name, self._queue(message.name)))
            self._give_back(message)

    def _answer_watch(self, message: Watch, reply: Future[Watched]) -> None:
        try:
            settle(reply, self.memory.history.read(message))
        except RequestError as error:
            fail(reply, error)

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
        if not self._backend.is_fresh((message.name,)):
            self._backend.read((message.name,), partial(self._get_now, message, reply))
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
        elif message.wait_secs > 0 and (
            message.unless_etag is None if found is None else found.etag == message.unless_etag
        ):
            self._wait(message, reply)
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
        if isinstance(found, Unavailable):
            fail(reply, found)
            return
        counted = found
        if message.where:
            counted = tuple(record for record in found if matches(record, message.where))
        if len(counted) < message.at_least and message.wait_secs > 0 and not _has_failed(found, message):
            self._wait(message, reply, counted)
        else:
            settle(reply, listed(found, message.where, message.fail_where))

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

    def _wait(self, message: Get | List, reply: Future[Any], counted: Sequence[Record] = ()) -> None:
        if not self._has_room(message.client, reply):
            return
        waiter = self.memory.waiters.add(message, reply, time.monotonic() + message.wait_secs, counted)
        self._set_alarm()
        # Called in the thread of whoever cancels it.
        reply.add_done_callback(lambda done: self.tell_self(_Left(waiter)) if done.cancelled() else None)

    def _wake(self) -> None:
        """Reply to expired waits with the current entries, end sessions, and see how the store is."""
        now = time.monotonic()
        late = now - self._alarm
        if late > _LATE_SECS:
            self._times.delay(late)
        entries = self.memory.entries
        for waiter in self.memory.waiters.expired(now):
            if isinstance(waiter.message, List):
                message = waiter.message
                settle(waiter.reply, listed(entries.matching(message.prefix), message.where, message.fail_where))
            else:
                name = waiter.message.name
                send(waiter.reply, entries.get(name) or not_found(name))
        for call in self.memory.parked.expired(now):
            self._waited(call)
        if not self._backend.leases:
            for session in list(self._times.over(now)):
                self._ask_self(Expire(session))
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_SECS
            self._tidy()
        self._set_alarm()

    def _set_alarm(self) -> None:
        memory = self.memory
        moment = min(self._backend.look(), memory.waiters.next_deadline(), memory.parked.next_deadline())
        if len(self._times):
            moment = min(moment, self._times.next_end())
        if memory.own:
            moment = min(moment, self._tidy_at)
        self._alarm = moment
        if moment < float("inf"):
            self.wake_at(moment)


def _granted(session: str, place: locks.Place) -> Done:
    return Done({"session": session, "token": place.token, "since": place.since}, place.token)


def _has_failed(records: Sequence[Record], message: List) -> bool:
    """Return whether one of the entries ends the wait of a List."""
    return any(matches(record, (each,)) for record in records for each in message.fail_where)

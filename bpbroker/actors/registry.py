"""The registry actor: owns all entries, and decides what each write does to them.

Group commit: a write is decided on the entries and on the waiting writes before it, and is staged. One ``Flush`` is
queued behind the messages in the inbox. It commits all staged writes together; then the entries change, and each write
gets its reply. If a decision, also a refusal, depends on staged state, its reply is sent only when this state is
durable.

A backend carries out commits and reads. On a local store both are done at once, and memory is always right. On a
shared store they take time, and memory may be behind. So names in a running commit are not changed until it has ended;
a write that met a newer version is decided again; a write that changes nothing gets its reply only after a look at the
store. All of that is here, for each backend; with a local store it never happens.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bpbroker.actors.base import DEFERRED, Actor
from bpbroker.actors.inbox import Wake
from bpbroker.actors.registry_backend import Backend
from bpbroker.actors.registry_locks import Locks
from bpbroker.actors.registry_sessions import Sessions, with_reserve
from bpbroker.actors.registry_waiting import Waiting
from bpbroker.config import schema
from bpbroker.durations import STORAGE_SECS, Durations
from bpbroker.errors import NotFound, Overloaded, StorageFailed, StorageFull, Unavailable
from bpbroker.messages import (
    Exists,
    Get,
    Known,
    List,
    ListKeys,
    Pong,
    Settings,
    SettingsChanged,
    Snapshot,
    fail,
    settle,
)
from bpbroker.record import Record
from bpbroker.registry import named_keys
from bpbroker.registry.browsing import Browse, Happened, Recent, browse
from bpbroker.registry.changes import GROUP_MAX, GROUP_MAX_BYTES, READ_MAX, Committed, Conflict, Group, Outcome
from bpbroker.registry.discovery_secret import DiscoverySecret
from bpbroker.registry.filters import sort
from bpbroker.registry.memory import Fate, KeyView, Memory, PendingWrite
from bpbroker.registry.replies import not_found, refusal, send, write_failure
from bpbroker.registry.requests import (
    Batch,
    BatchDone,
    Expired,
    Renew,
)
from bpbroker.registry.room import NAMES_OF_ONE_END, Room
from bpbroker.registry.view import Limits
from bpbroker.registry.writes import WRITES, Write, within_reply

_ATTEMPTS: Final = 8
"""How often a write is decided, the first time included, if the store has newer versions each time."""

_ENDED_AT_ONCE: Final = READ_MAX // NAMES_OF_ONE_END
"""How many names one commit of a shared store removes when a session ends."""


@dataclass(frozen=True, slots=True)
class Flush:
    """From the registry to itself: commit the staged writes."""


class Registry(Actor):
    """Owns the entries.

    Args:
        backend: how it commits and reads.
        settings: the settings in force.
        key_view: follows the named access keys.
        secret: follows the discovery secret of a shared registry.
        expired: called with each session that ended by itself, in the registry's thread.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        key_view: KeyView | None = None,
        secret: DiscoverySecret | None = None,
        expired: Callable[[Expired], object] = lambda _: None,
    ) -> None:
        super().__init__()
        self.expired = expired
        self.memory = Memory()
        self.memory.key_view = key_view
        self.memory.secret = secret
        self.backend = backend
        self._groups: Sequence[Group] = ()
        """The batch of the running commit."""
        self._postponed: list[PendingWrite] = []
        """Writes to names in the running commit."""
        self._room = Room(self._ending_at_once) if backend.leases else None
        """How much more fits into the next commit, where the store limits the size of a group."""
        self._problem: Unavailable | None = None
        """Why the last write could not be stored; None if it was."""
        self._commits = Durations(STORAGE_SECS)
        self._commit_began = 0.0
        self._failed_commits = 0
        self._alarm = float("inf")
        self._sessions = Sessions(self)
        self._waiting = Waiting(self)
        self._locks = Locks(self, self._waiting, self._sessions)
        self._apply_settings(settings)
        self.handlers = {
            **dict.fromkeys(WRITES, self.write),
            Get: self._get,
            List: self._list,
            Exists: self._exists,
            ListKeys: lambda _: self.memory.own.matching(named_keys.PREFIX),
            Batch: self._batch,
            Browse: lambda message: browse(self.memory, message, self._known_age_secs()),
            Recent: lambda _: Happened(self.memory.history.events, self.memory.history.cursor),
            Snapshot: self._snapshot,
            SettingsChanged: lambda message: self._apply_settings(message.settings),
            Wake: lambda _: self._wake(),
            Flush: self._flush,
            **self._sessions.handlers,
            **self._locks.handlers,
            **self._waiting.handlers,
            **backend.handlers,
        }

    def started(self) -> None:
        """Open the store and read its entries into memory."""
        self.backend.open(self)
        self.set_alarm()

    def stopped(self) -> None:
        """Reply to all writes and waiting reads, and close the store."""
        self.backend.drain()
        while self.memory.batch.writes:
            self._flush()
        self._waiting.refuse_all(Unavailable("The broker is stopping"))
        self.backend.close()

    def on_failure(self, *fault: Any) -> None:
        """Close the store too, for this is its thread."""
        super().on_failure(*fault)
        self.backend.close()

    def abandoned(self) -> None:
        """Refuse the waiting calls, which would wait in vain to their end, and release the store."""
        self.backend.abandon()
        self._waiting.refuse_all(Unavailable("The broker's registry is being replaced; ask again"))

    def status(self) -> Pong:
        """Return figures, and what is wrong with the registry."""
        backend = self.backend
        if isinstance(self._problem, StorageFull):
            backend.probe()  # health has to see free space also if no client writes for a while
        figures = {
            "entries": len(self.memory.entries),
            "waiting": self.memory.places.size,
            "sessions": self.memory.sessions,
            "inbox": self.actor_inbox.qsize(),
            **backend.figures,
        }
        detail = backend.trouble or str(self._problem or "") or backend.take_notice()
        detail = detail or next(iter(backend.faults.values()), "")
        return Pong(not detail, detail, figures, self._counts())

    def _counts(self) -> dict[str, Any]:
        """Return the counts for metrics; health has the figures."""
        memory = self.memory
        kinds = memory.parked.kinds
        watches = kinds["prefix"] + kinds["name"]
        reads = memory.places.size - sum(kinds.values())
        return {
            "waiting": {"read": reads, "watch": watches, "lock": kinds["lock"], "holder": kinds["holder"]},
            "waiting_max": self._waiting.max_waiting,
            "sessions_max": self._sessions.most,
            "ended_sessions": dict(self._sessions.ended),
            "entries_lost": memory.entries_lost,
            "locks": memory.locks,
            "commits": self._commits.shown(),
            "failed_commits": self._failed_commits,
            "storage_ok": self._problem is None and not self.backend.trouble,
            **self.backend.counts,
        }

    def reply_now(self, message: Any) -> Any:
        """Return an entry, or the reply to a renewal; see :meth:`Actor.reply_now`.

        An entry in memory is durable and never changes: a write puts another one in its place, before the writer gets
        its reply. So a read never shows an older state than an earlier reply to any client. While a commit with
        several changes is being applied, this returns None, so a batch is seen whole or not at all.

        It is worth it: handing a request to this thread and back costs as much as all else in a read.
        """
        if self.backend.alone:
            if type(message) is Get:
                if self.memory.whole and message.wait_secs <= 0 and not message.local:
                    return self.memory.entries.get(message.name)
            elif type(message) is Renew:
                return self._sessions.renewed_now(message.session)
        return None

    def report(self, failure: Unavailable | None) -> None:
        """Note whether a write could be stored; errors of other kinds do not count."""
        if failure is None:
            self._problem = None
        elif isinstance(failure, (StorageFull, StorageFailed)):
            self._problem = failure

    def _apply_settings(self, settings: Settings) -> None:
        self._waiting.max_waiting = schema.option(settings, "api", "max_waiting")
        self._sessions.most = schema.option(settings, "_registry", "max_sessions")
        self._locks.most_places = schema.option(settings, "_registry", "max_places")
        self.limits = Limits(
            data_bytes=schema.option(settings, "api", "max_data_bytes"),
            sessions=with_reserve(self._sessions.most),
            places=with_reserve(self._locks.most_places),
            numbers=schema.option(settings, "_registry", "max_numbers"),
            ended_at_once=_ENDED_AT_ONCE if self.backend.leases else sys.maxsize,
            ended_in_parts=self.backend.leases,
            names=GROUP_MAX if self.backend.leases else sys.maxsize,
            commit_bytes=GROUP_MAX_BYTES if self.backend.leases else sys.maxsize,
        )
        self._sessions.keep_lost_secs = schema.option(settings, "_registry", "keep_lost_secs")
        self.memory.history.limit_bytes = schema.option(settings, "_registry", "history_bytes")

    # --- writes ---

    def write(self, message: Write) -> Any:
        """Accept a write; its reply comes when it is decided and durable."""
        self._decide(PendingWrite(message, self.reply))
        return DEFERRED

    def _decide(self, write: PendingWrite) -> None:
        """Decide a write on the state after all writes before it, and stage its changes."""
        backend, memory = self.backend, self.memory
        if backend.away:
            send(write.reply, Unavailable(f"Nothing was changed: {backend.away}"))
            return
        batch, room = memory.batch, self._room
        first = not batch.writes
        if room is not None and not room.for_another(write.message, batch):
            self._postponed.append(write)
            return
        fate = memory.decide(write, time.time(), self.limits)
        if fate is Fate.STAGED:
            if room is not None:
                room.take(write.names)
            if first:
                self.tell_self(Flush())
        elif fate is Fate.LATER:
            write.looked = frozenset()
            self._postponed.append(write)
        elif backend.is_fresh(write.names) or write.looked.issuperset(write.names):
            send(write.reply, write.decision)
        else:
            # All names in one read: states from different moments may not fit together.
            names = tuple({*write.looked, *write.names})
            backend.read(names, partial(self._decide_surely, write, names))

    def _ending_at_once(self, session: str) -> int:
        return min(len(self.memory.belongings.get(session, ())), _ENDED_AT_ONCE)

    def _decide_surely(self, write: PendingWrite, names: Sequence[str], failure: Unavailable | None) -> None:
        """Decide a write again after a look at the store. It may depend on other names now."""
        if failure is not None:
            send(write.reply, Unavailable(f"Nothing was changed: {failure}"))
        else:
            write.looked = frozenset(names)
            self._decide(write)

    def _flush(self, _: Flush | None = None) -> None:
        """Commit all staged writes, unless a commit is running: its end flushes again."""
        memory = self.memory
        if memory.under_way is None and memory.batch.writes:
            batch = memory.under_way = memory.take_batch()
            self._groups = batch.groups()
            self._commit_began = time.monotonic()
            self.backend.commit(self._groups, self._commit_ended)

    def _commit_ended(self, result: Sequence[Outcome] | BaseException) -> None:
        """Apply the durable changes, and reply; then continue with the writes that came meanwhile."""
        memory = self.memory
        batch, memory.under_way = memory.under_way, None
        if batch is None:
            return
        # Written out here, so that measuring costs no further call for a write.
        commits, secs = self._commits, time.monotonic() - self._commit_began
        commits.counts[bisect_left(commits.bounds, secs)] += 1
        commits.total_secs += secs
        failed: dict[str, Unavailable | Conflict] = {}
        revisions: dict[str, int] = {}
        versions: dict[str, int] = {}
        failure = None
        if isinstance(result, BaseException):
            self._failed_commits += 1
            failure = write_failure(result)
            failed = dict.fromkeys((*batch.staged, *batch.expects), failure)  # some change nothing and only read
        else:
            committed = []
            for group, outcome in zip(self._groups, result, strict=True):
                if isinstance(outcome, Committed):
                    committed.append((group, outcome))
                    if batch.listing:
                        versions.update(dict.fromkeys(group.names, outcome.version))
                    for change in group.changes:
                        revisions[change.name] = outcome.revision
                    continue
                failed.update(dict.fromkeys(group.names, outcome))
                if isinstance(outcome, Unavailable):
                    failure = failure or outcome
                else:
                    self.backend.learn_conflict(outcome)
            memory.whole = False
            self.backend.learn(committed)
            memory.whole = True
        if failure is not self._problem:
            self.report(failure)
        for write in batch.writes:
            if write.lists and not any(name in failed for name in write.names):
                self._list_after(write, versions[write.names[0]], revisions)
            else:
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
            revision = 0
            for name in write.names:
                if name in revisions:
                    revision = revisions[name]
                    break
            send(write.reply, decision.at(revision))
        elif isinstance(what, Conflict):
            self._decide_again(write)
        elif type(write.message) is Batch and not write.message.atomic:
            results, sure = decision.results, decision.sure
            results = tuple(each if n in sure else _refused(each, what) for n, each in enumerate(results))
            send(write.reply, BatchDone(results))
        else:
            send(write.reply, _refused(decision, what))

    def _list_after(self, write: PendingWrite, version: int, revisions: dict[str, int]) -> None:
        """Reply to a batch that was committed, with the entries as they were at its commit."""

        def taken(found: Mapping[str, tuple[Record, ...]] | Unavailable) -> None:
            if isinstance(found, Unavailable):
                error = Unavailable(f"This was carried out, but what it lists cannot be read: {found}")
                error.outcome_known = False
                send(write.reply, error)
            else:
                write.decision = write.decision.with_lists(found)
                self._conclude(write, {}, revisions)

        self.backend.list_at(tuple(dict.fromkeys(write.lists)), version, taken)

    def _decide_again(self, write: PendingWrite) -> None:
        """Decide a write again whose names have other versions than expected."""
        if write.attempt < _ATTEMPTS:
            write.attempt += 1
            write.looked = frozenset()
            self._decide(write)
        else:
            what = getattr(write.message, "name", "what this concerns")
            send(write.reply, Overloaded(f"Entry '{what}' changes too fast; nothing was changed"))

    def decide_staged_again(self) -> None:
        """Decide all writes again that are not in a commit yet: the state that they saw is gone."""
        for write in self.memory.take_batch().writes:
            write.looked = frozenset()
            self._decide(write)

    def _go_on(self, *, waste: bool) -> None:
        """Continue with the writes that waited for the end of a commit.

        Args:
            waste: whether the commit failed; the waiting writes would then fail in the same way.
        """
        trouble = self.backend.trouble if waste else ""
        postponed, self._postponed = self._postponed, []
        if trouble:
            for write in (*self.memory.take_batch().writes, *postponed):
                send(write.reply, refusal(Unavailable(f"Nothing was changed: {trouble}"), decided=True))
            return
        for number, write in enumerate(postponed):
            if self._room is not None and not self._room.for_another(write.message, self.memory.batch):
                self._postponed += postponed[number:]  # without a check of each one: there may be very many
                break
            self._decide(write)
        if self.memory.batch.writes:
            self.tell_self(Flush())

    def ask_self(self, message: Any, then: Callable[[Any], None] = lambda _: None) -> None:
        """Make a write of the registry's own; ``then`` gets its reply or its error."""
        done: Future[Any] = Future()
        done.add_done_callback(lambda ended: then(ended.exception() or ended.result()))
        self._decide(PendingWrite(message, done))

    # --- batches ---

    def _batch(self, message: Batch) -> Any:
        """Decide a batch as one write; on a shared store, if its operations stand alone, each as a write."""
        if message.atomic:
            return self.write(message)
        reply, operations = self.reply, message.operations
        if not operations:
            return BatchDone(())

        def reply_with(results: Sequence[Any]) -> None:
            send(reply, BatchDone(within_reply(operations, results), self.memory.history.revision))

        def decided(result: BatchDone | BaseException) -> None:
            reply_with(result.results if isinstance(result, BatchDone) else [result] * len(operations))

        if self.backend.alone:
            self._decide(PendingWrite(message, decided, places=len(operations)))
        else:
            self._decide_each(operations, reply_with)
        return DEFERRED

    def _decide_each(self, operations: Sequence[Any], then: Callable[[Sequence[Any]], None]) -> None:
        """Decide operations as a write each, because each may have a conflict; ``then`` gets all results."""
        results: list[Any] = [None] * len(operations)
        left = len(results)

        def decided(number: int, result: Any) -> None:
            nonlocal left
            results[number] = result.results[0] if isinstance(result, BatchDone) else result
            left -= 1
            if not left:
                then(results)

        for number, operation in enumerate(operations):
            self._decide(PendingWrite(Batch("", (operation,)), partial(decided, number)))

    # --- reads ---

    def _exists(self, message: Exists) -> str:
        known = not self.backend.trouble and message.name in self.memory.entries
        return self.backend.registry_id if known else ""

    def _get(self, message: Get) -> Any:
        if message.local:
            return self._get_local(message)
        reply = self.reply
        if reply is None:
            return None
        if not self.backend.is_fresh((message.name,)):
            self.backend.read((message.name,), partial(self._get_now, message, reply))
            return DEFERRED
        if message.wait_secs <= 0:  # most reads end here
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
        return found._replace(age_secs=age_secs)

    def _get_now(self, message: Get, reply: Future[Any], failure: Unavailable | None) -> None:
        """Reply from memory, which is up to date for this name, or let the read wait for another state."""
        found = self.memory.entries.get(message.name)
        if failure is not None:
            fail(reply, Unavailable(str(failure)))
        elif message.wait_secs > 0 and (
            message.unless_etag is None if found is None else found.etag == message.unless_etag
        ):
            self._waiting.read(message, reply)
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
            self.backend.list(message.prefix, at_least, partial(self._listed, message, reply))
        return DEFERRED

    def _listed(self, message: List, reply: Future[Any], found: tuple[Record, ...] | Unavailable) -> None:
        if isinstance(found, Unavailable):
            fail(reply, found)
            return
        if not message.where and (message.wait_secs <= 0 or len(found) >= message.at_least):
            settle(reply, found)
            return
        fitting = sort(found, message.where, message.fail_where)
        if len(fitting.counted) < message.at_least and message.wait_secs > 0 and not fitting.failed:
            self._waiting.read(message, reply, fitting.counted)
        else:
            settle(reply, fitting.listed)

    def _known_age_secs(self) -> float:
        """Return the largest age of the state in memory.

        Raises:
            Unavailable: memory is still empty.
        """
        if self.backend.away:
            raise Unavailable(self.backend.away)
        return round(self.backend.age_secs(), 3)

    def _snapshot(self, _: Snapshot) -> Any:
        self.backend.snapshot(partial(send, self.reply))
        return DEFERRED

    # --- time ---

    def _wake(self) -> None:
        """End waits, sessions and checks of the store whose time has come."""
        now = time.monotonic()
        late_secs = now - self._alarm
        self._waiting.pass_time(now)
        self._sessions.pass_time(now, late_secs)
        self.set_alarm()

    def set_alarm(self) -> None:
        """Ask for a wake-up at the next time at which there is work."""
        moment = min(self.backend.look(), self._waiting.next_moment(), self._sessions.next_moment())
        self._alarm = moment
        if moment < float("inf"):
            self.wake_at(moment)


def _refused(decision: Any, what: Unavailable) -> Unavailable:
    """Return the error for a decision that depended on a failed commit."""
    return refusal(what, decided=not isinstance(decision, BaseException))

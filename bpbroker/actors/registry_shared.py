"""The registry's backend on a store that other brokers write to as well.

Memory may be behind the store. So a commit says which version of each entry it expects, a read asks the store, and
changes of other brokers are followed. Commits and reads take time: lanes make them, and call back.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from bpbroker.actors.registry_backend import Host
from bpbroker.actors.registry_lanes import Done, Kind, Lanes
from bpbroker.errors import RequestError, StorageFull, Unavailable, not_known
from bpbroker.messages import ShareSecret, SnapshotTaken
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry import discovery_secret, sessions
from bpbroker.registry.changes import (
    READ_MAX,
    Broken,
    Changes,
    Committed,
    Conflict,
    Group,
    Outcome,
    Seen,
    State,
)
from bpbroker.registry.reads import ReadQueue, Then
from bpbroker.registry.replica import Replica
from bpbroker.registry.replies import read_failure, write_failure
from bpbroker.registry.requests import Done as Reply
from bpbroker.registry.requests import Open
from bpbroker.registry.stored import joined
from bpbroker.storage.base import SharedStore

logger = logging.getLogger(__name__)

NO_ANSWER: Final = "The registry's store does not answer"

CHECK_SECS: Final = 1.0
"""A store that was not used for this time is asked whether it works."""

SWEEP_SECS: Final = 10.0
"""How often it is checked whether records of ended sessions are left, as their removal may have failed, and whether
the registry has a discovery secret."""

_TRIES: Final = 3
"""How often opening is tried for a session that ends at that moment."""

_STOPPING: Final = "the broker is stopping"
_REPLACED: Final = "the broker's registry is being replaced"


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of the store that has not ended, as far as the registry knows."""

    then: Callable[[Any], None]
    """Gets its result or its error."""
    changes: bool
    """Whether it may have changed something if it does not end."""


class SharedBackend:
    """Implements :class:`bpbroker.actors.registry_backend.Backend`.

    Args:
        open_store: makes the store; called in the actor's thread.
    """

    leases = True
    alone = False

    def __init__(self, open_store: Callable[[], SharedStore]) -> None:
        self.away = "There is no registry yet"
        self.handlers: Mapping[type, Callable[[Any], Any]] = {
            Done: lambda done: done.then(done.result),
            State: self._take_state,
            Changes: self._take_changes,
            Broken: self._take_break,
        }
        self._open_store = open_store
        self._store: SharedStore
        self._replica: Replica
        self._lanes: Lanes
        self._is_open = self._is_running = False
        """Whether the store is open, and whether the lanes run."""
        self._host: Host
        self._no_answer = ""
        """Why the store does not respond; empty while it does."""
        self._notice = ""
        """Why all records were read again; empty once health has shown it."""
        self._reads = ReadQueue()
        self._reading = False
        self._renewals: list[tuple[str, Callable[[Reply | RequestError], None]]] = []
        self._renewing = False
        self._reaching: list[Callable[[int | Unavailable], None]] = []
        """Those who want to know how far the store has come."""
        self._sweep_at = 0.0
        self._calls: dict[Future[Any], _Call] = {}
        """What the lanes do."""
        self._stopping = ""
        """Why nothing is asked of the store any more; empty while all is."""
        self._fresh_at = time.monotonic()
        self._broken_at: float | None = None

    @property
    def registry_id(self) -> str:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        return self._replica.registry_id

    @property
    def trouble(self) -> str:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        return self.away or self._no_answer

    @property
    def faults(self) -> Mapping[str, str]:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        return self._replica.faults

    def take_notice(self) -> str:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        notice, self._notice = self._notice, ""
        return notice

    @property
    def figures(self) -> Mapping[str, Any]:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        return {"age_secs": round(self.age_secs(), 3)}

    @property
    def counts(self) -> Mapping[str, Any]:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        return {}

    def age_secs(self) -> float:
        """Return the largest age of the state in memory, in seconds."""
        now = time.monotonic()
        return now - min(self._fresh_at, now if self._broken_at is None else self._broken_at)

    # --- its life ---

    def open(self, host: Host) -> None:
        """Open the store and read it; while it does not respond, the follower tries again and again."""
        self._host = host
        self._replica = Replica(host.memory)
        host.memory.history.shared = host.memory.ages.starting = True
        store = self._store = self._open_store()
        self._is_open = True
        if self._stopping:  # it was abandoned while the store was made
            store.abandon()
        state = None
        try:
            state = store.open()
        except Unavailable as error:
            self.away = str(error)
            logger.warning("There is no registry yet, and it is tried again: %s", error)
        self._fresh_at = time.monotonic()
        self._lanes = Lanes(host.tell_self)
        self._is_running = True
        if self._stopping:
            self._lanes.abandon()
        self._lanes.follow(store.follow, state.version if state else None)
        if state is not None:
            self._take_state(state)

    def drain(self) -> None:
        """Stop the lanes. Call back with what the running calls have led to, if it is known; refuse all others."""
        self._stopping = self.away = _STOPPING
        if self._is_running:
            self._lanes.stop()
        waiting, self._reads = self._reads.clear(), ReadQueue()
        reaching, self._reaching = self._reaching, []
        renewals, self._renewals = self._renewals, []
        for refuse in (*waiting, *reaching, *(renewed for _, renewed in renewals)):
            refuse(Unavailable("The broker is stopping"))
        calls, self._calls = self._calls, {}
        for result, call in calls.items():
            if result.done():
                call.then(result.exception() or result.result())
            else:
                call.then(not_known(_STOPPING) if call.changes else Unavailable("The broker is stopping"))

    def close(self) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`; the follower ends with it."""
        if self._is_open:
            self._store.close()

    def abandon(self) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`. :meth:`open` may be under way."""
        self._stopping = _REPLACED  # first: what is opened from here on is let go of there
        if self._is_open:
            self._store.abandon()
        if self._is_running:
            self._lanes.abandon()

    # --- committing ---

    def commit(self, groups: Sequence[Group], ended: Callable[[Sequence[Outcome] | BaseException], None]) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        if self._stopping:
            ended(Unavailable(f"Nothing was changed: {self._stopping}"))
            return
        self._call("commit", lambda: self._store.commit(groups), ended, changes=True)

    def learn(self, committed: Sequence[tuple[Group, Committed]]) -> None:
        """Apply the changes of a durable commit to memory. Watches get them with the store's news."""
        seen = []
        for group, outcome in committed:
            for change in group.changes:
                after = None if change.after is None else change.after.at(outcome.revision)
                version = 0 if after is None else outcome.version
                seen.append(Seen(change.name, after, version, outcome.version))
        self._replica.learn_together(seen)

    def learn_conflict(self, conflict: Conflict) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        self._read_again(self._replica.learn_together(conflict.seen))

    # --- sessions ---

    def open_session(self, message: Open, then: Callable[[Reply | RequestError], None]) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        if self.away:
            then(Unavailable(f"Nothing was changed: {self.away}"))
            return
        value = sessions.stored(message, time.time(), secrets.token_hex(4))
        record = Record(sessions.PREFIX + message.session, value)
        ttl, store = max(math.ceil(message.ttl_secs), math.ceil(sessions.TTL_MIN_SECS)), self._store

        def call() -> Outcome:
            for _ in range(_TRIES):
                outcome = store.open_session(message.session, ttl, record)
                # Opening a session that exists renews it.
                if not isinstance(outcome, Conflict) or store.renew_sessions([message.session])[0] is not None:
                    return outcome
            return Unavailable("Nothing was changed: the session that there was has just ended; try again")

        def taken(result: Outcome | BaseException) -> None:
            if isinstance(result, BaseException):
                then(write_failure(result))
                return
            if isinstance(result, Committed):
                durable = record.at(result.revision)
                self._replica.learn(Seen(record.name, durable, result.version, result.version))
                then(Reply({"session": message.session, "ttl": message.ttl_secs}, result.revision))
                return
            (seen,) = result.seen
            self.learn_conflict(result)
            if seen.record is None or seen.fault:
                then(Unavailable(f"Nothing was changed: {seen.fault or 'the session has just ended'}"))
            else:
                found = json.loads(seen.record.json)
                then(Reply({"session": message.session, "ttl": found.get("ttl", ttl)}, seen.record.revision))

        self._call("session", call, taken, changes=True)

    def renew_session(self, session: str, then: Callable[[Reply | RequestError], None]) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`; renewals that come together are one call."""
        if self.away:
            then(Unavailable(self.away))
            return
        self._renewals.append((session, then))
        if not self._renewing:
            self._renewing = True
            # Behind the waiting messages, so that renewals that came together are one call.
            self._host.tell_self(Done(self._begin_renewals))

    def _begin_renewals(self, _: object = None) -> None:
        now, self._renewals = self._renewals[:READ_MAX], self._renewals[READ_MAX:]

        def taken(result: Sequence[int | None] | BaseException) -> None:
            if isinstance(result, BaseException):
                failure = str(read_failure(result))
                for _, then in now:
                    then(Unavailable(failure))
            else:
                for (session, then), ttl in zip(now, result, strict=True):
                    then(sessions.over(session) if ttl is None else self._renewed(session, ttl))
            self._renewing = bool(self._renewals)
            if self._renewing:
                self._begin_renewals()

        if now:
            self._call("session", lambda: self._store.renew_sessions([session for session, _ in now]), taken)
        else:  # the registry stops
            self._renewing = False

    def _renewed(self, session: str, ttl: int) -> Reply:
        """Return the reply to a renewal; the store's ttl is in whole seconds, the client's may be between."""
        known = self._host.memory.get(sessions.PREFIX + session)
        shown = ttl if known is None else json.loads(known.json).get("ttl", ttl)
        return Reply({"session": session, "ttl": shown}, self._host.memory.history.revision)

    def _sweep(self) -> None:
        """Let the registry remove all that belongs to ended sessions."""
        self._sweep_at = time.monotonic() + SWEEP_SECS
        for session in self._replica.abandoned():
            self._host.memory.session_ended(session, None)
        self._share_secret()

    def _share_secret(self) -> None:
        """Make a discovery secret if the registry has none; of two brokers that do so at one time, one wins."""
        memory = self._host.memory
        found = memory.get(discovery_secret.NAME)
        if memory.secret is not None and not (found and discovery_secret.secret_of(found.json)):
            self._host.ask_self(ShareSecret(memory.secret.offered or secrets.token_hex(32)))

    def probe(self) -> None:
        """Ask the store whether it has space; the next ping has the result."""

        def taken(result: object) -> None:
            if not isinstance(result, BaseException):
                self._host.report(None)

        self._call("scan", self._store.probe, taken)

    # --- reading ---

    def is_fresh(self, _names: Sequence[str]) -> bool:
        """Return False: another broker may have changed anything meanwhile."""
        return False

    def read(self, names: Sequence[str], then: Then) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`; reads that come together are one read."""
        if self.away or not names:
            then(Unavailable(self.away) if self.away else None)
            return
        parts = [names[start : start + READ_MAX] for start in range(0, len(names), READ_MAX)]
        left = len(parts)

        def known(failure: Unavailable | None) -> None:
            nonlocal left
            left = 0 if failure is not None and left else left - 1
            if not left:
                faults = (self.faults[name] for name in names if name in self.faults)
                why = str(failure or self.away or next(faults, ""))
                then(Unavailable(why) if why else None)

        for part in parts:
            self._read(part, known)

    def _read(self, names: Sequence[str], then: Then) -> None:
        self._reads.add(names, then)
        if not self._reading:
            self._reading = True
            # Behind the waiting messages, so that reads that came together are one call.
            self._host.tell_self(Done(self._begin_read))

    def _read_again(self, names: Sequence[str]) -> None:
        """Read names again that may have been seen in an old state."""
        for name in names:
            self._read((name,), lambda _: None)

    def _begin_read(self, _: object = None) -> None:
        names = self._reads.begin()

        def taken(result: Sequence[Seen] | BaseException) -> None:
            if isinstance(result, BaseException):
                self._read_ended(result)
                return
            unsure = self._replica.learn_together(result)
            versions = self._replica.versions
            self._read_ended(result, unsure, [seen.name for seen in result if versions[seen.name] > seen.as_of])

        self._call("read", lambda: self._store.read(names), taken)

    def _read_ended(self, result: object, unsure: Sequence[str] = (), newer: Sequence[str] = ()) -> None:
        """Call back for the reads that have ended, and begin the next ones."""
        failure = read_failure(result) if isinstance(result, BaseException) else None
        done = self._reads.end(unsure, newer) if failure is None else self._reads.clear()
        for then in done:
            then(failure)
        self._reading = bool(self._reads)
        if self._reading:
            self._begin_read()

    def list(self, prefix: str, at_least: int, then: Callable[[tuple[Record, ...] | Unavailable], None]) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        if self.away:
            then(Unavailable(self.away))
            return

        def taken(result: State | BaseException) -> None:
            if isinstance(result, BaseException):
                then(Unavailable(str(read_failure(result))))
                return
            records = _entries_in(result)
            if at_least:  # the read may have to wait, and memory must have this state then
                if result.registry_id != self._replica.registry_id:
                    then(Unavailable("The registry in the store has just become another one"))
                    return
                self._read_again(self._replica.learn_all(result, prefix, own_too=False))
                records = self._host.memory.entries.matching(prefix)  # others may have come meanwhile
            then(records)

        self._call("scan", lambda: self._store.scan(prefix, entries=True), taken)

    def list_at(
        self,
        prefixes: Sequence[str],
        version: int,
        then: Callable[[Mapping[str, tuple[Record, ...]] | Unavailable], None],
    ) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""

        def taken(result: Mapping[str, tuple[Record, ...]] | BaseException) -> None:
            then(Unavailable(str(read_failure(result))) if isinstance(result, BaseException) else result)

        if self._stopping:
            then(Unavailable(self._stopping))
            return

        def call() -> Mapping[str, tuple[Record, ...]]:
            return {each: _entries_in(self._store.scan(each, entries=True, at=version)) for each in prefixes}

        self._call("scan", call, taken)

    def reached(self, then: Callable[[int | Unavailable], None]) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`; those who ask meanwhile are answered together."""
        if self.away:
            then(Unavailable(self.away))
            return
        self._reaching.append(then)
        if len(self._reaching) == 1:
            self._ask_reached()

    def _ask_reached(self) -> None:
        asked = len(self._reaching)

        def taken(result: int | BaseException) -> None:
            now, self._reaching = self._reaching[:asked], self._reaching[asked:]
            for then in now:
                then(read_failure(result) if isinstance(result, BaseException) else result)
            if self._reaching:
                self._ask_reached()

        self._call("read", self._store.reached, taken)

    def snapshot(self, then: Callable[[SnapshotTaken | Unavailable], None]) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        if self.away:
            then(Unavailable(self.away))
            return

        def taken(result: State | BaseException) -> None:
            if isinstance(result, BaseException):
                then(Unavailable(str(read_failure(result))))
                return
            entries = {
                seen.name: joined(seen.record) for seen in result.entries if seen.record is not None and not seen.fault
            }
            newest = max((seen.version for seen in result.entries), default=0)
            then(SnapshotTaken(entries, max(newest, min(self._replica.versions.newest, result.version))))

        self._call("scan", self._store.scan, taken)

    # --- health of the store ---

    def _call(self, kind: Kind, call: Callable[[], Any], then: Callable[[Any], None], *, changes: bool = False) -> None:
        """Let a lane call the store; ``then`` gets the result or the error. ``changes``: whether it is a write."""
        if self._stopping:
            then(Unavailable(f"Nothing was changed: {self._stopping}" if changes else self._stopping))
            return
        begun = time.monotonic()

        def ended(result: Any) -> None:
            del self._calls[future]
            if not isinstance(result, BaseException):
                self._answered(begun)
            elif isinstance(result, Unavailable) and not isinstance(result, StorageFull):
                self._failed(str(result) if result.outcome_known else NO_ANSWER)
            then(result)

        future = self._lanes.call(kind, call, ended)
        self._calls[future] = _Call(then, changes)

    def _answered(self, begun: float) -> None:
        self._fresh_at = max(self._fresh_at, begun)
        if self._no_answer:
            logger.info("The registry's store answers again")
            self._no_answer = ""
            self._store.hurry()

    def _failed(self, why: str) -> None:
        if why != self._no_answer:
            logger.warning("The registry's store: %s", why)
        self._no_answer = why

    def look(self) -> float:
        """See :class:`~bpbroker.actors.registry_backend.Backend`; asks the store if it has not been used lately."""
        now = time.monotonic()
        if now >= self._sweep_at and not self.trouble:
            self._sweep()
        if now - self._fresh_at >= CHECK_SECS and not self._reading and not self._stopping:
            self._reading = True
            self._call("read", self._store.check, self._read_ended)
        return now + CHECK_SECS

    # --- changes by other brokers ---

    def _take_state(self, state: State) -> None:
        """Apply the complete state of the store."""
        self._notice = state.anew or self._notice
        other = bool(state.anew) or self._replica.registry_id not in ("", state.registry_id)
        self._read_again(self._replica.take_state(state))
        # The changes between are not known, so watches begin again.
        self._host.memory.begin(state.registry_id, state.revision)
        if self.away:
            logger.info("The registry is there: %d entries", len(self._host.memory.entries))
            self.away = ""
        self._host.memory.ages.starting = False
        self._host.memory.complete()
        self._broken_at = None
        if other:
            self._host.decide_staged_again()
        self._sweep()

    def _take_changes(self, changes: Changes) -> None:
        self._broken_at = None
        self._read_again(self._replica.learn_together(changes.seen))
        if changes.seen:
            # The store does not say the place of a deletion in its commit.
            first = max(0, changes.revision - INDEX_MAX + 1)
            told = [
                (seen.name, seen.record, first if seen.record is None else max(first, seen.record.revision))
                for seen in changes.seen
                if not seen.fault
            ]
            self._host.memory.announce(told, changes.revision)

    def _take_break(self, news: Broken) -> None:
        if self._broken_at is None:
            self._broken_at = time.monotonic()
            logger.warning("The watch on the registry's store broke off: %s", news.why)
        if self.away:
            self.away = news.why


def _entries_in(state: State) -> tuple[Record, ...]:
    """Return the entries in a store's state, without the registry's own records."""
    return tuple(
        seen.record
        for seen in state.entries
        if seen.record is not None and not seen.fault and not seen.name.startswith("_")
    )

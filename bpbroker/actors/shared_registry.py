"""The registry actor on a store that other brokers write to as well.

What is in memory may be behind the store. So a commit says which version of
each entry it expects, and whatever was decided on another one is decided again;
a refusal, too, is given only after a look at the store; and a read asks the
store, unless the client is content with what this broker knows.

Commits and reads take their time (:mod:`bpbroker.actors.sharing`); meanwhile
writes to names under way are postponed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from bpbroker.actors.base import DEFERRED
from bpbroker.actors.registry import Asked, Batch, Flush, Registry
from bpbroker.actors.sharing import Done, Sharing, unavailable
from bpbroker.errors import Overloaded, RequestError, Unavailable
from bpbroker.messages import Exists, Get, List, Pong, Record, Settings, Snapshot, SnapshotTaken, settle
from bpbroker.registry.changes import Broken, Change, Changes, Committed, Conflict, Outcome, Seen, State
from bpbroker.registry.replies import answer, failure_of, refusal
from bpbroker.registry.writes import record
from bpbroker.storage.base import SharedStore

logger = logging.getLogger(__name__)

_ATTEMPTS = 8
"""How often a write is decided again because the store turns out to hold something newer."""


class SharedRegistry(Registry):
    """Keeps what it knows of the entries up with the store.

    Args:
        open_store: makes the store; called in the actor's thread.
        settings: the settings in force.
    """

    _sharing: Sharing

    def __init__(self, open_store: Callable[[], SharedStore], settings: Settings) -> None:
        super().__init__(open_store, settings)
        self._shared_store = open_store
        self._away = "There is no registry yet"
        """Why there is nothing to serve; empty once there is."""
        self._under_way: tuple[Batch, Future[Any]] | None = None
        self._postponed: list[Asked] = []
        self._decided_on: dict[str, int] = {}
        """Name to the version on which its staged state was decided: news may come before the commit."""
        self.handlers |= {
            Done: lambda done: done.take(done.result),
            State: self._take_state,
            Changes: self._take_changes,
            Broken: self._take_break,
        }

    def started(self) -> None:
        """Open the store and learn what it holds; when it does not answer that is tried again and again."""
        self._store = store = self._shared_store()
        state = None
        try:
            state = store.open()
        except Unavailable as error:
            self._away = str(error)
            logger.warning("There is no registry yet, and it is tried again: %s", error)
        self._sharing = Sharing(store, state.version if state else None, self.tell_self, self._learn)
        if state is not None:
            self._take_state(state)
        self.wake_at(self._sharing.look())

    def stopped(self) -> None:
        """Answer all writes: those under way by what has become of them, and that the others changed nothing."""
        if not hasattr(self, "_sharing"):  # the store could not be opened
            if hasattr(self, "_store"):
                self._store.close()
            return
        self._sharing.close()
        if self._under_way is not None:
            _, result = self._under_way
            unknown = Unavailable("Whether this was changed is not known: the broker is stopping")
            unknown.outcome_known = False
            self._commit_ended((result.exception() or result.result()) if result.done() else unknown)
        self._refuse_waiting(Unavailable("Nothing was changed: the broker is stopping"))
        super().stopped()

    def status(self) -> Pong:
        """Give figures, and why the store cannot be used if it cannot."""
        pong = super().status()
        figures = {**pong.figures, "age_secs": round(self._age_secs(), 3)}
        faults = self._sharing.faults
        detail = self._away or self._sharing.trouble or pong.detail or next(iter(faults.values()), "")
        return Pong(not detail, detail, figures)

    def _probe(self) -> None:
        """Have it looked whether the store has space again; the next ping tells."""

        def known(result: object) -> None:
            if not isinstance(result, BaseException):
                self._problem = None

        self._sharing.probe(known)

    def _wake(self) -> None:
        self.wake_at(self._sharing.look())
        super()._wake()

    # --- writes ---

    def _decide(self, asked: Asked) -> None:
        name = asked.message.name
        if self._under_way is not None and name in self._under_way[0].staged:
            self._postponed.append(asked)
            return
        why = self._why_not(name)
        if why:
            answer(asked.reply, Unavailable(f"Nothing was changed: {why}"))
        else:
            super()._decide(asked)
            if name in self._staged:
                self._decided_on.setdefault(name, self._sharing.versions[name])

    def _take_batch(self) -> Batch:
        self._decided_on = {}
        return super()._take_batch()

    def _why_not(self, name: str) -> str:
        """Say why nothing can be done with a name; empty when something can."""
        return self._away or self._sharing.faults.get(name, "")

    def _change_nothing(self, asked: Asked, verdict: RequestError | None) -> None:
        if asked.sure:
            super()._change_nothing(asked, verdict)
            return

        def known(failure: Unavailable | None) -> None:
            if failure is not None:
                answer(asked.reply, Unavailable(f"Nothing was changed: {failure}"))
            else:
                self._decide(replace(asked, sure=True))

        self._sharing.read(asked.message.name, known)

    def _flush(self) -> None:
        """Have everything staged committed, unless a commit is under way: its end flushes again."""
        if self._under_way is not None or not self._decided:
            return
        versions = self._decided_on
        batch = self._take_batch()
        changes = [Change(name, after.json if after else None, versions[name]) for name, after in batch.staged.items()]
        self._under_way = batch, self._sharing.commit(changes, self._commit_ended)

    def _commit_ended(self, result: Sequence[Outcome] | BaseException) -> None:
        if self._under_way is None:
            return
        (batch, _), self._under_way = self._under_way, None
        postponed, self._postponed = self._postponed, []
        if isinstance(result, BaseException):
            failure = failure_of(result)
            self._committed(batch, [failure] * len(batch.staged), failure)
            if self._sharing.trouble:  # the others would only wait for the same once more
                self._postponed = postponed
                self._refuse_waiting(Unavailable(f"Nothing was changed: {self._sharing.trouble}"))
                return
        else:
            self._committed(batch, result)
        for asked in postponed:
            self._decide(asked)
        if self._decided:
            self.tell_self(Flush())

    def _refuse_waiting(self, error: Unavailable) -> None:
        """Answer all writes that no commit has begun with."""
        waiting = [*(asked for asked, _ in self._take_batch().decided), *self._postponed]
        self._postponed = []
        for asked in waiting:
            answer(asked.reply, refusal(error, decided=True))

    def _settle(self, name: str, after: Record | None, result: Outcome) -> None:
        if isinstance(result, Conflict):
            self._learn(result.seen)
        elif isinstance(result, Committed):
            value, version = (None, 0) if after is None else (after.json, result.version)
            self._learn(Seen(name, value, version, result.version), after)

    def _again(self, asked: Asked) -> None:
        if asked.attempt < _ATTEMPTS:
            self._decide(replace(asked, attempt=asked.attempt + 1, sure=False))
        else:
            changing = f"Entry '{asked.message.name}' changes too fast; nothing was changed"
            answer(asked.reply, Overloaded(changing))

    # --- what others change ---

    def _learn(self, seen: Seen, known: Record | None = None) -> bool:
        """Take what the store holds for a name; False if that may be old and has to be read again.

        ``known`` is its record if there is one already.
        """
        name = seen.name
        news = self._sharing.versions.take(seen)
        if news and seen.fault:
            self._sharing.faults[name] = f"{seen.fault}, somebody else wrote it"
            logger.error("%s", self._sharing.faults[name])
            self._put(name, None)
        elif news:
            self._sharing.faults.pop(name, None)
            self._put(name, None if seen.value is None else known or record(name, seen.value))
        return news is not None

    def _take_changes(self, changes: Changes) -> None:
        self._sharing.watching()
        for seen in changes.seen:
            if not self._learn(seen):
                self._sharing.read(seen.name, lambda _: None)

    def _take_state(self, state: State) -> None:
        """Take everything that the store holds."""
        if self._id != state.registry_id:
            if len(self._book):
                logger.error("The registry in the store is another one than before")
            self._sharing.versions.forget()  # those of another registry say nothing
            self._id = state.registry_id
        self._learn_all(state, "")
        if self._away:
            logger.info("The registry is there: %d entries", len(self._book))
            self._away = ""
        self._sharing.watching()

    def _learn_all(self, state: State, prefix: str) -> None:
        """Take all entries whose names begin with ``prefix``, and that there are no others."""
        present = {seen.name for seen in state.entries}
        for known in self._book.matching(prefix):
            if known.name not in present:
                self._learn(Seen(known.name, None, 0, state.version))
        for seen in state.entries:
            if not self._learn(seen):
                self._sharing.read(seen.name, lambda _: None)

    def _take_break(self, news: Broken) -> None:
        self._sharing.broken(news)
        if self._away:
            self._away = news.why

    # --- reads ---

    def _exists(self, message: Exists) -> str:
        cut_off = self._away or self._sharing.trouble
        return "" if cut_off else super()._exists(message)

    def _age_secs(self) -> float:
        return self._sharing.age_secs()

    def _get(self, message: Get) -> Any:
        reply = self.reply
        if reply is None:
            return None
        if self._away:
            raise Unavailable(self._away)
        if message.local:
            self._get_local(message, reply)
            return DEFERRED

        def known(failure: Unavailable | None) -> None:
            why = str(failure or self._why_not(message.name))
            if why:
                answer(reply, Unavailable(why))
            else:
                self._get_now(message, reply)

        self._sharing.read(message.name, known)
        return DEFERRED

    def _list(self, message: List) -> Any:
        if self._away:
            raise Unavailable(self._away)
        if message.local:
            return super()._list(message)
        if self.reply is not None:
            self._scan(message.prefix, self.reply, lambda state, reply: self._listed(message, state, reply))
        return DEFERRED

    def _listed(self, message: List, state: State, reply: Future[Any]) -> None:
        """Answer with what the store holds at one version; to wait, learn it, and wait for changes."""
        records = tuple(
            record(seen.name, seen.value) for seen in state.entries if seen.value is not None and not seen.fault
        )
        if len(records) < message.at_least and message.wait_secs > 0:
            self._learn_all(state, message.prefix)
            records = self._book.matching(message.prefix)  # others may have come meanwhile
            if len(records) < message.at_least:
                self._wait(message, reply, len(records))
                return
        settle(reply, records)

    def _snapshot(self, _: Snapshot) -> Any:
        if self._away:
            raise Unavailable(self._away)
        if self.reply is not None:
            self._scan("", self.reply, self._snapshot_read)
        return DEFERRED

    def _snapshot_read(self, state: State, reply: Future[Any]) -> None:
        entries = {seen.name: seen.value for seen in state.entries if seen.value is not None and not seen.fault}
        newest = max((seen.version for seen in state.entries), default=0)
        settle(reply, SnapshotTaken(entries, max(newest, min(self._sharing.versions.newest, state.version))))

    def _scan(self, prefix: str, reply: Future[Any], take: Callable[[State, Future[Any]], None]) -> None:
        def known(result: State | BaseException) -> None:
            if isinstance(result, BaseException):
                answer(reply, Unavailable(str(unavailable(result))))
            else:
                take(result, reply)

        self._sharing.scan(prefix, known)

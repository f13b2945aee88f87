"""The registry's backend on a store without other writers: it works at once, and memory is always right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from bpbroker import progress
from bpbroker.actors.base import DEFERRED
from bpbroker.actors.registry_backend import Host
from bpbroker.errors import RequestError, StorageFailed, Unavailable
from bpbroker.messages import SnapshotSaved, SnapshotTaken
from bpbroker.record import Record
from bpbroker.registry.changes import Committed, Conflict, Group, Outcome
from bpbroker.registry.memory import Memory
from bpbroker.registry.reads import Then
from bpbroker.registry.replies import refusal, send
from bpbroker.registry.requests import Done, Open
from bpbroker.registry.stored import split
from bpbroker.registry.taking import PREFIX as TAKEN
from bpbroker.storage.base import LocalStore

_STEP: Final = 1000
"""After how many entries a start reports its progress."""


@dataclass(frozen=True, slots=True)
class _Forget:
    """From the registry to itself: let the journal forget the next piece."""


class LocalBackend:
    """Implements :class:`bpbroker.actors.registry_backend.Backend`.

    Args:
        open_store: makes the store; called in the actor's thread.
        registry_id: 32 hexadecimal digits.
        erase: called with the names of entries that were taken and are destroyed now.
    """

    away = ""
    trouble = ""
    leases = False
    alone = True

    def __init__(
        self,
        open_store: Callable[[], LocalStore],
        registry_id: str = "0" * 32,
        erase: Callable[[tuple[str, ...]], None] = lambda _: None,
    ) -> None:
        self.registry_id = registry_id
        self._erase = erase
        self.faults: Mapping[str, str] = {}
        self.handlers: Mapping[type, Callable[[Any], Any]] = {
            SnapshotSaved: self._snapshot_saved,
            _Forget: lambda _: self._forget(),
        }
        self._open_store = open_store
        self._store: LocalStore
        self._is_open = False
        self._commits = 0
        self._host: Host
        self._memory: Memory
        self._behind: list[Then] = []
        """Reads of names that the next commit changes."""
        self._saved = 0
        """The configuration file holds everything up to this commit."""
        self._forgetting: list[Future[Any] | None] = []
        """The replies for the ``SnapshotSaved`` messages; empty when there is nothing to forget."""

    def take_notice(self) -> str:
        """Return nothing: only this registry writes to its store."""
        return ""

    @property
    def figures(self) -> Mapping[str, Any]:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        return self._store.figures

    @property
    def counts(self) -> Mapping[str, Any]:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        return {"syncs": self._store.syncs}

    def open(self, host: Host) -> None:
        """Open the store and read its entries into memory."""
        self._host, self._memory = host, host.memory
        self._store = self._open_store()
        self._is_open = True
        stored = self._store.load()
        fresh = self._store.sequence
        # Entries from an earlier version or from an editor have no revision: all of them get the newest one.
        self._memory.fill(_records(stored, fresh))
        self._memory.begin(self.registry_id, fresh)

    def drain(self) -> None:
        """Forget all pieces now: no requests come any more that this could delay."""
        while self._forgetting:
            self._forget()

    def close(self) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        if self._is_open:
            self._store.close()

    def abandon(self) -> None:
        """Do nothing: the next store on these files fences this one off, and only its own thread can close it."""

    def look(self) -> float:
        """Return infinity: each commit shows whether the store works."""
        return float("inf")

    def age_secs(self) -> float:
        """Return 0: memory is never behind."""
        return 0.0

    # --- reading ---

    def is_fresh(self, names: Sequence[str]) -> bool:
        """Return whether no staged write changes one of the names."""
        staged = self._memory.batch.staged
        return not staged or not any(name in staged for name in names)

    def read(self, names: Sequence[str], then: Then) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`; a read of a staged name waits for the commit."""
        if self.is_fresh(names):
            then(None)
        else:
            self._behind.append(then)

    def list(self, prefix: str, _at_least: int, then: Callable[[tuple[Record, ...] | Unavailable], None]) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        then(self._memory.entries.matching(prefix))

    def list_at(
        self,
        _prefixes: Sequence[str],
        _version: int,
        _then: Callable[[Mapping[str, tuple[Record, ...]] | Unavailable], None],
    ) -> None:
        """Never called: memory has the entries that a batch lists."""

    def reached(self, _then: Callable[[int | Unavailable], None]) -> None:
        """Never called: memory has all changes."""

    def snapshot(self, then: Callable[[SnapshotTaken | Unavailable], None]) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        then(SnapshotTaken(self._memory.snapshot(), self._store.sequence, self._commits))

    # --- committing ---

    def commit(self, groups: Sequence[Group], ended: Callable[[Sequence[Outcome] | BaseException], None]) -> None:
        """Commit at once; ``ended`` has been called when this returns."""
        result: Sequence[Outcome] | BaseException
        try:
            result = self._store.commit(groups)
        except Exception as error:  # noqa: BLE001 - whatever it is, each write in it must have a reply
            result = error
        ended(result)
        if self._behind:
            behind, self._behind = self._behind, []
            for then in behind:
                then(None)

    def learn(self, committed: Sequence[tuple[Group, Committed]]) -> None:
        """Apply the changes to memory, and tell watches."""
        self._commits += 1
        put, told, destroyed = self._memory.put, [], []
        upto = 0
        for group, outcome in committed:
            base = outcome.revision
            for change in group.changes:
                name, revision = change.name, base + change.place
                after = change.after.at(base) if change.after is not None else None
                put(name, after)
                told.append((name, after, revision))
                if revision > upto:
                    upto = revision
                if after is None and name.startswith(TAKEN):
                    destroyed.append(name.removeprefix(TAKEN))
        self._memory.announce(told, upto)
        if destroyed:
            self._erase(tuple(destroyed))

    def learn_conflict(self, conflict: Conflict) -> None:
        """Do nothing: without other writers there is no conflict."""

    def open_session(self, message: Open, then: Callable[[Done | RequestError], None]) -> None:
        """Never called."""

    def renew_session(self, session: str, then: Callable[[Done | RequestError], None]) -> None:
        """Never called."""

    def probe(self) -> None:
        """See :class:`~bpbroker.actors.registry_backend.Backend`."""
        try:
            self._store.probe()
        except Unavailable as error:
            self._host.report(error)
        else:
            self._host.report(None)

    # --- forgetting ---

    def _snapshot_saved(self, message: SnapshotSaved) -> Any:
        self._saved = max(self._saved, message.sequence)
        self._forgetting.append(self._host.reply)
        if len(self._forgetting) == 1:
            self._forget()
        return DEFERRED

    def _forget(self) -> None:
        """Let the journal forget a piece; the next one is queued behind the waiting messages."""
        if not self._forgetting:
            return
        failure = None
        try:
            if self._store.forget(self._saved):
                self._host.tell_self(_Forget())
                return
        except Unavailable as error:
            failure = error
            if isinstance(error, StorageFailed):
                self._host.report(error)
        waiting, self._forgetting = self._forgetting, []
        for reply in waiting:
            send(reply, failure and refusal(failure, decided=True))


def _records(stored: Mapping[str, bytes], fresh: int) -> Iterator[Record]:
    """Yield the stored records, and report progress: a million of them take seconds."""
    with progress.Work("Taking the entries into memory") as work:
        for number, (name, value) in enumerate(stored.items()):
            if not number % _STEP:
                work.step(number, len(stored))
            yield split(name, value, fresh)

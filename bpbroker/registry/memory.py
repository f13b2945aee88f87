"""What the registry has in memory: the entries, the writes that wait for a commit, and the reads that wait.

A write is decided on the *staged* state: the entries as they will be when every
write before it is durable. So writes that come together share one commit, and
each still meets those before it. No thread, no lock: only the registry's actor
touches it.

Today a write concerns one name. :meth:`Memory.decide` and the actor's ``_decide``
and ``_commit_ended`` rely on that, nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from bpbroker.errors import RequestError
from bpbroker.messages import Record, settle
from bpbroker.registry.changes import ANYTHING, Change
from bpbroker.registry.index import EntryIndex
from bpbroker.registry.named_keys import PREFIX as OF_KEYS
from bpbroker.registry.waiters import Waiters
from bpbroker.registry.writes import Write, decide

Decision = Record | RequestError | None
"""The reply to a write: its entry, None when there is none any more, or why it was refused."""


@dataclass(slots=True, eq=False)
class PendingWrite:
    """A write that has no reply yet."""

    message: Write
    reply: Future[Any] | None
    decision: Decision = None
    """The reply once the state that it was decided on is durable."""
    attempt: int = 1
    """How often it has been decided after a conflict, this time included."""
    sure: bool = False
    """Whether memory held the newest state of its name when it was decided."""


class Batch:
    """What one commit carries."""

    __slots__ = ("expects", "staged", "writes")

    def __init__(self) -> None:
        self.writes: list[PendingWrite] = []
        """In the order in which they were decided, refusals that rest on others among them."""
        self.staged: dict[str, Record | None] = {}
        """Name to the entry as it will be, None for no entry."""
        self.expects: dict[str, int] = {}
        """Name to the version that it was decided on, where the store has versions."""

    def changes(self) -> list[Change]:
        """Return what the store has to commit."""
        expects = self.expects
        return [
            Change(name, after.json if after else None, expects.get(name, ANYTHING))
            for name, after in self.staged.items()
        ]


class KeyView(Protocol):
    """Who follows the named access keys. Both methods are called in the registry's thread."""

    def take(self, stored_name: str, value: bytes | None) -> None:
        """Take what is stored of a key now; None when it is gone."""

    def complete(self) -> None:
        """Hear that all keys that there are have been told."""


class Memory:
    """The registry's state. Later states of an entry replace earlier ones here when they are durable, not before."""

    def __init__(self) -> None:
        self.entries = EntryIndex()
        """Every entry as far as this registry knows; with one writer, as they are."""
        self.keys = EntryIndex()
        """The named access keys, apart from the entries: no client sees them."""
        self.key_view: KeyView | None = None
        """Who follows the named keys."""
        self.batch = Batch()
        """The writes that the next commit carries."""
        self.waiters = Waiters()
        self.version: Callable[[str], int] | None = None
        """Returns the version of an entry that is known; None where the store has no other writers."""

    def fill(self, records: Iterable[Record]) -> None:
        """Take all entries that a store holds; nothing else has happened yet."""
        of_entries: list[Record] = []
        of_keys: list[Record] = []
        for record in records:
            (of_keys if record.name.startswith(OF_KEYS) else of_entries).append(record)
        self.entries, self.keys = EntryIndex(of_entries), EntryIndex(of_keys)
        for record in of_keys:
            self._tell(record.name, record)
        self.complete()

    def complete(self) -> None:
        """Tell who follows the named keys that all of them have been told."""
        if self.key_view is not None:
            self.key_view.complete()

    def _tell(self, name: str, after: Record | None) -> None:
        if self.key_view is not None:
            self.key_view.take(name, None if after is None else after.json)

    def matching(self, prefix: str) -> tuple[Record, ...]:
        """Return all entries and named keys whose names begin with ``prefix``."""
        return (*self.keys.matching(prefix), *self.entries.matching(prefix))

    def snapshot(self) -> Mapping[str, bytes]:
        """Return a copy of entries and named keys that does not change any more."""
        return self.entries.snapshot(self.keys)

    def decide(self, write: PendingWrite, now: float, max_bytes: int) -> bool:
        """Decide a write on the staged state, and stage what it changes.

        Returns whether its reply has to wait for the next commit. It has not if
        it changes nothing and does not rest on a staged state.
        """
        message, batch = write.message, self.batch
        name, staged = message.name, batch.staged
        is_staged = name in staged
        current = staged[name] if is_staged else self.entries.get(name) or self.keys.get(name)
        try:
            after = write.decision = decide(message, current, now, max_bytes)
        except RequestError as refusal:
            write.decision = refusal
            if not is_staged:
                return False
        else:
            if after is not None or current is not None:
                if not is_staged and self.version is not None:
                    batch.expects[name] = self.version(name)  # now: news may come before the commit
                staged[name] = after
            elif not is_staged:  # deleting what is not there
                return False
        batch.writes.append(write)
        return True

    def take_batch(self) -> Batch:
        """Return what is to be committed next, and begin a new batch."""
        batch, self.batch = self.batch, Batch()
        return batch

    def put(self, name: str, after: Record | None) -> None:
        """Let a durable change be seen, and reply to the reads that waited for it."""
        if name.startswith(OF_KEYS):
            self.keys.put(name, after)
            self._tell(name, after)
            return
        before = self.entries.put(name, after)
        waiters = self.waiters
        if not waiters.size:
            return
        if after is not None:
            for reply in waiters.appeared(name, after.etag):
                settle(reply, after)
        if (before is None) != (after is None):
            for prefix, replies in waiters.counted(name, 1 if before is None else -1):
                matching = self.entries.matching(prefix) if replies else ()
                for reply in replies:
                    settle(reply, matching)

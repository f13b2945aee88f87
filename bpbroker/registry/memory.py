"""The registry in memory: its records, the writes that wait for a commit, and the reads that wait.

A write is decided on the *staged* state: the records as they will be when every
write before it is durable. So writes that come together share one commit, and
each write still sees those before it. No thread, no lock: only the registry's
actor touches it.

A write may concern several names. The names that it read and changed are one group of the commit, together with those
of other writes that share a name with it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

from bpbroker.errors import RequestError, TooLarge, Unavailable
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry import discovery_secret, locks, named_keys, numbers, sessions, taking
from bpbroker.registry.ages import Ages
from bpbroker.registry.changes import ANYTHING, CHARACTER_BYTES, NAME_BYTES, Change, Group
from bpbroker.registry.discovery_secret import DiscoverySecret
from bpbroker.registry.history import History, events_of
from bpbroker.registry.index import EntryIndex, Snapshot, span
from bpbroker.registry.parked import Parked, ParkedCall, Places
from bpbroker.registry.pools import Pools
from bpbroker.registry.replies import Reply, send
from bpbroker.registry.requests import Listing, Watch, Watched
from bpbroker.registry.view import Age, Limits
from bpbroker.registry.waiting_reads import Waiters
from bpbroker.registry.writes import Write, decide

BATCHES: Final = "_batch/"
KEPT: Final = (sessions.LOST, sessions.CLOSED, BATCHES)
"""Kinds of the registry's own records that are removed when they are old."""

_OF_PREFIX: Final = 2
"""How many names a prefix with which there must be no entry counts for: the empty one stands for two ranges."""
_LOOK: Final = "_look/"
"""With the place in a commit, the name of a write that may change nothing; no record has such a name."""


class Fate(Enum):
    """What has to happen after a write was decided."""

    NOW = "now"
    """It changes nothing and depends only on durable records: the reply can be sent."""
    STAGED = "staged"
    """The reply is sent when the next commit is durable."""
    LATER = "later"
    """A name of it is in a running commit, or the next commit is full: it has to be decided again."""


@dataclass(slots=True, eq=False)
class PendingWrite:
    """A write that has no reply yet."""

    message: Write
    reply: Reply | None
    decision: Any = None
    """The reply once the state that it was decided on is durable, or why it was refused."""
    attempt: int = 1
    """How often it has been decided after a conflict, this time included."""
    looked: frozenset[str] = frozenset()
    """Names whose newest state is in memory now, because the store was asked for them together."""
    names: tuple[str, ...] = ()
    """The names that it read or changed."""
    places: int = 1
    """How many changes that follow each other it may make, each with a revision of its own."""
    lists: tuple[str, ...] = ()
    """Prefixes for which the store has to be asked for all entries, as they are at the write's commit."""


Size = tuple[int, int]
"""How many names and prefixes, and how many bytes, a write or a group of them takes of what a store takes at once."""


class Batch:
    """What one commit carries."""

    __slots__ = (
        "_empty", "_links", "_ordered", "_sizes", "expects", "indexes", "listing", "looking", "places", "staged",
        "writes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.writes: list[PendingWrite] = []
        """The writes in the order of their decisions, and refusals that depend on other writes."""
        self.places = 1  # 0 stands for no change
        """The next free place for a revision in the commit. Each write takes one; a batch whose operations stand alone
        takes one for each operation that changes something."""
        self.staged: dict[str, Record | None] = {}
        """Name to its next record; None: no record."""
        self._ordered: list[str] | None = None
        """The staged names, sorted, when they were needed."""
        self.indexes: dict[str, int] = {}
        """Name to the place of the last write that changes it."""
        self.expects: dict[str, int] = {}
        """Name to the version that it was decided on, where the store has versions."""
        self.listing = False
        """Whether there is a write that lists entries as of this commit."""
        self.looking: list[str] = []
        """Names for writes that are part of the commit because of their reads, even if they change nothing."""
        self._links: dict[str, str] = {}
        """Name to another one of its group."""
        self._sizes: dict[str, Size] = {}
        """Name that represents a group to its size, where the store has versions."""
        self._empty: list[tuple[str, str]] = []
        """Name of a group, and a prefix with which there must be no entry."""

    def stage(self, name: str, after: Record | None, index: int) -> None:
        """Stage a record as a write leaves it."""
        if self._ordered is not None and name not in self.staged:
            insort(self._ordered, name)
        self.staged[name] = after
        self.indexes[name] = index

    def beginning(self, prefix: str) -> list[str]:
        """Return the staged names that begin with ``prefix``, those of deleted records too."""
        ordered = self._ordered
        if ordered is None:
            ordered = self._ordered = sorted(self.staged)
        places = span(ordered, prefix)
        return ordered[places.start : places.stop]

    def group_of(self, name: str) -> str:
        """Return the name that represents a name's group."""
        links = self._links
        while name in links:
            name = links[name]
        return name

    def has_room(self, names: Iterable[str], size: Size, limits: Limits) -> bool:
        """Return whether a write with these names fits into their group, or makes it no larger.

        Args:
            names: what it reads and changes.
            size: what it adds to the group.
            limits: of the store.
        """
        parts = self._parts(names)
        if not parts:
            return True  # whether the store takes it alone is checked before
        counts, lengths = [part[0] for part in parts], [part[1] for part in parts]
        return size[0] + sum(counts) <= max(limits.names, *counts) and (
            size[1] + sum(lengths) <= max(limits.commit_bytes, *lengths)
        )

    def _parts(self, names: Iterable[str]) -> list[Size]:
        """Return the sizes of the groups to which names belong."""
        return [self._sizes[root] for root in {self.group_of(name) for name in names} if root in self._sizes]

    def link(self, names: Sequence[str], empty: Iterable[str], size: Size, *, new: bool) -> None:
        """Put names into one group; for ``size`` see :meth:`has_room`. ``new``: none of them is in a group yet."""
        if new:
            first = names[0]
            self._links.update(dict.fromkeys(names[1:], first))
        else:
            parts = self._parts(names)
            size = size[0] + sum(part[0] for part in parts), size[1] + sum(part[1] for part in parts)
            first = ""
            for name in names:
                root = self.group_of(name)
                first = first or root
                if root != first:
                    self._links[root] = first
        self._sizes[first] = size
        if empty:
            self._empty += [(first, prefix) for prefix in empty]

    def look(self, name: str, *, lists: bool) -> None:
        """Make a write, if it has such a name, part of the commit because of its reads."""
        if name:
            self.looking.append(name)
            self.listing = self.listing or lists

    def groups(self) -> list[Group]:
        """Return the groups that the store has to commit."""
        expects, indexes = self.expects, self.indexes
        changes = {
            name: Change(name, after, expects.get(name, ANYTHING), indexes[name]) for name, after in self.staged.items()
        }
        if not self._links and not self._empty and not self.looking:
            # Without expected versions no group can fail alone: the whole commit happens, or nothing.
            return [Group((change,)) for change in changes.values()] if expects else [Group(tuple(changes.values()))]
        looking = {self.group_of(name) for name in self.looking}
        found: dict[str, list[str]] = {}
        for name in {**self.staged, **self.expects}:
            found.setdefault(self.group_of(name), []).append(name)
        return [
            Group(
                tuple(changes[name] for name in names if name in changes),
                tuple((name, expects[name]) for name in names if name not in changes),
                tuple(prefix for name, prefix in self._empty if self.group_of(name) == root),
            )
            for root, names in found.items()
            if root in looking or any(name in changes for name in names)
        ]


class _UnderWay(Exception):
    """A name's commit is under way."""


class _View:
    """Implements :class:`bpbroker.registry.view.View`."""

    __slots__ = ("_memory", "alone", "changes", "empty", "index", "kept", "lists", "looks", "now", "pools", "reads")

    def __init__(self, memory: Memory, index: int, now: float) -> None:
        self._memory = memory
        self.index = index
        self.now = now
        self.changes: dict[str, Record | None] = {}
        self.reads: dict[str, None] = {}
        self.kept: dict[str, None] = {}
        """What was read before the last :meth:`keep`."""
        self.empty: list[str] = []
        self.lists: list[str] = []
        self.looks = ""
        """A name for a write that is part of its commit because of its reads."""
        self.alone: Size | None = None
        """How large it is, if that was looked at."""
        self.pools = memory.pools

    def age(self, name: str, part: Hashable) -> Age:
        return self._memory.ages.of(name, part)

    def get(self, name: str) -> Record | None:
        self.reads[name] = None
        return self.peek(name)

    def peek(self, name: str) -> Record | None:
        if name in self.changes:
            return self.changes[name]
        memory = self._memory
        if memory.under_way is not None and name in memory.under_way.staged:
            raise _UnderWay
        if memory.faults and name in memory.faults:
            raise Unavailable(f"Nothing was changed: {memory.faults[name]}")
        staged = memory.batch.staged
        return staged[name] if name in staged else memory.get(name)

    def put(self, name: str, json: bytes, session: str = "") -> Record:
        self.reads[name] = None
        record = self.changes[name] = Record(name, json, self.index, session)
        return record

    def delete(self, name: str) -> None:
        self.reads[name] = None
        self.changes[name] = None

    def apart(self, record: Record) -> None:
        if record.revision < INDEX_MAX and self._memory.version is not None:
            raise _UnderWay

    def keep(self) -> bool:
        batch, changes = self._memory.batch, self.changes
        sure = not changes and not any(name in batch.staged for name in self.reads)
        for name, after in changes.items():
            batch.stage(name, after, self.index)
        self.kept.update(self.reads)
        self.changes, self.reads = {}, {}
        self.index += 1
        return sure

    def names(self, prefix: str, most: int | None = None) -> list[str]:
        memory, batch = self._memory, self._memory.batch
        if memory.under_way is not None and memory.under_way.beginning(prefix):
            raise _UnderWay
        staged = {name: batch.staged[name] for name in batch.beginning(prefix)}
        if memory.version is None:  # otherwise the store itself is asked for the state at the commit
            self.reads.update(dict.fromkeys(staged))  # their staged state counts here, and is not durable yet
        staged |= {name: after for name, after in self.changes.items() if name.startswith(prefix)}
        index = memory.own if prefix.startswith("_") else memory.entries
        found = set(index.beginning(prefix, None if most is None else most + len(staged)))
        for name, after in staged.items():
            if prefix.startswith("_") or not name.startswith("_"):
                (found.discard if after is None else found.add)(name)
        return sorted(found)[:most]

    def entries(self, prefix: str) -> tuple[Record, ...] | Listing:
        if self._memory.version is None:
            return tuple(found for name in self.names(prefix) if (found := self.peek(name)) is not None)
        # Other brokers write to the store, and other staged writes may fail. So the store is asked for the state at
        # the commit.
        self._look()
        self.lists.append(prefix)
        return Listing(prefix)

    def must_stay_empty(self, prefix: str) -> None:
        if self._memory.version is not None:
            self._look()
        self.empty.append(prefix)

    def size(self, batch: Batch | None, limits: Limits) -> Size:
        """Return how large the write is, or what it adds to the groups of a batch; not less than it really is."""
        known: Mapping[str, object] = {} if batch is None else batch.expects
        count, size = _OF_PREFIX * len(self.empty), 0
        for name in self.reads:
            if name not in known:
                count += 1
                size += NAME_BYTES + CHARACTER_BYTES * len(name)
        for name, after in self.changes.items():
            if after is not None:
                size += len(after.json) + len(after.session)
            if name in known and batch is not None and (before := batch.staged.get(name)) is not None:
                size -= len(before.json) + len(before.session)
        if count > limits.names:
            # Of very many new entries the store looks in one go whether one of them was just taken.
            untaken = [name for name in self.reads if name.startswith(taking.PREFIX) and name not in self.changes]
            count -= max(0, sum(name not in known and self.peek(name) is None for name in untaken) - 1)
        return count, size

    def check_size(self, limits: Limits) -> None:
        """Check that the store takes the write.

        Raises:
            TooLarge: it reads and changes too much.
        """
        if self._memory.version is None or not (self.changes or self.looks):
            return
        names, size = self.alone = self.size(None, limits)
        if names > limits.names:
            raise TooLarge(
                f"Nothing was changed: this concerns {names} records, with the locks and sessions that it depends"
                f" on; on etcd that may be {limits.names} at once, so make several of it"
            )
        if size > limits.commit_bytes:  # then counted byte by byte
            size -= sum(CHARACTER_BYTES * len(name) - 3 * len(name.encode()) for name in self.reads)
        if size > limits.commit_bytes:
            raise TooLarge(
                f"Nothing was changed: these are {size} bytes together; on etcd that may be {limits.commit_bytes} at"
                " once, so make several of it"
            )

    def _look(self) -> None:
        self.looks = f"{_LOOK}{self.index}"
        self.get(self.looks)

    def sessions(self) -> int:
        memory = self._memory
        count = memory.sessions
        for batch in (memory.under_way, memory.batch):
            for name, after in batch.staged.items() if batch is not None else ():
                if name.startswith(sessions.PREFIX):
                    count += (after is not None) - (memory.get(name) is not None)
        return count

    def names_of(self, session: str) -> list[str]:
        memory = self._memory
        found = set(memory.belongings.get(session, ()))
        for batch in (memory.under_way, memory.batch):
            if batch is None:
                continue
            mine = {
                name for name, after in batch.staged.items() if after is not None and session in _sessions_in(after)
            }
            if mine and batch is memory.under_way:
                raise _UnderWay
            found |= mine
        return sorted(found)


def _sessions_in(record: Record) -> tuple[str, ...]:
    """Return the sessions to which a record, or a place in it, belongs."""
    if record.name.startswith(locks.PREFIX):
        return tuple(place.session for place in locks.parse(record).places)
    return (record.session,) if record.session else ()


class KeyView(Protocol):
    """Follows the named access keys. All methods are called in the registry's thread."""

    def take(self, stored_name: str, value: bytes | None) -> None:
        """Set the stored form of a key; None removes the key."""

    def complete(self) -> None:
        """Note that all keys have been sent."""

    def registry_is(self, registry_id: str) -> None:
        """Note the id of the registry whose keys these are."""


class Memory:
    """The registry's state. A new state of a record takes the place of the old one when it is durable, not before."""

    def __init__(self) -> None:
        self.entries = EntryIndex()
        """All entries that this broker knows; without other writers, exactly those of the store."""
        self.own = EntryIndex()
        """The registry's own records, whose names begin with ``_``."""
        self.whole = True
        """Whether it shows all changes of each commit; False while a commit is being applied, entry by entry."""
        self.batch = Batch()
        """The writes that the next commit carries."""
        self.under_way: Batch | None = None
        """The batch whose commit has not ended."""
        self.places = Places()
        self.waiters = Waiters(self.places)
        self.parked = Parked(self.places)
        self.history = History()
        self.ages = Ages()
        self.pools = Pools()
        self.belongings: dict[str, set[str]] = {}
        """Session to the names of its entries and of the locks in which it has a place."""
        self.sessions = 0
        """How many durable sessions there are."""
        self.locks = 0
        """How many locks are held durably."""
        self.entries_lost = 0
        """How many entries ended with a session that was not closed, since this was filled."""
        self.session_began: Callable[[str, Record], None] = lambda _id, _record: None
        self.session_ended: Callable[[str, Record | None], None] = lambda _id, _before: None
        self.lock_changed: Callable[[str, Record | None], None] = lambda _name, _record: None
        self.watches_concerned: Callable[[], None] = lambda: None
        """Called when :meth:`tell_watches` has work to do."""
        self._concerned: dict[ParkedCall, None] = {}
        """The waiting watches that have to get a reply."""
        self._told: dict[tuple[str, str | None, str | None, int], Watched | RequestError] = {}
        """The reply for watches that are alike, until the next change."""
        self.key_view: KeyView | None = None
        """Follows the named access keys."""
        self.secret: DiscoverySecret | None = None
        """Gets the registry's discovery secret, where it has one."""
        self.version: Callable[[str], int] | None = None
        """Returns the known version of a record; None where the store has no other writers."""
        self.faults: Mapping[str, str] = {}
        """Names that cannot be served, with the reason."""

    def fill(self, records: Iterable[Record]) -> None:
        """Take all records of a store; nothing else has happened yet."""
        self.ages.starting = True
        own: list[Record] = []
        entries: list[Record] = []
        for record in records:
            (own if record.name.startswith("_") else entries).append(record)
            for session in _sessions_in(record):
                self.belongings.setdefault(session, set()).add(record.name)
        self.entries, self.own = EntryIndex(entries), EntryIndex(own)
        for record in own:
            self._note_age(record.name, record)
            if record.name.startswith(sessions.PREFIX):
                self.sessions += 1
                self.session_began(record.name.removeprefix(sessions.PREFIX), record)
            elif locks.is_lock(record.name):
                self.locks += 1
            elif record.name.startswith(named_keys.PREFIX) and self.key_view is not None:
                self.key_view.take(record.name, record.json)
            elif record.name == discovery_secret.NAME and self.secret is not None:
                self.secret.take(record.json)
        self.ages.starting = False
        self.complete()

    def complete(self) -> None:
        """Tell the follower of the named keys that all of them have been sent."""
        if self.key_view is not None:
            self.key_view.complete()

    def begin(self, registry_id: str, revision: int) -> None:
        """Set the registry's id; its history begins after a revision."""
        self.history.begin(registry_id, revision)
        if self.key_view is not None:
            self.key_view.registry_is(registry_id)

    def get(self, name: str) -> Record | None:
        """Return the durable state of a record."""
        return (self.own if name.startswith("_") else self.entries).get(name)

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names of the entries with a prefix; if it begins with ``_``, of the registry's own records."""
        index = self.own if prefix.startswith("_") else self.entries
        return iter(index.beginning(prefix))

    def snapshot(self) -> Mapping[str, bytes]:
        """Return all records in their stored form, as they are now."""
        return Snapshot(self.entries, self.own)

    def decide(self, write: PendingWrite, now: float, limits: Limits) -> Fate:
        """Decide a write on the staged state, and stage its changes; ``now`` is Unix time."""
        batch = self.batch
        index = batch.places
        if index + write.places >= INDEX_MAX:
            return Fate.LATER
        view = _View(self, index, now)
        try:
            write.decision = decide(write.message, view, limits)
            view.check_size(limits)
        except _UnderWay:
            return Fate.LATER
        except RequestError as refusal:
            write.decision = refusal
            view.changes.clear()
            view.lists.clear()
            view.looks = ""
        if view.lists and batch.listing:
            return Fate.LATER  # each would see what the other one does, so neither of them could be the first
        staged, names = batch.staged, (*view.kept, *view.reads)
        write.names, write.lists = names, tuple(view.lists)
        if not view.changes and not view.looks and not any(name in staged for name in names):
            return Fate.NOW
        version = self.version
        if version is not None:
            new = batch.expects.keys().isdisjoint(names)
            size = view.alone if new and view.alone is not None else view.size(batch, limits)
            if not new and not batch.has_room(names, size, limits):
                return Fate.LATER  # the store would refuse the whole group
            for name in names:
                if name not in staged and name not in batch.expects:
                    batch.expects[name] = version(name)  # now, because news may come before the commit ends
            batch.link(names, view.empty, size, new=new)
            batch.look(view.looks, lists=bool(view.lists))
        for name, after in view.changes.items():
            batch.stage(name, after, view.index)
        batch.places = view.index + 1
        batch.writes.append(write)
        return Fate.STAGED

    def take_batch(self) -> Batch:
        """Return the batch to commit next, and begin a new one."""
        batch, self.batch = self.batch, Batch()
        return batch

    def put(self, name: str, after: Record | None) -> None:
        """Apply a durable change, and reply to the reads that waited for it."""
        if name.startswith("_"):
            self._put_own(name, after)
            return
        before = self.entries.put(name, after)
        if (before is not None and before.session) or (after is not None and after.session):
            self._belongs(name, before, after)
        waiters = self.waiters
        if waiters.size:
            waiters.changed(name, before, after, self.entries)

    def _put_own(self, name: str, after: Record | None) -> None:
        before = self.own.put(name, after)
        self._note_age(name, after)
        if name.startswith(locks.PREFIX):
            self._belongs(name, before, after)
            if locks.is_lock(name):
                self.locks += (after is not None) - (before is not None)
            self.lock_changed(name.removeprefix(locks.PREFIX), after)
        elif name.startswith(sessions.PREFIX):
            session = name.removeprefix(sessions.PREFIX)
            self.sessions += (after is not None) - (before is not None)
            # A session that ended and was opened again in the same commit is another one.
            other = before is None or after is None or before.revision != after.revision
            if before is not None and other:
                self.session_ended(session, before)
            if after is not None and other:
                self.session_began(session, after)
        elif name.startswith(sessions.LOST):
            self.entries_lost += after is not None and (before is None or before.revision < after.revision)
        elif name.startswith(named_keys.PREFIX) and self.key_view is not None:
            self.key_view.take(name, None if after is None else after.json)
        elif name == discovery_secret.NAME and self.secret is not None:
            self.secret.take(None if after is None else after.json)

    def _note_age(self, name: str, after: Record | None) -> None:
        """Note since when a record and its parts exist."""
        if name.startswith(locks.PREFIX):
            self.ages.parts(name, [place.token for place in locks.parse(after).places])
        elif name.startswith(numbers.RESTING):
            self.ages.parts(name, numbers.parts(after))
        elif name.startswith(KEPT):
            kind = name[: name.index("/") + 1]
            if after is None:
                self.ages.end(kind, name)
            else:
                self.ages.begin(kind, name)

    def _belongs(self, name: str, before: Record | None, after: Record | None) -> None:
        old = _sessions_in(before) if before is not None else ()
        new = _sessions_in(after) if after is not None else ()
        for session in old:
            if session not in new:
                names = self.belongings.get(session, set())
                names.discard(name)
                if not names:
                    self.belongings.pop(session, None)
        for session in new:
            self.belongings.setdefault(session, set()).add(name)

    def announce(self, changes: Sequence[tuple[str, Record | None, int]], upto: int) -> None:
        """Apply durable changes up to a revision: name, record after it, its revision. Watches get them later."""
        if len(changes) > 1:  # to take an entry changes two records, also where its end is in the same commit
            for name, _, _ in changes:
                if name.startswith(taking.PREFIX):
                    self.history.forget_values(name.removeprefix(taking.PREFIX))
        events = events_of(changes)
        self.history.add(events, upto)
        concerned, watching = self._concerned, self.parked.watching
        before = len(concerned)
        for event in events if self.parked.size else ():
            concerned.update(dict.fromkeys(watching(event.name)))
        self._told.clear()
        if concerned and not before:
            self.watches_concerned()

    def tell_watches(self, most: int) -> bool:
        """Reply to some of the watches that changes concern; return whether there are more."""
        concerned, told = self._concerned, self._told
        for _ in range(min(most, len(concerned))):
            call = next(iter(concerned))
            del concerned[call]
            if not self.parked.remove(call):
                continue  # its client has left, or its time was over
            watch: Watch = call.message
            alike = (watch.prefix, watch.name, watch.since, watch.limit)
            if alike not in told:  # many clients watch the same, so the reply is made once
                told[alike] = self._happened(watch)
            send(call.reply, told[alike])
        if not concerned:
            told.clear()
        return bool(concerned)

    def _happened(self, watch: Watch) -> Watched | RequestError:
        try:
            return self.history.read(watch)
        except RequestError as gone:
            return gone

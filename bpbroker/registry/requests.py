"""What servers need from each other, as requests to the registry: sessions, locks, numbers, taking, batches, watching.

As in :mod:`bpbroker.messages`, all of them are frozen, and a docstring names the
reply. A call may be sent again after a lost reply and means the same: its identity
(session, owner, receiver, batch id) was made by the client before its first try.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from bpbroker.messages import ALWAYS, Condition
from bpbroker.record import INDEX_MAX, Record


@dataclass(frozen=True, slots=True)
class Done:
    """It is done; the reply of calls that have nothing else to tell."""

    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the client."""
    revision: int = 0
    """Of the change; 0 if nothing had to be changed."""
    ended: tuple[str, ...] = ()
    """Stored names of what ended with a session; for the log."""

    def at(self, revision: int) -> Done:
        """Return it as it is when its commit is durable at a revision."""
        return Done(self.data, _durable(self.revision, revision), self.ended)


def _durable(own: int, commit: int) -> int:
    """Return the revision of a change when its commit is durable; one of an earlier commit stays as it is."""
    return own if own >= INDEX_MAX else commit + own


# --- sessions ---


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a session; the same id again while it lives is the same session. Reply: :class:`Done`."""

    session: str
    ttl_secs: float
    source: str
    key: str = ""
    """The name of the access key that opens it; empty without one."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep a session alive for its ttl from now on. Reply: :class:`Done`. Errors: NotFound: it is over."""

    session: str


@dataclass(frozen=True, slots=True)
class Close:
    """End a session: its entries and places in locks go in one commit. Reply: :class:`Done`, also if it is over."""

    session: str


@dataclass(frozen=True, slots=True)
class Expire:
    """The registry to itself: what belongs to this session goes, because its time is over."""

    session: str


@dataclass(frozen=True, slots=True)
class Expired:
    """News for the log: a session ended by itself, and what it had went with it."""

    session: str
    source: str
    """The address that opened it; empty if that is not known any more."""
    key: str
    """The name of the access key that opened it; empty for none."""
    names: tuple[str, ...]
    """Stored names of its entries and locks."""
    revision: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The registry to itself: remove records of its own that nobody will ask for any more."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """What expired lately. Reply: a tuple of :class:`Record`, named as the lost entries, with what is told of each."""

    prefix: str = ""


# --- locks ---


@dataclass(frozen=True, slots=True)
class Lock:
    """Take a place in a lock's queue and wait until it is among the first ``limit``.

    Reply: :class:`Done` with ``token``. Errors: NotFound (the session is over), BadRequest,
    AlreadyExists (not in time; the place was given back).
    """

    name: str
    session: str
    source: str
    limit: int = 1
    data: Any = None
    """What the holder says of itself: a JSON value."""
    wait_secs: float = 0.0
    client: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Unlock:
    """Give a place back; fine if there is none. Reply: :class:`Done`."""

    name: str
    session: str
    if_waiting: bool = False
    """Whether a place that holds the lock by then is kept; the reply's data have ``since`` then, perhaps ``token``."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock and who waits. Reply: :class:`Done`.

    With ``wait_secs`` the reply comes when the newest holder's token is not ``unless_token``, or when the time is over.
    """

    name: str
    wait_secs: float = 0.0
    unless_token: int | None = None
    client: str = field(default="", compare=False)


# --- numbers ---


@dataclass(frozen=True, slots=True)
class Allocate:
    """Return an owner's number in a pool: the one it has, else the lowest free one.

    Reply: :class:`Done` with ``number``. Errors: BadRequest,
    AlreadyExists (the pool is full, or ``number`` is another owner's).
    """

    pool: str
    owner: str
    source: str
    low: int = 1
    high: int = 65535
    number: int | None = None
    """The one number that will do."""
    condition: Condition = ALWAYS
    """A lock that must be held; here and in what follows nothing else."""


@dataclass(frozen=True, slots=True)
class Release:
    """Free an owner's number; fine if there is none. Reply: :class:`Done`."""

    pool: str
    owner: str
    source: str
    quarantine_secs: float = 0.0
    """For so long the number is given to no other owner."""
    condition: Condition = ALWAYS


@dataclass(frozen=True, slots=True)
class Next:
    """Count on, and return the counter. Reply: :class:`Done` with ``number``; an owner gets the same one again."""

    name: str
    source: str
    by: int = 1
    owner: str = ""
    condition: Condition = ALWAYS


@dataclass(frozen=True, slots=True)
class Rest:
    """The registry to itself: note how long the numbers of a pool have yet to rest."""

    pool: str


# --- taking ---


@dataclass(frozen=True, slots=True)
class Take:
    """Take an entry away, for one receiver alone. Reply: its :class:`Record`. Errors: NotFound, AlreadyExists."""

    name: str
    receiver: str
    condition: Condition = ALWAYS


@dataclass(frozen=True, slots=True)
class Ack:
    """Destroy what a receiver has taken; fine if it is gone. Reply: :class:`Done`. Errors: AlreadyExists."""

    name: str
    receiver: str
    condition: Condition = ALWAYS


# --- batches ---


@dataclass(frozen=True, slots=True)
class Check:
    """In a batch: an entry must be as expected. Reply: :class:`Done`."""

    name: str
    condition: Any


@dataclass(frozen=True, slots=True)
class CheckEmpty:
    """In a batch: there must be no entry whose name begins with ``prefix``. Reply: :class:`Done`."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Listing:
    """In a batch on a shared store: the entries with a prefix, which only the store knows, and after the commit."""

    prefix: str


@dataclass(frozen=True, slots=True)
class BatchDone:
    """What became of a batch's operations."""

    results: tuple[Any, ...]
    """For each operation its reply; in a batch that is not atomic a refusal, too."""
    revision: int = 0
    sure: frozenset[int] = frozenset()
    """Places of the results of such a batch that are so whatever becomes of its commit."""

    def with_lists(self, found: Mapping[str, tuple[Record, ...]]) -> BatchDone:
        """Return it with what there is for each prefix."""
        results = (found[each.prefix] if isinstance(each, Listing) else each for each in self.results)
        return replace(self, results=tuple(results))

    def at(self, revision: int) -> BatchDone:
        """Return it as it is when its commit is durable at a revision."""
        sure = self.sure
        results = [found if number in sure else _at(found, revision) for number, found in enumerate(self.results)]
        return BatchDone(tuple(results), _durable(self.revision, revision))


def _at(found: Any, revision: int) -> Any:
    if type(found) is tuple:  # the entries that a List found
        return tuple([record.at(revision) for record in found])
    return found.at(revision) if hasattr(found, "at") else found


@dataclass(frozen=True, slots=True)
class Batch:
    """Carry out several operations in one commit, all or none. Reply: :class:`BatchDone`.

    Errors: of an operation; AlreadyExists: another batch has this id.
    """

    id: str
    """Made by the client: a repeated batch of this id is not carried out again. Empty: it may be."""
    operations: tuple[Any, ...]
    atomic: bool = True
    digest: str = ""
    """Of the operations as the client gave them: another batch of the same id is refused. Empty: it is not compared."""


# --- watching ---


@dataclass(frozen=True, slots=True)
class Watch:
    """Read what has changed since a cursor, waiting for something if need be. Reply: :class:`Watched`.

    Errors: Gone (the cursor is forgotten, or another registry's), Overloaded.
    """

    prefix: str = ""
    name: str | None = None
    """The one entry that is watched; None: all whose names begin with ``prefix``."""
    since: str | None = None
    """A cursor; None: the present one is returned at once."""
    wait_secs: float = 0.0
    limit: int = 1000
    """The most events in one reply; those of one revision are never divided."""
    client: str = field(default="", compare=False)


class Event(NamedTuple):
    """One change of an entry; a named tuple, as each write makes one, and a frozen dataclass takes longer to make."""

    type: str
    """``put``, ``delete``, ``expire`` or ``take``."""
    name: str
    revision: int
    record: Record | None = None
    """The entry after a put."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Events in the order of their revisions, and from where to go on."""

    events: tuple[Event, ...]
    cursor: str

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
    """The call is done; the reply of calls without another result."""

    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the client."""
    revision: int = 0
    """Revision of the change; 0 if nothing had to be changed."""
    ended: tuple[str, ...] = ()
    """Stored names of the entries and locks that ended with a session; for the log."""

    def at(self, revision: int) -> Done:
        """Return it as it is when its commit is durable at a revision."""
        return Done(self.data, _durable(self.revision, revision), self.ended)


def _durable(own: int, commit: int) -> int:
    """Return the revision of a change whose commit is durable; a revision of an earlier commit stays unchanged."""
    return own if own >= INDEX_MAX or not own else commit + own


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
    """From the registry to itself: remove a session whose time is over, with all that belongs to it."""

    session: str


@dataclass(frozen=True, slots=True)
class Expired:
    """For the log: a session ended by itself, with all that belonged to it."""

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
    """From the registry to itself: remove old records of its own."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Read the entries that expired lately and do not exist again. Reply: a tuple of :class:`Record`, by name."""

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
    """Data about the holder that others see: a JSON value."""
    wait_secs: float = 0.0
    client: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Unlock:
    """Give a place back; no error if there is none. Reply: :class:`Done`."""

    name: str
    session: str
    if_waiting: bool = False
    """Whether a place that holds the lock by then is kept; the reply's data have ``since`` then, perhaps ``token``."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Read the holders and waiting sessions of a lock. Reply: :class:`Done`.

    With ``wait_secs`` the reply comes when the newest holder's token differs from ``unless_token``, or when the time
    is over.
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
    """Only this number; None: any number."""
    condition: Condition = ALWAYS
    """A lock that must be held, here and in the next messages."""


@dataclass(frozen=True, slots=True)
class Release:
    """Free an owner's number; no error if there is none. Reply: :class:`Done`."""

    pool: str
    owner: str
    source: str
    quarantine_secs: float = 0.0
    """For how many seconds no other owner gets the number."""
    condition: Condition = ALWAYS


@dataclass(frozen=True, slots=True)
class Next:
    """Increase a counter. Reply: :class:`Done` with its ``number``; the same owner always gets the same number."""

    name: str
    source: str
    by: int = 1
    owner: str = ""
    condition: Condition = ALWAYS


@dataclass(frozen=True, slots=True)
class Rest:
    """From the registry to itself: store how long the numbers of a pool still have to rest."""

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
    """Destroy an entry that was taken; no error if it is gone. Reply: :class:`Done`. Errors: AlreadyExists."""

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
    """In a batch on a shared store: stands for the entries with a prefix, read after the commit."""

    prefix: str


@dataclass(frozen=True, slots=True)
class BatchDone:
    """The results of a batch's operations."""

    results: tuple[Any, ...]
    """The reply of each operation; in a batch that is not atomic, or its refusal."""
    revision: int = 0
    sure: frozenset[int] = frozenset()
    """Indexes of the results of such a batch that do not depend on its commit."""

    def with_lists(self, found: Mapping[str, tuple[Record, ...]]) -> BatchDone:
        """Return the reply with the entries for each prefix."""
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
    """Made by the client: a repeated batch with this id is not carried out again. Empty: a repeated batch is."""
    operations: tuple[Any, ...]
    atomic: bool = True
    digest: str = ""
    """Digest of the operations: another batch with the same id is refused. Empty: it is not compared."""


# --- watching ---


@dataclass(frozen=True, slots=True)
class Watch:
    """Read the changes since a cursor; wait if there are none. Reply: :class:`Watched`.

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
    """Events in the order of their revisions, and the cursor after them."""

    events: tuple[Event, ...]
    cursor: str

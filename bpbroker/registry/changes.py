"""The values that pass between the registry and a store. No behaviour.

A *change* is the next state of one name, a *group* is changes that belong together.
A group's *outcome* is :class:`Committed`, :class:`Conflict`, or an error. The content of a shared store at one moment
is :class:`Seen` and :class:`State`; *news* comes from its watch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from bpbroker.errors import Unavailable
from bpbroker.record import Record


class Anything(Enum):
    """The type of :data:`ANYTHING`."""

    ANYTHING = "anything"


ANYTHING: Final = Anything.ANYTHING
"""A change that happens whatever is there."""


class Change(NamedTuple):
    """The next state of one name. A named tuple, as :class:`~bpbroker.record.Record` is: each write makes one."""

    name: str
    after: Record | None
    """The next record; its revision is still an index in the commit. None: the record is removed."""
    expects: int | Anything = ANYTHING
    """The version that must be there for the change to happen, 0 for no record, or :data:`ANYTHING`."""
    place: int = 0
    """Place of the write that makes it in its commit. The change's revision is the commit's plus this."""


@dataclass(frozen=True, slots=True)
class Group:
    """Changes that happen together or not at all."""

    changes: tuple[Change, ...]
    compared: tuple[tuple[str, int], ...] = ()
    """Name and version that must be there for the group to happen; the name itself is not changed."""
    empty: tuple[str, ...] = ()
    """Prefixes with which there must be no entry for the group to happen."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the group changes or compares."""
        return (*(change.name for change in self.changes), *(name for name, _ in self.compared))


@dataclass(frozen=True, slots=True)
class Committed:
    """The group is durable."""

    version: int = 0
    """The names' version from now on; of a deletion, the version from which on there is no record."""
    revision: int = 0
    """The commit's revision; that of a change is its index higher."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The record of a name in a shared store at one moment."""

    name: str
    record: Record | None
    """None for no record."""
    version: int
    """The record's version, 0 for none. Versions of one store grow with every change."""
    as_of: int
    """The store's own version at that moment; not below ``version``."""
    fault: str = ""
    """Why this value cannot be a record (another program wrote it); empty if it can."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """The group did not happen: the store holds other versions than expected."""

    seen: tuple[Seen, ...]
    """The records for the names of the group, in the order of :attr:`Group.names`, then other useful ones."""


Outcome = Committed | Conflict | Unavailable
"""The outcome of one group; an error if this group failed and others did not."""


@dataclass(frozen=True, slots=True)
class State:
    """All entries of a shared store, or those with one prefix, at one version."""

    entries: tuple[Seen, ...]
    """Sorted by name; absent names are not in it."""
    version: int
    registry_id: str
    revision: int = 0
    """The highest revision of a change in it."""
    anew: str = ""
    """Why nothing from the store before this is valid any more; empty if it is."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The next changes in a shared store, oldest first; empty: the watch works, and nothing was missed."""

    seen: tuple[Seen, ...] = ()
    revision: int = 0
    """The store's revision after them; 0 if it is not known."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The watch on a shared store broke off. The store tries again until it works."""

    why: str


News = State | Changes | Broken
"""The news of a watch: the complete state, the next changes, or that the watch broke off."""

READ_MAX: Final = 120
"""The largest number of names in one read of a shared store, below etcd's 128 for a transaction. More names are read in
several parts."""

GROUP_MAX: Final = 126
"""The most names and prefixes of one group in a shared store: etcd's 128 for a transaction, without the two that each
commit adds."""
GROUP_MAX_BYTES: Final = 1400 * 1024
"""The most bytes of one group in a shared store; etcd takes 1.5 MiB."""
NAME_BYTES: Final = 160
"""What a name takes of these at most, beside its record and three times its own length, or twice if it is compared."""
CHARACTER_BYTES: Final = 3 * 4
"""What a character of a name takes in UTF-8 at most, three times."""

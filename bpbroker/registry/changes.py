"""What the registry tells a store and what it hears from one: values, no behaviour.

A *change* is the next state of one name. Its *outcome* is :class:`Committed`,
:class:`Conflict`, or an error. What a shared store holds at one moment comes as
:class:`Seen` and :class:`State`; what its watch tells is *news*.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from bpbroker.errors import Unavailable


class Anything(Enum):
    """The type of :data:`ANYTHING`."""

    ANYTHING = "anything"


ANYTHING: Final = Anything.ANYTHING
"""A change that happens whatever is there."""


@dataclass(frozen=True, slots=True)
class Change:
    """The next state of one name."""

    name: str
    value: bytes | None
    """The entry as JSON in UTF-8; None deletes it."""
    expects: int | Anything = ANYTHING
    """The version that must be there for the change to happen, 0 for no entry, or :data:`ANYTHING`."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The change is durable."""

    version: int = 0
    """The entry's version from now on; of a deletion, the version from which on there is no entry."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a shared store held for a name at one moment."""

    name: str
    value: bytes | None
    """The entry as JSON in UTF-8; None for no entry."""
    version: int
    """The entry's version, 0 for no entry. Versions of one store grow with every change."""
    as_of: int
    """The store's own version at that moment; not below ``version``."""
    fault: str = ""
    """Why this value cannot be an entry (another program wrote it); empty if it can."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """The change did not happen: the store holds another version than was expected."""

    seen: Seen


Outcome = Committed | Conflict | Unavailable
"""What became of one change; an error where this one failed and others did not."""


@dataclass(frozen=True, slots=True)
class State:
    """All entries of a shared store, or those with one prefix, at one version."""

    entries: tuple[Seen, ...]
    """Sorted by name; absent names are not in it."""
    version: int
    registry_id: str
    anew: str = ""
    """Why nothing that the store told before holds any more; empty if it does."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The next changes in a shared store, oldest first; empty: the watch works, and nothing was missed."""

    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True)
class Broken:
    """The watch on a shared store broke off. The store tries again until it works."""

    why: str


News = State | Changes | Broken
"""What a watch tells: the complete state, the next changes, or that it broke off."""

READ_MAX: Final = 100
"""The most names in one read of a shared store."""

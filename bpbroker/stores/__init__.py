"""Where acknowledged writes live.

The registry decides what a write does; a store makes it last. Both stores
behind this protocol give the same promise: when :meth:`Store.commit` returns
an outcome that says so, the change survives a crash and a power cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol


class Anything(Enum):
    """The type of :data:`ANYTHING`."""

    ANYTHING = "anything"


ANYTHING = Anything.ANYTHING
"""A change that holds whatever is there."""


@dataclass(frozen=True, slots=True)
class Change:
    """One name's next state."""

    name: str
    value: bytes | None
    """The entry as JSON in UTF-8; None deletes."""
    expects: str | Anything | None = ANYTHING
    """What must be there for the change to happen: an entity tag, None for no entry, or :data:`ANYTHING`."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The change is durable."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """The change did not happen: something else is there."""

    value: bytes | None
    """What is there now; None for no entry."""


Outcome = Committed | Conflict


class Store(Protocol):
    """A durable map of names to entries with one writer, or with compare-and-swap."""

    def load(self) -> Mapping[str, bytes]:
        """Give all entries; called once, before the first commit.

        Raises:
            DamagedFile: what is stored cannot be trusted.
        """

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Make changes durable, all in one transaction, and give their outcomes in order.

        A name occurs at most once in ``changes``.

        Raises:
            StorageFull: nothing was changed; a later commit may work.
            StorageFailed: this and every later commit fails; ``outcome_known``
                says whether the changes may be there after a restart.
        """

    @property
    def sequence(self) -> int:
        """Number of the last commit; grows with every one."""

    def forget(self, sequence: int) -> bool:
        """Be told that the configuration file holds everything up to this commit.

        Does a bounded piece of work; True while there is more to do.
        """

    def probe(self) -> None:
        """Raise what a commit would raise now; asked after a commit failed, to see whether it is over."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """Numbers and states worth showing in health, all of them JSON values."""

    def close(self) -> None:
        """Let go of files and connections; nothing is lost by not calling it."""

"""What a write meets: the state, the ages of its parts, and the limits."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bpbroker.record import Record
from bpbroker.registry import entry_values
from bpbroker.registry.pools import Pools
from bpbroker.registry.requests import Listing


class Age(NamedTuple):
    """The age of a record, or of a part of one."""

    secs: float
    whole: bool
    """Whether ``secs`` is the whole age; otherwise it existed before this broker started."""

    def __str__(self) -> str:
        return f"{'' if self.whole else 'more than '}{int(self.secs)} s"


class View(Protocol):
    """The state that one write meets, with the changes of earlier writes, and the write's own changes."""

    now: float
    """Unix time in seconds."""
    index: int
    """The write's place in its commit."""
    pools: Pools
    changes: dict[str, Record | None]
    """What the write changes; without them it changes nothing."""

    def age(self, name: str, part: Hashable) -> Age:
        """Return the age of a part of one of the registry's own records; setting a clock does not change it."""

    def get(self, name: str) -> Record | None:
        """Return a record; the write happens only if it is unchanged by then."""

    def peek(self, name: str) -> Record | None:
        """Return the known state of a record; the write happens also if it has changed by then."""

    def put(self, name: str, json: bytes, session: str = "") -> Record:
        """Change a record, and return it as it will be."""

    def delete(self, name: str) -> None:
        """Remove a record."""

    def apart(self, record: Record) -> None:
        """Let the write be decided after the commit of a record, where only that tells other brokers of it."""

    def keep(self) -> bool:
        """Fix the changes since the last call: they happen even if a later part of the write is refused.

        Only where the store has no other writers.

        Returns:
            Whether nothing was changed, and everything that was read is durable.
        """

    def names(self, prefix: str, most: int | None = None) -> list[str]:
        """Return the names of all entries that begin with ``prefix``, sorted; at most so many."""

    def entries(self, prefix: str) -> tuple[Record, ...] | Listing:
        """Return all entries that begin with ``prefix``, sorted, or what stands for them until the commit."""

    def must_stay_empty(self, prefix: str) -> None:
        """Let the write happen only if there is no entry whose name begins with ``prefix``."""

    def sessions(self) -> int:
        """Return how many sessions there are; the cost does not depend on their number."""

    def names_of(self, session: str) -> list[str]:
        """Return the names of a session's entries, and of the locks in which it has a place."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the registry."""

    data_bytes: int = entry_values.DATA_MAX_BYTES
    sessions: int = 10_000
    places: int = 10_000
    """Places in the queue of one lock."""
    numbers: int = 10_000
    """Numbers in one pool."""
    ended_at_once: int = 1_000_000
    """How many names one commit removes when a session ends; a shared store limits the size of a commit."""
    ended_in_parts: bool = False
    """Whether a session may have more names, perhaps unknown to this broker."""
    names: int = 1_000_000
    """How many names one write may read and change; a shared store limits the size of a commit."""
    commit_bytes: int = 1_000_000_000
    """How many bytes one write may change, with the names that it reads; a shared store limits that, too."""

"""What a write meets: the state, how long its parts have been there, and the limits that count."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bpbroker.record import Record
from bpbroker.registry import entry_values
from bpbroker.registry.pools import Pools
from bpbroker.registry.requests import Listing


class Age(NamedTuple):
    """How long something has been there."""

    secs: float
    whole: bool
    """Whether that is all of it; else it was there before this broker started."""

    def __str__(self) -> str:
        return f"{'' if self.whole else 'more than '}{int(self.secs)} s"


class View(Protocol):
    """The state that one write meets, changes of writes before it included, and what it does to it."""

    now: float
    """Unix time in seconds."""
    index: int
    """The write's place in its commit."""
    pools: Pools
    changes: dict[str, Record | None]
    """What the write changes; without them it changes nothing."""

    def age(self, name: str, part: Hashable) -> Age:
        """Return for how long a part of one of the registry's own records has been there, whatever clocks say."""

    def get(self, name: str) -> Record | None:
        """Return a record; the write happens only if it is still so."""

    def peek(self, name: str) -> Record | None:
        """Return a record as far as it is known; the write happens also if that has changed."""

    def put(self, name: str, json: bytes, session: str = "") -> Record:
        """Change a record, and return it as it will be."""

    def delete(self, name: str) -> None:
        """Remove a record."""

    def keep(self) -> bool:
        """Let what was changed since the last time happen, whatever becomes of the rest. What follows stands alone.

        Only where the store has no other writers.

        Returns:
            Whether nothing was changed, and nothing was read that is not durable yet.
        """

    def names(self, prefix: str, most: int | None = None) -> list[str]:
        """Return the names of all entries that begin with ``prefix``, sorted; at most so many."""

    def entries(self, prefix: str) -> tuple[Record, ...] | Listing:
        """Return all entries that begin with ``prefix``, sorted, or what stands for them until the commit."""

    def must_stay_empty(self, prefix: str) -> None:
        """Let the write happen only if there is no entry whose name begins with ``prefix``."""

    def sessions(self) -> int:
        """Return how many sessions there are; costs the same however many."""

    def names_of(self, session: str) -> list[str]:
        """Return the names of a session's entries, and of the locks in which it has a place."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the registry takes."""

    data_bytes: int = entry_values.DATA_MAX_BYTES
    sessions: int = 10_000
    places: int = 10_000
    """In the queue of one lock."""
    numbers: int = 10_000
    """In one pool."""
    ended_at_once: int = 1_000_000
    """Names that one commit takes away when a session ends; a shared store takes no commit of any size."""
    ended_in_parts: bool = False
    """Whether there may be more of them, known to this broker or not."""

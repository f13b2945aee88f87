"""Looking through the registry a part at a time, for people. Pure.

The cost of a part depends on its own size, not on that of the registry: a page must not block the registry's thread.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from bpbroker.record import Record
from bpbroker.registry import locks, sessions
from bpbroker.registry.memory import Memory
from bpbroker.registry.requests import Event

BELONGINGS_MAX: Final = 50
"""How many names of one session's belongings are returned."""


@dataclass(frozen=True, slots=True)
class Browse:
    """Read a part of the records, as they are in this broker's memory. Reply: :class:`Browsed`. Errors: Unavailable.

    For the broker's own pages: records of the registry's own can be read, too.
    """

    prefixes: tuple[str, ...] = ("",)
    """Prefixes of their names, sorted, none of them the beginning of another; one that begins with ``_`` is for the
    registry's own records."""
    offset: int = 0
    """How many records of these to pass over."""
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Browsed:
    """A part of the records, in the order of their names."""

    records: tuple[Record, ...]
    count: int
    """Number of all records with the prefixes."""
    age_secs: float
    """The largest age of this state, in seconds."""
    belongings: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    """For each session among the records, how many names belong to it, and the first of these."""
    waiting: frozenset[tuple[str, str]] = frozenset()
    """Sessions with the records of the locks for which they wait."""


@dataclass(frozen=True, slots=True)
class Recent:
    """Read all changes that are still known. Reply: :class:`Happened`."""


@dataclass(frozen=True, slots=True)
class Happened:
    """Changes in the order of their revisions, and the cursor for a watch of the later ones."""

    events: tuple[Event, ...]
    cursor: str


def browse(memory: Memory, message: Browse, age_secs: float) -> Browsed:
    """Return a part of the records in memory."""
    offset, left, count = max(0, message.offset), max(0, message.limit), 0
    found: list[Record] = []
    for prefix in message.prefixes:
        index = memory.own if prefix.startswith("_") else memory.entries
        places = index.span(prefix)
        if prefix == locks.PREFIX:  # the records of single places come first; the lock's own record has their number
            places = range(index.span(locks.FAR).stop, places.stop)
        part = places[offset : offset + left]
        found += index.at(part)
        count += len(places)
        offset = max(0, offset - len(places))
        left -= len(part)
    belongings = {}
    for record in found:
        if record.name.startswith(sessions.PREFIX):
            session = record.name.removeprefix(sessions.PREFIX)
            names = memory.belongings.get(session, ())
            belongings[session] = len(names), tuple(heapq.nsmallest(BELONGINGS_MAX, names))
    return Browsed(tuple(found), count, age_secs, belongings, frozenset(_waiting(memory, belongings)))


def _waiting(memory: Memory, belongings: Mapping[str, tuple[int, tuple[str, ...]]]) -> Iterator[tuple[str, str]]:
    """Yield the sessions, and the locks that these wait for; each lock is read once, however many wait for it."""
    queues: dict[str, Mapping[str, bool]] = {}
    for session, (_, names) in belongings.items():
        for name in names:
            if name.startswith(locks.FAR):
                yield session, name
            elif name.startswith(locks.PREFIX):
                if name not in queues:
                    queue = locks.parse(memory.own.get(name))
                    queues[name] = {place.session: number >= queue.limit for number, place in enumerate(queue.places)}
                if queues[name].get(session):
                    yield session, name

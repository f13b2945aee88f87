"""Waiting calls, sorted by the event that each waits for. No thread, no lock: only the registry's actor touches it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

_RESERVED: Final = 64
"""When all places are taken, each client still gets this part of them."""


class Places:
    """How many calls wait, and for which clients."""

    def __init__(self) -> None:
        self.size = 0
        """How many calls wait."""
        self._by_client: dict[str, int] = {}

    def of(self, client: str) -> int:
        """Return how many calls of one client wait."""
        return self._by_client.get(client, 0)

    def room(self, client: str, most: int) -> bool:
        """Return whether another call of a client may wait.

        One client gets no more than half of ``most``. When that many wait, each client still gets a few, so that no
        number of clients can take the last place away from all others.
        """
        mine = self.of(client)
        if client and mine >= (most + 1) // 2:
            return False
        return self.size < most or (self.size < 2 * most and mine < most // _RESERVED)

    def take(self, client: str) -> None:
        """Count a call that begins to wait."""
        self.size += 1
        self._by_client[client] = self.of(client) + 1

    def give(self, client: str) -> None:
        """Count a call that does not wait any more."""
        self.size -= 1
        left = self.of(client) - 1
        if left:
            self._by_client[client] = left
        else:
            del self._by_client[client]


Key = tuple[str, str]
"""The event that is waited for: a kind (``lock``, ``holder``, ``prefix``, ``name``) and a name. For ``lock`` the name
is the lock's, a slash and the session."""


@dataclass(slots=True, eq=False)
class ParkedCall:
    """One waiting call."""

    key: Key
    message: Any
    reply: Future[Any]
    deadline: float
    """Monotonic time at which the wait ends."""


class Parked:
    """All waiting calls."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._by_key: dict[Key, dict[ParkedCall, None]] = {}
        self._deadlines: list[tuple[float, int, ParkedCall]] = []
        self._number = 0
        self.size = 0
        """How many calls wait."""
        self.kinds = {"lock": 0, "holder": 0, "prefix": 0, "name": 0}
        """How many wait for each kind."""
        self.lengths: tuple[int, ...] = ()
        """The different lengths of the prefixes that are waited for."""

    def add(self, key: Key, message: Any, reply: Future[Any], deadline: float) -> ParkedCall:
        """Add a call that waits until ``deadline``, in monotonic time."""
        call = ParkedCall(key, message, reply, deadline)
        there = self._by_key.setdefault(key, {})
        there[call] = None
        if len(there) == 1 and key[0] == "prefix":
            self._measure()
        self._places.take(message.client)
        self.size += 1
        self.kinds[key[0]] = self.kinds.get(key[0], 0) + 1
        self._number += 1
        heapq.heappush(self._deadlines, (deadline, self._number, call))
        if len(self._deadlines) > 2 * self.size + 64:
            self._deadlines = [item for item in self._deadlines if item[2] in self._by_key.get(item[2].key, ())]
            heapq.heapify(self._deadlines)
        return call

    def at(self, key: Key) -> list[ParkedCall]:
        """Return the calls that wait for this, in the order in which they came."""
        return list(self._by_key.get(key, ()))

    def first(self, key: Key) -> ParkedCall | None:
        """Return the call that has waited longest for this; None if none does."""
        return next(iter(self._by_key.get(key, ())), None)

    def watching(self, name: str) -> Iterator[ParkedCall]:
        """Yield the watches that a change of an entry concerns."""
        yield from self._by_key.get(("name", name), ())
        for length in self.lengths:
            if length <= len(name):
                yield from self._by_key.get(("prefix", name[:length]), ())

    def remove(self, call: ParkedCall) -> bool:
        """Remove a call; return False if it was removed before."""
        there = self._by_key.get(call.key, {})
        if call not in there:
            return False
        del there[call]
        if not there:
            del self._by_key[call.key]
            if call.key[0] == "prefix":
                self._measure()
        self._places.give(call.message.client)
        self.size -= 1
        self.kinds[call.key[0]] -= 1
        return True

    def all(self) -> list[ParkedCall]:
        """Return all calls; from any thread."""
        return [call for calls in list(self._by_key.values()) for call in list(calls)]

    def next_deadline(self) -> float:
        """Return the monotonic time at which the first wait ends; infinite if none waits."""
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def expired(self, now: float) -> Iterator[ParkedCall]:
        """Remove and yield the calls whose time is over at monotonic time ``now``."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, call = heapq.heappop(self._deadlines)
            if self.remove(call):
                yield call

    def _measure(self) -> None:
        self.lengths = tuple({len(name) for kind, name in self._by_key if kind == "prefix"})

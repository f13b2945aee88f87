"""The reads that wait for an entry, or for enough entries. No thread, no lock: only the registry's actor touches it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from bpbroker.messages import Get, List

_RESERVED: Final = 64
"""A client's own share when all places are taken: this part of them."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One waiting read."""

    message: Get | List
    reply: Future[Any]


@dataclass(slots=True)
class _Group:
    """The reads that wait for enough entries with one prefix."""

    count: int
    """How many such entries there are."""
    least: int
    """No read in the group is content with fewer; may be lower than the smallest count that they wait for."""
    waiters: dict[Waiter, None] = field(default_factory=dict)


class Waiters:
    """All waiting reads, by name, by prefix and by deadline.

    A change of one name costs as much as there are waiters to answer, plus a
    look-up for each different length of a prefix.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, dict[Waiter, None]] = {}
        self._by_prefix: dict[str, _Group] = {}
        self._lengths: tuple[int, ...] = ()
        self._deadlines: list[tuple[float, int, Waiter]] = []
        self._number = 0
        self._by_client: dict[str, int] = {}
        self.size = 0
        """How many reads wait."""

    def __len__(self) -> int:
        return self.size

    def of(self, client: str) -> int:
        """Return how many reads of one client wait."""
        return self._by_client.get(client, 0)

    def room(self, client: str, most: int) -> bool:
        """Return whether another read of a client may wait.

        One client gets no more than half of ``most``. When that many wait, each client still gets a few, so that no
        number of clients can take the last place away from all others.
        """
        mine = self.of(client)
        if client and mine >= (most + 1) // 2:
            return False
        return self.size < most or (self.size < 2 * most and mine < most // _RESERVED)

    def add(self, message: Get | List, reply: Future[Any], deadline: float, count: int) -> Waiter:
        """Add a read that waits until ``deadline``.

        Args:
            message: the read.
            reply: its reply.
            deadline: monotonic time.
            count: for a List: how many entries with its prefix there are.
        """
        waiter = Waiter(message, reply)
        self._by_client[message.client] = self.of(message.client) + 1
        if isinstance(message, Get):
            self._by_name.setdefault(message.name, {})[waiter] = None
        else:
            group = self._by_prefix.get(message.prefix)
            if group is None:
                group = self._by_prefix[message.prefix] = _Group(count, message.at_least)
                self._measure()
            group.least = min(group.least, message.at_least)
            group.waiters[waiter] = None
        self._number += 1
        self.size += 1
        heapq.heappush(self._deadlines, (deadline, self._number, waiter))
        if len(self._deadlines) > 2 * self.size + 64:
            self._drop_removed()
        return waiter

    def appeared(self, name: str, etag: str) -> Iterator[Future[Any]]:
        """Remove the waiters that the entry's new state satisfies, and yield their replies."""
        waiters = self._by_name.get(name)
        if waiters:
            for waiter in [w for w in waiters if isinstance(w.message, Get) and w.message.unless_etag != etag]:
                self.remove(waiter)
                yield waiter.reply

    def counted(self, name: str, step: int) -> Iterator[tuple[str, list[Future[Any]]]]:
        """Count an entry that came (1) or went (-1). Remove the waiters that have enough now, and yield their replies.

        Yields each prefix with a list of replies, which may be empty.
        """
        for length in self._lengths:
            prefix = name[:length]
            group = self._by_prefix.get(prefix)
            if group is None or len(prefix) != length:
                continue
            group.count += step
            if group.count >= group.least:
                content = [
                    w for w in group.waiters if isinstance(w.message, List) and w.message.at_least <= group.count
                ]
                for waiter in content:
                    self.remove(waiter)
                group.least = min((w.message.at_least for w in group.waiters if isinstance(w.message, List)), default=0)
                yield prefix, [waiter.reply for waiter in content]

    def next_deadline(self) -> float:
        """Return the monotonic time at which the first waiter expires; infinite if none waits."""
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def expired(self, now: float) -> Iterator[Waiter]:
        """Remove and yield the waiters whose time is over."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, waiter = heapq.heappop(self._deadlines)
            if self.remove(waiter):
                yield waiter

    def all(self) -> list[Waiter]:
        """Return all waiters."""
        groups = (group.waiters for group in self._by_prefix.values())
        return [waiter for waiters in (*self._by_name.values(), *groups) for waiter in waiters]

    def remove(self, waiter: Waiter) -> bool:
        """Remove a waiter; return False if it was removed before."""
        message = waiter.message
        if isinstance(message, Get):
            waiters = self._by_name.get(message.name, {})
        else:
            waiters = self._by_prefix[message.prefix].waiters if message.prefix in self._by_prefix else {}
        if waiter not in waiters:
            return False
        del waiters[waiter]
        if not waiters:
            if isinstance(message, Get):
                del self._by_name[message.name]
            else:
                del self._by_prefix[message.prefix]
                self._measure()
        self.size -= 1
        left = self.of(message.client) - 1
        if left:
            self._by_client[message.client] = left
        else:
            del self._by_client[message.client]
        return True

    def _measure(self) -> None:
        self._lengths = tuple({len(prefix) for prefix in self._by_prefix})

    def _drop_removed(self) -> None:
        present = set(self.all())
        self._deadlines = [item for item in self._deadlines if item[2] in present]
        heapq.heapify(self._deadlines)

"""Who waits for an entry: the registry's book of waiting reads. No thread, no lock: its actor's alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from bpbroker.messages import Get, List


@dataclass(slots=True, eq=False)
class Waiter:
    """One waiting read."""

    message: Any
    reply: Future[Any]
    count: int = 0
    """For a List: how many entries with its prefix there are."""


class Waiting:
    """All waiting reads, by name, by prefix and by deadline.

    A change of one name costs as much as there are waiters for that name, plus
    one comparison for each different waiting List.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, dict[Waiter, None]] = {}
        self._lists: dict[Waiter, None] = {}
        self._deadlines: list[tuple[float, int, Waiter]] = []
        self._number = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, message: Get | List, reply: Future[Any], deadline: float, count: int) -> None:
        """Enter a read that waits until ``deadline`` (monotonic)."""
        waiter = Waiter(message, reply, count)
        if isinstance(message, Get):
            self._by_name.setdefault(message.name, {})[waiter] = None
        else:
            self._lists[waiter] = None
        self._number += 1
        self._size += 1
        heapq.heappush(self._deadlines, (deadline, self._number, waiter))
        if len(self._deadlines) > 2 * self._size + 64:
            self._rebuild()

    def appeared(self, name: str, etag: str) -> Iterator[Future[Any]]:
        """Take out and give those for whom the entry's new state is what they wait for."""
        waiters = self._by_name.get(name)
        if waiters:
            for waiter in [waiter for waiter in waiters if waiter.message.unless_etag != etag]:
                self._remove(waiter)
                yield waiter.reply

    def counted(self, name: str, step: int) -> Iterator[Waiter]:
        """Count an entry that came (1) or went (-1); take out and give the Lists that have enough now."""
        if not self._lists:
            return
        for waiter in [waiter for waiter in self._lists if name.startswith(waiter.message.prefix)]:
            waiter.count += step
            if waiter.count >= waiter.message.at_least:
                self._remove(waiter)
                yield waiter

    def next_deadline(self) -> float:
        """Give the monotonic time at which :meth:`expired` has something to give."""
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def expired(self, now: float) -> Iterator[Waiter]:
        """Take out and give those whose time is over."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, waiter = heapq.heappop(self._deadlines)
            if self._remove(waiter):
                yield waiter

    def drop_cancelled(self) -> None:
        """Take out those whose client has gone."""
        for waiter in self.all():
            if waiter.reply.cancelled():
                self._remove(waiter)
        self._rebuild()

    def all(self) -> list[Waiter]:
        """Give everybody who waits."""
        return [*(waiter for waiters in self._by_name.values() for waiter in waiters), *self._lists]

    def _remove(self, waiter: Waiter) -> bool:
        """Take a waiter out of its index; its deadline is skipped when it comes up."""
        if isinstance(waiter.message, List):
            if waiter not in self._lists:
                return False
            del self._lists[waiter]
        else:
            waiters = self._by_name.get(waiter.message.name, {})
            if waiter not in waiters:
                return False
            del waiters[waiter]
            if not waiters:
                del self._by_name[waiter.message.name]
        self._size -= 1
        return True

    def _rebuild(self) -> None:
        """Drop the deadlines of those who have been answered."""
        present = set(self.all())
        self._deadlines = [item for item in self._deadlines if item[2] in present]
        heapq.heapify(self._deadlines)

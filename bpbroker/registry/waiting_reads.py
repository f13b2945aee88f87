"""The reads that wait for an entry, or for enough entries. No thread, no lock: only the registry's actor touches it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from bpbroker.messages import Get, List, settle
from bpbroker.record import Record
from bpbroker.registry.filters import Conditions, has_all, has_any, sort, value_of
from bpbroker.registry.index import EntryIndex
from bpbroker.registry.parked import Places
from bpbroker.registry.replies import not_found, send


@dataclass(slots=True, eq=False)
class Waiter:
    """One waiting read."""

    message: Get | List
    reply: Future[Any]


_Filter = tuple[Conditions, Conditions]


def _is_enough(message: Get, after: Record | None) -> bool:
    """Return whether an entry's new state ends a read's wait."""
    if after is None:
        return message.unless_etag is not None
    return message.unless_etag != after.etag


@dataclass(slots=True)
class _Group:
    """The reads that wait for enough entries with one prefix."""

    where: Conditions
    """Only entries that have these values count."""
    fail_where: Conditions
    """An entry with one of these values ends the wait."""
    matching: set[str] | None
    """The names that count, where there are conditions."""
    count: int
    """How many such entries there are."""
    least: int
    """A lower bound of the counts that the reads of the group wait for."""
    waiters: dict[Waiter, None] = field(default_factory=dict)


class Waiters:
    """All waiting reads, by name, by prefix and by deadline.

    The cost of a change grows with the number of waiters that it ends, and with one look-up for each different length
    of a prefix and each filter.
    """

    def __init__(self, places: Places | None = None) -> None:
        self.places = places or Places()
        self._by_name: dict[str, dict[Waiter, None]] = {}
        self._by_prefix: dict[str, dict[_Filter, _Group]] = {}
        self._lengths: tuple[int, ...] = ()
        self._deadlines: list[tuple[float, int, Waiter]] = []
        self._number = 0
        self.size = 0
        """How many reads wait."""

    def __len__(self) -> int:
        return self.size

    def add(self, message: Get | List, reply: Future[Any], deadline: float, counted: Sequence[Record] = ()) -> Waiter:
        """Add a read that waits until ``deadline``.

        Args:
            message: the read.
            reply: its reply.
            deadline: monotonic time.
            counted: for a List: the entries that count already.
        """
        waiter = Waiter(message, reply)
        self.places.take(message.client)
        if isinstance(message, Get):
            self._by_name.setdefault(message.name, {})[waiter] = None
        else:
            groups = self._by_prefix.setdefault(message.prefix, {})
            filters = (message.where, message.fail_where)
            group = groups.get(filters)
            if group is None:
                names = {record.name for record in counted} if message.where else None
                group = groups[filters] = _Group(*filters, names, len(counted), message.at_least)
                self._measure()
            group.least = min(group.least, message.at_least)
            group.waiters[waiter] = None
        self._number += 1
        self.size += 1
        heapq.heappush(self._deadlines, (deadline, self._number, waiter))
        if len(self._deadlines) > 2 * self.size + 64:
            self._drop_removed()
        return waiter

    def changed(self, name: str, before: Record | None, after: Record | None, entries: EntryIndex) -> None:
        """Reply to the reads that waited for this change of an entry."""
        value: Any = None
        """What the entry has now, parsed when the first filter needs it."""
        waiters = self._by_name.get(name)
        if waiters:
            for waiter in list(waiters):
                message = waiter.message
                if isinstance(message, Get) and _is_enough(message, after):
                    self.remove(waiter)
                    send(waiter.reply, after if after is not None else not_found(name))
        for length in self._lengths:
            groups = self._by_prefix.get(name[:length]) if length <= len(name) else None
            for group in list(groups.values()) if groups else ():
                if value is None and after is not None and (group.where or group.fail_where):
                    value = value_of(after)
                failed = value is not None and has_any(value, group.fail_where)
                if group.matching is None:
                    group.count += (after is not None) - (before is not None)
                else:
                    counts = value is not None and has_all(value, group.where)
                    (group.matching.add if counts else group.matching.discard)(name)
                    group.count = len(group.matching)
                if failed or group.count >= group.least:
                    self._answer(group, name[:length], entries, failed=failed)

    def _answer(self, group: _Group, prefix: str, entries: EntryIndex, *, failed: bool) -> None:
        """Reply to the reads of a group that have enough entries now."""
        content = [
            w for w in group.waiters if isinstance(w.message, List) and (failed or w.message.at_least <= group.count)
        ]
        if content:
            found = sort(entries.matching(prefix), group.where, group.fail_where).listed
            for waiter in content:
                self.remove(waiter)
                settle(waiter.reply, found)
        group.least = min((w.message.at_least for w in group.waiters if isinstance(w.message, List)), default=0)

    def next_deadline(self) -> float:
        """Return the monotonic time at which the first waiter expires; infinite if none waits."""
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def expired(self, now: float) -> Iterator[Waiter]:
        """Remove and yield the waiters whose time is over at monotonic time ``now``."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, waiter = heapq.heappop(self._deadlines)
            if self.remove(waiter):
                yield waiter

    def all(self) -> list[Waiter]:
        """Return all waiters; from any thread."""
        groups = [group.waiters for groups in list(self._by_prefix.values()) for group in list(groups.values())]
        return [waiter for waiters in (*self._by_name.values(), *groups) for waiter in list(waiters)]

    def remove(self, waiter: Waiter) -> bool:
        """Remove a waiter; return False if it was removed before."""
        message = waiter.message
        if isinstance(message, Get):
            waiters = self._by_name.get(message.name, {})
        else:
            groups = self._by_prefix.get(message.prefix, {})
            group = groups.get((message.where, message.fail_where))
            waiters = group.waiters if group is not None else {}
        if waiter not in waiters:
            return False
        del waiters[waiter]
        if not waiters:
            if isinstance(message, Get):
                del self._by_name[message.name]
            else:
                del groups[(message.where, message.fail_where)]
                if not groups:
                    del self._by_prefix[message.prefix]
                self._measure()
        self.size -= 1
        self.places.give(message.client)
        return True

    def _measure(self) -> None:
        self._lengths = tuple({len(prefix) for prefix in self._by_prefix})

    def _drop_removed(self) -> None:
        present = set(self.all())
        self._deadlines = [item for item in self._deadlines if item[2] in present]
        heapq.heapify(self._deadlines)

"""The entries of pools, parsed, so that the cost of a call does not depend on the number of owners. Pure."""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Container
from typing import Any, Final

from bpbroker.errors import AlreadyExists
from bpbroker.record import Record
from bpbroker.registry import entry_values

_POOLS_KEPT: Final = 64


class Pool:
    """A pool's entry, parsed: the cost of a call does not depend on the number of owners."""

    __slots__ = ("_body", "_numbers", "_times", "json", "owners")

    def __init__(self, owners: dict[str, int]) -> None:
        self.owners = owners
        self.json = b""
        """The entry that was parsed."""
        self._body = entry_values.encode(owners)[:-1]
        """The entry up to its stamp."""
        self._times = Counter(owners.values())
        self._numbers = sorted(self._times)

    def __contains__(self, number: int) -> bool:
        return number in self._times

    def lowest_free(self, low: int, high: int, resting: Container[int]) -> int | None:
        """Return the lowest free number from ``low`` to ``high``: no owner has it, and it is not resting."""
        number = self._gap(low)
        while number <= high and number in resting:
            number = self._gap(number + 1)
        return number if number <= high else None

    def _gap(self, start: int) -> int:
        numbers = self._numbers
        first = below = bisect_left(numbers, start)
        above = len(numbers)
        while below < above:  # all numbers before it are in use, without a gap
            middle = (below + above) // 2
            if numbers[middle] - start == middle - first:
                below = middle + 1
            else:
                above = middle
        return start + below - first

    def with_owner(self, owner: str, number: int) -> bytes:
        """Return the entry, without its stamp and its end, with another owner."""
        return b"%b%b%b: %d" % (self._body, b", " if self.owners else b"", _text(owner), number)

    def without_owner(self, owner: str) -> bytes:
        """Return the entry, without its stamp and its end, without an owner."""
        item = b"%b: %d" % (_text(owner), self.owners[owner])
        if owner.startswith(":"):  # it would look like the end of another name
            return entry_values.encode({each: number for each, number in self.owners.items() if each != owner})[:-1]
        if self._body == b"{" + item:
            return b"{"
        if self._body.startswith(b"{%b, " % item):
            return b"{" + self._body[len(item) + 3 :]
        # A quote inside of a name has a backslash before it, so this is the owner's own place.
        before, _, after = self._body.partition(b", " + item)
        return before + after

    def add(self, owner: str, number: int, body: bytes, value: bytes) -> None:
        """Apply the change of :meth:`with_owner`."""
        self.owners[owner] = number
        if number not in self._times:
            insort(self._numbers, number)
        self._times[number] += 1
        self._body, self.json = body, value

    def remove(self, owner: str, body: bytes, value: bytes) -> None:
        """Apply the change of :meth:`without_owner`."""
        number = self.owners.pop(owner)
        self._times[number] -= 1
        if not self._times[number]:
            del self._times[number]
            del self._numbers[bisect_left(self._numbers, number)]
        self._body, self.json = body, value


class Pools:
    """The last used pools, so that an unchanged entry need not be parsed again."""

    def __init__(self) -> None:
        self._kept: dict[str, Pool] = {}

    def of(self, name: str, current: Record | None) -> Pool:
        """Return the pool of an entry.

        Raises:
            AlreadyExists: the entry is no pool.
        """
        pool = self._kept.pop(name, None)
        if pool is None or current is None or pool.json != current.json:
            pool = Pool(_owners(name, current))
            pool.json = current.json if current is not None else b""
        self._kept[name] = pool
        if len(self._kept) > _POOLS_KEPT:
            del self._kept[next(iter(self._kept))]
        return pool


def _owners(pool: str, current: Record | None) -> dict[str, int]:
    if current is None:
        return {}
    own: dict[str, Any] = entry_values.without_stamp(json.loads(current.json))
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in own.values()):
        raise AlreadyExists(f"Entry '{pool}' is no pool: its fields must be owners with their numbers")
    return own


def _text(owner: str) -> bytes:
    return json.dumps(owner, ensure_ascii=False).encode()

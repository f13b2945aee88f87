"""The entries in memory: by name, and their names in order. No thread, no lock: only its actor uses it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from bpbroker.record import Record
from bpbroker.registry.stored import joined


def span(names: Sequence[str], prefix: str) -> range:
    """Return the places of the names with a prefix in a sorted list, by binary search."""
    start, size = bisect_left(names, prefix), len(prefix)
    return range(start, bisect_right(names, prefix, start, key=lambda name: name[:size]))


class EntryIndex:
    """All entries.

    A change costs as much as moving the names behind it in a list of pointers. The cost of reading a prefix grows with
    the number of its names.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = {record.name: record for record in records}
        self._names = sorted(self._records)
        """Sorted, so that a List with a narrow prefix does not check all entries."""
        self.get = self._records.get

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def put(self, name: str, after: Record | None) -> Record | None:
        """Put an entry in, or remove it with None. Return the entry before."""
        before = self._records.get(name)
        if after is not None:
            self._records[name] = after
            if before is None:
                insort(self._names, name)
        elif before is not None:
            del self._records[name]
            del self._names[bisect_left(self._names, name)]
        return before

    def matching(self, prefix: str) -> tuple[Record, ...]:
        """Return all entries whose names begin with ``prefix``, sorted by name."""
        return self.at(self.span(prefix))

    def beginning(self, prefix: str, most: int | None = None) -> list[str]:
        """Return the names that begin with ``prefix``, sorted; at most so many."""
        places = self.span(prefix)[:most]
        return self._names[places.start : places.stop]

    def span(self, prefix: str) -> range:
        """Return the places of the names that begin with ``prefix``, by binary search."""
        return span(self._names, prefix)

    def at(self, places: range) -> tuple[Record, ...]:
        """Return the entries at some places of the names' order."""
        return tuple(self._records[name] for name in self._names[places.start : places.stop])

    def copy(self) -> EntryIndex:
        """Return a copy that does not change any more; of 100,000 records in about a millisecond."""
        result = EntryIndex()
        result._records, result._names = self._records.copy(), self._names.copy()
        result.get = result._records.get
        return result

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)


class Snapshot(Mapping[str, bytes]):
    """All records in their stored form, as they were when this was made."""

    def __init__(self, *indexes: EntryIndex) -> None:
        self._indexes = [index.copy() for index in indexes]

    def __getitem__(self, name: str) -> bytes:
        for index in self._indexes:
            found = index.get(name)
            if found is not None:
                return joined(found)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._indexes)

    def __len__(self) -> int:
        return sum(map(len, self._indexes))

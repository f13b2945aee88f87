"""Reads of single names in a shared store, put together: one at a time is under way, the next takes all that came.

No thread, no lock: only the registry's actor touches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bpbroker.errors import Unavailable
from bpbroker.registry.changes import READ_MAX

Then = Callable[[Unavailable | None], None]
"""Called when memory has the newest state of a name, or with the error that it could not be read."""


class ReadQueue:
    """The reads that wait, and those under way."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Then]] = []
        self._under_way: list[tuple[str, Then]] = []

    def add(self, name: str, then: Then) -> None:
        """Add a read; it goes into the next :meth:`begin`, never into the one under way: that may be too old."""
        self._waiting.append((name, then))

    def __len__(self) -> int:
        """Return how many reads wait; those under way are not counted."""
        return len(self._waiting)

    def begin(self) -> list[str]:
        """Return the names to read now, each once, at most :data:`READ_MAX`; :meth:`end` must follow."""
        names = list(dict.fromkeys(name for name, _ in self._waiting))[:READ_MAX]
        among = set(names)
        self._under_way = [read for read in self._waiting if read[0] in among]
        self._waiting = [read for read in self._waiting if read[0] not in among]
        return names

    def end(self, again: Iterable[str] = ()) -> list[Then]:
        """End what is under way. Return what to call; reads of the names in ``again`` wait for the next one."""
        unsure = set(again)
        done = [then for name, then in self._under_way if name not in unsure]
        self._waiting = [read for read in self._under_way if read[0] in unsure] + self._waiting
        self._under_way = []
        return done

    def clear(self) -> list[Then]:
        """Empty it. Return what to call with an error: those that wait would only wait for the same once more."""
        dropped = [then for _, then in (*self._under_way, *self._waiting)]
        self._under_way, self._waiting = [], []
        return dropped

"""Reads of names in a shared store, joined: while one runs, all names that come go into the next one.

The names of one read are read together, at one moment of the store.

No thread, no lock: only the registry's actor touches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bpbroker.errors import Unavailable
from bpbroker.registry.changes import READ_MAX

Then = Callable[[Unavailable | None], None]
"""Called when memory has the newest state of the names, or with the error that they could not be read."""


class ReadQueue:
    """The reads that wait, and those that are running."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Sequence[str], Then]] = []
        self._under_way: list[tuple[Sequence[str], Then]] = []

    def add(self, names: Sequence[str], then: Then) -> None:
        """Add a read; it goes into the next :meth:`begin`, never into the running one, which may be too old.

        Args:
            names: at most :data:`READ_MAX`.
            then: called in the end.
        """
        self._waiting.append((names, then))

    def __len__(self) -> int:
        """Return how many reads wait; running ones do not count."""
        return len(self._waiting)

    def begin(self) -> list[str]:
        """Return the names to read now, each once, at most :data:`READ_MAX`; :meth:`end` must follow."""
        among: dict[str, None] = {}
        left: list[tuple[Sequence[str], Then]] = []
        self._under_way = []
        for read in self._waiting:
            more = sum(name not in among for name in read[0])
            if len(among) + more <= READ_MAX:
                among.update(dict.fromkeys(read[0]))
                self._under_way.append(read)
            else:
                left.append(read)
        self._waiting = left
        return list(among)

    def end(self, again: Iterable[str] = (), newer: Iterable[str] = ()) -> list[Then]:
        """End the running reads. Return the functions to call.

        Args:
            again: reads with a name of these wait for the next one.
            newer: names of which memory has a newer state than was read: reads of such a name and others wait, too.
        """
        unsure, ahead = set(again), set(newer)
        done, anew = [], []
        for read in self._under_way:
            if unsure.isdisjoint(read[0]) and (len(read[0]) == 1 or ahead.isdisjoint(read[0])):
                done.append(read[1])
            else:
                anew.append(read)
        self._waiting = anew + self._waiting
        self._under_way = []
        return done

    def clear(self) -> list[Then]:
        """Empty it. Return the functions to call with an error: the waiting reads would fail in the same way."""
        dropped = [then for _, then in (*self._under_way, *self._waiting)]
        self._under_way, self._waiting = [], []
        return dropped

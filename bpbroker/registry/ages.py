"""The ages of records, by a clock that is never set. No thread, no lock: only the registry's actor uses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Any, Final

from bpbroker.registry.locks import FAR, PREFIX
from bpbroker.registry.view import Age

NEW: Final = Age(0.0, whole=True)


class Ages:
    """When records and their parts were first seen here, in monotonic time; those found at a start: the start.

    Args:
        clock: monotonic time in seconds; the system's if None.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._seen: dict[str, dict[Any, Age]] = {}
        """Record's name to its parts and when each was first seen."""
        self._far: dict[Hashable, str] = {}
        """Token of a place that has a record of its own, to that record's name."""
        self._kept: dict[str, dict[str, float]] = {}
        """Kind to the names of that kind and when each came, in this order."""
        self.starting = False
        """Whether the store is being read at the start, so that a record may be older than it seems."""

    def parts(self, name: str, parts: Collection[Hashable]) -> None:
        """Note the parts of a record; a part that was in it before keeps its age."""
        known, now = self._seen.get(name, {}), self._clock()
        if name.startswith(FAR):
            for part in known:
                self._far.pop(part, None)
            self._far.update(dict.fromkeys(parts, name))
        there = {part: known.get(part) or self._before(name, part) or Age(now, not self.starting) for part in parts}
        if there:
            self._seen[name] = there
        else:
            self._seen.pop(name, None)

    def _before(self, name: str, part: Hashable) -> Age | None:
        """Return the age of a place of a lock that is taken into the lock's record from one of its own."""
        return self._seen.get(self._far.get(part, ""), {}).get(part) if name.startswith(PREFIX) else None

    def of(self, name: str, part: Hashable) -> Age:
        """Return the age of a part; a part that was never seen is new."""
        seen = self._seen.get(name, {}).get(part)
        return NEW if seen is None else Age(self._clock() - seen.secs, seen.whole)

    def begin(self, kind: str, name: str) -> None:
        """Note that a record of a kind begins, perhaps again."""
        kept = self._kept.setdefault(kind, {})
        kept.pop(name, None)
        kept[name] = self._clock()

    def end(self, kind: str, name: str) -> None:
        """Note that a record is gone."""
        self._kept.get(kind, {}).pop(name, None)

    def secs(self, kind: str, name: str) -> float:
        """Return the age of a record of a kind in seconds."""
        now = self._clock()
        return now - self._kept.get(kind, {}).get(name, now)

    def older(self, kind: str, secs: float) -> Iterator[str]:
        """Yield the names of a kind that are older than ``secs``; the others cost nothing."""
        now = self._clock()
        for name, since in self._kept.get(kind, {}).items():
            if now - since <= secs:
                return
            yield name

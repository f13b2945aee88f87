"""How long something takes, as a histogram: what each part keeps of its own work for metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

STORAGE_SECS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0)
"""Upper ends of the buckets for what a disk or a store does."""
REQUEST_SECS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0)
"""Upper ends of the buckets for requests, which may wait for ten minutes."""


class Histogram(NamedTuple):
    """Durations at one moment."""

    bounds: Sequence[float]
    """Upper ends of the buckets in seconds, the last one, which has none, left out."""
    counts: Sequence[int]
    """How many fell into each bucket; one more than there are bounds."""
    total_secs: float


class Durations:
    """Counts durations by bucket. One thread adds, others may look.

    Args:
        bounds: upper ends of the buckets in seconds, growing.
    """

    __slots__ = ("bounds", "counts", "total_secs")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_secs = 0.0

    def add(self, secs: float) -> None:
        """Count one duration, in seconds."""
        self.counts[bisect_left(self.bounds, secs)] += 1
        self.total_secs += secs

    def shown(self) -> Histogram:
        """Return what was counted so far."""
        return Histogram(self.bounds, tuple(self.counts), self.total_secs)

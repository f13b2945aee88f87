"""How many requests were answered how, and how long they took: counted from the batches of the access log.

Namespaces and methods that a client made up count together, so that no client
decides how many numbers there are.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

from bpbroker.durations import REQUEST_SECS, Durations, Histogram
from bpbroker.frontend.access_log import Answered
from bpbroker.frontend.actions import BUILT_IN
from bpbroker.frontend.control import CONTROL, METRICS, REGISTRY

NONE: Final = "(none)"
"""The label of requests that are about no namespace, such as of ``/health``."""
REJECTED: Final = "(rejected)"
"""The label of what was refused before it was a request."""
UNKNOWN: Final = "(unknown)"
"""The label of namespaces and methods that there are not."""
METHODS_MAX: Final = 64
"""Methods of one extension that are counted each by itself."""
LABELS_MAX: Final = 512
"""Pairs of namespace and method that are counted each by itself, in all."""

_OTHER: Final = "other"
_STATUSES: Final = {status.value: str(status.value) for status in HTTPStatus}
_OWN: Final = {
    name: frozenset(found) for name, found in (*BUILT_IN.items(), ("_control", (*CONTROL, METRICS, REGISTRY)))
}
_THERE: Final = (200, 500)
"""Statuses of calls whose method an extension has: for others it may not have been asked."""

Labels = tuple[str, str]
"""Namespace and method."""


class Counted(NamedTuple):
    """What was counted up to one moment."""

    requests: Mapping[tuple[str, str, str], int]
    """Namespace, method and status to how many there were."""
    durations: Mapping[Labels, Histogram]


class _Counts:
    """What is counted under one pair of labels."""

    __slots__ = ("durations", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        """Status to how many answers had it."""
        self.durations: Durations | None = None
        """Of those requests that were taken up."""


class RequestCounts:
    """Counts requests; any thread may call it.

    Args:
        namespaces: the namespaces that there are.
    """

    def __init__(self, namespaces: Collection[str] = ()) -> None:
        self.namespaces = namespaces
        self._lock = threading.Lock()
        self._known: dict[Labels, _Counts] = {}
        """By namespace and method, as far as they are there."""
        self._counts: dict[Labels, _Counts] = {}
        """By labels."""
        self._methods: dict[str, int] = {}
        """Extension to how many of its methods are known."""

    def take(self, answered: Sequence[Answered]) -> None:
        """Count requests."""
        known = self._known
        with self._lock:
            for _, at, (_, status, _, request_id, namespace, method, _, started, _, _, within) in answered:
                if within:
                    continue
                counts = known.get((namespace, method)) or self._counts_of(status, request_id, namespace, method)
                statuses = counts.statuses
                statuses[status] = statuses.get(status, 0) + 1
                if started is not None:
                    durations = counts.durations
                    if durations is None:
                        durations = counts.durations = Durations(REQUEST_SECS)
                    secs = at - started  # Durations.add, written out
                    durations.counts[bisect_left(REQUEST_SECS, secs)] += 1
                    durations.total_secs += secs

    def counted(self) -> Counted:
        """Return what was counted so far."""
        requests: dict[tuple[str, str, str], int] = {}
        durations: dict[Labels, Histogram] = {}
        with self._lock:
            for labels, counts in self._counts.items():
                for status, number in counts.statuses.items():
                    key = (*labels, _STATUSES.get(status, _OTHER))
                    requests[key] = requests.get(key, 0) + number
                if counts.durations is not None:
                    durations[labels] = counts.durations.shown()
        return Counted(requests, durations)

    def _counts_of(self, status: int, request_id: str, namespace: str, method: str) -> _Counts:
        """Return where a request counts whose namespace and method were not seen before, or are not there."""
        labels = self._labels(status, request_id, namespace, method)
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = _Counts()
        return counts

    def _labels(self, status: int, request_id: str, namespace: str, method: str) -> Labels:
        """Return the labels of a request, and keep what it counts under for the next one if its method is there."""
        if not namespace:
            return (NONE if request_id else REJECTED, NONE)
        own = _OWN.get(namespace)
        if own is None and namespace not in self.namespaces:
            return (namespace, NONE) if namespace in _PAGES else (UNKNOWN, UNKNOWN)
        labels = (namespace, method)
        learned = self._methods.get(namespace, 0)
        is_there = method in own if own is not None else status in _THERE and learned < METHODS_MAX
        if not is_there or len(self._known) >= LABELS_MAX:
            return (namespace, UNKNOWN)
        if own is None:
            self._methods[namespace] = learned + 1
        self._known[labels] = self._counts.setdefault(labels, _Counts())
        return labels


_PAGES: Final = frozenset({"whoami", "metrics", "ui"})
"""What the access log shows as a namespace, because a key may come with it, and is none."""

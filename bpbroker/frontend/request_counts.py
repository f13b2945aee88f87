"""How many requests had which status, and how long they took: counted from the batches of the access log.

Namespaces and methods that do not exist count together, so that no client can make more and more numbers.
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
"""The label of requests without a namespace, such as ``/health``."""
REJECTED: Final = "(rejected)"
"""The label of refusals before a request was complete."""
UNKNOWN: Final = "(unknown)"
"""The label of namespaces and methods that do not exist."""
METHODS_MAX: Final = 64
"""How many methods of one extension are counted separately."""
LABELS_MAX: Final = 512
"""How many pairs of namespace and method are counted separately, in all."""

_OTHER: Final = "other"
_STATUSES: Final = {status.value: str(status.value) for status in HTTPStatus}
_OWN: Final = {
    name: frozenset(found) for name, found in (*BUILT_IN.items(), ("_control", (*CONTROL, METRICS, REGISTRY)))
}
_THERE: Final = (200, 500)
"""Statuses that only an existing method of an extension leads to. With other statuses the extension may not have been
asked."""

Labels = tuple[str, str]
"""Namespace and method."""


class Counted(NamedTuple):
    """The counts at one moment."""

    requests: Mapping[tuple[str, str, str], int]
    """Number of requests by namespace, method and status."""
    durations: Mapping[Labels, Histogram]


class _Counts:
    """The counts under one pair of labels."""

    __slots__ = ("durations", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        """Number of responses by status."""
        self.durations: Durations | None = None
        """Durations of the requests that reached the application."""


class RequestCounts:
    """Counts requests; any thread may call it.

    Args:
        namespaces: those that exist.
    """

    def __init__(self, namespaces: Collection[str] = ()) -> None:
        self.namespaces = namespaces
        self._lock = threading.Lock()
        self._known: dict[Labels, _Counts] = {}
        """Counts by namespace and method, for those that exist."""
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
        """Return the counts so far."""
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
        """Return the counts for a namespace and method that are new here, or do not exist."""
        labels = self._labels(status, request_id, namespace, method)
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = _Counts()
        return counts

    def _labels(self, status: int, request_id: str, namespace: str, method: str) -> Labels:
        """Return the labels of a request, and keep its counts for the next request if its method exists."""
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
"""Paths that the access log shows as a namespace, because a key may come with them, and that are no namespace."""

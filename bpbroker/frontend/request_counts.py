"""How many requests were answered how, and how long they took: counted from the batches of the access log.

Namespaces and methods that a client made up count together, so that no client
decides how many numbers there are.
"""

from __future__ import annotations

import threading
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


class RequestCounts:
    """Counts requests; any thread may call it.

    Args:
        namespaces: the namespaces that there are.
    """

    def __init__(self, namespaces: Collection[str] = ()) -> None:
        self.namespaces = namespaces
        self._lock = threading.Lock()
        self._known: dict[Labels, Labels] = {}
        """Namespace and method to their labels, as far as they are there."""
        self._methods: dict[str, int] = {}
        """Extension to how many of its methods are known."""
        self._requests: dict[tuple[str, str, str], int] = {}
        self._durations: dict[Labels, Durations] = {}

    def take(self, answered: Sequence[Answered]) -> None:
        """Count requests."""
        requests, durations, known = self._requests, self._durations, self._known
        with self._lock:
            for _, at, (_, status, _, request_id, namespace, method, _, started, _, _, within) in answered:
                if within:
                    continue
                labels = known.get((namespace, method)) or self._labels(status, request_id, namespace, method)
                key = (*labels, _STATUSES.get(status, _OTHER))
                requests[key] = requests.get(key, 0) + 1
                if started is not None:
                    if labels not in durations:
                        durations[labels] = Durations(REQUEST_SECS)
                    durations[labels].add(at - started)

    def counted(self) -> Counted:
        """Return what was counted so far."""
        with self._lock:
            return Counted(dict(self._requests), {labels: each.shown() for labels, each in self._durations.items()})

    def _labels(self, status: int, request_id: str, namespace: str, method: str) -> Labels:
        """Return the labels of a request whose namespace and method were not seen before, or are not there."""
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
        self._known[labels] = labels
        return labels


_PAGES: Final = frozenset({"whoami", "metrics", "ui"})
"""What the access log shows as a namespace, because a key may come with it, and is none."""

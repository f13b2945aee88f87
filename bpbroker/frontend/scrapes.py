"""Scrapes of ``/metrics``: those that come together share one result, and none waits for a part that is stuck.

The healthcheck asks all parts at one time and replies a quarter of a second
later at most. If it is stuck itself, its own numbers and those of all parts are
left out, and the scrape ends after :data:`SCRAPE_SECS`. No thread waits meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from bpbroker.errors import RequestError
from bpbroker.frontend import metrics
from bpbroker.messages import Address, Measure, Measured, settle

SCRAPE_SECS: Final = 2.0
"""How long a scrape waits for the healthcheck."""
KEPT_SECS: Final = 0.25
"""For how long, at least, the next scrapes get the result of one."""
_SHARE: Final = 0.05
"""The largest share of a processor that all scrapes together may take."""


class Scrape:
    """The result for all scrapes that come at about the same time.

    Args:
        look: returns the values, given the reply of the healthcheck.
    """

    def __init__(self, look: Callable[[Measured | None], metrics.Seen]) -> None:
        self._look = look
        self._one_at_a_time = threading.Lock()
        self._texts: dict[str, bytes] = {}
        self._began = time.monotonic()
        self._cost_secs = 0.0
        """Processor time that it took."""
        self._asked = False
        self._heard: Future[Measured | None] = Future()

    @property
    def is_fresh(self) -> bool:
        """Whether a scrape that comes now may share it."""
        kept_secs = max(KEPT_SECS, self._cost_secs / _SHARE)
        return time.monotonic() - self._began < (kept_secs if self._heard.done() else SCRAPE_SECS)

    def ask(self, healthcheck: Address) -> Future[Any]:
        """Ask the parts, once. Return a future that is done when they have replied; each scrape may cancel its own."""
        with self._one_at_a_time:
            first, self._asked = not self._asked, True
        if first:
            try:
                reply = healthcheck.ask(Measure(), SCRAPE_SECS)
            except RequestError:
                settle(self._heard, None)
            else:
                reply.add_done_callback(self._hear)
        own: Future[Any] = Future()
        self._heard.add_done_callback(lambda _: settle(own, None))
        return own

    def _hear(self, reply: Future[Any]) -> None:
        failed = reply.cancelled() or reply.exception() is not None
        settle(self._heard, None if failed else reply.result())

    def text(self, form: str) -> bytes:
        """Return the metrics in a format of :func:`bpbroker.frontend.metrics.content_type`; made once for all."""
        with self._one_at_a_time:
            if form not in self._texts:
                began = time.thread_time()
                self._texts[form] = metrics.text(self.seen(), form)
                self._cost_secs += time.thread_time() - began
            return self._texts[form]

    def seen(self) -> metrics.Seen:
        """Return the current values."""
        measured = None
        if self._heard.done():
            with contextlib.suppress(Exception):
                measured = self._heard.result(0)
        return self._look(measured)


class Scrapes:
    """Makes scrapes.

    Args:
        look: as for :class:`Scrape`.
    """

    def __init__(self, look: Callable[[Measured | None], metrics.Seen]) -> None:
        self._look = look
        self._newest: Scrape | None = None
        self._choosing = threading.Lock()

    def current(self) -> Scrape:
        """Return the scrape to share."""
        with self._choosing:
            if self._newest is None or not self._newest.is_fresh:
                self._newest = Scrape(self._look)
            return self._newest

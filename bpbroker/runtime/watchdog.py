"""Pings for systemd's watchdog, from a thread of their own: the main thread may be busy for as long as its work takes.

systemd restarts a service that is silent for ``WatchdogSec``. So silence has to
mean that the broker serves no client or handles no command any more, not that
it is busy: a reload waits for the disk, a part that is replaced for its
start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from bpbroker.runtime import sdnotify

PINGS: Final = 4
"""Pings within the limit. systemd asks for two; one of four may be late."""
LOOK_AGAIN_SECS: Final = 0.5
"""After how long a broker that was not well is checked again: it may have been for a moment only."""


class Watchdog:
    """Pings as long as the broker is well; does nothing where systemd does not watch.

    Args:
        well: whether the broker is well; called in the watchdog's thread, must not block.
        ping: sends one ping.
        limit_secs: how often a ping has to come at least; None: systemd expects none.
    """

    def __init__(
        self,
        well: Callable[[], bool],
        ping: Callable[[], object] = lambda: sdnotify.notify(sdnotify.WATCHDOG),
        limit_secs: float | None = None,
    ) -> None:
        self._well = well
        self._ping = ping
        self._limit_secs = limit_secs
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Ping from now on."""
        if self._limit_secs is not None:
            self._thread.start()

    def stop(self) -> None:
        """Ping no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = (self._limit_secs or 0.0) / PINGS
        while True:
            well = self._well()
            if well:
                self._ping()
            if self._over.wait(pause if well else min(pause, LOOK_AGAIN_SECS)):
                return

"""Telling systemd how the service is (sd_notify). Does nothing where there is no ``NOTIFY_SOCKET``.

The protocol is one datagram of ``KEY=value`` lines to a Unix socket; see
``sd_notify(3)`` and ``sd_watchdog_enabled(3)``.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Self

EXTEND_SECS: Final = 60.0
"""How much more time a start or stop asks for at once, while its work goes on."""
EXTEND_EVERY_SECS: Final = 5.0

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"

SEND_SECS = 1.0
"""A service manager that does not read holds nothing up for longer than this."""


def reloading() -> str:
    """Return the state that says that a reload begins; say :data:`READY` when it is over."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def status(text: str) -> str:
    """Return the state that shows ``text`` in ``systemctl status``."""
    return f"STATUS={' '.join(text.split())}"


def extend(secs: float) -> str:
    """Return the state that asks for so many more seconds in the present start or stop."""
    return f"EXTEND_TIMEOUT_USEC={round(secs * 1_000_000)}"


def notify(*states: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send states; False when there is no listener. A service manager that is gone is no reason to fail."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_SECS)
            sender.connect(address)
            sender.sendall("\n".join(states).encode())
    except OSError:
        return False
    return True


def watchdog_secs(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds within which systemd wants to hear :data:`WATCHDOG`, or None; tell it at half of that."""
    try:
        limit = int(environ.get("WATCHDOG_USEC", ""))
        wanted = int(environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return limit / 1_000_000 if limit > 0 and wanted == os.getpid() else None


class Patience:
    """Asks for more time during a long start or stop, as long as there is progress, and reports the progress.

    It has a thread of its own, because the main thread reads a file or waits meanwhile; without ``NOTIFY_SOCKET`` it
    has none.

    Args:
        say: returns what the start or stop is at, one line.
        progress: returns what changes while it goes on.
        environ: has ``NOTIFY_SOCKET``.
    """

    def __init__(
        self, say: Callable[[], str], progress: Callable[[], object], environ: Mapping[str, str] = os.environ
    ) -> None:
        self.wanted = True
        """Whether a start or stop is under way."""
        self._say = say
        self._progress = progress
        self._environ = environ
        watchdog = watchdog_secs(environ)
        self._every_secs = min(EXTEND_EVERY_SECS, watchdog / 4 if watchdog else EXTEND_EVERY_SECS)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._environ.get("NOTIFY_SOCKET"):
            self._thread = threading.Thread(target=self._run, name="patience", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        seen = self._progress()
        moved_at = time.monotonic()
        while not self._ended.wait(self._every_secs):
            if not self.wanted:
                continue
            now, last = time.monotonic(), seen
            seen = self._progress()
            if seen != last:
                moved_at = now
            if now - moved_at < EXTEND_SECS:
                notify(extend(EXTEND_SECS), status(self._say()), WATCHDOG, environ=self._environ)

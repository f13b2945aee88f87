"""Telling systemd how the service is (sd_notify). Does nothing where there is no ``NOTIFY_SOCKET``.

The protocol is one datagram of ``KEY=value`` lines to a Unix socket; see
``sd_notify(3)`` and ``sd_watchdog_enabled(3)``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"

SEND_SECS = 1.0
"""A service manager that does not read holds nothing up for longer than this."""


def reloading() -> str:
    """Give the state that says that a reload begins; say :data:`READY` when it is over."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def status(text: str) -> str:
    """Give the state that shows ``text`` in ``systemctl status``."""
    return f"STATUS={' '.join(text.split())}"


def notify(*states: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send states; False when nobody listens. A service manager that is gone is no reason to fail."""
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
    """Give the seconds within which systemd wants to hear :data:`WATCHDOG`, or None; tell it at half of that."""
    try:
        limit = int(environ.get("WATCHDOG_USEC", ""))
        wanted = int(environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return limit / 1_000_000 if limit > 0 and wanted == os.getpid() else None

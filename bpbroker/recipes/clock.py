"""Seconds that go on while the machine sleeps."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def boottime() -> float:
    """Return seconds of a clock that nobody sets and that counts a suspended machine's sleep where the system can."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)

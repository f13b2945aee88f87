"""Seconds that go on while the machine sleeps."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def boottime() -> float:
    """Return the seconds of a clock that is never set and, where the system has one, also counts a machine's sleep."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)

"""All processes that a child process has started, also those that left its process group for a session of their own.

Only Linux can find them: a process that is a subreaper (prctl(2)) stays an ancestor of
all its descendants, however often they fork and whichever of them dies. So they
can be found from it, as long as it lives. Elsewhere the process group has to do.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_ROUNDS_MAX: Final = 50
"""A process that forks all the time is chased so often; each round finds what the one before made orphans of."""
_TICK_SECS: Final = 0.05
"""Start times are counted in ticks of 10 ms."""


def become_subreaper() -> None:
    """Keep this process the ancestor of all processes that it starts, where the system can do that."""
    if sys.platform != "linux":
        return
    with suppress(OSError, ImportError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def now_secs() -> float:
    """Return the time in seconds, for ``since_secs`` of :func:`kill_descendants`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def kill_descendants(root: int, since_secs: float) -> None:
    """Kill every descendant of a subreaper that was started after ``since_secs``, but not the process itself.

    It is stopped, so that it starts no more; the caller kills it next. What was
    started before, such as a daemon that an earlier call restarted, is left
    alone, and so is what that has started.

    Args:
        root: its process id, which must still be its own.
        since_secs: by :func:`now_secs`.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return
    with suppress(OSError):
        os.kill(root, signal.SIGSTOP)
    for _ in range(_ROUNDS_MAX):
        found = _young(root, since_secs - _TICK_SECS)
        if not found:
            return
        for pid in found:
            _kill(pid, since_secs - _TICK_SECS)
        time.sleep(0.001)


def _young(root: int, since_secs: float) -> list[int]:
    """Return the descendants that live, were started since then, and have no older one above them."""
    young: list[int] = []
    todo = _children(root)
    while todo:
        pid = todo.pop()
        state, started = _state(pid)
        if started < since_secs:
            continue
        todo += _children(pid)
        if state not in ("Z", "X"):
            young.append(pid)
    return young


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_bytes().split())
    return found


def _state(pid: int) -> tuple[str, float]:
    """Return a process's state and when it was started, in seconds since the boot; -1 when it is gone."""
    try:
        # The name in the second field may hold anything (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "X", -1.0
    return fields[0].decode(), int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _kill(pid: int, since_secs: float) -> None:
    """Kill a process if it still is the one that was seen."""
    with suppress(OSError):
        held = os.pidfd_open(pid)
        try:
            if _state(pid)[1] >= since_secs:
                signal.pidfd_send_signal(held, signal.SIGKILL)
        finally:
            os.close(held)

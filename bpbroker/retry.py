"""How long to wait before trying again, and whether there is time for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Final

FIRST_SECS: Final = 0.25
LONGEST_SECS: Final = 5.0
_LEAST_SECS: Final = 0.05
"""What is asked with less time than this has no chance."""


def pauses(*, jitter: bool = True) -> Iterator[float]:
    """Yield the pauses between attempts, in seconds: doubling, with ``jitter`` so that clients do not come in step."""
    import random  # it loads a good deal, and most calls never pause

    pause = FIRST_SECS
    while True:
        yield pause * (random.uniform(0.5, 1.0) if jitter else 1.0)  # noqa: S311 - spreads load, protects nothing
        pause = min(pause * 2, LONGEST_SECS)


def sleep_before(end: float, secs: float) -> bool:
    """Sleep, at most until ``end`` in monotonic time; return whether there is time for another attempt then."""
    time.sleep(max(0.0, min(secs, end - time.monotonic())))
    return time.monotonic() + _LEAST_SECS < end

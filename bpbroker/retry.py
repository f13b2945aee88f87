"""How long to wait before trying again. Pure but for chance."""

from __future__ import annotations

from collections.abc import Iterator

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Final

FIRST_SECS: Final = 0.25
LONGEST_SECS: Final = 5.0


def pauses(*, jitter: bool = True) -> Iterator[float]:
    """Yield the pauses between attempts, in seconds: doubling, with ``jitter`` so that clients do not come in step."""
    import random  # it loads a good deal, and most calls never pause

    pause = FIRST_SECS
    while True:
        yield pause * (random.uniform(0.5, 1.0) if jitter else 1.0)  # noqa: S311 - spreads load, protects nothing
        pause = min(pause * 2, LONGEST_SECS)

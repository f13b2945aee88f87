"""How often a part may be restarted: at once at first, then after growing pauses, then not for a while."""

from __future__ import annotations

from collections import deque
from typing import Final

RESTARTS_MAX: Final = 5
RESTARTS_WINDOW_SECS: Final = 600.0
"""At most so many restarts of one part in a window of so many seconds; then it stays down until the window allows
one."""

BACKOFF_SECS: Final = 1.0
"""Pause before the second restart in a window; doubled with each further one."""


class Restarts:
    """The restarts of one part."""

    def __init__(self) -> None:
        self.count = 0
        """All of them."""
        self._recent: deque[float] = deque(maxlen=RESTARTS_MAX)
        """Monotonic times of the last restarts."""

    def note(self, now: float) -> None:
        """Note that there is one at this monotonic time."""
        self.count += 1
        self._recent.append(now)

    def pause_secs(self, now: float) -> float:
        """Return the seconds until the next one may be, 0 or less: at once; ``now`` is monotonic time."""
        while self._recent and now - self._recent[0] > RESTARTS_WINDOW_SECS:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        if self.too_many:
            return RESTARTS_WINDOW_SECS - (now - self._recent[0])
        return float(BACKOFF_SECS * 2 ** (len(self._recent) - 1) - (now - self._recent[-1]))

    @property
    def too_many(self) -> bool:
        """Whether the last :meth:`pause_secs` is a long one."""
        return len(self._recent) == RESTARTS_MAX

"""The revisions that an embedded registry gives out: never one twice, whatever is restored, lost or set back.

``<config>.revisions`` holds a number that no revision has reached yet. It is written
ahead, once an hour, so that a commit costs nothing more; a clean end writes the
exact one. A restore replaces file and journal, never this.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from bpbroker import files
from bpbroker.errors import Unavailable

logger = logging.getLogger(__name__)

_AHEAD: Final = 3_600_000
"""How many revisions are reserved at once: as they are Unix milliseconds, those of an hour."""
_EARLY: Final = 600_000


class Revisions:
    """Gives out revisions: the Unix time in milliseconds, or one more than the last if that is higher."""

    def __init__(self, config_file: Path) -> None:
        self._path = config_file.with_name(f"{config_file.name}.revisions")
        self._reserved = 0
        self._tried = 0.0

    def read(self) -> int:
        """Return the number in the file; 0 if it cannot be read."""
        with suppress(OSError, ValueError):
            return max(0, int(self._path.read_text("ascii")))
        return 0

    def open(self, last: int) -> int:
        """Return the highest revision that may have been given out; ``last`` is what file and journal know of."""
        last = max(last, self.read())
        self._reserve(last)
        return last

    def next(self, last: int) -> int:
        """Return the next commit's revision."""
        revision = max(last + 1, time.time_ns() // 1_000_000)
        if revision > self._reserved - _EARLY:
            self._reserve(revision)
        return revision

    def close(self, last: int) -> None:
        """Write the last revision exactly."""
        self._write(last + 1)

    def _reserve(self, last: int) -> None:
        now = time.monotonic()
        if self._reserved and now - self._tried < 60 and last < self._reserved:
            return  # the disk is full; file and journal know the last one, too
        self._tried = now
        if self._write(max(last, time.time_ns() // 1_000_000) + _AHEAD):
            self._reserved = max(last, time.time_ns() // 1_000_000) + _AHEAD
        else:
            self._reserved = last + _EARLY + 60_000

    def _write(self, number: int) -> bool:
        try:
            files.replace(self._path, [b"%d\n" % number])
        except (OSError, Unavailable) as error:
            logger.warning("%s cannot be written: %s", self._path, error)
            return False
        return True

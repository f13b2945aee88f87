"""A program that notes all the time that it is there, and whether it goes on or has ended.

It adds to a file, and nobody takes that away: on Windows a file that is being deleted cannot be opened, and the
program would end by the look at it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

CODE: Final = "import sys, time\nwhile True:\n open(sys.argv[1], 'ab').write(b'x'); time.sleep(.05)"
"""Python code of the program; its argument is the path of the file."""

_STILL_SECS: Final = 1.0


def size(path: Path) -> int:
    """Return how many beats there were."""
    return path.stat().st_size if path.exists() else 0


def goes_on(path: Path, beats: int = 1, secs: float = 20.0) -> bool:
    """Return whether there are so many more beats, twenty a second at the most, within that time."""
    enough, end = size(path) + beats, time.monotonic() + secs
    while size(path) < enough:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def ends(path: Path, secs: float = 20.0) -> bool:
    """Return whether the beats end, within that time."""
    end = time.monotonic() + secs
    while time.monotonic() < end:
        before = size(path)
        time.sleep(_STILL_SECS)
        if size(path) == before:
            return True
    return False

"""A clock that a test sets while a program runs: its wall clock alone, as ``date -s`` does."""

from __future__ import annotations

from typing import Final

CLOCK: Final = """
import os
import time

now, now_ns = time.time, time.time_ns

def ahead():
    try:
        with open(os.environ["CLOCK"]) as file:
            return float(file.read())
    except (KeyError, OSError, ValueError):
        return 0.0

time.time = lambda: now() + ahead()
time.time_ns = lambda: now_ns() + int(ahead() * 1e9)
"""
"""Put into a file ``sitecustomize.py``; the file that the variable CLOCK names has the seconds that it is ahead."""

TEN_YEARS: Final = 10 * 366 * 86_400
"""In seconds."""

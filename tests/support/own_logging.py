"""Logging as a program sets it up for its whole process, and how a test gets rid of that again."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpbroker.runtime.logs import SAME, set_access_log


@contextmanager
def restored() -> Iterator[None]:
    """Have everything that ``setup_logging`` changes as it was, at the end."""
    root = logging.getLogger()
    handlers, level, raising, hook = root.handlers[:], root.level, logging.raiseExceptions, threading.excepthook
    showing = warnings.showwarning
    try:
        yield
    finally:
        set_access_log(SAME)
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:], logging.raiseExceptions, threading.excepthook = handlers, raising, hook
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        warnings.showwarning = showing


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of faults: other tests' threads may log requests meanwhile."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

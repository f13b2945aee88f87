"""The product's ``bpbroker`` command, killed at the n-th time that it changes a name, writes to a new file, or syncs.

Usage: ``DIES_AT=N python dying.py start …``. Needs no tracer, so it works under one. What SQLite does is not counted.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Final

from bpbroker.cli import main

_CHANGES: Final = frozenset(
    {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "sqlite3.connect"}
)
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT

_left = int(os.environ["DIES_AT"])
_fsync = os.fsync


def _count() -> None:
    global _left  # noqa: PLW0603 - of the whole process
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
        _count()


def _counted_fsync(descriptor: int) -> None:
    _count()
    _fsync(descriptor)


if __name__ == "__main__":
    sys.addaudithook(_hear)
    os.fsync = _counted_fsync  # type: ignore[assignment]  # every descriptor of ours is a number
    main()

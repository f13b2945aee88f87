"""What an extension's process prints, line by line into the broker's log."""

from __future__ import annotations

import logging
import os
import re
import select
import sys
import threading
import time
from typing import IO, Final

LINE_MAX_BYTES: Final = 8192
LINES_PER_SECOND: Final = 200
"""Lines of one process that the log takes; the others are counted and left out."""
LAST_MAX_BYTES: Final = 1024 * 1024
"""How much output is still read after the end of the process: processes that it left running may print for ever."""

_LEVEL: Final = re.compile(rb"<([0-7])>")
_LEVELS: Final = (logging.CRITICAL,) * 3 + (logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)


def forward(stream: IO[bytes] | None, pidfd: int | None, logger_name: str) -> threading.Thread | None:
    """Start a thread that logs what comes from ``stream`` and closes it when the process ended.

    A line may say its level in front as sd-daemon(3) does; others are ``info``.

    Args:
        stream: the process's standard error.
        pidfd: tells of the process's end, where the system has that.
        logger_name: the logger to use.
    """
    if stream is None:
        return None
    own_pidfd = None if pidfd is None else os.dup(pidfd)
    thread = threading.Thread(target=_forward, args=(stream, own_pidfd, logger_name), name=logger_name, daemon=True)
    thread.start()
    return thread


def _forward(stream: IO[bytes], pidfd: int | None, logger_name: str) -> None:
    lines = Lines(logging.getLogger(logger_name))
    last = LAST_MAX_BYTES
    try:
        while last > 0:
            ended = pidfd is not None and not _wait(stream.fileno(), pidfd)
            if ended and not _ready(stream.fileno()):
                break
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                break
            lines.feed(chunk)
            if ended:
                last -= len(chunk)
    except OSError:
        pass  # the pipe broke: nothing more will come
    finally:
        lines.close()
        stream.close()
        if pidfd is not None:
            os.close(pidfd)


def _wait(descriptor: int, pidfd: int) -> bool:
    """Wait until there is something to read; False when the process has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    return pidfd not in {found for found, _ in poll.poll()}


def _ready(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _text(line: bytes) -> str:
    """Decode a line: UTF-8, or what programs of this system that know nothing of it print."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        # A console's code page; "replace" where the line was cut in a character, too.
        return line.decode("oem" if sys.platform == "win32" else "utf-8", "replace")


class Lines:
    """Cuts a stream of bytes into log lines; bounded in length and in number a second."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._rest = b""
        self._second = 0
        self._count = 0

    def feed(self, chunk: bytes) -> None:
        """Log the lines that are complete now."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            self._log(line)
        while len(self._rest) > LINE_MAX_BYTES:
            self._log(self._rest[:LINE_MAX_BYTES])
            self._rest = self._rest[LINE_MAX_BYTES:]

    def close(self) -> None:
        """Log what is left."""
        if self._rest:
            self._log(self._rest)
            self._rest = b""
        self._say_left_out()

    def _log(self, line: bytes) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._say_left_out()
            self._second, self._count = second, 0
        self._count += 1
        if self._count > LINES_PER_SECOND:
            return
        found = _LEVEL.match(line)
        level = _LEVELS[int(found[1])] if found else logging.INFO
        text = _text(line[found.end() if found else 0 :][:LINE_MAX_BYTES]).rstrip()
        self._logger.log(level, "%s", text)

    def _say_left_out(self) -> None:
        if self._count > LINES_PER_SECOND:
            self._logger.warning("%d more lines were left out", self._count - LINES_PER_SECOND)
            self._count = 0

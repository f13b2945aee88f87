"""Where the log goes: a file that rotates, or a descriptor. No fault of either delays or ends the broker.

Only a plain file is rotated: not a link, such as ``/dev/stdout``, nor a pipe or
a device. When rotating or opening again fails, the log goes on in the old file. A
pipe, terminal or socket that nothing reads is waited for a moment, once; after
that its lines are dropped and counted until it accepts some again. The fault
is kept as a sentence for health.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import sys
import time
from contextlib import nullcontext, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from bpbroker import files

FILE_MODE: Final = 0o640
FILE_MAX_BYTES: Final = 10 * 1024 * 1024
FILES_KEPT: Final = 5
"""Older files kept beside the one being written, as ``NAME.1`` (newest) to ``NAME.5``."""
PATIENCE_SECS: Final = 0.5
"""How long a line waits for a reader that is behind."""
_ROTATE_AGAIN_SECS: Final = 60.0
_SMALL_BYTES: Final = 512
"""A pipe or terminal that can be written to takes this much without waiting."""


class Outlet(logging.Handler):
    """A handler that keeps its own faults."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lost = 0
        self._faults: dict[str, str] = {}
        self._failed = False

    @property
    def trouble(self) -> str:
        """The problem in one line; empty when all is well."""
        return "; ".join(dict.fromkeys(self._faults.values()))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; after lines that were lost say how many."""
        self._failed = False
        super().emit(record)
        if self._failed:
            return
        if self._lost:
            lost, why = self._lost, self._faults.get("write", "")
            self._lost = 0
            text = f"{lost} lines of the log before this one were lost: {why}"
            super().emit(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None))
        self._faults.pop("write", None)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name and signature
        """Note why a record was not written."""
        error = sys.exc_info()[1]
        self._failed = True
        self._lost += 1
        if isinstance(error, OSError):
            self._note("write", f"the log cannot be written: {error.strerror or error}")

    def _note(self, what: str, sentence: str) -> bool:
        """Keep a fault; return whether it is a new one."""
        before = self._faults.get(what)
        self._faults[what] = sentence
        return sentence != before


class LogStream(Outlet, logging.StreamHandler[Any]):
    """A log to a descriptor or a special file, never rotated."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)

    def close(self) -> None:
        """Close the stream, if it is this log's own."""
        if isinstance(self.stream, Writer):
            self.stream.close()
        super().close()


class LogFile(Outlet, RotatingFileHandler):
    """A log file that rotates by size and takes standard output and error along when they point to it.

    They do when the broker runs in the background: what a library prints must
    follow the log and not stay in a file that was moved away.
    """

    def __init__(self, path: Path) -> None:
        self._rotates_from = 0.0
        super().__init__(path, maxBytes=FILE_MAX_BYTES, backupCount=FILES_KEPT, encoding="utf-8")

    def reopen(self) -> str:
        """Open the file anew under its name; return why that could not be, after which the one before goes on."""
        with self.lock or nullcontext():
            try:
                fresh = self._open()
            except OSError as error:
                fault = f"the log file {self.baseFilename} cannot be opened: {error.strerror or error}"
                self._note("open", fault)
                return fault
            self._faults.clear()
            self._rotates_from = 0.0
            old, self.stream = self.stream, fresh
            if old:
                self._redirect(old.fileno())
                old.close()
        return ""

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the name is logging's
        """Return whether the file is full, is a plain one, and could be moved when that was tried last."""
        if time.monotonic() < self._rotates_from or not is_plain(Path(self.baseFilename)):
            return False
        return bool(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802 - the name is logging's
        """Move the files on by one; go on in this one if that fails."""
        if self.stream is None:
            self.stream = self._open()
        # Windows moves no file that is open; and nothing else points to this one there, where nothing is a daemon.
        old = None if sys.platform == "win32" else os.dup(self.stream.fileno())
        try:
            super().doRollover()
            self._faults.pop("rotate", None)
        except OSError as error:
            self._rotates_from = time.monotonic() + _ROTATE_AGAIN_SECS
            self._note("rotate", f"the full log file {self.baseFilename} cannot be rotated: {error.strerror or error}")
            if self.stream is None and old is None:
                self.stream = self._open()
            elif self.stream is None and old is not None:
                self.stream = os.fdopen(os.dup(old), "a", encoding="utf-8", errors="backslashreplace")
        finally:
            if old is not None:
                self._redirect(old)
                os.close(old)

    def _open(self) -> Any:
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=open_log)

    def _redirect(self, old: int) -> None:
        if not self.stream:
            return
        before = os.fstat(old)
        for number in (1, 2):
            try:
                same = os.path.samestat(os.fstat(number), before)
            except OSError:
                continue
            if same:
                os.dup2(self.stream.fileno(), number)


def is_plain(path: Path) -> bool:
    """Return whether a log there is a file of its own that may be moved; one that is not there yet becomes one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def handler_of(path: Path) -> LogFile | LogStream:
    """Return what logs to this path.

    Raises:
        OSError: it cannot be opened.
    """
    files.make_folder(path.parent, mode=0o755)
    special = None if sys.platform == "win32" or is_plain(path) else _special(path)
    return LogFile(path) if special is None else LogStream(Writer(special))


def _special(path: Path) -> int | None:
    """Return a descriptor of a pipe or device, or of the standard stream that a link leads to; None for other links.

    A pipe is opened for reading, too: that waits for no reader.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(number), found):
                return os.dup(number)
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return None
    mode = os.O_RDWR if stat.S_ISFIFO(found.st_mode) else os.O_WRONLY | os.O_APPEND
    return open_log(path, mode | os.O_NOCTTY | os.O_NONBLOCK)


def open_log(path: str | os.PathLike[str], flags: int) -> int:
    """Open a log file and return its descriptor; root follows no link that another user may have put there.

    Raises:
        OSError: it cannot be opened.
    """
    if files.untrusted(Path(path).parent):
        return files.open_private(Path(path), flags, mode=FILE_MODE)
    return os.open(path, flags, FILE_MODE)


class Writer:
    """Text to a descriptor that may be a pipe, terminal or socket which nothing reads.

    Args:
        descriptor: becomes this object's own.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = _unblocked(descriptor)
        self._socket = socket.socket(fileno=os.dup(self._descriptor)) if _is_socket(self._descriptor) else None
        self._late = False
        """Whether the last line was not taken in time: then the next one does not wait."""
        self._cut = False
        """Whether a line was left half written."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Write one whole text.

        Raises:
            OSError: it is not written, or not whole.
        """
        data = (b"\n" if self._cut else b"") + text.encode("utf-8", "backslashreplace")
        until = time.monotonic() + (0.0 if self._late else PATIENCE_SECS)
        self._late = True
        done = 0
        try:
            while done < len(data):
                done += self._some(data[done:], max(0.0, until - time.monotonic()))
        finally:
            self._cut = done < len(data) and (self._cut or done > 0)
        self._late = False

    def _some(self, data: bytes, patience_secs: float) -> int:
        """Write a part, and return how many bytes that were."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(patience_secs * 1000):
            raise TimeoutError("nothing reads it")
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            return os.write(self._descriptor, data if self._is_unblocked() else data[:_SMALL_BYTES])
        except BlockingIOError:
            return 0

    def _is_unblocked(self) -> bool:
        return not os.get_blocking(self._descriptor) or stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def flush(self) -> None:
        """Do nothing: everything is written at once."""

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def close(self) -> None:
        """Close the descriptor; doing it twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._socket is not None:
            self._socket.close()


def _is_socket(descriptor: int) -> bool:
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)


def _unblocked(descriptor: int) -> int:
    """Return a descriptor of the same pipe or terminal on which a write never waits, if there is a way to get one.

    The flag cannot be set on the one that was inherited: other processes share it.
    """
    kind = os.fstat(descriptor).st_mode
    if not os.get_blocking(descriptor) or not (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
        return descriptor
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return descriptor  # another user's terminal, or no /proc
    os.close(descriptor)
    return own

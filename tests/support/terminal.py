"""A program at a terminal: what it writes there, while its standard output or error may go elsewhere."""

from __future__ import annotations

import codecs
import errno
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

WAIT_SECS = 60.0


class Terminal:
    """Runs a command at a terminal of its own.

    Args:
        command: the words.
        environ: its environment; TERM is added.
        rows: lines.
        columns: characters in a line.
        out: where its standard output goes; None is the terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        rows: int = 24,
        columns: int = 80,
        out: Path | None = None,
    ) -> None:
        import termios  # there are none on Windows
        from fcntl import ioctl

        self.master, slave = os.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        stdout = slave if out is None else os.open(out, os.O_WRONLY | os.O_CREAT)
        self.process = subprocess.Popen(
            command,
            env={"TERM": "xterm", **environ},
            stdin=slave,
            stdout=stdout,
            stderr=slave,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - so that Ctrl-C reaches it
            start_new_session=True,
        )
        for descriptor in {slave, stdout}:
            os.close(descriptor)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two parts
        self.written = ""
        """Everything that it wrote to the terminal so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _read(self, secs: float) -> bool:
        """Take in what it writes within a time; False once it has closed the terminal."""
        if not select.select([self.master], [], [], secs)[0]:
            return True
        try:
            got = os.read(self.master, 65536)
        except OSError as closed:
            if closed.errno != errno.EIO:
                raise
            return False
        self.written += self._decoder.decode(got)
        return bool(got)

    def until(self, is_there: Callable[[str], bool] | str) -> str:
        """Wait until it has written this; return all that it wrote."""
        deadline = time.monotonic() + WAIT_SECS
        while not (is_there in self.written if isinstance(is_there, str) else is_there(self.written)):
            assert time.monotonic() < deadline, f"{is_there!r} is not in {self.written[-3000:]!r}"
            assert self._read(0.1), f"it ended without {is_there!r}: {self.written[-3000:]!r}"
        return self.written

    def ended(self) -> int:
        """Wait until it has ended; return its exit code."""
        deadline = time.monotonic() + WAIT_SECS
        while self._read(0.1):
            assert time.monotonic() < deadline, f"it does not end: {self.written[-3000:]!r}"
            if self.process.poll() is not None and not select.select([self.master], [], [], 0)[0]:
                break
        return self.process.wait(WAIT_SECS)

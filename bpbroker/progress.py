"""How far a command is: long work reports it here, and a person at a terminal sees it.

Long work uses :class:`Work`, which costs nothing without a display. There is one
:class:`Display` for the whole process: a command's terminal, or a broker that
starts. Scripts see nothing: progress is shown on standard error, if that is a
terminal, after a second.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Final, Protocol, Self

    class Display(Protocol):
        """Shows the progress of work."""

        def begin(self, work: Work) -> None:
            """Note that work has begun; inner work ends before the outer one."""

        def step(self, work: Work) -> None:
            """Note that it made progress."""

        def end(self, work: Work) -> None:
            """Note that it is over."""


_PATIENCE_SECS: Final = 1.0
_STEP_SECS: Final = 0.5
_FLICKER_SECS: Final = 0.1
"""Work that takes less time than this, in seconds, is not shown."""

_display: Display | None = None


def show_on(display: Display | None) -> Display | None:
    """Set the display from now on, or none; return the one before."""
    global _display
    before, _display = _display, display
    return before


def show_on_terminal() -> None:
    """Show progress on standard error, if that is a terminal."""
    if _display is None and sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        if sys.platform == "win32":
            from bpbroker import windows

            if not windows.paints(sys.stderr.fileno()):
                return
        show_on(Terminal())


def is_shown() -> bool:
    """Return whether there is a display."""
    return _display is not None


def step(done: int, of: int) -> None:
    """Say how far the innermost work is."""
    if _display is not None and _begun:
        _begun[-1].step(done, of)


_begun: list[Work] = []
"""Work that is shown and not over, the innermost last."""


class Work:
    """Work that may take long, as a context manager.

    Args:
        what: such as ``Reading /etc/bpbroker.json``.
        quiet: show nothing.
        look: returns what else there is to say of it; called in another thread, about once a second.
    """

    def __init__(self, what: str, *, quiet: bool = False, look: Callable[[], str] | None = None) -> None:
        self.what = what
        self.done = 0
        self.of = 0
        self.began = 0.0
        self.look = look
        self._display = None if quiet else _display

    def __enter__(self) -> Self:
        if self._display is not None:
            self.began = time.monotonic()
            _begun.append(self)
            self._display.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            _begun.remove(self)
            self._display.end(self)

    def step(self, done: int, of: int = 0) -> None:
        """Say that so many parts are done, of how many; 0 if that is not known."""
        self.done, self.of = done, of
        if self._display is not None:
            self._display.step(self)

    def __str__(self) -> str:
        return f"{self.what}, {min(100, 100 * self.done // self.of)} %" if self.of else self.what


def following(pieces: Iterable[bytes], what: str, of: int) -> Iterator[bytes]:
    """Yield pieces that are being written, and say how far that is.

    Args:
        pieces: the content.
        what: as for :class:`Work`.
        of: about how many there are.
    """
    with Work(what) as work:
        for number, piece in enumerate(pieces):
            work.step(number, of)
            yield piece


class Terminal:
    """One line on standard error that is painted over, and gone when the work is over."""

    def __init__(self) -> None:
        import threading  # only here: most calls come from scripts

        self._began = time.monotonic()
        self._works: list[Work] = []
        self._painting = threading.Lock()
        self._some = threading.Event()
        self._thread: threading.Thread | None = None
        self._painted = False

    def begin(self, work: Work) -> None:
        """See :class:`Display`."""
        with self._painting:
            self._works.append(work)
        self._some.set()
        if self._thread is None:
            import threading

            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()

    def step(self, work: Work) -> None:
        """See :class:`Display`; it is painted a little later."""

    def end(self, work: Work) -> None:
        """See :class:`Display`: with the outermost work the line goes."""
        with self._painting:
            if work in self._works:
                self._works.remove(work)
            if not self._works:
                self._some.clear()
                if self._painted:
                    self._painted = False
                    self._write("\r\x1b[K")

    def _run(self) -> None:
        time.sleep(max(0.0, self._began + _PATIENCE_SECS - time.monotonic()))
        while True:
            self._some.wait()
            time.sleep(_FLICKER_SECS)
            inner = self._works[-1:]
            told = inner[0].look() if inner and inner[0].look is not None else ""
            with self._painting:
                if inner and inner == self._works[-1:]:
                    self._paint(told)
            time.sleep(_STEP_SECS - _FLICKER_SECS)

    def _paint(self, told: str) -> None:
        secs = time.monotonic() - self._works[0].began
        text = ": ".join([*map(str, self._works), *([told] if told else [])])
        text = "".join(character if character.isprintable() else "?" for character in text)
        end = f" … {secs:.0f} s"
        try:
            room = os.get_terminal_size(sys.stderr.fileno()).columns - 1 - len(end)
        except (OSError, ValueError):
            room = 79 - len(end)
        if len(text) > room > 1:
            text = f"{text[: room - 1]}…"
        self._painted = True
        self._write(f"\r\x1b[K{text}{end}")

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # the terminal has gone
            pass


class Telling:
    """Passes the progress to a function in words, not too often.

    Args:
        tell: called with a line such as ``Reading /etc/bpbroker.json, 40 %``.
        every_secs: the shortest time between two calls.
    """

    def __init__(self, tell: Callable[[str], object], every_secs: float = 0.25) -> None:
        self._tell = tell
        self._every_secs = every_secs
        self._next = 0.0

    def begin(self, work: Work) -> None:
        """See :class:`Display`."""
        self._say(work)

    def step(self, work: Work) -> None:
        """See :class:`Display`."""
        if time.monotonic() >= self._next:
            self._say(work)

    def end(self, work: Work) -> None:
        """See :class:`Display`."""

    def _say(self, work: Work) -> None:
        self._next = time.monotonic() + self._every_secs
        self._tell(str(work))

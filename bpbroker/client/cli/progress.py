"""What a person at a terminal sees while something takes long."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    from types import TracebackType
    from typing import Final, Self

_PATIENCE_SECS: Final = 2.0
_STEP_SECS: Final = 0.5


class Progress:
    """Shows, on standard error if that is a terminal, what is being waited for and how long, after two seconds.

    Args:
        what: such as ``broker 10.0.0.5:20443``.
        quiet: show nothing.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self.what = what
        self._shown = not quiet and os.environ.get("TERM") != "dumb" and sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._shown:
            import threading  # only here: most calls come from scripts

            self._over = threading.Event()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._over.set()
            self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        if self._over.wait(_PATIENCE_SECS):
            return
        while True:
            sys.stderr.write(f"\r\x1b[KWaiting for {self.what} … {time.monotonic() - began:.0f} s")
            sys.stderr.flush()
            if self._over.wait(_STEP_SECS):
                break
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

"""The main thread's loop: signals and requests to the broker as a whole become events, taken one at a time."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from bpbroker import messages, windows
from bpbroker.errors import BpbrokerError

logger = logging.getLogger("bpbroker")

SAME_SIGNAL_SECS = 0.5
"""A wrapper such as sudo or timeout passes on the Ctrl-C that the terminal sends anyway: that is no second one."""


class MainLoop:
    """Implements :class:`bpbroker.messages.Address` under the name ``broker``; other threads only put events in."""

    name = "broker"

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[tuple[Any, Future[Any] | None]] = queue.SimpleQueue()
        self._stop_asked: float | None = None
        self._busy_since: float | None = None
        """Monotonic; None while it waits for an event."""

    @property
    def stop_asked(self) -> bool:
        """Whether a signal has said stop."""
        return self._stop_asked is not None

    def busy_secs(self) -> float:
        """Return for how many seconds its present work has lasted; 0 while it waits for work."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def tell(self, message: Any) -> None:
        """See :meth:`bpbroker.messages.Address.tell`."""
        self._events.put((message, None))

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:  # noqa: ARG002 - the main thread is never behind
        """See :meth:`bpbroker.messages.Address.ask`."""
        reply: Future[Any] = Future()
        self._events.put((message, reply))
        return reply

    def reply_now(self, message: Any) -> None:
        """See :meth:`bpbroker.messages.Address.reply_now`: it has to be asked for everything."""

    def after(self, asked: Future[Any], go_on: Callable[[Future[Any]], Any]) -> Future[Any]:
        """Continue in the main thread when a reply is there; return a future of the outcome.

        The main thread waits for nothing: it has to receive signals and to show the watchdog that it is alive.

        Args:
            asked: the future of the reply.
            go_on: called with that future; its result or error becomes the outcome. If it returns a future, its
                result does.
        """
        outcome: Future[Any] = Future()
        asked.add_done_callback(lambda done: self._events.put((_Answered(done, go_on), outcome)))
        return outcome

    def watch_signals(self, undo: ExitStack) -> None:
        """Let signals become events; a second one while stopping ends the process at once."""

        def stop(number: int, _frame: FrameType | None) -> None:
            if self._stop_asked is None:
                self._stop_asked = time.monotonic()
                self.tell(messages.Stop())
            elif time.monotonic() > self._stop_asked + SAME_SIGNAL_SECS:
                # Nothing acknowledged is lost: the journal has it.
                os._exit(128 + number)

        def handle(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
            undo.callback(signal.signal, number, signal.signal(number, handler))

        handle(signal.SIGINT, stop)
        handle(signal.SIGTERM, stop)
        if sys.platform == "win32":
            handle(signal.SIGBREAK, stop)
            undo.callback(windows.on_closing(lambda: self.tell(messages.Stop())))
        if hasattr(signal, "SIGHUP"):
            handle(signal.SIGHUP, lambda *_: self.tell(messages.Reload()))

    def serve(self, take: Callable[[Any], Any], tend: Callable[[], float]) -> None:
        """Take events until one says stop.

        Args:
            take: does what an event asks for and returns the reply, or a future of it; what it raises is logged and
                told to the caller. It must not wait for long.
            tend: looks after the healthcheck; returns the seconds until it has to be called again.
        """
        # Windows does not interrupt a wait for Ctrl-C.
        longest = 0.5 if sys.platform == "win32" else 3600.0
        while True:
            self._busy_since = time.monotonic()
            pause = min(longest, tend())
            self._busy_since = None
            try:
                event, reply = self._events.get(timeout=pause)
            except queue.Empty:
                continue
            self._busy_since = time.monotonic()
            if reply is None:
                reply = Future()
            if isinstance(event, messages.Stop):
                messages.settle(reply, None)
                return
            if isinstance(event, _Answered):
                outcome = _outcome_of(event.go_on, event.asked)
            else:
                outcome = _outcome_of(take, event)
                outcome.add_done_callback(_log_error)
            outcome.add_done_callback(partial(_pass_on, reply))


@dataclass(frozen=True, slots=True)
class _Answered:
    """The loop to itself: what was asked for was answered."""

    asked: Future[Any]
    go_on: Callable[[Future[Any]], Any]


def _outcome_of(act: Callable[[Any], Any], given: Any) -> Future[Any]:
    """Return the future of what a function returns or raises, or the future that it returns."""
    outcome: Future[Any] = Future()
    try:
        result = act(given)
    except Exception as error:  # noqa: BLE001 - told to the caller, and logged
        outcome.set_exception(error)
        return outcome
    if isinstance(result, Future):
        return result
    outcome.set_result(result)
    return outcome


def _log_error(outcome: Future[Any]) -> None:
    error = outcome.exception()
    if isinstance(error, BpbrokerError):
        logger.error("%s", error)  # meant for the operator, who needs no traceback
    elif error is not None:
        logger.error("Error in the main loop", exc_info=error)


def _pass_on(reply: Future[Any], outcome: Future[Any]) -> None:
    error = outcome.exception()
    if error is None:
        messages.settle(reply, outcome.result())
    else:
        messages.fail(reply, error)

"""Long work beside an actor: a thread that does one piece after the other and reports each step.

An actor has to answer at any time, and the file of a million entries takes a
minute on a slow disk. So the actor hands such work to a worker. How long it
takes says nothing about whether it is stuck; whether it makes steps does.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from bpbroker.errors import BpbrokerError, Unavailable
from bpbroker.messages import Pong, fail, settle

logger = logging.getLogger(__name__)

STALLED_SECS: Final = 60.0
"""Work that has made no step for this long has stalled. A step may be a sync, and a busy disk takes seconds for it."""


@dataclass(frozen=True, slots=True)
class AtWork:
    """What a worker does at the moment."""

    what: str
    """Such as ``writing the configuration file``."""
    percent: int | None
    """How much of it is done, if that is known."""
    silent_secs: float
    """Seconds since its last step."""

    @property
    def text(self) -> str:
        """One line for people."""
        return self.what if self.percent is None else f"{self.what}, {self.percent} %"

    @property
    def stalled(self) -> bool:
        """Whether the work has made no step for too long."""
        return self.silent_secs >= STALLED_SECS


@dataclass(slots=True)
class _Task:
    what: str
    work: Callable[[], Any]
    reply: Future[Any] | None


class Beside:
    """A probe that has to read a disk, made by a worker: a call returns the last result at once.

    Args:
        what: its work, for people, such as ``reading the certificate``.
        probe: the probe itself; called once here, and then by the worker after each call.
    """

    def __init__(self, what: str, probe: Callable[[], Pong]) -> None:
        self._what = what
        self._probe = probe
        self._worker = Worker(what)
        self._found: Pong = probe()
        self._looking = False

    def __call__(self) -> Pong:
        """Return the last result, and start another probe. A probe that does not end counts as bad health."""
        work = self._worker.at_work
        if work is not None and work.stalled:
            return Pong(ok=False, detail=f"{work.what} has not ended for {work.silent_secs:.0f} s")
        if not self._looking:
            self._looking = True
            self._worker.do(self._what, self.look)
        return self._found

    def look(self) -> None:
        """Run the probe now."""
        try:
            self._found = self._probe()
        finally:
            self._looking = False


class Worker:
    """One thread that does long work for one actor. The thread begins with the first piece.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._current: _Task | None = None
        self._percent: int | None = None
        self._moved_at = 0.0
        self._ended: Unavailable | None = None
        self.steps = 0
        """All steps that it has made; may be read by any thread, to see whether it goes on."""

    @property
    def at_work(self) -> AtWork | None:
        """Its current work; None without any."""
        task = self._current
        if task is None:
            return None
        return AtWork(task.what, self._percent, max(0.0, time.monotonic() - self._moved_at))

    def do(self, what: str, work: Callable[[], Any], reply: Future[Any] | None = None) -> None:
        """Do a piece of work behind those that were given before; by the actor's thread.

        Args:
            what: what it is, for people.
            work: runs in the worker's thread, and calls :meth:`step` again and again.
            reply: gets what ``work`` returns or raises. Without it an error is logged.
        """
        if self._ended is not None:
            if reply is not None:
                fail(reply, self._ended)
            return
        self._queue.put(_Task(what, work, reply))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def step(self, done: int = 0, of: int = 0) -> None:
        """Report a step; by the worker's thread.

        Args:
            done: how many parts of the present work are done.
            of: how many parts it has; 0 when that is not known.

        Raises:
            Unavailable: the work is not wanted any more, and must end here.
        """
        if self._ended is not None:
            raise self._ended
        self.steps += 1
        self._moved_at = time.monotonic()
        self._percent = min(100, 100 * done // of) if of else None

    def follow(self, chunks: Iterable[bytes], of: int = 0) -> Iterator[bytes]:
        """Yield the chunks of a file that is being written, and report a step behind each.

        Args:
            chunks: the content.
            of: about how many there are; 0 when that is not known.
        """
        for done, chunk in enumerate(chunks):
            self.step(done, of)
            yield chunk
        self.step(1, 1)

    def end(self, error: Unavailable) -> None:
        """Refuse what waits, and let the present work end at its next step; from any thread, and waits for nothing.

        The caller that waits for the present work hears at once that its outcome is not known.
        """
        if self._ended is None:
            self._ended = error
        while True:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                break
            if task is not None and task.reply is not None:
                fail(task.reply, error)
        self._queue.put(None)
        current = self._current
        if current is not None and current.reply is not None:
            unknown = Unavailable(f"{error}; whether this was done ({current.what}) is not known")
            unknown.outcome_known = False
            fail(current.reply, unknown)

    def join(self, timeout_secs: float) -> bool:
        """Wait until the thread has ended after :meth:`end`; False if it has not in time."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_secs)
        return not thread.is_alive()

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            if task.reply is not None and task.reply.cancelled():
                continue  # no actor waits for it any more
            self._percent = None
            self._moved_at = time.monotonic()
            self._current = task
            try:
                self._do(task)
            finally:
                self._current = None
                self.steps += 1

    def _do(self, task: _Task) -> None:
        try:
            self.step()
            result = task.work()
        except BpbrokerError as error:
            if task.reply is not None:
                fail(task.reply, error)
            elif self._ended is None:
                logger.warning("%s: %s", task.what, error)
        except BaseException as error:  # SystemExit, too: the actor that waits for the step must get the error
            logger.exception("Error while %s", task.what)
            if task.reply is not None:
                fail(task.reply, error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            if task.reply is not None:
                settle(task.reply, result)

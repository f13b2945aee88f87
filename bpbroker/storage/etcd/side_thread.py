"""A thread for calls beside those of the thread that asks for them. No process waits for it at its end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from bpbroker.errors import Unavailable

T = TypeVar("T")


class SideThread:
    """Makes one call at a time; it begins with the first one.

    An executor of the standard library will not do: at its end a process waits for the threads of all executors,
    whatever they hang in.

    Args:
        name: the thread's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._begun = self._ended = False

    def call(self, what: Callable[[], T]) -> Future[T]:
        """Queue a call; return the future of its result or error.

        Raises:
            Unavailable: :meth:`end` was called.
        """
        result: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise Unavailable("The registry's store is closed")
            if not self._begun:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._begun = True
            self._calls.put((what, result))
        return result

    def end(self) -> None:
        """Take no more calls; waits for none of those that were taken."""
        with self._lock:
            self._ended = True
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            what, result = call
            try:
                result.set_result(what())
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
                result.set_exception(error)

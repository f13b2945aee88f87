"""A future without a lock, for replies.

Each request to an actor makes one. A :class:`concurrent.futures.Future` locks itself six times on the way from the
request to the response, and makes the lock: 2.5 µs in all, with this one 0.7 µs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from enum import Enum
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _End(Enum):
    VALUE = "value"
    ERROR = "error"
    CANCELLED = "cancelled"


class LocklessFuture(Future[T]):
    """A future that is never running; otherwise as the base class documents it.

    Threads may set it, cancel it and wait for it at the same time. Appending to a list and taking from it cannot be
    interrupted by another thread, and nothing else is needed: the first outcome in its list counts, and each callback
    is taken from its list once. Nothing of the base class but its interface is used.
    """

    __slots__ = ("_callbacks", "_outcomes")

    def __init__(self) -> None:  # the base class would make the lock
        self._outcomes: list[tuple[_End, Any]] = []
        self._callbacks: list[Callable[[Future[T]], object]] = []

    def __repr__(self) -> str:
        return f"<LocklessFuture: {self._outcomes[0][0].value if self._outcomes else 'pending'}>"

    def done(self) -> bool:
        """See :meth:`concurrent.futures.Future.done`."""
        return bool(self._outcomes)

    def cancelled(self) -> bool:
        """See :meth:`concurrent.futures.Future.cancelled`."""
        outcomes = self._outcomes
        return bool(outcomes) and outcomes[0][0] is _End.CANCELLED

    def running(self) -> bool:
        """Return False: it is not seen whether the actor has begun."""
        return False

    def set_running_or_notify_cancel(self) -> bool:
        """Return whether it is not cancelled; nothing is noted."""
        return not self.cancelled()

    def cancel(self) -> bool:
        """See :meth:`concurrent.futures.Future.cancel`."""
        try:
            self._end(_End.CANCELLED, None)
        except InvalidStateError:
            return self.cancelled()
        return True

    def set_result(self, result: T) -> None:
        """See :meth:`concurrent.futures.Future.set_result`."""
        self._end(_End.VALUE, result)

    def set_exception(self, exception: BaseException | None) -> None:
        """See :meth:`concurrent.futures.Future.set_exception`."""
        self._end(_End.ERROR, exception)

    def result(self, timeout: float | None = None) -> T:
        """See :meth:`concurrent.futures.Future.result`."""
        end, value = self._outcome(timeout)
        if end is _End.ERROR:
            try:
                raise value
            finally:
                del self, value  # an error that is kept keeps this frame, and would keep itself
        found: T = value
        return found

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See :meth:`concurrent.futures.Future.exception`."""
        end, value = self._outcome(timeout)
        return value if end is _End.ERROR else None

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """See :meth:`concurrent.futures.Future.add_done_callback`."""
        self._callbacks.append(fn)
        if self._outcomes:
            self._call_back()

    def _end(self, end: _End, value: Any) -> None:
        outcomes, own = self._outcomes, (end, value)
        if not outcomes:
            outcomes.append(own)
        if outcomes[0] is not own:
            raise InvalidStateError("The outcome is there already")
        if self._callbacks:
            self._call_back()

    def _call_back(self) -> None:
        callbacks = self._callbacks
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:
                return  # another thread has taken the last one
            try:
                callback(self)
            except Exception:  # whoever sets the outcome is not to blame, as with the base class
                logger.exception("Error in what a future calls")

    def _outcome(self, timeout: float | None) -> tuple[_End, Any]:
        if not self._outcomes:
            ended = threading.Event()

            def end(_: Future[T]) -> None:
                ended.set()

            self._callbacks.insert(0, end)  # before those of others, which may take long or fail
            if not self._outcomes and not ended.wait(timeout):
                with contextlib.suppress(ValueError):  # it has just been called
                    self._callbacks.remove(end)
                raise FutureTimeout
        if self._outcomes[0][0] is _End.CANCELLED:
            raise CancelledError
        return self._outcomes[0]

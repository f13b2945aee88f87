"""The inbox of an actor: envelopes with a deadline, in a bounded queue that can wake its reader."""

from __future__ import annotations

import queue
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from bpbroker.errors import Overloaded
from bpbroker.messages import fail

_AT_ONCE_SECS = 86_400.0
"""The longest single wait, in seconds: the system refuses a time that is infinite or very long."""

INBOX_MAX = 10_000
"""Requests that may wait in one inbox; the next one is refused with Overloaded."""


class Envelope(NamedTuple):
    """A message on its way, with the place for its reply and the moment after which it is pointless.

    A named tuple: each request makes one, and a frozen dataclass takes longer to make.
    """

    message: Any
    reply: Future[Any] | None = None
    deadline: float = float("inf")


@dataclass(frozen=True, slots=True)
class Wake:
    """An actor gets this at the time that it set with :meth:`Actor.wake_at`."""


class _WakeEnvelope:
    """Looks like pykka's own envelope to its actor loop."""

    message = Envelope(Wake())
    reply_to = None


_WAKE = _WakeEnvelope()


class _OwnEnvelope:
    """The same for messages of an actor to itself. It is small, because they are many: a ``Flush`` for each commit."""

    __slots__ = ("message",)
    reply_to = None

    def __init__(self, message: Envelope) -> None:
        self.message = message


class Inbox:
    """A queue that refuses requests beyond its limit, but accepts all messages without an asker.

    Messages of an actor to itself (such as Flush) and pykka's stop message must be accepted even when the inbox is
    full of requests.
    """

    def __init__(self, limit: int = INBOX_MAX) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._limit = limit
        self.empty = self._queue.empty
        self.qsize = self._queue.qsize
        self.wake_at: float | None = None
        """Monotonic time at which :meth:`get` returns a :class:`Wake` if no message came; set by the actor itself."""
        self.ending = False
        """Whether the actor was told to stop; it may be stuck and not know that yet."""
        self.ended = False
        """Whether the actor has ended and reads nothing any more; set by the actor itself."""

    def get(self) -> Any:
        """Return the next pykka envelope, or :data:`_WAKE` when the time for it has come."""
        wake_at = self.wake_at
        if wake_at is None:
            return self._queue.get()
        while (remaining := wake_at - time.monotonic()) > 0:
            try:
                return self._queue.get(timeout=min(remaining, _AT_ONCE_SECS))
            except queue.Empty:
                pass
        self.wake_at = None
        return _WAKE

    def put(self, envelope: Any) -> None:
        """Add a pykka envelope.

        Raises:
            Overloaded: it holds a request and the inbox is full.
        """
        inner = envelope.message
        if not isinstance(inner, Envelope):
            self.ending = True  # pykka's own message: all others are envelopes
        elif inner.reply is not None and self._queue.qsize() >= self._limit:
            raise Overloaded("The broker has too many requests waiting; try again in a moment")
        self._queue.put(envelope)

    def put_own(self, message: Any) -> None:
        """Add a message of the actor to itself; ignore it if the actor has ended, as its threads may run on."""
        if not self.ended:
            self._queue.put(_OwnEnvelope(Envelope(message)))

    def refuse(self, error: Exception) -> None:
        """Reply to all requests in it with an error; from any thread. Other messages stay, in their order."""
        for _ in range(self._queue.qsize()):
            try:
                envelope = self._queue.get_nowait()
            except queue.Empty:
                return
            inner = envelope.message
            if isinstance(inner, Envelope) and inner.reply is not None:
                fail(inner.reply, error)
            else:
                self._queue.put(envelope)

"""One request after the other of a connection, from its last byte to its whole response.

The application is called here, and its errors end here. The connection sends and receives the bytes
(:mod:`bpbroker.server.connection`). A cycle is
in one thread at a time, as its connection is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from bpbroker.server import response
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse, Response

logger = logging.getLogger(__name__)

Application = Callable[[Request], Response | PendingResponse]
"""Decides what a request means. It never waits for anything."""

INLINE_BODY_BYTES: Final = 16 * 1024
"""A request with a larger body goes to a worker: parsing the body takes longer than handing the request over."""


class RequestCycle:
    """The request that a connection serves now, up to its response."""

    __slots__ = ("_application", "_deadline", "_old", "_pending", "_request", "_with_body", "keep_alive")

    def __init__(self, application: Application) -> None:
        self.keep_alive = False
        """Whether the connection goes on after this request."""
        self._application = application
        self._request: Request | None = None
        self._old = False
        self._with_body = True
        self._pending: PendingResponse | None = None
        self._deadline = 0.0

    @property
    def held_bytes(self) -> int:
        """The memory that the request takes, in bytes."""
        return len(self._request.body) if self._request else 0

    @property
    def pending(self) -> bool:
        """Whether an actor has to make the response, or has made it."""
        return self._pending is not None

    @property
    def asked(self) -> bool:
        """Whether that actor was asked."""
        return self._pending is not None and self._pending.reply is not None

    @property
    def done(self) -> bool:
        """Whether that actor has replied."""
        return self._pending is not None and self._pending.done

    @property
    def heavy(self) -> bool:
        """Whether the next step takes too long for the loop's thread."""
        if self._pending is not None:
            return self._pending.heavy
        return self.held_bytes > INLINE_BODY_BYTES

    def take(self, request: Request) -> None:
        """Take up a request."""
        self._request = request
        self.keep_alive = request.keeps_alive
        self._old = request.version < (1, 1)
        self._with_body = request.method != "HEAD"

    def serve(self) -> bytes | None:
        """Call the application; return the response's bytes, or None if an actor has to be asked.

        A request that waits for an actor does not keep its body.
        """
        request, self._request = self._request, None
        assert request is not None  # noqa: S101 - only after take()
        try:
            result = self._application(request)
            if isinstance(result, Response):
                return self._encoded(result)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it would end the server's loop
            return self._failed(request.address, error)
        self._deadline = time.monotonic() + result.timeout_secs
        self._pending = result
        return None

    def ask(self, done: Callable[[Future[Any]], object], patiently: Callable[[Future[Any]], object]) -> None:
        """Ask the actor, once.

        Args:
            done: called, in any thread, when its reply is there.
            patiently: called instead of ``done`` if the client asked to wait.
        """
        pending = self._pending
        if pending is not None and pending.reply is None:
            pending.ask(patiently if pending.patient else done)

    def complete(self) -> bytes:
        """Return the response's bytes; only when the actor is done."""
        pending, self._pending = self._pending, None
        assert pending is not None  # noqa: S101 - only when it is done
        try:
            return self._encoded(pending.response())
        except BaseException as error:  # noqa: BLE001 - as above
            return self._failed("an actor's reply", error)

    def watch_over(self, now: float, *, left: bool) -> None:
        """Stop waiting for the actor if its time is over at monotonic time ``now``, or the client has left."""
        if self._pending is not None and (left or now >= self._deadline):
            self._pending.give_up()

    def stop(self) -> None:
        """End the wait of a client that asked to wait: the broker is stopping."""
        if self._pending is not None:
            self._pending.stop()

    def give_up(self) -> None:
        """Stop waiting for the actor: there is no client any more."""
        if self._pending is not None:
            self._pending.give_up()

    def _encoded(self, result: Response) -> bytes:
        return response.encode(result, keep_alive=self.keep_alive, old=self._old, with_body=self._with_body)

    def _failed(self, what: str, error: BaseException) -> bytes:
        logger.error("Error while serving %s", what, exc_info=error)
        self.keep_alive = False
        return response.encode(response.failure(500, "Internal error; see the broker's log"))

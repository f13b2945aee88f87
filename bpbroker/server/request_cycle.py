"""The request of a connection that is being served: from the end of its bytes to those of its answer.

What it calls is the application; how bytes come and go is the connection's
(:mod:`bpbroker.server.connection`). It is in one thread at a time, as that is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bpbroker.server import exchange, response
from bpbroker.server.exchange import Exchange
from bpbroker.server.framing import Fields, Head
from bpbroker.server.response import PendingResponse

if TYPE_CHECKING:
    from bpbroker.server.listener import BrokerServer

logger = logging.getLogger(__name__)

INLINE_BODY_BYTES: Final = 16 * 1024
"""A request with a larger body goes to a worker: parsing it takes longer than handing it over."""
_NO_FIELDS: Final = Fields({}, 0, "", expects_continue=False)


class Answer(NamedTuple):
    """A whole answer, head and body."""

    content: bytes
    keep_alive: bool
    """Whether the connection goes on after it."""


class Serving:
    """What is known of the request on one connection; one after the other."""

    def __init__(self, server: BrokerServer, address: tuple[str, int]) -> None:
        self._server = server
        self._address = address
        self._request: tuple[Head, bytes] | None = None
        self._environ_of = _NO_FIELDS
        self._environ: dict[str, Any] = {}
        self._exchange: Exchange | None = None
        self._later: PendingResponse | None = None
        self._later_deadline = 0.0

    @property
    def held_bytes(self) -> int:
        """How much memory the request takes."""
        return len(self._request[1]) if self._request else 0

    @property
    def owed(self) -> bool:
        """Whether an actor owes the answer."""
        return self._later is not None

    @property
    def done(self) -> bool:
        """Whether an actor has done its part of the answer."""
        return self._later is not None and self._later.done

    @property
    def heavy(self) -> bool:
        """Whether what comes next takes too long for the selector's thread."""
        if self._later is not None:
            return self._later.heavy
        return self.held_bytes > INLINE_BODY_BYTES

    def take(self, request: tuple[Head, bytes]) -> None:
        """Take a request, head and body."""
        self._request = request

    def serve(self) -> Answer | None:
        """Run the application; None if an actor is to be asked for the answer."""
        assert self._request is not None  # noqa: S101 - nobody comes here before take()
        head, body = self._request
        self._request = None
        if head.fields is not self._environ_of:
            self._environ_of = head.fields
            self._environ = exchange.environ_of(head.fields, self._address, self._server.port)
        current = Exchange(self._environ, head, body)
        if self._server.selecting.stopping:
            current.close_after()
        try:
            result = current.serve(self._server.wsgi_app)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it would end the server's loop
            return self._failed(error)
        if isinstance(result, PendingResponse):
            self._later_deadline = time.monotonic() + result.timeout_secs
            self._exchange, self._later = current, result
            return None
        return Answer(result, current.keeps_alive)

    def ask(self, done: Callable[[Future[Any]], object]) -> None:
        """Ask the actor that owes the answer; have ``done`` called, in whatever thread, when it is there."""
        if self._later is not None:
            self._later.begin(done)

    def complete(self) -> Answer:
        """Make the answer that was owed."""
        later, current = self._later, self._exchange
        assert later is not None and current is not None  # noqa: S101 - only when it is done
        self._later = self._exchange = None
        try:
            return Answer(current.answer((later.body(),)), current.keeps_alive)
        except BaseException as error:  # noqa: BLE001 - as above
            return self._failed(error)

    def watch_over(self, now: float, *, left: bool) -> None:
        """See that nobody waits for ever for an answer that is owed, nor for a client that has left."""
        if self._later is not None and (left or now >= self._later_deadline):
            self._later.give_up()

    def stop(self) -> None:
        """Let a request that means to wait be answered now: the broker is stopping."""
        if self._later is not None:
            self._later.stop()

    def give_up(self) -> None:
        """Nobody wants the answer any more."""
        if self._later is not None:
            self._later.give_up()

    def _failed(self, error: BaseException) -> Answer:
        logger.error("Error while serving %s", self._address[0], exc_info=error)
        broken = response.failure(500, "Internal error; see the broker's log")
        return Answer(exchange.whole(broken), keep_alive=False)

"""One connection: its phases, and the bytes that come and go on it.

It belongs to the selector's thread, but for the time in which a worker has it:
from :attr:`Turn.WORKER` until the worker hands it back.
"""

from __future__ import annotations

import logging
import socket
import time
from concurrent.futures import Future
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from bpbroker.frontend import access_log
from bpbroker.server import exchange, response, tls
from bpbroker.server.framing import Framer, Rejected
from bpbroker.server.request_cycle import Answer, Serving

if TYPE_CHECKING:
    from bpbroker.server.listener import BrokerServer

logger = logging.getLogger(__name__)

_RECORD_BYTES: Final = 16 * 1024
"""The most that one TLS record holds: reading that much leaves nothing behind that the selector cannot see."""
_RECORDS_AT_ONCE: Final = 16
_SEND_AT_ONCE: Final = 256 * 1024
"""What the selector's thread reads and sends for one connection before it looks at others."""
_SLICE_BYTES: Final = 64 * 1024
_AHEAD_MAX_BYTES: Final = 64 * 1024
"""What a client may send ahead while its request is served."""
_SLOWEST_BYTES_PER_SEC: Final = 32 * 1024
"""A client that takes its answer more slowly than that, all in all, is let go."""
_HALF_CLOSED_SECS: Final = 1.0
"""How long the answer is still made for a client that has closed its end: perhaps it closed but one direction."""
_LINGER_SECS: Final = 2.0
_LINGER_BYTES: Final = 4 * 1024 * 1024
_TLS_HANDSHAKE: Final = 0x16
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(Enum):
    """Where a connection is in its life."""

    HANDSHAKE = "handshake"
    READING = "reading"
    SERVING = "serving"
    SENDING = "sending"
    LINGERING = "lingering"
    BROKEN = "broken"


class Turn(Enum):
    """What has to happen for a connection to go on."""

    READ = "read"
    WRITE = "write"
    WORKER = "worker"
    NOTHING = "nothing"
    """An actor's answer, and no word of the client before that."""
    AGAIN = "again"
    """The others' turn; there is more to do right now."""
    CLOSE = "close"


_TURN: Final = {tls.Want.READ: Turn.READ, tls.Want.WRITE: Turn.WRITE}


class Connection:
    """One client's connection."""

    def __init__(self, server: BrokerServer, sock: socket.socket, address: tuple[Any, ...]) -> None:
        self.socket = sock
        self.peer: str = address[0]
        self.phase = Phase.HANDSHAKE
        self.watched: Turn | None = None
        """What the selector watches it for; the selector's own note."""
        self.lent = False
        """Whether a worker has it: set by the selector's thread, cleared by the worker."""
        self.deadline = time.monotonic() + server.handshake_secs
        self._server = server
        self._serving = Serving(server, (self.peer, int(address[1])))
        self._stream: tls.Stream | None = None
        self._framer = Framer(server.limits)
        self._unsent = memoryview(b"")
        self._keep_alive = False
        self._send_until = 0.0
        self._left_at: float | None = None
        self._lingered = 0
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def idle(self) -> bool:
        """Whether it is open between two requests, or before its first."""
        return self.phase is Phase.HANDSHAKE or (self.phase is Phase.READING and not self._framer.begun)

    @property
    def busy(self) -> bool:
        """Whether a request is being served or answered."""
        return self.phase in (Phase.SERVING, Phase.SENDING)

    @property
    def held_bytes(self) -> int:
        """How much memory its client has it keep."""
        return self._framer.held_bytes + len(self._unsent) + self._serving.held_bytes

    # --- the selector's thread ---

    def move_on(self) -> Turn:
        """Do what can be done without blocking."""
        try:
            if self.phase is Phase.READING:
                return self._read()
            if self.phase is Phase.SERVING:
                return self._listen_while_serving()
            if self.phase is Phase.SENDING:
                return self._send()
            if self.phase is Phase.HANDSHAKE:
                return self._shake_hands()
            if self.phase is Phase.LINGERING:
                return self._drain()
        except BlockingIOError:
            return Turn.READ
        except (tls.StreamBroken, OSError):
            pass
        return Turn.CLOSE

    def ask(self) -> None:
        """Ask for the answer that is owed; the others have been taken in too now."""
        self._serving.ask(self.hand_back)

    def resume(self) -> Turn:
        """Go on after a worker, an actor, or the others have had their turn."""
        if self.phase is not Phase.SERVING:
            return self.move_on()
        if not self._serving.done:
            return Turn.READ if self._left_at is None else Turn.NOTHING
        if self._serving.heavy:
            return Turn.WORKER
        try:
            self._answer(self._serving.complete())
            return self._send()
        except (tls.StreamBroken, OSError):
            return Turn.CLOSE

    def too_late(self) -> Turn:
        """End a phase whose time is over; a request that has begun is told so."""
        if self.phase is Phase.READING and self._framer.begun:
            return self._reject(408, "The request did not come in time (api.request_timeout_secs)")
        return Turn.CLOSE

    def watch_over(self, now: float) -> None:
        """See that an answer that is owed does not keep the connection for ever, nor for a client that has gone."""
        left = self._left_at is not None and now >= self._left_at + _HALF_CLOSED_SECS
        self._serving.watch_over(now, left=left)

    def stop(self) -> None:
        """Let a request that means to wait be answered now: the broker is stopping."""
        self._serving.stop()

    def shed(self) -> Turn:
        """Let go of what is kept for the client: the server keeps too much."""
        if self.phase is Phase.READING:
            return self._reject(503, "The broker has too many large requests at the moment; try again later")
        return Turn.CLOSE

    def close(self) -> None:
        """Say goodbye and close the socket."""
        self._serving.give_up()
        if self._stream is not None and self.phase not in (Phase.HANDSHAKE, Phase.LINGERING):
            # cheroot sends no close_notify: OpenSSL 3 clients that read to the end then report an error.
            self._stream.say_goodbye()
        self.socket.close()

    def _shake_hands(self) -> Turn:
        if self._stream is None:
            first = self.socket.recv(1, socket.MSG_PEEK)
            if not first:
                return Turn.CLOSE
            if first[0] != _TLS_HANDSHAKE:
                return self._reject_plain()
            self._stream = tls.Stream(self._server.context, self.socket)
        want = self._stream.handshake()
        if want is not None:
            return _TURN[want]
        self.phase = Phase.READING
        # A client that has connected means to ask something; between requests it may take its time.
        self.deadline = time.monotonic() + self._server.request_secs
        return self._read()

    def _read(self) -> Turn:
        stream = self._stream
        if stream is None:
            return Turn.CLOSE
        turn = self._frame(b"") if self._framer.begun else None
        for _ in range(_RECORDS_AT_ONCE):
            if turn is not None:
                return turn
            received = stream.receive(_RECORD_BYTES)
            if isinstance(received, tls.Want):
                return _TURN[received]
            if not received:
                return Turn.CLOSE
            turn = self._frame(received)
        return turn or Turn.READ

    def _frame(self, received: bytes) -> Turn | None:
        """Take in what came, and serve the request if that completes it; None if more has to come."""
        framer = self._framer
        if received and not framer.begun:
            # One deadline for the whole request, however its bytes trickle in.
            self.deadline = time.monotonic() + self._server.request_secs
        try:
            request = framer.feed(received)
        except Rejected as rejected:
            return self._reject(rejected.status, str(rejected))
        if request is None:
            if framer.wants_go_ahead() and self._stream is not None:
                self._stream.send(_CONTINUE)
            return None
        self.phase = Phase.SERVING
        self._serving.take(request)
        if self._serving.heavy:
            return Turn.WORKER
        return self._serve() or self._send()

    def _listen_while_serving(self) -> Turn:
        """Take in what a client sends ahead, and notice when it leaves."""
        if self._stream is None:
            return Turn.CLOSE
        try:
            received = self._stream.receive(_RECORD_BYTES)
        except tls.StreamBroken:
            received = b""
        if isinstance(received, tls.Want):
            return _TURN[received]
        if received:
            self._framer.keep(received)
            return Turn.READ if self._framer.held_bytes < _AHEAD_MAX_BYTES else Turn.NOTHING
        self._left_at = time.monotonic()
        return Turn.NOTHING

    def _send(self) -> Turn:
        """Send what is to be sent; progress moves the deadline on."""
        if self._stream is None:
            return Turn.CLOSE
        budget = _SEND_AT_ONCE
        while self._unsent:
            if budget <= 0:
                return Turn.WRITE
            sent = self._stream.send(self._unsent[:_SLICE_BYTES])
            if isinstance(sent, tls.Want):
                return _TURN[sent]
            self._unsent = self._unsent[sent:]
            budget -= sent
            self.deadline = min(time.monotonic() + self._server.request_secs, self._send_until)
        if not self._keep_alive:
            return self._linger()
        if self._left_at is not None:
            return Turn.CLOSE
        server, begun = self._server, self._framer.begun
        self.phase = Phase.READING
        self.deadline = time.monotonic() + (server.request_secs if begun else server.keep_alive_secs)
        self._framer.limits = server.limits
        return Turn.AGAIN if begun else Turn.READ

    def _reject(self, status: int, message: str) -> Turn:
        """Answer what cannot be served, and close."""
        answer = response.failure(status, message)
        access_log.write(access_log.Line(address=self.peer, status=status, sent_bytes=len(answer.body)))
        self._unsent = memoryview(exchange.whole(answer))
        self._keep_alive = False
        self.phase = Phase.SENDING
        self.deadline = self._send_until = time.monotonic() + _LINGER_SECS
        return self.move_on()

    def _reject_plain(self) -> Turn:
        """Answer a client that does not speak TLS, in the clear, and close."""
        self.socket.send(exchange.whole(response.failure(400, "This port speaks HTTPS only; use https://")))
        self._begin_lingering()
        return Turn.READ

    def _linger(self) -> Turn:
        """Close when the client has, or soon: closing with bytes unread would reset the answer away."""
        if self._stream is not None:
            self._stream.say_goodbye()
        self._begin_lingering()
        return self._drain()

    def _begin_lingering(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)
        self.phase = Phase.LINGERING
        self.deadline = time.monotonic() + _LINGER_SECS

    def _drain(self) -> Turn:
        for _ in range(_RECORDS_AT_ONCE):
            received = self.socket.recv(_SLICE_BYTES)
            self._lingered += len(received)
            if not received or self._lingered > _LINGER_BYTES:
                return Turn.CLOSE
        return Turn.READ

    # --- the selector's thread, or a worker's ---

    def work(self) -> None:
        """Serve the request, or complete its answer, in a worker's thread."""
        try:
            if self._serving.owed:
                self._answer(self._serving.complete())
            elif self._serve() is not None:
                return  # an actor owes the answer
            self._send_at_once()
        except (tls.StreamBroken, OSError):
            self.phase = Phase.BROKEN

    def hand_back(self, _reply: Future[Any] | None = None) -> None:
        """Let the selector's thread go on with it; may be said too often."""
        self._server.selecting.hand_back(self)

    def _serve(self) -> Turn | None:
        """Serve the request; None when there is an answer to send."""
        answer = self._serving.serve()
        if answer is None:
            self._server.selecting.ask_soon(self)
            return Turn.READ
        self._answer(answer)
        return None

    def _answer(self, answer: Answer) -> None:
        content, self._keep_alive = answer
        self._unsent = memoryview(content)
        self.deadline = time.monotonic() + self._server.request_secs
        self._send_until = self.deadline + len(content) / _SLOWEST_BYTES_PER_SEC
        self.phase = Phase.SENDING

    def _send_at_once(self) -> None:
        """Send what the socket takes, in a worker's thread; the rest is the selector's."""
        while self._unsent and self._stream is not None:
            sent = self._stream.send(self._unsent[:_SLICE_BYTES])
            if isinstance(sent, tls.Want):
                return
            self._unsent = self._unsent[sent:]

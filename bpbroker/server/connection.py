"""One connection: its phases, and the bytes that come and go on it.

A connection is a state machine. Each phase has one step. It does as much as is possible without blocking, and returns
a :class:`Turn`: what has to happen before the next step. The loop does that. Of the phases it knows only
:attr:`Connection.idle`, :attr:`Connection.busy` and the deadline.

========== ============================= ============================ ===================
phase      step                          when its deadline passes     what may follow
========== ============================= ============================ ===================
HANDSHAKE  step the TLS handshake        close                        READING, LINGERING
READING    read until a request is there 408 if it has begun, or      SERVING, SENDING
                                         close
SERVING    read ahead, see the client    (the application's own time  SENDING, BROKEN
           leave                         limit, :meth:`watch_over`)
SENDING    send the response             close                        READING, LINGERING,
                                                                      BROKEN
LINGERING  drop what still comes         close                        (the end)
BROKEN     close                         close                        (the end)
========== ============================= ============================ ===================

``HANDSHAKE → LINGERING`` is a client that speaks no TLS, ``READING → SENDING``
a request that is refused before the application sees it, ``BROKEN`` what a
worker's thread leaves when the client has gone: only the loop closes. A request
is in phase ``SERVING`` from its last byte to the first one of its response,
whether the loop itself (small requests), a worker or an actor works on it.
:data:`_THEN` is the table's last column, and no other step is possible.

A connection belongs to the loop's thread, except while a worker has it: from :attr:`Turn.WORKER` until the worker
hands it back.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from enum import Enum
from typing import Any, Final

from bpbroker.server import response, tls
from bpbroker.server.budget import CONNECTION_BYTES, SMALL_BYTES
from bpbroker.server.policy import Service
from bpbroker.server.request import Request, network_of, plain_address
from bpbroker.server.request_cycle import RequestCycle
from bpbroker.server.request_parser import Framer, Rejected

logger = logging.getLogger(__name__)

_DRAIN_AT_ONCE: Final = 16
_SEND_AT_ONCE: Final = 256 * 1024
"""How much the loop's thread sends for one connection before others have their turn; it reads at most 16 KiB."""
_SLICE_BYTES: Final = 64 * 1024
_AHEAD_MAX_BYTES: Final = 64 * 1024
"""How much a client may send ahead while its request is served."""
_SLOWEST_BYTES_PER_SEC: Final = 32 * 1024
"""A connection whose client takes its response more slowly than this on average is closed."""
_HALF_CLOSED_SECS: Final = 1.0
"""How long a response is still made after the client has closed its end: it may have closed one direction only."""
_LINGER_SECS: Final = 2.0
_LINGER_BYTES: Final = 4 * 1024 * 1024
"""How much is read and dropped of what a client still sends; the rest stays in the system's buffers."""
_TLS_HANDSHAKE: Final = 0x16
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(Enum):
    """The phase of a connection; the module's docstring has the table."""

    __hash__ = object.__hash__  # each member exists once, and the hash of Enum is slow Python code

    HANDSHAKE = "handshake"
    READING = "reading"
    SERVING = "serving"
    SENDING = "sending"
    LINGERING = "lingering"
    BROKEN = "broken"


_THEN: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.HANDSHAKE: frozenset({Phase.READING, Phase.LINGERING}),
    Phase.READING: frozenset({Phase.SERVING, Phase.SENDING}),
    Phase.SERVING: frozenset({Phase.SENDING, Phase.BROKEN}),
    Phase.SENDING: frozenset({Phase.READING, Phase.LINGERING, Phase.BROKEN}),
    Phase.LINGERING: frozenset(),
    Phase.BROKEN: frozenset(),
}
"""Which phases may follow a phase."""


class Turn(Enum):
    """The event that has to come before a connection's next step."""

    READ = "read"
    WRITE = "write"
    WORKER = "worker"
    ASK = "ask"
    """The actor has to be asked, together with those of other requests of this round. Until it replies, as READ."""
    NOTHING = "nothing"
    """An actor's reply, or the deadline; nothing is read from the client before."""
    AGAIN = "again"
    """A turn of the other connections; this one could go on at once."""
    CLOSE = "close"


_TURN: Final = {tls.Want.READ: Turn.READ, tls.Want.WRITE: Turn.WRITE}


class Connection:
    """One client's connection.

    Args:
        service: what all connections share.
        hand_back: passes a connection back to the loop's thread; called from any thread.
        hand_back_patiently: does the same for a client that asked to wait.
        sock: the connected socket.
        address: the client's socket address; of a Unix socket, an address of this host alone.
    """

    def __init__(
        self,
        service: Service,
        hand_back: Callable[[Connection], object],
        hand_back_patiently: Callable[[Connection], object],
        sock: socket.socket,
        address: tuple[Any, ...],
    ) -> None:
        self.socket = sock
        self.peer = plain_address(address[0])
        self.network = network_of(self.peer)
        """The client that the connection counts for."""
        self.served = False
        """Whether it has ever had a complete request."""
        self.phase = Phase.HANDSHAKE
        self.watched: Turn | None = None
        """The events for which the selector watches it; set by the loop."""
        self.queued = False
        """Whether it has its next step in this round without an event; set by the loop."""
        self.lent = False
        """Whether a worker has it: set by the loop's thread, cleared by the worker."""
        self.deadline = time.monotonic() + service.policy.handshake_secs
        self._service = service
        self._hand_back = hand_back
        self._hand_back_patiently = hand_back_patiently
        self._cycle = RequestCycle(service.application)
        self._stream: tls.Stream | None = None
        self._framer = Framer(service.policy.limits, self.peer)
        self._unsent = memoryview(b"")
        self._sending_bytes = 0
        """The whole response; it is kept until its last byte is sent."""
        self._send_until = 0.0
        self._left_at: float | None = None
        self._lingered = 0
        self._admitted: Request | None = None
        """The request whose body may be read."""
        self._counted_bytes = 0
        """Bytes that the server's budget has counted for this connection."""
        sock.setblocking(False)
        if len(address) > 1:  # a Unix socket has no such option
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
        """The memory that is kept for its client, in bytes."""
        sending = self._sending_bytes if self._unsent else 0
        outgoing = self._stream.held_bytes if self._stream is not None else 0
        return self._framer.held_bytes + sending + outgoing + self._cycle.held_bytes

    def _go(self, phase: Phase) -> None:
        """Change to another phase."""
        if phase not in _THEN[self.phase]:
            raise RuntimeError(f"A connection cannot go from {self.phase} to {phase}")
        self.phase = phase

    # --- the loop's thread ---

    def move_on(self) -> Turn:
        """Do the phase's step, without blocking."""
        try:
            return _STEPS[self.phase](self)
        except BlockingIOError:
            return Turn.READ
        except (tls.StreamBroken, OSError):
            if self.phase is Phase.HANDSHAKE:
                self._service.tally.handshakes["failed"] += 1
        return Turn.CLOSE

    def ask(self) -> None:
        """Ask the actor, once. The other requests of this round have been read by now."""
        self._cycle.ask(self._replied, self._replied_patiently)

    def resume(self) -> Turn:
        """Continue after a worker, an actor or the other connections have had their turn."""
        if self.phase is not Phase.SERVING:
            return self.move_on()
        cycle = self._cycle
        if not cycle.done:
            if not cycle.asked:
                return Turn.ASK  # a worker found that an actor has to be asked
            return Turn.READ if self._left_at is None else Turn.NOTHING
        if cycle.heavy:
            return Turn.WORKER
        try:
            self._respond(cycle.complete())
            return self._send()
        except (tls.StreamBroken, OSError):
            return Turn.CLOSE

    def too_late(self) -> Turn:
        """End a phase whose deadline has passed; a request that has begun gets a response."""
        if self.phase is Phase.READING and self._framer.begun:
            return self._reject(408, "The request did not come in time (api.request_timeout_secs)")
        if self.phase is Phase.HANDSHAKE:
            self._service.tally.handshakes["late"] += 1
        return Turn.CLOSE

    def watch_over(self, now: float) -> None:
        """End the wait for an actor that takes too long, or whose client has gone; ``now`` is monotonic time."""
        left = self._left_at is not None and now >= self._left_at + _HALF_CLOSED_SECS
        self._cycle.watch_over(now, left=left)

    def stop(self) -> None:
        """Respond now to a request that asked to wait: the broker is stopping."""
        self._cycle.stop()

    def shed(self) -> Turn:
        """Drop the bytes kept for the client: the server keeps too many."""
        if self.phase is Phase.READING:
            return self._reject(503, "The broker has too many large requests at the moment; try again later")
        return Turn.CLOSE

    def close(self) -> None:
        """End TLS and close the socket."""
        self._cycle.give_up()
        self._service.memory.change(-self._counted_bytes)
        self._counted_bytes = 0
        if self._stream is not None and self.phase not in (Phase.HANDSHAKE, Phase.LINGERING):
            # cheroot sends no close_notify: OpenSSL 3 clients that read to the end then report an error.
            self._stream.say_goodbye()
        self.socket.close()

    def _shake_hands(self) -> Turn:
        handshakes = self._service.tally.handshakes
        if self._stream is None:
            first = self.socket.recv(1, socket.MSG_PEEK)
            if not first:
                handshakes["left"] += 1
                return Turn.CLOSE
            if first[0] != _TLS_HANDSHAKE:
                handshakes["not_tls"] += 1
                return self._reject_plain()
            self._stream = tls.Stream(self._service.policy.context, self.socket)
        want = self._stream.handshake()
        if want is not None:
            return _TURN[want]
        handshakes["done"] += 1
        self._go(Phase.READING)
        # A new connection must send a request soon; between two requests it may be idle for longer.
        self.deadline = time.monotonic() + self._service.policy.request_secs
        return self._read()

    def _read(self) -> Turn:
        stream = self._stream
        if stream is None:
            return Turn.CLOSE
        if self._framer.begun:
            turn = self._frame(b"")
            if turn is not None:
                return turn
        received = stream.receive()
        if isinstance(received, tls.Want):
            return _TURN[received]
        if not received:
            return Turn.CLOSE
        turn = self._frame(received)
        if turn is not None:
            return turn
        return Turn.CLOSE if stream.ended else Turn.READ

    def _frame(self, received: bytes) -> Turn | None:
        """Read the bytes that came, and serve the request if it is complete; None if more bytes have to come."""
        framer = self._framer
        if received and not framer.begun:
            # One deadline for the whole request, however slowly its bytes come.
            self.deadline = time.monotonic() + self._service.policy.request_secs
        try:
            request = framer.feed(received)
        except Rejected as rejected:
            return self._reject(rejected.status, str(rejected))
        if request is None:
            if framer.held_bytes > SMALL_BYTES or self._counted_bytes:
                self._count()
            awaited = framer.awaited
            if awaited is not None and awaited is not self._admitted:
                refusal = self._service.admit(awaited)
                if refusal is not None:
                    return self._refuse(refusal)
                self._admitted = awaited
            if framer.wants_go_ahead() and self._stream is not None:
                self._stream.send(_CONTINUE)
            return Turn.AGAIN if framer.more else None
        self._go(Phase.SERVING)
        self.served = True
        self._admitted = None
        self._cycle.take(request)
        if self._service.stopping:
            self._cycle.keep_alive = False
        if self._stream is not None and self._stream.ended:
            self._left_at = time.monotonic()
        if self._cycle.heavy:
            self._count()
            return Turn.WORKER
        return self._send() if self._serve() else Turn.ASK

    def _listen_while_serving(self) -> Turn:
        """Read what a client sends ahead, and notice when it leaves."""
        if self._stream is None:
            return Turn.CLOSE
        try:
            received = self._stream.receive()
        except (tls.StreamBroken, OSError):
            received = b""
        if isinstance(received, tls.Want):
            return _TURN[received]
        if received:
            self._framer.keep(received)
            if self._framer.held_bytes > SMALL_BYTES:
                self._count()
            return Turn.READ if self._framer.held_bytes < _AHEAD_MAX_BYTES else Turn.NOTHING
        self._left_at = time.monotonic()
        return Turn.NOTHING

    def _send(self) -> Turn:
        """Send the response; progress moves the deadline on."""
        if self._stream is None:
            return Turn.CLOSE
        budget = _SEND_AT_ONCE
        while self._unsent:
            if budget <= 0:
                self._count()
                return Turn.WRITE
            sent = self._stream.send(self._unsent[:_SLICE_BYTES])
            if isinstance(sent, tls.Want):
                return _TURN[sent]
            self._unsent = self._unsent[sent:]
            if not self._unsent:
                break
            budget -= sent
            self.deadline = min(time.monotonic() + self._service.policy.request_secs, self._send_until)
        if self._stream.held_bytes and not self._stream.flush():
            return Turn.WRITE
        if self._counted_bytes:
            self._count()
        if not self._cycle.keep_alive:
            return self._linger()
        if self._left_at is not None:
            return Turn.CLOSE
        policy, begun = self._service.policy, self._framer.begun
        self._go(Phase.READING)
        self.deadline = time.monotonic() + (policy.request_secs if begun else policy.keep_alive_secs)
        self._framer.limits = policy.limits
        return Turn.AGAIN if begun else Turn.READ

    def _reject(self, status: int, message: str) -> Turn:
        """Refuse a request that cannot be served, and close."""
        refusal = response.failure(status, message)
        self._service.rejected(self.peer, refusal)
        return self._refuse(refusal)

    def _refuse(self, refusal: response.Response) -> Turn:
        """Send a response to a request that is not read to its end, and close."""
        self._framer.clear()
        self._unsent = memoryview(response.encode(refusal))
        self._sending_bytes = len(self._unsent)
        self._cycle.keep_alive = False
        self._go(Phase.SENDING)
        self._count()
        self.deadline = self._send_until = time.monotonic() + _LINGER_SECS
        return self.move_on()

    def _reject_plain(self) -> Turn:
        """Send an unencrypted error to a client that does not speak TLS, and close."""
        self.socket.send(response.encode(response.failure(400, "This port speaks HTTPS only; use https://")))
        self._begin_lingering()
        return Turn.READ

    def _linger(self) -> Turn:
        """Close when the client has closed, or soon: closing with unread bytes would reset the response away."""
        if self._stream is not None:
            self._stream.say_goodbye()
        self._begin_lingering()
        return self._drain()

    def _begin_lingering(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)
        self._go(Phase.LINGERING)
        self.deadline = time.monotonic() + _LINGER_SECS

    def _drain(self) -> Turn:
        for _ in range(_DRAIN_AT_ONCE):
            received = self.socket.recv(_SLICE_BYTES)
            self._lingered += len(received)
            if not received:
                return Turn.CLOSE
            if self._lingered > _LINGER_BYTES:
                return Turn.NOTHING  # closing now would reset a client that is still sending: it has until the deadline
        return Turn.READ

    # --- the loop's thread, or a worker's ---

    def work(self) -> None:
        """Serve the request, or finish its response, in a worker's thread."""
        try:
            if self._cycle.pending:
                self._respond(self._cycle.complete())
            elif not self._serve():
                return
            self._send_at_once()
        except (tls.StreamBroken, OSError):
            self._go(Phase.BROKEN)

    def broken(self) -> None:
        """Let the loop close the connection: a worker failed unexpectedly."""
        self.phase = Phase.BROKEN

    def _replied(self, _reply: Future[Any]) -> None:
        self._hand_back(self)

    def _replied_patiently(self, _reply: Future[Any]) -> None:
        self._hand_back_patiently(self)

    def _serve(self) -> bool:
        """Serve the request; False when an actor has to be asked first."""
        content = self._cycle.serve()
        if content is None:
            return False
        self._respond(content)
        return True

    def _respond(self, content: bytes) -> None:
        self._unsent = memoryview(content)
        self._sending_bytes = len(content)
        self.deadline = time.monotonic() + self._service.policy.request_secs
        self._send_until = self.deadline + len(content) / _SLOWEST_BYTES_PER_SEC
        self._go(Phase.SENDING)
        if len(content) > SMALL_BYTES or self._counted_bytes:
            self._count()

    def _count(self) -> None:
        """Count the bytes that are kept now in the server's budget."""
        held = self.held_bytes
        # A buffer that grows is an eighth larger than its content.
        held = 0 if held <= SMALL_BYTES else held + held // 8 + CONNECTION_BYTES
        if held != self._counted_bytes:
            self._service.memory.change(held - self._counted_bytes)
            self._counted_bytes = held

    def _send_at_once(self) -> None:
        """Send as much as the socket takes, in a worker's thread; the loop sends the rest."""
        while self._unsent and self._stream is not None:
            sent = self._stream.send(self._unsent[:_SLICE_BYTES])
            if isinstance(sent, tls.Want):
                return
            self._unsent = self._unsent[sent:]

    def _end(self) -> Turn:
        return Turn.CLOSE


_STEPS: Final[Mapping[Phase, Callable[[Connection], Turn]]] = {
    Phase.HANDSHAKE: Connection._shake_hands,  # noqa: SLF001 - this table is the class's own
    Phase.READING: Connection._read,  # noqa: SLF001 - as above
    Phase.SERVING: Connection._listen_while_serving,  # noqa: SLF001 - as above
    Phase.SENDING: Connection._send,  # noqa: SLF001 - as above
    Phase.LINGERING: Connection._drain,  # noqa: SLF001 - as above
    Phase.BROKEN: Connection._end,  # noqa: SLF001 - as above
}
"""The step of each phase."""

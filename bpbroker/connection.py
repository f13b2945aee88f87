"""One connection: its phases, and the request and answer on it.

It belongs to the selector's thread, but for the time in which its phase is
``WORKING``: then a worker has it, or an actor owes its answer.
"""

from __future__ import annotations

import io
import logging
import socket
import time
import urllib.parse
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from cheroot.server import HTTPRequest
from cheroot.wsgi import Gateway_10

from bpbroker import responses, tls
from bpbroker.framing import Framer, Head, Rejected
from bpbroker.responses import Later, Response

if TYPE_CHECKING:
    from bpbroker.server import BrokerServer

logger = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * 1024
_SEND_AT_ONCE: Final = 256 * 1024
"""What the selector's thread sends of one answer before it looks at others."""
_LINGER_SECS: Final = 2.0
_LINGER_BYTES: Final = 4 * 1024 * 1024
_TLS_HANDSHAKE: Final = 0x16
_TCP_CLOSE_WAIT: Final = 8
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_ESCAPED_SLASH: Final = b"%2F"


class Phase(Enum):
    """Where a connection is in its life."""

    HANDSHAKE = "handshake"
    READING = "reading"
    WORKING = "working"
    SENDING = "sending"
    LINGERING = "lingering"
    CLOSING = "closing"


class Turn(Enum):
    """What has to happen for a connection to go on."""

    READ = "read"
    WRITE = "write"
    WORKER = "worker"
    CLOSE = "close"


_TURN: Final = {tls.Want.READ: Turn.READ, tls.Want.WRITE: Turn.WRITE}


class Connection:
    """One client's connection."""

    # What cheroot's request looks for on a connection.
    ssl_env: Any = None
    rfile: Any = None

    def __init__(self, server: BrokerServer, sock: socket.socket, address: tuple[Any, ...]) -> None:
        self.server = server
        self.socket = sock
        self.peer: str = address[0]
        self.remote_addr = self.peer
        self.remote_port: int = address[1]
        self.phase = Phase.HANDSHAKE
        self.watched: Turn | None = None
        """What the selector watches it for; the selector's thread's own note."""
        self.deadline = time.monotonic() + server.handshake_secs
        self._stream: tls.Stream | None = None
        self._buffer = bytearray()
        self._framer = Framer(server.limits)
        self._in_request = False
        self._out: list[bytes] = []
        self._unsent = memoryview(b"")
        self._lingered = 0
        self._keep_alive = False
        self._request: Request | None = None
        self._later: Later | None = None
        self._later_deadline = 0.0
        self.wfile = self
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def waits(self) -> bool:
        """Whether an actor owes it an answer."""
        return self._later is not None

    @property
    def idle(self) -> bool:
        """Whether it is open between two requests."""
        return self.phase is Phase.READING and not self._in_request

    # --- the selector's thread ---

    def move_on(self) -> Turn:
        """Do what can be done without blocking."""
        try:
            if self.phase is Phase.HANDSHAKE:
                return self._shake_hands()
            if self.phase is Phase.READING:
                return self._read()
            if self.phase is Phase.SENDING:
                return self._send()
            if self.phase is Phase.LINGERING:
                return self._drain()
        except (tls.Broken, OSError):
            return Turn.CLOSE
        return Turn.CLOSE

    def too_late(self) -> Turn:
        """End a phase whose time is over; a request that has begun is told so."""
        if self.phase is Phase.READING and self._in_request:
            return self._reject(408, "The request did not come in time (api.request_timeout_secs)")
        return Turn.CLOSE

    def watch_over(self, now: float) -> None:
        """See that an answer that is owed does not keep the connection for ever, nor for a client that has gone."""
        later = self._later
        if later is not None and (now >= self._later_deadline or self._has_gone()):
            later.give_up()

    def give_up(self) -> None:
        """Let go of an answer that is owed."""
        later = self._later
        if later is not None:
            later.give_up()

    def close(self) -> None:
        """Say goodbye and close the socket."""
        if self._stream is not None and self.phase is not Phase.HANDSHAKE:
            # cheroot sends no close_notify: OpenSSL 3 clients that read to the end then report an error.
            self._stream.say_goodbye()
        self.phase = Phase.CLOSING
        self.socket.close()

    def _shake_hands(self) -> Turn:
        if self._stream is None:
            first = self.socket.recv(1, socket.MSG_PEEK)
            if not first:
                return Turn.CLOSE
            if first[0] != _TLS_HANDSHAKE:
                return self._reject_plain()
            self._stream = tls.Stream(self.server.context, self.socket)
        want = self._stream.handshake()
        if want is not None:
            return _TURN[want]
        self.phase = Phase.READING
        self._begin_request(first=True)
        return self._read()

    def _begin_request(self, *, first: bool = False) -> None:
        self.phase = Phase.READING
        self._framer = Framer(self.server.limits)
        self._in_request = False
        # A client that has connected means to ask something; between requests it may take its time.
        self.deadline = time.monotonic() + (self.server.request_secs if first else self.server.keep_alive_secs)

    def _read(self) -> Turn:
        stream = self._stream
        if stream is None:
            return Turn.CLOSE
        while True:
            if self._buffer:
                turn = self._frame()
                if turn is not None:
                    return turn
            received = stream.receive(_READ_BYTES)
            if isinstance(received, tls.Want):
                return _TURN[received]
            if not received:
                return Turn.CLOSE
            self._buffer += received

    def _frame(self) -> Turn | None:
        """See whether the request is complete; None if more has to come."""
        if not self._in_request:
            self._in_request = True
            # One deadline for the whole request, however its bytes trickle in.
            self.deadline = time.monotonic() + self.server.request_secs
        try:
            had_head = self._framer.head is not None
            complete = self._framer.feed(self._buffer)
        except Rejected as rejected:
            return self._reject(rejected.status, str(rejected))
        if complete is not None:
            self._request = Request(self.server, self, *complete)
            self.phase = Phase.WORKING
            return Turn.WORKER
        head = self._framer.head
        if not had_head and head is not None and head.expects_continue and self._stream is not None:
            self._stream.send(_CONTINUE)
        return None

    def _send(self) -> Turn:
        """Send what a worker could not get rid of; progress moves the deadline on."""
        if self._stream is None:
            return Turn.CLOSE
        budget = _SEND_AT_ONCE
        while self._unsent:
            if budget <= 0:
                return Turn.WRITE
            sent = self._stream.send(self._unsent[:_READ_BYTES])
            if isinstance(sent, tls.Want):
                return _TURN[sent]
            self._unsent = self._unsent[sent:]
            budget -= sent
            self.deadline = time.monotonic() + self.server.request_secs
        if not self._keep_alive:
            return self._linger()
        self._begin_request()
        return self._read()

    def _reject(self, status: int, message: str) -> Turn:
        """Answer what cannot be served, and close."""
        self._unsent = memoryview(_raw(responses.failure(status, message)))
        self._keep_alive = False
        self.phase = Phase.SENDING
        self.deadline = time.monotonic() + _LINGER_SECS
        return self._send()

    def _reject_plain(self) -> Turn:
        """Answer a client that does not speak TLS, in the clear, and close."""
        answer = _raw(responses.failure(400, "This port speaks HTTPS only; use https://"))
        self.socket.send(answer)
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
        while self._lingered < _LINGER_BYTES:
            try:
                received = self.socket.recv(_READ_BYTES)
            except BlockingIOError:
                return Turn.READ
            if not received:
                break
            self._lingered += len(received)
        return Turn.CLOSE

    def _has_gone(self) -> bool:
        """Whether the client has closed its end (Linux knows; elsewhere it is found when the answer is sent)."""
        try:
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except (OSError, AttributeError):
            return False
        return bool(info[0] == _TCP_CLOSE_WAIT)

    # --- a worker's thread ---

    def work(self) -> None:
        """Serve the request, or go on with one whose answer is there now."""
        request = self._request
        later = self._later
        if request is None:
            return
        if later is None:
            self._out = []
            later = request.serve()
            if later is not None:
                self._later_deadline = time.monotonic() + later.timeout_secs
                self._later = later
                later.when_done(self._answer_is_there)  # from here on another thread may have it
                return
        else:
            self._later = None
            request.finish(later)
        self._answer(request)

    def _answer_is_there(self) -> None:
        self.server.requests.put(self)

    def _answer(self, request: Request) -> None:
        """Send the answer as far as it goes at once, and hand the connection back."""
        self._keep_alive = not request.close_connection
        self._request = None
        content = memoryview(b"".join(self._out))
        self._out = []
        self.deadline = time.monotonic() + self.server.request_secs
        try:
            while content and self._stream is not None:
                sent = self._stream.send(content[:_READ_BYTES])
                if isinstance(sent, tls.Want):
                    break
                content = content[sent:]
        except tls.Broken:
            self._keep_alive = False
            content = memoryview(b"")
            self.phase = Phase.CLOSING
            self.hand_back()
            return
        self._unsent = content
        self.phase = Phase.SENDING
        self.hand_back()

    def hand_back(self) -> None:
        """Give the connection back to the selector's thread."""
        self.server.selecting.hand_back(self)

    def write(self, content: bytes) -> None:
        """Take a piece of the answer; cheroot's request writes here."""
        self._out.append(content)


class Request(HTTPRequest):
    """cheroot's request with a head that was parsed already and a body that is all there."""

    def __init__(self, server: BrokerServer, connection: Connection, head: Head, body: bytes) -> None:
        super().__init__(server, connection)
        target, _, query = head.target.partition(b"?")
        self.method = head.method
        self.uri = head.target
        self.path = _ESCAPED_SLASH.join(
            urllib.parse.unquote_to_bytes(part) for part in target.replace(b"%2f", _ESCAPED_SLASH).split(_ESCAPED_SLASH)
        )
        self.qs = query
        self.request_protocol = b"HTTP/%d.%d" % head.version
        self.response_protocol = "HTTP/1.1" if head.version >= (1, 1) else "HTTP/1.0"
        self.close_connection = not head.keeps_alive
        self.chunked_read = head.length < 0
        self.inheaders = head.fields
        self.rfile = io.BytesIO(body)
        self.started_request = self.ready = True
        self._gateway: Gateway_10 | None = None

    def serve(self) -> Later | None:
        """Run the application; give its answer if an actor still owes it."""
        gateway = self._gateway = Gateway_10(self)
        result = self.server.wsgi_app(gateway.env, gateway.start_response)
        if isinstance(result, Later):
            return result
        self._write(result)
        return None

    def finish(self, later: Later) -> None:
        """Write an answer that was owed."""
        self._write(later)

    def _write(self, chunks: Any) -> None:
        gateway = self._gateway
        for chunk in chunks:
            if chunk and gateway is not None and self.method != b"HEAD":
                gateway.write(chunk)
        self.ensure_headers_sent()
        if self.chunked_write:
            self.conn.wfile.write(b"0\r\n\r\n")


def _raw(response: Response) -> bytes:
    """Give a whole answer that ends its connection, for what never becomes a request."""
    head = (
        f"HTTP/1.1 {response.status_line}\r\nContent-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + response.body

"""The load client: one process, as many closed-loop connections as asked for, the same code for every peer.

Run as a process of its own: a job as JSON on standard input, its outcome as
JSON on standard output. Requests come ready made and an answer is only looked
at as far as needed to find its end, so that the client costs little and the
same whoever it talks to. What it costs is in the outcome.
"""

from __future__ import annotations

import base64
import json
import selectors
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

_RECEIVE_BYTES: Final = 64 * 1024
_LATE_SECS: Final = 30.0
"""How long after its end a job waits for answers that are still owed; a peer that needs longer hangs."""
_PYRO_HEAD_BYTES: Final = 40
_PYRO_FAILED: Final = 1


class Failed(Exception):
    """An answer that is no success."""


# --- has an answer come wholly? ---


def http_complete(received: bytes) -> bool:
    """Tell whether an HTTP/1.1 answer is there.

    Raises:
        Failed: its status is no success.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    if not received.startswith(b"HTTP/1.1 2"):
        raise Failed(received[:200].decode("latin-1"))
    head = received[:end].lower()
    at = head.find(b"content-length:")
    if at < 0:
        return received.endswith(b"0\r\n\r\n")  # chunked
    return len(received) >= end + 4 + int(head[at + 15 :].split(b"\r", 1)[0])


def redis_complete(received: bytes) -> bool:
    """Tell whether a Redis answer, ``+OK`` or a bulk string, is there.

    Raises:
        Failed: it is an error, or there is no such key.
    """
    if not received.endswith(b"\r\n"):
        return False
    if received.startswith((b"-", b"$-1")):
        raise Failed(received[:200].decode("latin-1"))
    if received.startswith(b"$"):
        length, _, rest = received[1:].partition(b"\r\n")
        return len(rest) >= int(length) + 2
    return True


def pyro_complete(received: bytes) -> bool:
    """Tell whether a Pyro message is there (the layout is in Pyro5.protocol).

    Raises:
        Failed: it carries an exception.
    """
    if len(received) < _PYRO_HEAD_BYTES:
        return False
    if int.from_bytes(received[8:10], "big") & _PYRO_FAILED:
        raise Failed(received[_PYRO_HEAD_BYTES:][:200].decode("latin-1"))
    annotations, payload = received[16:20], received[12:16]
    return len(received) >= _PYRO_HEAD_BYTES + int.from_bytes(annotations, "big") + int.from_bytes(payload, "big")


def datagram_complete(received: bytes) -> bool:
    """Tell whether a datagram is there: it always comes whole."""
    return bool(received)


COMPLETE: Final[dict[str, Callable[[bytes], bool]]] = {
    "http": http_complete,
    "redis": redis_complete,
    "pyro": pyro_complete,
    "datagram": datagram_complete,
}


# --- jobs ---


@dataclass(frozen=True, slots=True)
class Job:
    """What one run of the client is to do."""

    port: int
    protocol: str
    """One of :data:`COMPLETE`; all but datagrams go over TLS."""
    requests: Sequence[bytes]
    """Sent in turn, over and over."""
    connections: int
    secs: float = 0.0
    """How long to measure; 0 sends each request just once."""
    greeting: bytes = b""
    """Sent first on each connection, and answered."""
    reconnect: bool = False
    """Whether every request gets a new connection, with a full handshake."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has shown."""

    per_second: float
    p50_ms: float
    p99_ms: float
    client_cpu: float
    """Share of one core that the client itself took; near 1 it was the bottleneck."""


def outcome_of(latencies: Sequence[float], secs: float, client_cpu: float) -> Outcome:
    """Work out rate and percentiles.

    Raises:
        Failed: there is nothing to work with.
    """
    found = sorted(latencies)
    if not found:
        raise Failed("no answer in time")
    p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
    return Outcome(len(found) / secs, p50 * 1000, p99 * 1000, client_cpu)


def run(job: Job) -> Outcome:
    """Run a job in a process of its own.

    Raises:
        Failed: an answer was no success, or none came.
    """
    fields = {**asdict(job), "greeting": _text(job.greeting), "requests": [_text(request) for request in job.requests]}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(fields),
        capture_output=True,
        text=True,
        timeout=job.secs + 2 * _LATE_SECS,
        check=False,
    )
    if done.returncode:
        raise Failed(done.stderr.strip().rpartition("\n")[2])
    return Outcome(**json.loads(done.stdout))


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


class _Load:
    """All connections of a job, and what has been measured of them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.complete = COMPLETE[job.protocol]
        self.selector = selectors.DefaultSelector()
        self.latencies: list[float] = []
        self.begin = self.end = 0.0
        self.open = 0
        self._sent = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    def next_request(self) -> bytes:
        self._sent += 1
        return self.job.requests[self._sent % len(self.job.requests)]

    def run(self) -> Outcome:
        for _ in range(self.job.connections):
            _Connection(self)
        began, cpu = time.perf_counter(), time.process_time()
        self.begin = began + min(0.5, self.job.secs / 4)  # the first answers only warm up
        self.end = self.begin + self.job.secs
        while self.open:
            for key, _ in self.selector.select(1.0):
                key.data.go_on()
            if time.perf_counter() > self.end + _LATE_SECS:
                raise Failed("no answer")
        took = time.perf_counter() - began
        return outcome_of(self.latencies, self.job.secs or took, (time.process_time() - cpu) / took)

    def over(self, now: float) -> bool:
        """Tell whether no more is to be sent."""
        return now >= self.end if self.job.secs else self._sent >= len(self.job.requests)


class _Connection:
    """One connection: sends, waits for the whole answer, sends again."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        load.open += 1
        self._connect()

    def _connect(self) -> None:
        load = self._load
        self._received = b""
        self._since = time.perf_counter()
        datagrams = load.job.protocol == "datagram"
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
        sock.connect(("127.0.0.1", load.job.port))
        sock.setblocking(False)
        self._shaking = not datagrams
        self._greeted = not load.job.greeting
        self._socket: Any = sock
        if self._shaking:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = load.context.wrap_socket(sock, do_handshake_on_connect=False)
        load.selector.register(self._socket, selectors.EVENT_READ, self)
        if self._shaking:
            self._shake_hands()
        else:
            self._ask()

    def go_on(self) -> None:
        if self._shaking:
            self._shake_hands()
            return
        try:
            received = self._socket.recv(_RECEIVE_BYTES)
        except ssl.SSLWantReadError:
            return  # a session ticket, or half a record
        if not received:
            raise Failed("the connection was closed")
        self._received = self._received + received if self._received else received
        if self._load.complete(self._received):
            self._answered()

    def _shake_hands(self) -> None:
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._shaking = False
        self._ask()

    def _ask(self) -> None:
        request = self._load.next_request() if self._greeted else self._load.job.greeting
        if not self._load.job.reconnect:
            self._since = time.perf_counter()
        # A few hundred bytes always fit into an empty socket buffer; if ever not, this raises.
        self._socket.send(request)

    def _answered(self) -> None:
        self._received = b""
        load = self._load
        if self._greeted:
            now = time.perf_counter()
            over = load.over(now)
            if now >= load.begin and not (over and load.job.secs):
                load.latencies.append(now - self._since)
            if over:
                self._close()
                load.open -= 1
                return
            if load.job.reconnect:
                self._close()
                self._connect()
                return
        self._greeted = True
        self._ask()

    def _close(self) -> None:
        self._load.selector.unregister(self._socket)
        self._socket.close()


def main() -> None:
    """Do the job on standard input."""
    fields = json.load(sys.stdin)
    fields["greeting"] = base64.b64decode(fields["greeting"])
    fields["requests"] = [base64.b64decode(request) for request in fields["requests"]]
    print(json.dumps(asdict(_Load(Job(**fields)).run())))  # noqa: T201 - the outcome goes to whoever started this


if __name__ == "__main__":
    main()

"""The load client: one process, as many closed-loop connections as asked for, the same code for every peer.

Run as a process of its own: a job as JSON on standard input, its outcome as
JSON on standard output, behind the word ``ready`` once every connection has
sent something. SIGTERM ends it early, with the outcome so far. Requests come ready made and an answer is only looked
at as far as needed to find its end, so that the client costs little and the
same whoever it talks to. What it costs is in the outcome.
"""

from __future__ import annotations

import base64
import heapq
import json
import re
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

_RECEIVE_BYTES: Final = 64 * 1024
_LATE_SECS: Final = 30.0
"""How long after its end a job waits for answers that are still owed; a peer that needs longer hangs."""
_PYRO_HEAD_BYTES: Final = 40
_PYRO_FAILED: Final = 1
PIPELINE: Final = 100
"""Requests that Redis is sent together."""
_WATCH_SECS: Final = 30
_SHAKING_MAX: Final = 64


class Failed(Exception):
    """An answer that is no success."""


WHEN: Final = "0000000000.000000"
"""Stands in a request for the Unix time at which it is sent; who watches works out from that how old an event is."""


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


def pipeline_complete(received: bytes) -> bool:
    """Tell whether the answers to 100 SETs that Redis was sent together are there.

    Raises:
        Failed: one is an error.
    """
    if received.startswith(b"-") or b"\n-" in received:
        raise Failed(received[:200].decode("latin-1"))
    return received.count(b"\r\n") >= PIPELINE


def datagram_complete(received: bytes) -> bool:
    """Tell whether a datagram is there: it always comes whole."""
    return bool(received)


COMPLETE: Final[dict[str, Callable[[bytes], bool]]] = {
    "http": http_complete,
    "redis": redis_complete,
    "redis pipeline": pipeline_complete,
    "watch": http_complete,
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
    own: int = 0
    """So many requests in a row are one connection's, and sent by no other one; 0: all are everybody's."""
    pace_secs: float = 0.0
    """How long after one request a connection sends the next one, if it has its answer."""
    units: float = 1.0
    """How many calls one request counts for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has shown."""

    per_second: float
    p50_ms: float
    p99_ms: float
    client_cpu: float
    """Share of one core that the client itself took; near 1 it was the bottleneck."""
    max_ms: float = 0.0
    server_cpu_us: float = 0.0
    """CPU time of the server's processes for one call: the figure that other work on the machine changes least."""


def warm_up_secs(secs: float) -> float:
    """Return for how long answers are not counted before so many seconds are measured."""
    return min(0.5, secs / 4)


def outcome_of(latencies: Sequence[float], secs: float, client_cpu: float, units: float = 1.0) -> Outcome:
    """Work out rate and percentiles.

    Raises:
        Failed: there is nothing to work with.
    """
    found = sorted(latencies)
    if not found:
        raise Failed("no answer in time")
    p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
    return Outcome(units * len(found) / secs, p50 * 1000, p99 * 1000, client_cpu, found[-1] * 1000)


def run(job: Job) -> Outcome:
    """Run a job in a process of its own.

    Raises:
        Failed: an answer was no success, or none came.
    """
    done = subprocess.run(
        [sys.executable, __file__],
        input=_written(job),
        capture_output=True,
        text=True,
        timeout=job.secs + 2 * _LATE_SECS,
        check=False,
    )
    if done.returncode:
        raise Failed(done.stderr.strip().rpartition("\n")[2])
    return Outcome(**json.loads(done.stdout.partition("\n")[2]))


class Beside:
    """A job that runs beside others: ``with`` starts it, waits until it is under way, and ends it.

    Args:
        job: its ``secs`` do not count.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.outcome: Outcome | None = None
        """What it has shown, once it has ended; None if it had no answer."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(_written(replace(self._job, secs=86_400.0)))
        self._process.stdin.close()
        self._process.stdin = None
        if self._process.stdout.readline() != "ready\n":
            raise Failed(self._process.communicate()[1].strip().rpartition("\n")[2])
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._process.terminate()
        out, err = self._process.communicate(timeout=_LATE_SECS)
        if kind is None:
            if self._process.returncode:
                raise Failed(f"beside: {err.strip().rpartition(chr(10))[2]}")
            self.outcome = Outcome(**json.loads(out)) if out.strip() != "null" else None


def _written(job: Job) -> str:
    """Return a job as the client's process reads it."""
    requests = [_text(request) for request in job.requests]
    return json.dumps({**asdict(job), "greeting": _text(job.greeting), "requests": requests})


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


class _Load:
    """All connections of a job, and what has been measured of them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.complete = COMPLETE[job.protocol]
        self.selector = selectors.DefaultSelector()
        self.latencies: list[float] = []
        self.begin = self.end = self.last = 0.0
        self.in_time = self.slow = False
        """Whether an answer came in the time that is measured; whether the first one came after it."""
        self.open = 0
        self._sent = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.says_when = any(WHEN.encode() in request for request in job.requests)
        self._later: list[tuple[float, int, _Connection]] = []
        """When which connection goes on."""
        self._ready = 0

    def next_request(self) -> bytes:
        self._sent += 1
        return self.job.requests[self._sent % len(self.job.requests)]

    def asked(self) -> None:
        """Note that one more connection has sent its first request."""
        self._ready += 1
        if self._ready == self.job.connections:
            sys.stdout.write("ready\n")
            sys.stdout.flush()

    def ask_at(self, when: float, connection: _Connection) -> None:
        heapq.heappush(self._later, (when, id(connection), connection))

    def run(self) -> Outcome | None:
        kind = _Watcher if self.job.protocol == "watch" else _Connection
        began, cpu = time.perf_counter(), time.process_time()
        self.begin = began + warm_up_secs(self.job.secs)
        self.end = self.begin + self.job.secs
        opened, stopped = 0, False
        try:
            signal.signal(signal.SIGTERM, _stop)
            while self.open or opened < self.job.connections:
                # A server gives a handshake a few seconds: a thousand at once would not get theirs.
                while opened < self.job.connections and opened - self._ready < _SHAKING_MAX:
                    kind(self, opened)
                    opened += 1
                for key, _ in self.selector.select(self._patience()):
                    key.data.go_on()
                now = time.perf_counter()
                while self._later and self._later[0][0] <= now:
                    heapq.heappop(self._later)[2].ask()
                if now > self.end + _LATE_SECS:
                    raise Failed("no answer")
        except _Stopped:
            stopped = True
        took = time.perf_counter() - began
        if stopped and not self.latencies:
            return None
        secs = took if stopped or not self.job.secs else max(self.job.secs, self.last - self.begin)
        return outcome_of(self.latencies, secs, (time.process_time() - cpu) / took, self.job.units)

    def _patience(self) -> float:
        return max(0.0, min(1.0, self._later[0][0] - time.perf_counter())) if self._later else 1.0

    def over(self, now: float) -> bool:
        """Tell whether no more is to be sent."""
        return now >= self.end if self.job.secs else self._sent >= len(self.job.requests)


class _Stopped(Exception):
    """SIGTERM came."""


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


class _Connection:
    """One connection: sends, waits for the whole answer, sends again."""

    def __init__(self, load: _Load, number: int) -> None:
        self._load = load
        self._own = load.job.requests[number * load.job.own : (number + 1) * load.job.own]
        self._turn = 0
        self._known = False
        self._rest = memoryview(b"")
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
            self.ask()

    def go_on(self) -> None:
        if self._shaking:
            self._shake_hands()
            return
        if self._rest:
            self._send()
            if not self._rest:
                self._load.selector.modify(self._socket, selectors.EVENT_READ, self)
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
        self.ask()

    def next_request(self) -> bytes:
        if not self._own:
            return self._load.next_request()
        self._turn += 1
        return self._own[(self._turn - 1) % len(self._own)]

    def ask(self) -> None:
        request = self.next_request() if self._greeted else self._load.job.greeting
        if self._load.says_when:
            request = request.replace(WHEN.encode(), b"%017.6f" % time.time())
        if not self._load.job.reconnect:
            self._since = time.perf_counter()
        self._rest = memoryview(request)
        self._send()
        if not self._known:
            self._known = True
            self._load.asked()

    def _send(self) -> None:
        """Send what the socket takes; the rest when it takes more."""
        while self._rest:
            try:
                self._rest = self._rest[self._socket.send(self._rest) :]
            except ssl.SSLWantWriteError:
                self._load.selector.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)
                return

    def note(self, now: float, _answer: bytes) -> None:
        """Keep what the answer shows."""
        self._load.latencies.append(now - self._since)

    def _answered(self) -> None:
        answer, self._received = self._received, b""
        load = self._load
        if self._greeted:
            now = time.perf_counter()
            over = load.over(now)
            late = over and load.job.secs > 0
            load.in_time = load.in_time or (bool(load.latencies) and not load.slow)
            load.slow = load.slow or (late and not load.in_time)
            # Late ones count where there are no others: the server is slow, not silent.
            if now >= load.begin and not (late and load.in_time):
                self.note(now, answer)
                load.last = now
            if over:
                self._close()
                load.open -= 1
                return
            if load.job.reconnect:
                self._close()
                self._connect()
                return
            if load.job.pace_secs:
                load.ask_at(self._since + load.job.pace_secs, self)
                return
        self._greeted = True
        self.ask()

    def _close(self) -> None:
        self._load.selector.unregister(self._socket)
        self._socket.close()


class _Watcher(_Connection):
    """A connection that watches: every answer says from where the next request goes on."""

    _since_cursor = b""

    def next_request(self) -> bytes:
        asked = json.loads(self._load.job.requests[0])
        if self._since_cursor:
            asked |= {"since": self._since_cursor.decode(), "wait": _WATCH_SECS}
        body = json.dumps(asked).encode()
        head = b"POST /services/Watch/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)

    def note(self, _now: float, answer: bytes) -> None:
        """Keep how long ago the write of the oldest event was sent."""
        oldest = re.search(rb'"when": "([\d.]+)"', answer)
        if oldest is not None:
            self._load.latencies.append(time.time() - float(oldest[1]))

    def _answered(self) -> None:
        self._follow(self._received)
        super()._answered()

    def _follow(self, answer: bytes) -> None:
        found = re.search(rb'"cursor": "([^"]+)"', answer)
        if found is not None:
            self._since_cursor = found[1]


def main() -> None:
    """Do the job on standard input."""
    fields = json.load(sys.stdin)
    fields["greeting"] = base64.b64decode(fields["greeting"])
    fields["requests"] = [base64.b64decode(request) for request in fields["requests"]]
    outcome = _Load(Job(**fields)).run()
    print(json.dumps(None if outcome is None else asdict(outcome)))  # noqa: T201 - the outcome goes to whoever started this


if __name__ == "__main__":
    main()

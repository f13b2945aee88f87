"""A well-behaved client that measures while others attack, and what an attack leaves behind.

The measuring client is a process of its own, so that it measures the broker
and not the test's threads: ``python -m tests.support.witness PORT``, the access key on
the first line of standard input; it goes on until its standard input ends.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import psutil

from tests.support.running import Answer, RunningBroker, untrusting

CANARY: Final = "canary-5f1e0c7a-access-key"
"""The access key of an attacked broker; it must be in no log."""
KEY: Final = {"X-Access-Key": CANARY}
FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}

SLOWEST_SECS: Final = 5.0
"""A good call takes at most 1 s on a quiet machine; a shared one may be five times slower."""
_MEASURED: Final = "witness"
_SETTLE_SECS: Final = 40.0
_SAME: Final = 15
_DESCRIPTORS_APART: Final = 4
_THREADS_APART: Final = 2
MEMORY_APART_BYTES: Final = 96 * 1024 * 1024

LONG: Final = bool(os.environ.get("BPBROKER_LONG"))
"""Whether the attacks have the size that the cases name."""


class Figures(NamedTuple):
    """What the good client saw."""

    calls: int
    slowest_secs: float
    p99_secs: float
    faults: list[str]


class Raw(NamedTuple):
    """One answer as it came."""

    status: int
    body: bytes
    message: str

    @classmethod
    def of(cls, received: bytes) -> Raw:
        """Take an error's answer apart, which must be the only one."""
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        assert b"HTTP/1.1 " not in body.partition(b"}")[2], received[:2000]
        assert b"\r\nConnection: close" in head
        document = json.loads(body)
        assert document["success"] is False
        assert document["data"] == {}
        return cls(int(head.split()[1]), body, document["message"])


class Witness:
    """Calls ``Get`` all the time, on new connections and on a kept one, until the block ends."""

    def __init__(self, broker: RunningBroker) -> None:
        self._broker = broker
        self._process: subprocess.Popen[str] | None = None
        self.figures = Figures(0, 0.0, 0.0, [])

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.witness", str(self._broker.port)],
            cwd=Path(__file__).parents[2],
            env=self._broker.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{CANARY}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "measuring\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        try:
            self.figures = Figures(*json.loads(self._process.communicate(timeout=60)[0]))
        finally:
            self._process.kill()
            self._process.wait()
        if kind is None:
            assert not self.figures.faults, self.figures
            assert self.figures.calls >= 2, self.figures
            assert self.figures.slowest_secs <= SLOWEST_SECS, self.figures


class Attacked:
    """A running broker that is going to be attacked; :meth:`unharmed` says whether the attack left a trace."""

    def __init__(self, broker: RunningBroker) -> None:
        self.broker = broker
        self.process = psutil.Process(broker.pid)
        self.call("Replace", name=_MEASURED, data="x")
        self.descriptors = settled(self.process.num_fds)
        self.threads = self.process.num_threads()
        self.memory_bytes = self.process.memory_info().rss

    def call(self, method: str, **parameters: object) -> Answer:
        """Call a method of the registry with the right key."""
        return self.broker.call(f"/services/{method}/", KEY, **parameters)

    def tls(self, source: str = "") -> ssl.SSLSocket:
        """Return a TLS connection, from a loopback address of choice."""
        sock = socket.create_connection(("127.0.0.1", self.broker.port), 30, (source, 0) if source else None)
        try:
            return untrusting().wrap_socket(sock, suppress_ragged_eofs=False)
        except OSError:
            sock.close()
            raise

    def raw(self, sent: bytes | Iterable[bytes]) -> Raw:
        """Send bytes over TLS as they are; give the one answer. The broker must close, and say so (close_notify)."""
        with self.tls() as client:
            received = b""
            for part in (sent,) if isinstance(sent, bytes) else sent:
                client.sendall(part)
                if select.select([client], [], [], 0)[0]:
                    client.setblocking(False)
                    with suppress(ssl.SSLWantReadError):  # a session ticket is no answer
                        received += client.recv(65536)
                    client.settimeout(30)
                if received:
                    break
            while part := client.recv(65536):
                received += part
        return Raw.of(received)

    def entries(self) -> bytes:
        """Return all entries, to the byte."""
        return self.call("List").body

    def unharmed(self) -> None:
        """See that it serves as before, has let everything go, and has not written the key down."""
        assert self.process.is_running()
        for number in range(5):
            name = f"after-{time.monotonic_ns()}-{number}"
            begun = time.monotonic()
            with closing(self.broker.connect()) as connection:
                for method in ("Register", "Get", "Delete"):
                    connection.request("POST", f"/services/{method}/", f"name={name}&data=x", {**KEY, **FORM})
                    response = connection.getresponse()
                    assert response.status == 200, response.read()
                    response.read()
            assert time.monotonic() - begun <= SLOWEST_SECS
        eventually(lambda: self.process.num_fds() <= self.descriptors + _DESCRIPTORS_APART)
        eventually(lambda: self.process.num_threads() <= self.threads + _THREADS_APART)
        assert self.process.memory_info().rss <= self.memory_bytes + MEMORY_APART_BYTES
        assert CANARY not in self.broker.text
        assert CANARY not in " ".join(self.process.cmdline())
        assert "Traceback" not in self.broker.text


def settled(look: Callable[[], int]) -> int:
    """Return a count once it has been the same for a while: a broker that has just started makes its first backup."""
    seen = [look()]
    deadline = time.monotonic() + _SETTLE_SECS
    while len(set(seen[-_SAME:])) > 1 or len(seen) < _SAME:
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)
        seen.append(look())
    return seen[-1]


def eventually(condition: Callable[[], bool], otherwise: Callable[[], object] = lambda: "") -> None:
    """Wait until something holds; ``otherwise`` returns what is to be seen when it does not."""
    deadline = time.monotonic() + _SETTLE_SECS
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.05)


def _measure(port: int, key: str) -> Figures:
    context = untrusting()
    took: list[float] = []
    faults: list[str] = []

    def connect() -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)

    def get(connection: http.client.HTTPSConnection) -> None:
        begun = time.monotonic()
        try:
            connection.request("GET", f"/services/Get/?name={_MEASURED}", headers={"X-Access-Key": key})
            response = connection.getresponse()
            if response.status != 200 or not response.read().startswith(b'{"success": true'):
                faults.append(f"{response.status} {response.reason}")
        except (OSError, http.client.HTTPException) as error:
            faults.append(repr(error))
            connection.close()
        took.append(time.monotonic() - begun)

    kept = connect()
    ended = False
    while not ended:
        fresh = connect()
        get(fresh)
        fresh.close()
        get(kept)
        ended = bool(select.select([sys.stdin], [], [], 0.005)[0])
    kept.close()
    took.sort()
    return Figures(len(took), took[-1], took[len(took) * 99 // 100], faults[:5])


if __name__ == "__main__":
    access_key = sys.stdin.readline().strip()
    sys.stdout.write("measuring\n")
    sys.stdout.flush()
    json.dump(_measure(int(sys.argv[1]), access_key), sys.stdout)

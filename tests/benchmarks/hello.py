"""A bare "hello": what no application on a server can surpass. Run as a process of its own.

On ``ours`` it shows what the application and its actors cost; on ``cheroot``,
stock but for our TLS, it is the limit that CherryPy's server sets.
"""

from __future__ import annotations

import io
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cheroot import wsgi
from cheroot.ssl import Adapter

from bpbroker.server import tls
from bpbroker.server.listener import BrokerServer, bind_tcp
from bpbroker.server.request import Request
from bpbroker.server.response import Response

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

BODY: Final = b"hello"
_WAIT_SECS: Final = 10.0
_WORKERS: Final = 2
"""As many as a broker has. Fewer and more of them are slower on cheroot at 64 clients, ten at 16, too."""
_KEPT_MAX: Final = 10_000
"""cheroot's own 10 would close what the other clients keep alive."""


def hello(_request: Request) -> Response:
    return Response(200, BODY, content_type="text/plain")


def wsgi_hello(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]


class TlsSocket:
    """A socket as cheroot wants it, with TLS by our stream."""

    def __init__(self, context: Any, sock: socket.socket) -> None:
        self._socket = sock
        self.stream = tls.Stream(context, sock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def wait(self, want: tls.Want) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN if want is tls.Want.READ else select.POLLOUT)
        if not poll.poll(_WAIT_SECS * 1000):
            raise TimeoutError("timed out")


class Raw(io.RawIOBase):
    """The bytes of a :class:`TlsSocket`; waits where the stream would not."""

    def __init__(self, sock: TlsSocket) -> None:
        self._sock = sock
        self._kept = b""
        self.received = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        room = memoryview(buffer)
        kept: bytes | tls.Want = self._kept or self._received()
        while isinstance(kept, tls.Want):
            self._sock.wait(kept)
            kept = self._received()
        got, self._kept = kept[: len(room)], kept[len(room) :]
        room[: len(got)] = got
        self.received += len(got)
        return len(got)

    def _received(self) -> bytes | tls.Want:
        try:
            return self._sock.stream.receive()
        except tls.StreamBroken:
            return b""

    def write(self, content: ReadableBuffer, /) -> int:
        while isinstance(sent := self._sock.stream.send(bytes(content)), tls.Want):
            self._sock.wait(sent)
        while not self._sock.stream.flush():
            self._sock.wait(tls.Want.WRITE)
        return sent


class Reader(io.BufferedReader):
    """What cheroot reads from; in C, where cheroot's own is in Python."""

    def __init__(self, raw: Raw, size: int) -> None:
        super().__init__(raw, size)
        self._stream = raw
        self.bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        got = super().read(size) or b""
        self.bytes_read += len(got)
        return got

    def readline(self, size: int | None = -1, /) -> bytes:
        got = super().readline(size)
        self.bytes_read += len(got)
        return got

    def has_data(self) -> bool:
        return self._stream.received > self.bytes_read


class Writer:
    """What cheroot writes to, an answer's head and its body one after the other."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self.bytes_written = 0

    def write(self, content: bytes) -> int:
        left = content
        while left:
            left = left[self._raw.write(left) :]
        self.bytes_written += len(content)
        return len(content)

    def flush(self) -> None:
        """Nothing is kept back."""


class OurTls(Adapter):
    """Our TLS (:mod:`bpbroker.server.tls`) as a cheroot adapter."""

    def __init__(self, cert: Path, key: Path) -> None:
        super().__init__(str(cert), str(key))
        self._context = tls.context(cert, key)

    def bind(self, sock: socket.socket) -> socket.socket:
        return sock

    def wrap(self, sock: socket.socket) -> tuple[TlsSocket, dict[str, str]]:
        return TlsSocket(self._context, sock), self.get_environ()

    def get_environ(self) -> dict[str, str]:
        return {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def makefile(self, sock: TlsSocket, mode: str = "rb", bufsize: int = -1) -> Reader | Writer:
        return Reader(Raw(sock), bufsize) if "r" in mode else Writer(Raw(sock))


def on_ours(port: int, cert: Path, key: Path) -> BrokerServer:
    server = BrokerServer(bind_tcp("127.0.0.1", port), hello, {}, tls.context(cert, key))
    server.prepare()
    return server


def on_cheroot(port: int, cert: Path, key: Path) -> wsgi.Server:
    server = wsgi.Server(("127.0.0.1", port), wsgi_hello, numthreads=_WORKERS, request_queue_size=4096)
    server.keep_alive_conn_limit = _KEPT_MAX
    server.ssl_adapter = OurTls(cert, key)
    server.prepare()
    return server


SERVERS: Final[Mapping[str, Callable[[int, Path, Path], BrokerServer | wsgi.Server]]] = {
    "ours": on_ours,
    "cheroot": on_cheroot,
}


def main(kind: str, port: str, cert: str, key: str) -> None:
    """Serve until SIGTERM."""
    server = SERVERS[kind](int(port), Path(cert), Path(key))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.stop).start())
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""HTTP/1.1 as far as a client of a broker needs it. Pure but for the ``receive`` that it is given.

It replaces http.client: that module loads the whole email package, which costs more than a one-shot call itself, and
has no time limit for a whole response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Final

HEAD_MAX_BYTES: Final = 64 * 1024
BODY_MAX_BYTES: Final = 512 * 1024 * 1024
_CHUNK_BYTES: Final = 64 * 1024


class NotHttp(Exception):
    """The bytes that came are no HTTP response; ``str()`` says why."""


class CutOff(Exception):
    """The connection ended before the response was complete."""


class Response:
    """One HTTP response.

    Args:
        status: its number.
        reason: its reason phrase.
        headers: by lower-case name; of a repeated one, the last.
        body: without its transfer encoding.
        keep_alive: whether the connection may carry another request.
    """

    __slots__ = ("body", "headers", "keep_alive", "reason", "status")

    def __init__(self, status: int, reason: str, headers: Mapping[str, str], body: bytes, keep_alive: bool) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive


def request_bytes(method: str, path: str, host: str, headers: Mapping[str, bytes], body: bytes | None) -> bytes:
    """Return a request as it is sent."""
    lines = [f"{method} {path} HTTP/1.1".encode("ascii"), b"Host: " + host.encode("ascii")]
    lines += [name.encode("ascii") + b": " + value for name, value in headers.items()]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join((*lines, b"", body or b""))


class ResponseReader:
    """Reads one response from a connection.

    Args:
        receive: returns the next bytes, at most as many as asked for; empty at the end.
    """

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._buffer = bytearray()
        self.started = False
        """Whether the response has begun."""

    @property
    def drained(self) -> bool:
        """Whether nothing came after the response."""
        return not self._buffer

    def answer(self) -> Response:
        """Read one response.

        Raises:
            NotHttp: the bytes are no response, or it is too large.
            CutOff: the connection ended too early.
        """
        status = 100
        while 100 <= status < 200:
            version, status, reason = _status_line(self._line())
            headers = self._headers()
        body, delimited = self._body(status, headers)
        connection = headers.get("connection", "").lower()
        keep_alive = delimited and ("close" not in connection if version == "HTTP/1.1" else "keep-alive" in connection)
        return Response(status, reason, headers, body, keep_alive)

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        size = 0
        while line := self._line():
            size += len(line)
            name, colon, value = line.partition(b":")
            if not colon or size > HEAD_MAX_BYTES:
                raise NotHttp("its head is malformed" if not colon else "its head is too large")
            headers[name.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()
        return headers

    def _body(self, status: int, headers: Mapping[str, str]) -> tuple[bytes, bool]:
        """Return the body, and whether its end was known without the end of the connection."""
        if status in (204, 304):
            return b"", True
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks(), True
        length = headers.get("content-length")
        if length is None:
            return self._to_the_end(), False
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > BODY_MAX_BYTES:
            raise NotHttp(f"its Content-Length is {length[:20]!r}")
        return self._exactly(int(length)), True

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        total = 0
        while True:
            digits = self._line().partition(b";")[0].strip()
            try:
                size = int(digits[:16], 16)
            except ValueError:
                raise NotHttp("a chunk has no length") from None
            total += size
            if size < 0 or total > BODY_MAX_BYTES:
                raise NotHttp("its body is too large")
            if size == 0:
                self._headers()  # trailers
                return b"".join(parts)
            parts.append(self._exactly(size))
            if self._line():
                raise NotHttp("a chunk is longer than it says")

    def _more(self) -> None:
        data = self._receive(_CHUNK_BYTES)
        if not data:
            raise CutOff
        self.started = True
        self._buffer += data

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > HEAD_MAX_BYTES:
                raise NotHttp("a line of it is too long")
            self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.removesuffix(b"\r")

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _to_the_end(self) -> bytes:
        try:
            while len(self._buffer) <= BODY_MAX_BYTES:
                self._more()
        except CutOff:
            return self._exactly(len(self._buffer))
        raise NotHttp("its body is too large")


def _status_line(line: bytes) -> tuple[str, int, str]:
    version, _, rest = line.decode("latin-1").partition(" ")
    digits, _, reason = rest.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (len(digits) == 3 and digits.isascii() and digits.isdigit()):
        raise NotHttp(f"it begins with {line[:40]!r}" if line else "it begins with an empty line")
    return version, int(digits), reason.strip()

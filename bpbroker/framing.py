"""Where one HTTP/1.1 request ends in a stream of bytes, and whether its framing can be trusted. Pure.

cheroot accepts lengths that are negative, signed, given twice or beside a
transfer coding, and NUL in fields (measured on 11.1.2); two parties that read
such a request differently are how requests are smuggled. So the head is parsed
here, strictly (RFC 9112), and cheroot gets the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/([0-9])\.([0-9])\Z")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*\Z")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}\Z")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\Z")
_CHUNK_LINE_MAX: Final = 256
_BLANK_LINES_MAX: Final = 4
_ONCE: Final = frozenset({b"content-length", b"host", b"transfer-encoding", b"content-type"})


class Rejected(Exception):
    """The stream cannot be served; ``status`` and text are for the answer, after which it is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a request may be."""

    head_bytes: int = 16 * 1024
    fields: int = 100
    body_bytes: int = 1024 * 1024


@dataclass(slots=True)
class Head:
    """A request's line and fields."""

    method: bytes
    target: bytes
    version: tuple[int, int]
    fields: dict[bytes, bytes]
    """By lower-case name; fields given several times are joined with a comma."""
    size: int
    """Bytes up to and including the blank line."""
    length: int
    """Of the body, 0 when there is none; -1 when it is chunked."""

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants the connection to go on."""
        options = self.fields.get(b"connection", b"").lower()
        return b"keep-alive" in options if self.version < (1, 1) else b"close" not in options

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for a go-ahead before it sends the body."""
        return self.version >= (1, 1) and self.fields.get(b"expect", b"").lower() == b"100-continue"


class Framer:
    """Follows one request as its bytes come in; begin a new one for each."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.head: Head | None = None
        self._searched = 0
        self._position = 0
        """Up to where a chunked body was followed."""
        self._chunks: list[bytes] = []
        self._decoded = 0

    def feed(self, buffer: bytearray) -> tuple[Head, bytes] | None:
        """Look at all bytes so far; give head and body when the request is complete, and take it out of ``buffer``.

        Raises:
            Rejected: it never will be.
        """
        if self.head is None:
            self.head = self._find_head(buffer)
            if self.head is None:
                return None
            self._position = self.head.size
        head = self.head
        if head.length >= 0:
            end = head.size + head.length
            if len(buffer) < end:
                return None
            body = bytes(buffer[head.size : end])
        else:
            if not self._follow_chunks(buffer):
                return None
            end = self._position
            body = b"".join(self._chunks)
        del buffer[:end]
        return head, body

    def _find_head(self, buffer: bytearray) -> Head | None:
        blank = 0
        while buffer.startswith(b"\r\n"):
            del buffer[:2]
            blank += 1
            if blank > _BLANK_LINES_MAX:
                raise Rejected(400, "Too many blank lines before the request")
        end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        limit = self._limits.head_bytes
        if end < 0:
            self._searched = len(buffer)
            if len(buffer) > limit:
                raise Rejected(431, f"The request's head is larger than {limit} bytes (api.max_header_bytes)")
            if self._searched and not 65 <= buffer[0] <= 90:  # A to Z
                raise Rejected(400, "This is not an HTTP request")
            return None
        if end + 4 > limit:
            raise Rejected(431, f"The request's head is larger than {limit} bytes (api.max_header_bytes)")
        return parse_head(bytes(buffer[:end]), self._limits)

    def _follow_chunks(self, buffer: bytearray) -> bool:
        """Follow a chunked body as far as it is there; True at its end."""
        while True:
            line_end = buffer.find(b"\r\n", self._position)
            if line_end < 0 or line_end - self._position > _CHUNK_LINE_MAX:
                if len(buffer) - self._position > _CHUNK_LINE_MAX:
                    raise Rejected(400, "A chunk's first line is too long")
                return False
            match = _CHUNK.match(bytes(buffer[self._position : line_end]))
            if match is None:
                raise Rejected(400, "A chunk's size is not a hexadecimal number")
            size = int(match[1], 16)
            if size == 0:
                return self._skip_trailers(buffer, line_end + 2)
            if self._decoded + size > self._limits.body_bytes:
                raise Rejected(413, f"The body is larger than {self._limits.body_bytes} bytes (api.max_body_bytes)")
            end = line_end + 2 + size
            if len(buffer) < end + 2:
                return False
            if buffer[end : end + 2] != b"\r\n":
                raise Rejected(400, "A chunk does not end where its size says")
            self._chunks.append(bytes(buffer[line_end + 2 : end]))
            self._decoded += size
            # Framing that is done with is dropped, so that tiny chunks cannot pile it up.
            head_size = self.head.size if self.head else 0
            del buffer[head_size : end + 2]
            self._position = head_size

    def _skip_trailers(self, buffer: bytearray, start: int) -> bool:
        if buffer[start : start + 2] == b"\r\n":
            self._position = start + 2
            return True
        end = buffer.find(b"\r\n\r\n", start)
        if end < 0:
            if len(buffer) - start > self._limits.head_bytes:
                raise Rejected(431, "The request's trailer is too large")
            return False
        self._position = end + 4
        return True


def parse_head(head: bytes, limits: Limits) -> Head:
    """Parse a request's line and fields; ``head`` is without the blank line at its end.

    Raises:
        Rejected: it is malformed, or larger than its limits.
    """
    lines = head.split(b"\r\n")
    line = _REQUEST_LINE.match(lines[0])
    if line is None:
        raise Rejected(400, "The request line is malformed")
    version = (int(line[3]), int(line[4]))
    if version[0] != 1:
        raise Rejected(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here")
    if not line[2].startswith(b"/"):
        raise Rejected(400, "The request's target must begin with /")
    if len(lines) - 1 > limits.fields:
        raise Rejected(431, f"The request has more than {limits.fields} header fields (api.max_headers)")
    fields: dict[bytes, bytes] = {}
    for text in lines[1:]:
        match = _FIELD.match(text)
        if match is None:
            raise Rejected(400, "A header field is malformed")
        name, value = match[1].lower(), match[2]
        if name in fields:
            if name in _ONCE:
                raise Rejected(400, f"The header field {name.decode()} is given twice")
            value = fields[name] + b", " + value
        fields[name] = value
    return Head(line[1], line[2], version, fields, len(head) + 4, _body_length(fields, version, limits))


def _body_length(fields: dict[bytes, bytes], version: tuple[int, int], limits: Limits) -> int:
    """Give the body's length, -1 for a chunked one."""
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Rejected(400, "The request has both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked" or version < (1, 1):
            raise Rejected(400, "The only transfer coding taken here is chunked, in HTTP/1.1")
        return -1
    if length is None:
        return 0
    if _LENGTH.match(length) is None:
        raise Rejected(400, "The Content-Length is not a number")
    if int(length) > limits.body_bytes:
        raise Rejected(413, f"The body is larger than {limits.body_bytes} bytes (api.max_body_bytes)")
    return int(length)

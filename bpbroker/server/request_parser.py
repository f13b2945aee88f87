"""Where one HTTP/1.1 request ends in a stream of bytes, and whether its framing can be trusted. Pure.

cheroot accepts lengths that are negative, signed, given twice or beside a
transfer coding, and NUL in fields (measured on 11.1.2); if two parties read such a request differently, requests can
be smuggled. So the head is parsed
here, strictly (RFC 9112). Every step is linear in what came in: this runs in
the one thread that all connections depend on.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bpbroker.server.request import Request

_REQUEST_LINE: Final = re.compile(r"([A-Z]{1,20}) ([!-~]+) HTTP/([0-9])\.([0-9])\Z")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH: Final = re.compile(r"[0-9]{1,18}\Z")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\Z")
_ESCAPED_SLASH: Final = re.compile("%2[Ff]")
_CHUNK_LINE_MAX: Final = 256
_CHUNKS_AT_ONCE: Final = 128
"""How many chunks are read before other connections have their turn; that takes a quarter of a millisecond."""
_CHUNKS_FREE: Final = 512
_CHUNK_MEAN_BYTES: Final = 64
"""A body may have 512 chunks of any size; more only if they have 64 bytes on average."""
_EXTENSIONS_MAX_BYTES: Final = 1024
_BLANK_LINES_MAX: Final = 4
_ONCE: Final = frozenset({"content-length", "host", "transfer-encoding", "content-type"})


class Rejected(Exception):
    """The request cannot be served; ``status`` and text are for the response, after which the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a request may be."""

    head_bytes: int = 16 * 1024
    fields: int = 100
    body_bytes: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fields:
    """The header fields of a request, and its framing. Several requests may share one object."""

    values: Mapping[str, str]
    """By lower-case name; fields given several times are joined with a comma."""
    length: int
    """Length of the body in bytes; 0: no body; -1: it is chunked."""
    keeps_alive: bool
    """Whether the client wants the connection to go on."""
    expects_continue: bool
    """Whether the client waits for ``100 Continue`` before it sends the body."""


class Framer:
    """Cut the bytes that come in on one connection into requests.

    A client that keeps its connection sends the same fields with each request:
    fields that are the same to the byte as those before are not parsed again.
    """

    def __init__(self, limits: Limits, address: str = "") -> None:
        self.limits = limits
        self._address = address
        self._buffer = bytearray()
        self._request: Request | None = None
        """The request whose head is complete and whose body is not."""
        self._length = 0
        """Length of its body in bytes; -1: it is chunked."""
        self._expects_continue = False
        self._body_start = 0
        self._searched = 0
        self._blank = 0
        self._chunks: bytearray | None = None
        """A chunked body as far as it is decoded."""
        self._chunk_count = 0
        self._extension_bytes = 0
        self._trailer_seen = 0
        """How many bytes of the trailer were looked at."""
        self.more = False
        """Whether :meth:`feed` stopped to let other connections have their turn, so that it must be called again."""
        self._last: tuple[str, tuple[int, int], Limits, Fields] | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of a request is there."""
        return bool(self._buffer) or self._request is not None

    @property
    def awaited(self) -> Request | None:
        """The request whose body is still to come, or None."""
        return self._request

    def clear(self) -> None:
        """Forget the bytes that came in."""
        self._buffer = bytearray()
        self._request = self._chunks = None

    @property
    def held_bytes(self) -> int:
        """Number of the kept bytes."""
        return len(self._buffer) + (len(self._chunks) if self._chunks is not None else 0)

    def wants_go_ahead(self) -> bool:
        """Whether to send ``100 Continue`` now: true once for a request whose client waits for it with the body."""
        if not self._expects_continue:
            return False
        self._expects_continue = False
        return len(self._buffer) <= self._body_start

    def keep(self, received: bytes) -> None:
        """Keep the bytes that came, without parsing them."""
        self._buffer += received

    def feed(self, received: bytes) -> Request | None:
        """Parse the bytes that came, or with no bytes those that are kept; return a request if it is complete.

        Raises:
            Rejected: they can never become a request.
        """
        if received:
            self._buffer += received
        self.more = False
        buffer = self._buffer
        request = self._request
        if request is None:
            if not buffer:
                return None
            request = self._find_head(buffer)
            if request is None:
                return None
            self._request = request
        length = self._length
        if length >= 0:
            end = self._body_start + length
            if len(buffer) < end:
                return None
            if length:
                request.body = bytes(buffer[self._body_start : end])
        else:
            if not self._follow_chunks(buffer):
                return None
            end = self._body_start
            request.body = bytes(self._chunks or b"")
        del buffer[:end]
        self._request = self._chunks = None
        self._searched = self._blank = self._chunk_count = self._extension_bytes = self._trailer_seen = 0
        self._expects_continue = False
        return request

    def _find_head(self, buffer: bytearray) -> Request | None:
        while buffer.startswith(b"\r\n"):
            del buffer[:2]
            self._searched = 0
            self._blank += 1
            if self._blank > _BLANK_LINES_MAX:
                raise Rejected(400, "Too many blank lines before the request")
        limit = self.limits.head_bytes
        end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3), limit)
        if end < 0:
            if len(buffer) >= limit:
                raise Rejected(431, f"The request's head is larger than {limit} bytes (api.max_header_bytes)")
            if buffer and not 65 <= buffer[0] <= 90 and buffer != b"\r":  # A to Z
                raise Rejected(400, "This is not an HTTP request")
            if _has_bare_newline(buffer, self._searched):
                raise Rejected(400, "A line of the request's head ends without a carriage return")
            self._searched = len(buffer)
            return None
        self._body_start = end + 4
        return self._parse(buffer[:end].decode("latin-1"))

    def _parse(self, text: str) -> Request:
        line, _, rest = text.partition("\r\n")
        method, target, version = parse_request_line(line)
        last = self._last
        if last is not None and last[0] == rest and last[1] == version and last[2] is self.limits:
            fields = last[3]
        else:
            fields = parse_fields(rest, version, self.limits)
            self._last = (rest, version, self.limits, fields)
        self._length = fields.length
        self._expects_continue = fields.expects_continue
        path, _, query = target.partition("?")
        if "%" in path:
            path = unquoted(path)
        return Request(method, path, query, fields.values, self._address, b"", version, fields.keeps_alive)

    def _follow_chunks(self, buffer: bytearray) -> bool:
        """Decode a chunked body as far as it has come; return True at its end.

        A chunk costs as much work as a hundred bytes. So the number of chunks in one turn is limited, and that of a
        body, too, by its size.
        """
        if self._chunks is None:
            self._chunks = bytearray()
        position = self._body_start
        budget = _CHUNKS_AT_ONCE
        try:
            while True:
                if not budget:
                    self.more = True
                    return False
                budget -= 1
                line_end = buffer.find(b"\r\n", position, position + _CHUNK_LINE_MAX)
                if line_end < 0:
                    if len(buffer) - position >= _CHUNK_LINE_MAX:
                        raise Rejected(400, "A chunk's first line is too long")
                    return False
                match = _CHUNK.match(buffer[position:line_end])
                if match is None:
                    raise Rejected(400, "A chunk's size is not a hexadecimal number")
                size = int(match[1], 16)
                if size == 0:
                    end = self._end_of_trailers(buffer, line_end + 2)
                    if end < 0:
                        return False
                    position = end
                    return True
                if len(self._chunks) + size > self.limits.body_bytes:
                    raise Rejected(413, f"The body is larger than {self.limits.body_bytes} bytes (api.max_body_bytes)")
                end = line_end + 2 + size
                if len(buffer) < end + 2:
                    return False
                if buffer[end : end + 2] != b"\r\n":
                    raise Rejected(400, "A chunk does not end where its size says")
                self._chunks += buffer[line_end + 2 : end]
                self._count_chunk(line_end - position - len(match[1]))
                position = end + 2
        finally:
            # Decoded bytes are removed once for all chunks that came together: each removal moves the rest.
            del buffer[self._body_start : position]

    def _count_chunk(self, extension_bytes: int) -> None:
        self._chunk_count += 1
        self._extension_bytes += extension_bytes
        if self._chunk_count > _CHUNKS_FREE + len(self._chunks or b"") // _CHUNK_MEAN_BYTES:
            raise Rejected(400, "The body comes in too many small chunks; send larger ones")
        if self._extension_bytes > _EXTENSIONS_MAX_BYTES:
            raise Rejected(400, f"The chunks have more than {_EXTENSIONS_MAX_BYTES} bytes of extensions")

    def _end_of_trailers(self, buffer: bytearray, start: int) -> int:
        """Return where the request ends; -1 if its end has not come yet.

        Trailers are checked as header fields are, and dropped: they are not used.
        """
        if buffer[start : start + 2] == b"\r\n":
            return start + 2
        seen = start + self._trailer_seen
        end = buffer.find(b"\r\n\r\n", max(start, seen - 3))
        if (end if end >= 0 else len(buffer)) - start > self.limits.head_bytes:
            raise Rejected(431, f"The request's trailer is larger than {self.limits.head_bytes} bytes")
        if end < 0:
            if _has_bare_newline(buffer, max(start, seen)):
                raise Rejected(400, "A line of the request's trailer ends without a carriage return")
            self._trailer_seen = len(buffer) - start
            return -1
        parse_lines(buffer[start:end].decode("latin-1"), self.limits)
        return end + 4


def _has_bare_newline(buffer: bytearray, start: int) -> bool:
    """Whether a line after ``start`` ends without a carriage return."""
    found = buffer.find(b"\n", start)
    while found >= 0:
        if found == 0 or buffer[found - 1] != 13:
            return True
        found = buffer.find(b"\n", found + 1)
    return False


def unquoted(path: str) -> str:
    """Return a path without its percent-escapes, as bytes shown in Latin-1; an escaped slash stays escaped."""
    parts = _ESCAPED_SLASH.split(path)
    return "%2F".join(urllib.parse.unquote_to_bytes(part).decode("latin-1") for part in parts)


def parse_request_line(line: str) -> tuple[str, str, tuple[int, int]]:
    """Return method, target and version.

    Raises:
        Rejected: it is malformed, or another version of HTTP.
    """
    match = _REQUEST_LINE.match(line)
    if match is None:
        raise Rejected(400, "The request line is malformed")
    method, target, major, minor = match.groups()
    if major != "1":
        raise Rejected(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here")
    if target[0] != "/":
        raise Rejected(400, "The request's target must begin with /")
    return method, target, (1, int(minor))


def parse_fields(text: str, version: tuple[int, int], limits: Limits) -> Fields:
    """Parse header fields; ``text`` is without the line end after the last one.

    Raises:
        Rejected: one is malformed, there are too many, or they contradict each other.
    """
    values = parse_lines(text, limits)
    if version >= (1, 1) and "host" not in values:
        raise Rejected(400, "The request has no Host header")  # RFC 9112, section 3.2
    options = values.get("connection", "").lower()
    return Fields(
        values,
        _body_length(values, version, limits),
        "keep-alive" in options if version < (1, 1) else "close" not in options,
        version >= (1, 1) and values.get("expect", "").lower() == "100-continue",
    )


def parse_lines(text: str, limits: Limits) -> dict[str, str]:
    """Return header or trailer fields by lower-case name; ``text`` is without the line end after the last one.

    Raises:
        Rejected: one is malformed or given twice, or there are too many.
    """
    lines = text.split("\r\n") if text else []
    if len(lines) > limits.fields:
        raise Rejected(431, f"The request has more than {limits.fields} header fields (api.max_headers)")
    values: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        # A name that begins or ends with a space (a folded line, RFC 9112 section 5.2) is no token.
        if not colon or not _TOKEN.match(name) or _FORBIDDEN.search(value):
            raise Rejected(400, "A header field is malformed")
        name, value = name.lower(), value.strip(" \t")
        if name in values:
            if name in _ONCE:
                raise Rejected(400, f"The header field {name} is given twice")
            value = f"{values[name]}, {value}"
        values[name] = value
    return values


def _body_length(values: Mapping[str, str], version: tuple[int, int], limits: Limits) -> int:
    """Return the body's length, -1 for a chunked one."""
    coding, length = values.get("transfer-encoding"), values.get("content-length")
    if coding is not None:
        if length is not None:
            raise Rejected(400, "The request has both Content-Length and Transfer-Encoding")
        if coding.lower() != "chunked" or version < (1, 1):
            raise Rejected(400, "The only transfer coding taken here is chunked, in HTTP/1.1")
        return -1
    if length is None:
        return 0
    if _LENGTH.match(length) is None:
        raise Rejected(400, "The Content-Length is not a number")
    if int(length) > limits.body_bytes:
        raise Rejected(413, f"The body is larger than {limits.body_bytes} bytes (api.max_body_bytes)")
    return int(length)

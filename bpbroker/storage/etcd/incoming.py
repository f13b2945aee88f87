"""A response of etcd's gateway as it comes over the wire: HTTP/1.1, in pieces of any size.

No socket, no thread: bytes go in, the body comes out. ``http.client`` parses each head
with the parser for mail, and that took more than half of the CPU time of a request; etcd
sends four header fields.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

_HEAD_MAX_BYTES: Final = 64 * 1024
_LINE_MAX_BYTES: Final = 1024
"""Of the line before a chunk."""
_STATUS_DIGITS: Final = 3
_NO_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_DIGITS: Final = b"0123456789abcdefABCDEF"


class BrokeOff(Exception):
    """What came is no response, or not a whole one."""


class Incoming:
    """The response to one request.

    A body has a length, or chunks, or ends with the connection.
    """

    __slots__ = ("_body", "_chunked", "_left", "_rest", "keep_alive", "status", "whole")

    def __init__(self) -> None:
        self.status = 0
        """0 until the head is there."""
        self.whole = False
        """Whether nothing more is to come."""
        self.keep_alive = False
        """Whether another request may be sent on the connection; known with the head."""
        self._rest = b""
        """What has come and is not understood yet."""
        self._body: list[bytes] = []
        self._chunked = False
        self._left: int | None = None
        """Bytes that the body still lacks; None if only the end of the connection tells, or chunks do."""

    def feed(self, data: bytes) -> None:
        """Take what has come; nothing: the connection has ended.

        Raises:
            BrokeOff: it is no response, or it ends in the middle.
        """
        if not data:
            if not self.status or self._chunked or self._left is not None:
                raise BrokeOff("the connection ended before the response did")
            self.whole = True
            return
        if not self.status:
            data = self._rest + data if self._rest else data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if not data.startswith(b"HTTP/1."[: len(data)]) or len(data) > _HEAD_MAX_BYTES:
                    raise BrokeOff("this is no HTTP")
                self._rest = data
                return
            self._rest = b""
            self._take_head(data[:end])
            data = data[end + 4 :]
            if not self.status:  # it was one before the real one
                if data:
                    self.feed(data)
                return
        if self._chunked:
            self._take_chunks(data)
        else:
            self._take(data)

    def take(self) -> bytes:
        """Return what has come of the body since the last time."""
        body = self._body
        if not body:
            return b""
        self._body = []
        return body[0] if len(body) == 1 else b"".join(body)

    def _take_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        code = rest.partition(b" ")[0]
        if not version.startswith(b"HTTP/1.") or len(code) != _STATUS_DIGITS or not code.isdigit():
            raise BrokeOff("this is no HTTP")
        status = int(code)
        if code.startswith(b"1") and status != HTTPStatus.SWITCHING_PROTOCOLS:
            return  # such as "100 Continue": the real one follows
        self.status = status
        self.keep_alive = version == b"HTTP/1.1"
        self._left = None
        for line in lines:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-length":
                self._left = _number(value.strip(), 10)
            elif name == b"transfer-encoding":
                self._chunked = value.strip().lower() == b"chunked"
                if not self._chunked:
                    raise BrokeOff("the response is encoded in a way that was not asked for")
            elif name == b"connection" and value.strip().lower() == b"close":
                self.keep_alive = False
        if status in _NO_BODY:
            self._chunked, self._left = False, 0
        if not self._chunked:
            self.keep_alive = self.keep_alive and self._left is not None
            self.whole = self._left == 0

    def _take(self, data: bytes) -> None:
        left = self._left
        if left is None:
            self._body.append(data)
        elif data:
            if len(data) > left:  # what does not belong to it belongs to nothing
                data, self.keep_alive = data[:left], False
            self._body.append(data)
            self._left = left - len(data)
            self.whole = not self._left

    def _take_chunks(self, data: bytes) -> None:
        """Take chunks that have come whole; each has a line with its length before it, and a line's end behind it."""
        data = self._rest + data if self._rest else data
        at = 0
        while not self.whole:
            line = data.find(b"\r\n", at)
            if line < 0:
                if len(data) - at > _LINE_MAX_BYTES:
                    raise BrokeOff("a chunk has no length")
                break
            begin = line + 2
            size = _number(data[at:line].partition(b";")[0].strip(), 16)
            end = begin + size
            if len(data) < end + 2:
                break
            if data[end : end + 2] != b"\r\n":
                raise BrokeOff("a chunk is longer than it says, or fields follow the body")
            if size:
                self._body.append(data[begin:end])
            else:
                self.whole = True
            at = end + 2
        self._rest = data[at:]
        if self.whole and self._rest:
            self.keep_alive = False


def _number(digits: bytes, base: int) -> int:
    if digits.strip(_DIGITS):  # int() also takes signs, blanks, underscores, and 0x
        raise BrokeOff("a length is no number")
    try:
        return int(digits, base)
    except ValueError:
        raise BrokeOff("a length is no number") from None

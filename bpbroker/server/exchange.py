"""One request and its answer, as WSGI sees them (PEP 3333): environ in, bytes out.

cheroot's own request and gateway parse once more what is parsed already and
cost three times as much as everything else that a small call needs (measured:
60 of 90 µs); an answer of this broker is always complete, so nothing is
streamed or chunked.
"""

from __future__ import annotations

import io
import re
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from typing import Any, Final

from bpbroker.server.framing import Fields, Head
from bpbroker.server.response import PendingResponse, Response

Application = Callable[[dict[str, Any], Callable[..., Any]], Any]

_ESCAPED_SLASH: Final = re.compile("%2[Ff]")
_BODILESS: Final = ("1", "204", "304")
SERVER_NAME: Final = "bpbroker"


def environ_of(fields: Fields, peer: tuple[str, int], port: int) -> dict[str, Any]:
    """Give the part of WSGI's environ that stays the same while a client repeats its header fields.

    Fields with an underscore in their name are left out: they would look the same as those with a hyphen.
    """
    environ: dict[str, Any] = {
        "ACTUAL_SERVER_PROTOCOL": "HTTP/1.1",
        "HTTPS": "on",
        "REMOTE_ADDR": peer[0],
        "REMOTE_PORT": str(peer[1]),
        "SCRIPT_NAME": "",
        "SERVER_NAME": SERVER_NAME,
        "SERVER_PORT": str(port),
        "SERVER_SOFTWARE": SERVER_NAME,
        "wsgi.errors": sys.stderr,
        "wsgi.input_terminated": True,
        "wsgi.multiprocess": False,
        "wsgi.multithread": True,
        "wsgi.run_once": False,
        "wsgi.url_scheme": "https",
        "wsgi.version": (1, 0),
    }
    for name, value in fields.values.items():
        if name == "content-type":
            environ["CONTENT_TYPE"] = value
        elif name == "content-length":
            environ["CONTENT_LENGTH"] = value
        elif "_" not in name:
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    return environ


def unquoted(path: str) -> str:
    """Give a path without its percent-escapes, as bytes shown in Latin-1; an escaped slash stays escaped."""
    if "%" not in path:
        return path
    parts = _ESCAPED_SLASH.split(path)
    return "%2F".join(urllib.parse.unquote_to_bytes(part).decode("latin-1") for part in parts)


class Exchange:
    """A request that is complete, and what becomes of it.

    Args:
        environ: from :func:`environ_of`; it is copied.
        head: the request's line and fields.
        body: the request's body.
    """

    __slots__ = ("_body_wanted", "_environ", "_headers", "_keep_alive", "_old", "_status", "_written")

    def __init__(self, environ: Mapping[str, Any], head: Head, body: bytes) -> None:
        path, _, query = head.target.partition("?")
        self._old = head.version < (1, 1)
        self._keep_alive = head.keeps_alive
        self._body_wanted = head.method != "HEAD"
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._written: list[bytes] = []
        self._environ: dict[str, Any] = {
            **environ,
            "REQUEST_METHOD": head.method,
            "REQUEST_URI": head.target,
            "PATH_INFO": unquoted(path),
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": "HTTP/1.0" if self._old else "HTTP/1.1",
            "wsgi.input": io.BytesIO(body),
        }

    def serve(self, application: Application) -> bytes | PendingResponse:
        """Run the application; give the whole answer, or what it owes."""
        result = application(self._environ, self._start_response)
        self._environ = {}  # a request that waits need not keep its body
        if isinstance(result, PendingResponse):
            return result
        return self.answer(result)

    def answer(self, chunks: Iterable[bytes]) -> bytes:
        """Give the whole answer, head and body, for what the application returned.

        Raises:
            ValueError: the application's status or headers cannot be sent.
        """
        body = b"".join([*self._written, *chunks])
        lines = [f"HTTP/1.1 {self._status}", *(f"{name}: {value}" for name, value in self._headers)]
        if self._status.startswith(_BODILESS):
            body = b""
        elif not any(name.lower() == "content-length" for name, _ in self._headers):
            lines.append(f"Content-Length: {len(body)}")
        lines.append(_date_and_server())
        if not self._keep_alive:
            lines.append("Connection: close")
        elif self._old:
            lines.append("Connection: keep-alive")
        head = "\r\n".join(lines)
        # The line of date and server is two; any other line end would be a header, or an answer, of its own.
        if not self._status or head.count("\n") != len(lines) or head.count("\r") != len(lines):
            raise ValueError("The application gave a status or header that cannot be sent")
        return f"{head}\r\n\r\n".encode("latin-1") + (body if self._body_wanted else b"")

    def close_after(self) -> None:
        """Let the connection end with this answer."""
        self._keep_alive = False

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection goes on after this answer."""
        return self._keep_alive

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], _exc_info: Any = None
    ) -> Callable[[bytes], None]:
        self._status, self._headers = status, headers
        return self._written.append


_date: tuple[float, str] = (0.0, "")


def _date_and_server() -> str:
    """Give the fields ``Date`` and ``Server``; formatting a date costs 6 µs, so it is kept for its second."""
    global _date  # noqa: PLW0603 - a cache of one value, replaced as a whole
    now = time.time()
    until, text = _date
    if now >= until or now < until - 1:
        text = f"Date: {formatdate(now, usegmt=True)}\r\nServer: {SERVER_NAME}"
        _date = (int(now) + 1.0, text)
    return text


def whole(response: Response) -> bytes:
    """Give a whole answer that ends its connection, for what never becomes an exchange."""
    head = (
        f"HTTP/1.1 {response.status_line}\r\nContent-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n{_date_and_server()}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + response.body

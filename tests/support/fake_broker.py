"""A made-up broker: TLS with a real certificate, and answers as a test likes them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import trustme

from tests.support.systems import end_listening


class Request:
    """What the client sent."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def read_request(sock: ssl.SSLSocket) -> Request | None:
    with sock.makefile("rb") as file:
        line = file.readline().decode()
        if not line:
            return None
        method, path, _ = line.split(" ")
        headers = {}
        while (field := file.readline().decode().strip()) != "":
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        return Request(method, path, headers, file.read(int(headers.get("content-length", "0"))))


def answer(status: int = 200, body: Any = None, **headers: str) -> bytes:
    """Return an answer as bytes; a body that is no bytes becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Length": str(len(content)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Some Reason\r\n{head}\r\n".encode() + content


def success(data: Any, **headers: str) -> bytes:
    return answer(200, {"success": True, "message": "Success", "data": data}, **headers)


def failure(status: int, message: str, **headers: str) -> bytes:
    return answer(status, {"success": False, "message": message, "data": {}}, **headers)


Handler = Callable[[ssl.SSLSocket], None]


class Identity(NamedTuple):
    """A certificate with its key, ready for connections; making one takes longer than many tests."""

    context: ssl.SSLContext
    fingerprint: str

    @classmethod
    def issued(cls, authority: trustme.CA, *names: str) -> Identity:
        made = authority.issue_cert(*(names or ("127.0.0.1", "localhost")))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.configure_cert(context)
        der = ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())
        return cls(context, hashlib.sha256(der).hexdigest())


class FakeBroker:
    """Returns ``answers`` in order, one a request, the last one for ever; or does what ``handler`` does."""

    def __init__(self, shown: trustme.CA | Identity) -> None:
        self.answers: list[bytes] = [success({})]
        self.requests: list[Request] = []
        self.connections = 0
        self.handler: Handler = self._serve
        self._identity = shown if isinstance(shown, Identity) else Identity.issued(shown)
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def show(self, authority: trustme.CA, *names: str) -> None:
        """Show another certificate from now on."""
        self._identity = Identity.issued(authority, *names)

    @property
    def fingerprint(self) -> str:
        """Of the certificate that it shows now."""
        return self._identity.fingerprint

    def close(self) -> None:
        end_listening(self._sock)
        self._accepting.join(10)
        for sock in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS' own lets a thread that reads fail in other ways
        for thread in self._threads:
            thread.join(10)
        for sock in self._open:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            thread = threading.Thread(target=self._connection, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _connection(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw:
            sock = self._identity.context.wrap_socket(raw, server_side=True)
            self._open.append(sock)
            with sock:
                self.handler(sock)

    def _serve(self, sock: ssl.SSLSocket) -> None:
        while (request := read_request(sock)) is not None:
            self.requests.append(request)
            content = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            sock.sendall(content)
            if b"\r\nConnection: close\r\n" in content or content == b"":
                return

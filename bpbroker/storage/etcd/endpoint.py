"""One endpoint of an etcd cluster, by urllib3: its connection, TLS, and what their errors mean.

Import it late: urllib3 is installed only with the extra ``etcd``.
"""

from __future__ import annotations

import errno
import json
import socket
import ssl
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPException, NotConnected
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
)
from urllib3.exceptions import TimeoutError as UrllibTimeoutError

from bpbroker import files
from bpbroker.errors import ConfigurationError
from bpbroker.storage.etcd.incoming import BrokeOff, Incoming
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.responses import Failed, document, error, results
from bpbroker.text import mark_fault

_CONNECT_SECS: Final = 1.0
_RECEIVE_BYTES: Final = 64 * 1024
_HEADERS: Final = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "bpbroker"}
_READ_AT_ONCE_BYTES: Final = 512
"""How many bytes the gateway has surely read before it responds: the first read of Go's ``json.Decoder``. With 64
renewals in one body (1.7 KB), every second body lost some."""
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))

# Numbers of OpenSSL's x509_vfy.h.
_OTHER_NAME: Final = frozenset({62, 63, 64})
_ALERTS: Final = frozenset(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE", "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED", "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    }
)  # fmt: skip
"""How a member says that it does not accept our certificate, or wants one; names as OpenSSL gives them."""
_NO_WAY: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})


def tls_context(options: EtcdOptions) -> ssl.SSLContext:
    """Return the TLS context: it verifies the members, and has the client certificate for them.

    Without ``ca_cert`` the authorities of the system count.

    Raises:
        ConfigurationError, StartError: a file cannot be read, or is no certificate, or the key does not fit.
    """
    path, marked = "", ""
    try:
        for path in filter(None, (options.client_cert, options.client_key, options.ca_cert)):
            with Path(path).open("rb") as file:
                # Here, for OpenSSL names no file, and calls what the disk cannot read "no PEM".
                marked = marked or mark_fault(file.read(3))
        context = ssl.create_default_context(cafile=options.ca_cert)
        if options.client_cert is not None and options.client_key is not None:
            path = f"{options.client_cert} and {options.client_key}"
            # OpenSSL would ask at the terminal for the passphrase of an encrypted key.
            context.load_cert_chain(options.client_cert, options.client_key, password=lambda: b"")
    except ssl.SSLError as fault:
        reason = "the key does not fit the certificate" if fault.reason == "KEY_VALUES_MISMATCH" else "no PEM"
        reason = f"{reason}, {marked}" if marked else reason
        raise ConfigurationError(f"_registry: cannot use {path}: {reason}") from None
    except OSError as fault:
        raise files.start_error(f"_registry: cannot read {path}: {fault.strerror}", fault) from None
    return context


class Endpoint:
    """One endpoint and the connection to it; to be used by one thread at a time, except :meth:`hang_up`.

    Args:
        url: scheme, host and port, such as ``https://10.0.0.5:2379``.
        context: how it is verified.
    """

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 2379
        self._connection = (
            HTTPSConnection(host, port, ssl_context=context) if parts.scheme == "https" else HTTPConnection(host, port)
        )
        self._connection.auto_open = 0  # what is asked first on a new connection is not ours to say
        self._host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._headers = _HEADERS
        self._head = self._head_of(_HEADERS)
        self._streaming: socket.socket | None = None

    @property
    def token(self) -> str | None:
        """The token of the etcd user, which every request carries; None after a connection was lost.

        A member keeps tokens in memory. A restored member takes ours for one that it will learn of later, and waits.
        """
        return self._headers.get("Authorization")

    @token.setter
    def token(self, token: str | None) -> None:
        self._headers = {**_HEADERS, "Authorization": token} if token is not None else _HEADERS
        self._head = self._head_of(self._headers)

    def _head_of(self, headers: Mapping[str, str]) -> str:
        """Return the head of a request without its first line and its length."""
        return f"Host: {self._host}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    @property
    def connected(self) -> bool:
        """Whether there is a connection, and the endpoint has not closed it."""
        return self._connection.is_connected

    def connect(self, secs: float) -> None:
        """Make a new connection within ``secs``; close an earlier one.

        Raises:
            Failed: it cannot be made.
        """
        if self._connection.sock is not None:  # the endpoint closed it, we did not
            self.token = None
        self._connection.close()
        self._connection.timeout = min(_CONNECT_SECS, secs)
        with self._failing():
            self._connection.connect()

    def post(self, path: str, body: Mapping[str, Any], secs: float) -> dict[str, Any]:
        """Send a request and return the document of its response.

        ``secs`` is how long the endpoint may be silent.

        Raises:
            Refused, Failed: it did not do what it was asked.
        """
        return document(self._exchange(path, json.dumps(body), secs))

    def post_each(self, path: str, bodies: Sequence[Mapping[str, Any]], secs: float) -> list[dict[str, Any]]:
        """Send several requests of a streaming method, and return the results in their order.

        They are sent in as few HTTP requests as the gateway reads whole. It reads on while it responds, but Go's server
        for HTTP/1.1 drops unread bytes when the first response goes out. Requests without a response are sent again.

        ``secs`` is how long the endpoint may be silent.

        Raises:
            Refused, Failed: it did not do what it was asked.
        """
        lines = [_COMPACT.encode(body) for body in bodies]
        found: list[dict[str, Any]] = []
        while len(found) < len(lines):
            part = lines[len(found) : _end_of_part(lines, len(found))]
            found += results(self._exchange(path, "\n".join(part), secs), len(part))
        return found

    def _exchange(self, path: str, content: str, secs: float) -> bytes:
        """Send a request and return the body of its response."""
        with self._failing():
            sock = self._send(path, content, secs)
            response = Incoming()
            while not response.whole:
                response.feed(sock.recv(_RECEIVE_BYTES))
            if not response.keep_alive:
                self._connection.close()
        data = response.take()
        if response.status != HTTPStatus.OK:
            raise error(data)
        return data

    def _send(self, path: str, content: str, secs: float, more: str = "") -> socket.socket:
        """Send a request; return the connection, on which the endpoint may be silent for ``secs``.

        urllib3's own requests and responses take several times as long, for what etcd never sends.
        """
        sock = self._connection.sock
        if sock is None:
            raise NotConnected
        sock.settimeout(secs)
        head = f"POST /v3{path} HTTP/1.1\r\n{self._head}{more}Content-Length: {len(content)}\r\n\r\n"
        sock.sendall((head + content).encode())  # json.dumps leaves nothing but ASCII
        return sock

    def stream(self, path: str, body: Mapping[str, Any], silent_secs: float) -> Generator[dict[str, Any], None, None]:
        """Send a request and yield the messages of its response as they come; the connection is of no use afterwards.

        Ends when nothing came for ``silent_secs``.

        Raises:
            Refused, Failed: it did not do what it was asked, or ended the response.
        """
        try:
            with self._failing():
                # Without a leader the endpoint shall end the watch instead of staying silent.
                sock = self._send(path, json.dumps(body), silent_secs, "Grpc-Metadata-hasleader: true\r\n")
                self._streaming = sock
                if not (yield from _messages(sock)):
                    return
        finally:
            self._streaming = None
            self.close()
        raise Failed("it ended the watch", sent=False)

    def hang_up(self) -> None:
        """Make a :meth:`stream` in another thread end now."""
        sock = self._streaming
        if sock is not None:
            _shut_down(sock)

    def cut(self) -> None:
        """Make whatever another thread does with the connection end now; that thread closes it."""
        sock = self._connection.sock
        if sock is not None:
            _shut_down(sock)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Close the connection at an error in the body, and say what it means.

        Raises:
            Failed: there was one.
        """
        try:
            yield
        except (HTTPError, HTTPException, BrokeOff, OSError) as fault:
            self._connection.close()
            self.token = None
            raise _failed(fault) from None


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # it has just ended
        # That of SSLSocket would also take the encryption away from the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _end_of_part(lines: Sequence[str], begin: int) -> int:
    """Return up to which line one body of a streaming method goes: one at least, else what is read at once."""
    end, size = begin, -1
    while end < len(lines) and (size := size + 1 + len(lines[end])) <= _READ_AT_ONCE_BYTES:
        end += 1
    return max(end, begin + 1)


def _messages(sock: socket.socket) -> Generator[dict[str, Any], None, bool]:
    """Yield the JSON objects of a stream, a line each; its pieces end anywhere.

    Returns whether the endpoint has ended it; False: it has become silent.

    Raises:
        Refused, Failed: the endpoint refuses it.
        BrokeOff, OSError: the connection failed.
    """
    response, rest = Incoming(), b""
    while not response.whole:
        try:
            received = sock.recv(_RECEIVE_BYTES)
        except TimeoutError:
            if not response.status:
                raise
            return False
        response.feed(received)
        if response.status == HTTPStatus.OK:
            *lines, rest = (rest + response.take()).split(b"\n")
            for line in lines:
                if line.strip():
                    yield document(line)
    if response.status != HTTPStatus.OK:
        raise error(response.take())
    return True


def _failed(fault: Exception) -> Failed:
    """Return our error for one of the connection."""
    unsent = isinstance(fault, ConnectTimeoutError)  # a kind of it are those of names and addresses
    for cause in _causes(fault):
        for kind, meaning in _REASONS:
            if isinstance(cause, kind):
                return Failed(meaning, sent=not unsent)
        if isinstance(cause, ssl.SSLError):
            meaning = _distrust(cause)
            if meaning:
                return Failed(meaning, sent=False, distrust=True)
        elif isinstance(cause, OSError) and cause.errno in _NO_WAY:
            return Failed("there is no way to it", sent=not unsent)
    return Failed(f"the connection failed ({type(fault).__name__})", sent=not unsent)


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from, the origin first."""
    if fault is None:
        return
    yield from _causes(fault.__cause__ or fault.__context__)
    # What urllib3 wraps is the argument, too, and sometimes only that.
    yield from (wrapped for wrapped in fault.args if isinstance(wrapped, BaseException))
    yield fault


def _distrust(fault: ssl.SSLError) -> str:
    """Say which certificate is not accepted; empty for any other error of TLS."""
    if isinstance(fault, ssl.SSLCertVerificationError):
        other = fault.verify_code in _OTHER_NAME
        return "its certificate is for another name" if other else "its certificate cannot be verified"
    return "it refuses our certificate" if fault.reason in _ALERTS else ""


_REASONS: Final = (
    (ConnectionRefusedError, "nothing listens there"),
    ((socket.gaierror, NameResolutionError), "its name is not known"),
    ((ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError), "it broke off"),
    (NewConnectionError, "there is no way to it"),
    ((TimeoutError, UrllibTimeoutError), "it does not answer"),
    ((HTTPException, ProtocolError, BrokeOff), "it broke off"),
)
"""An error's class and what it means, the first that fits."""

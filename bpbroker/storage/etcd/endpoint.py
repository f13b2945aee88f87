"""One endpoint of an etcd cluster, by urllib3: connections, TLS, and what their errors mean.

Import it late: urllib3 is installed only with the extra ``etcd``.
"""

from __future__ import annotations

import errno
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)
from urllib3.exceptions import TimeoutError as UrllibTimeoutError

from bpbroker.errors import ConfigurationError
from bpbroker.storage.etcd.responses import Failed, document, error

if TYPE_CHECKING:
    from bpbroker.storage.etcd.gateway import EtcdOptions

_CONNECT_SECS: Final = 1.0
_ONCE: Final = urllib3.Retry(total=False)
"""No second try and no redirect: :mod:`bpbroker.storage.etcd.gateway` decides what comes next."""
_HEADERS: Final = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "bpbroker"}

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
    """Return how members are verified, and what they are shown.

    Without ``ca_cert`` the authorities of the system count.

    Raises:
        ConfigurationError: a file cannot be read, or is no certificate, or the key does not fit.
    """
    path = options.ca_cert or ""
    try:
        context = ssl.create_default_context(cafile=options.ca_cert)
        if options.client_cert is not None and options.client_key is not None:
            path = f"{options.client_cert} and {options.client_key}"
            for each in (options.client_cert, options.client_key):
                with open(each, "rb"):  # noqa: PTH123 - the error names the file, that of OpenSSL does not
                    pass
            # OpenSSL would ask at the terminal for the passphrase of an encrypted key.
            context.load_cert_chain(options.client_cert, options.client_key, password=lambda: b"")
    except ssl.SSLError as fault:
        reason = "the key does not fit the certificate" if fault.reason == "KEY_VALUES_MISMATCH" else "no PEM"
        raise ConfigurationError(f"_registry: cannot use {path}: {reason}") from None
    except OSError as fault:
        raise ConfigurationError(f"_registry: cannot read {fault.filename or path}: {fault.strerror}") from None
    return context


class Endpoint:
    """One endpoint and the connections to it.

    Args:
        url: scheme, host and port, such as ``https://10.0.0.5:2379``.
        context: how it is verified.
    """

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 2379
        # Two: at the end of a broker its last call may still be under way when the keys are tidied up.
        self._pool = (
            urllib3.HTTPSConnectionPool(host, port, maxsize=2, ssl_context=context)
            if parts.scheme == "https"
            else urllib3.HTTPConnectionPool(host, port, maxsize=2)
        )
        self._headers = _HEADERS
        self._stream: urllib3.BaseHTTPResponse | None = None

    @property
    def token(self) -> str | None:
        """The token of the etcd user, which every request carries."""
        return self._headers.get("Authorization")

    @token.setter
    def token(self, token: str | None) -> None:
        self._headers = {**_HEADERS, "Authorization": token} if token is not None else _HEADERS

    def post(self, path: str, body: Mapping[str, Any], secs: float) -> dict[str, Any]:
        """Send a request and return the document of its response.

        ``secs`` is how long the endpoint may be silent.

        Raises:
            Refused, Failed: it did not do what it was asked.
        """
        try:
            response = self._pool.urlopen(
                "POST", f"/v3{path}", json.dumps(body).encode(), self._headers, _ONCE,
                redirect=False, assert_same_host=False,
                timeout=urllib3.Timeout(connect=min(_CONNECT_SECS, secs), read=secs),
            )  # fmt: skip
            data = response.data
        except (HTTPError, HTTPException, OSError) as fault:
            raise _failed(fault) from None
        if response.status != 200:
            raise error(data)
        return document(data)

    def stream(self, path: str, body: Mapping[str, Any], silent_secs: float) -> Iterator[dict[str, Any]]:
        """Send a request and yield the messages of its response as they come.

        Ends when nothing came for ``silent_secs``.

        Raises:
            Refused, Failed: it did not do what it was asked, or ended the response.
        """
        try:
            response = self._pool.urlopen(
                # Without a leader the endpoint shall end the watch instead of staying silent.
                "POST", f"/v3{path}", json.dumps(body).encode(), {**self._headers, "Grpc-Metadata-hasleader": "true"},
                _ONCE, redirect=False, assert_same_host=False, preload_content=False,
                timeout=urllib3.Timeout(connect=_CONNECT_SECS, read=silent_secs),
            )  # fmt: skip
        except (HTTPError, HTTPException, OSError) as fault:
            raise _failed(fault) from None
        try:
            if response.status != 200:
                raise error(response.data)
            self._stream = response
            yield from _messages(response)
        except ReadTimeoutError:
            return
        except (HTTPError, HTTPException, OSError) as fault:
            raise _failed(fault) from None
        finally:
            self._stream = None
            response.close()
        raise Failed("it ended the watch", sent=False)

    def hang_up(self) -> None:
        """Make a :meth:`stream` in another thread end now."""
        stream = self._stream
        if stream is not None:
            with suppress(OSError, ValueError, RuntimeError):  # it has just ended
                stream.shutdown()

    def close(self) -> None:
        """Close all connections that are not in use; a call that is under way closes its own."""
        self.hang_up()
        self._pool.close()


def _messages(response: urllib3.BaseHTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream, a line each; its pieces end anywhere."""
    rest = b""
    for piece in response.stream():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield document(line)


def _failed(fault: Exception) -> Failed:
    """Return what an error of the connection means."""
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
    ((HTTPException, ProtocolError), "it broke off"),
)
"""An error's class and what it means, the first that fits."""

"""TLS on a connected socket, as far as the client needs it.

The C module below :mod:`ssl` does the work. Loading :mod:`ssl` makes enumerations of hundreds of constants, which are
not needed here: a tenth of the cost of a one-shot call. So tested versions of CPython do without it; any other Python
uses :mod:`ssl`, because the C module may change from one version to the next. The checks are the same with both:
OpenSSL and the C module make them.

Loaded when a connection is made: ``bpclient discover`` needs none of it.
"""

from __future__ import annotations

from bpbroker.client.sockets import BARE

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    import socket
    import ssl as native
    from hashlib import sha256
    from typing import Any, Final, Protocol, TypeAlias

    Settings: TypeAlias = native.SSLContext

    class TlsSocket(Protocol):
        """A connection with TLS. Its errors are those of :mod:`ssl`."""

        def do_handshake(self) -> None:
            """Do the handshake, or its next step."""

        def getpeercert(self, binary_form: bool, /) -> Any:
            """Return the server's certificate, in DER if ``binary_form``; None if there is none."""

        def recv(self, size: int, /) -> bytes:
            """Return what has come, at most ``size`` bytes; nothing at the end of the connection."""

        def send(self, data: memoryview, /) -> int:
            """Send the beginning of ``data``, and return how many bytes that was."""

        def settimeout(self, secs: float | None, /) -> None:
            """Set how long each of these methods may take; 0: they do not wait."""

        def getsockname(self) -> Any:
            """Return this host's address on the connection."""

        def fileno(self) -> int:
            """Return the descriptor, for a selector."""

        def close(self) -> None:
            """End the connection."""

elif BARE:
    import _ssl as native
    from _hashlib import openssl_sha256 as sha256  # hashlib loads all its algorithms, for 1 ms
    from _ssl import _SSLContext as Settings
else:
    import ssl as native
    from hashlib import sha256
    from ssl import SSLContext as Settings

Error: Final = native.SSLError
CertificateRefused: Final = native.SSLCertVerificationError
CutOff: Final = native.SSLEOFError
WantRead: Final = native.SSLWantReadError
WantWrite: Final = native.SSLWantWriteError
_TLS_1_2: Final[Any] = 0x0303


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate in DER, as 64 hexadecimal digits."""
    return sha256(certificate).hexdigest()


def new_settings(*, checks: bool) -> Settings:
    """Return a client's settings, for TLS 1.2 and later.

    Args:
        checks: whether the server's certificate must be for its name, and signed by an authority, to be loaded later.
            If not, any certificate is accepted, and the caller checks it.
    """
    settings = Settings(native.PROTOCOL_TLS_CLIENT)  # this one checks
    settings.minimum_version = _TLS_1_2
    if not checks:
        settings.check_hostname = False
        settings.verify_mode = native.CERT_NONE
    return settings


def wrap(raw: socket.socket, settings: Settings, host: bytes) -> TlsSocket:
    """Return a connected socket with TLS on it, before the handshake.

    Args:
        raw: the socket; from then on it belongs to the returned object.
        settings: of :func:`new_settings`.
        host: the server's name or address, as its certificate has it.
    """
    if not BARE:
        return settings.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
    bare: Any = settings
    return _BareSocket(raw, bare._wrap_socket(raw, False, host.decode("ascii")))  # noqa: SLF001 - as ssl.SSLSocket does


class _BareSocket:
    """Takes the place of :class:`ssl.SSLSocket`, without :mod:`ssl`.

    Args:
        raw: the socket; time limits are its own.
        tls: the C module's part, which knows the socket.
    """

    def __init__(self, raw: socket.socket, tls: Any) -> None:
        self._read = tls.read
        self.do_handshake = tls.do_handshake
        self.getpeercert = tls.getpeercert
        self.send = tls.write
        self.settimeout = raw.settimeout
        self.getsockname = raw.getsockname
        self.fileno = raw.fileno
        self.close = raw.close

    def recv(self, size: int) -> bytes:
        try:
            data: bytes = self._read(size)
        except Error as error:
            if error.args[0] != native.SSL_ERROR_EOF:
                raise
            return b""  # no close_notify of the server; HTTP shows whether all has come
        return data

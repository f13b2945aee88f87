"""One TLS connection to a broker: made when needed, kept, with a time limit for each step.

Nothing is sent before the server's certificate has been found to be the
expected one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from bpbroker.client.address import BrokerAddress, NotReached, host_bytes, unreached
from bpbroker.client.http1 import CutOff, NotHttp, Response, ResponseReader, request_bytes
from bpbroker.client.pins import KnownBrokers
from bpbroker.client.sockets import Socket, native
from bpbroker.errors import BpbrokerError, CannotConnect, NotTrusted, UsageError, WaitTimeout

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any, Final

    from bpbroker.client.tls import Settings, TlsSocket

CONNECT_SECS: Final = 10.0
"""Time limit of one attempt to reach one address."""
_SEND_BYTES: Final = 64 * 1024
# Two classes before Python 3.10.
_TIMED_OUT: Final = (TimeoutError, native.timeout)
_BUNDLE_MAX_BYTES: Final = 16 * 1024 * 1024


class Interrupted(CannotConnect):
    """The connection ended after the request was sent: the call may or may not have been carried out."""


class Trust:
    """How a server is recognised; with none of these, by the pin of its first contact.

    Args:
        fingerprints: SHA-256 of the certificates of which it must have one, canonical.
        cacert: PEM file of the authorities that may have signed its certificate, which must also be for its name.
        insecure: accept any certificate.
    """

    __slots__ = ("cacert", "fingerprints", "insecure")

    def __init__(self, fingerprints: Sequence[str] = (), cacert: str = "", insecure: bool = False) -> None:
        self.fingerprints = tuple(fingerprints)
        self.cacert = cacert
        self.insecure = insecure


class Deadline:
    """The end of the time for a call.

    Args:
        secs: from now.
        what: the subject of the error when the time is over.
        shown_secs: what the error says instead of ``secs``.
    """

    def __init__(self, secs: float, what: str, shown_secs: float = 0.0) -> None:
        self._end = time.monotonic() + secs
        self._secs = shown_secs or secs
        self._what = what

    def remaining(self) -> float:
        """Return the seconds left.

        Raises:
            WaitTimeout: none are left.
        """
        left = self.left()
        if left <= 0:
            raise self.over()
        return left

    def left(self) -> float:
        """Return the seconds left, 0 or less when it is over."""
        return self._end - time.monotonic()

    def over(self) -> WaitTimeout:
        """Return the error that the time is over."""
        return WaitTimeout(f"{self._what} did not answer within {self._secs:.3g} s; --timeout gives it longer")


class Transport:
    """Sends requests to one broker and returns its responses. Not for several threads at once.

    Args:
        address: of the broker.
        trust: how it is recognised.
        pins: the certificates seen before.
        others: further addresses, of the same broker or of others of its registry.
        tell: called with a sentence for the person, for each address that was rejected although another one worked.
        dial: makes the connection in another way, within the given seconds; returns None where that is not possible.
    """

    def __init__(
        self,
        address: BrokerAddress,
        trust: Trust,
        pins: KnownBrokers,
        others: Sequence[BrokerAddress] = (),
        tell: Callable[[str], None] = lambda _: None,
        dial: Callable[[float], Socket | None] = lambda _: None,
    ) -> None:
        self.address = address
        """The address in use: of several, the last one that worked."""
        self._others = [other for other in others if other != address]
        self._tell = tell
        self._dial_otherwise = dial
        self._trust = trust
        self._pins = pins
        self._settings: Settings | None = None
        self._sock: TlsSocket | None = None
        self.own_ip = ""
        """This host's address on the last connection."""

    def sibling(self) -> Transport:
        """Return another transport to the same broker, for another thread."""
        return Transport(self.address, self._trust, self._pins, self._others, self._tell, self._dial_otherwise)

    def exchange(
        self, method: str, path: str, headers: Mapping[str, bytes], body: bytes | None, deadline: Deadline
    ) -> Response:
        """Send a request and return the response, whatever its status.

        Raises:
            NotReached: no connection; nothing was sent.
            NotTrusted: the server is not the expected one; nothing was sent.
            Interrupted: the connection ended.
            CannotConnect: the bytes that came are no HTTP response.
            WaitTimeout: no response in time.
        """
        if self._sock is not None and _is_stale(self._sock):
            self.close()
        self.connect(deadline)
        assert self._sock is not None  # noqa: S101 - connect() made it or raised
        reader = ResponseReader(_receiver(self._sock, deadline))
        request = request_bytes(method, path, self._host_header(), headers, body)
        keep = False
        try:
            broken = _send(self._sock, request, deadline)
            answer = reader.answer()
            keep = answer.keep_alive and broken is None and reader.drained
        except _TIMED_OUT:
            raise deadline.over() from None
        except (CutOff, OSError) as error:
            how = "in the middle of its answer" if reader.started else "without an answer"
            why = f" ({error.strerror or error})" if isinstance(error, OSError) else ""
            raise Interrupted(
                f"{self.address} ended the connection {how}{why}; whether something was changed is not known"
            ) from None
        except NotHttp as error:
            raise CannotConnect(f"{self.address} is not a bpbroker: its answer is not HTTP, {error}") from None
        finally:
            if not keep:
                self.close()
        return answer

    def connect(self, deadline: Deadline) -> None:
        """Connect, if there is no connection, and check that the server is the expected one. Nothing is sent.

        Raises:
            NotReached, NotTrusted, CannotConnect, WaitTimeout: as of :meth:`exchange`.
        """
        if self._sock is None:
            self._sock = self._connect(deadline)

    def close(self) -> None:
        """Close the connection, if there is one; the next exchange makes a new one."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def _host_header(self) -> str:
        return str(BrokerAddress(self.address.host.partition("%")[0], self.address.port))

    def _connect(self, deadline: Deadline) -> TlsSocket:
        settings = self._settings = self._settings or self._make_settings()
        raw = self._dial_otherwise(min(CONNECT_SECS, deadline.remaining()))
        if raw is None:
            place = None if self._others else _numeric(self.address)
            if place is None:
                return self._connect_to_any(settings, deadline)
            raw = self._dial(place, deadline)
        try:
            return self._secure(raw, settings, deadline)
        except BaseException:  # interrupted, too, the socket is closed
            raw.close()
            raise

    def _connect_to_any(self, settings: Settings, deadline: Deadline) -> TlsSocket:
        """Connect to one of several addresses; the last one in use is tried first."""
        from bpbroker.client.dialing import Dialing

        addresses = [self.address, *self._others]
        dialing = Dialing(
            addresses,
            lambda raw, address: _wrapped(raw, settings, address),
            lambda sock, address: self._check(sock.getpeercert(True), address),
            self._handshake_failure,
        )
        self.address, sock = dialing.first(min(CONNECT_SECS, deadline.remaining()))
        self._others = [address for address in addresses if address != self.address]
        for sentence in dialing.rejected:
            self._tell(sentence)
        self.own_ip = _own_ip(sock)
        return sock

    def give_way(self) -> None:
        """Close the connection; the next one is to another of several addresses, if that is possible."""
        self.close()
        if self._others:
            self.address, *self._others = [*self._others, self.address]

    def _dial(self, place: tuple[Any, ...], deadline: Deadline) -> Socket:
        family, kind, protocol, _, where = place
        sock = Socket(family, kind, protocol)
        try:
            sock.settimeout(min(CONNECT_SECS, deadline.remaining()))
            sock.connect(where)
        except BaseException as error:  # interrupted, too, the socket is closed
            sock.close()
            if isinstance(error, BpbrokerError) or not isinstance(error, OSError):
                raise
            why = "no answer" if isinstance(error, _TIMED_OUT) else error.strerror or str(error)
            raise unreached(self.address, why) from None
        return sock

    def _secure(self, raw: Socket, settings: Settings, deadline: Deadline) -> TlsSocket:
        """Begin TLS on a TCP connection and check the broker's certificate."""
        raw.settimeout(deadline.remaining())
        sock: TlsSocket | None = None
        try:
            sock = _wrapped(raw, settings, self.address)
            sock.do_handshake()
            self._check(sock.getpeercert(True), self.address)
        except BaseException as error:  # interrupted, too, the socket is closed
            if sock is not None:
                sock.close()
            if isinstance(error, BpbrokerError):
                raise
            if isinstance(error, _TIMED_OUT):
                raise deadline.over() from None
            if isinstance(error, OSError):
                raise self._handshake_failure(error, self.address) from None
            raise
        self.own_ip = _own_ip(sock)
        return sock

    def _handshake_failure(self, error: OSError, address: BrokerAddress) -> CannotConnect:
        """Return the error for a failed handshake."""
        from bpbroker.client import tls

        if isinstance(error, tls.CertificateRefused):
            return NotTrusted(
                f"The certificate of {address} is not good by {self._trust.cacert}: "
                f"{error.verify_message}; nothing was sent"
            )
        if isinstance(error, tls.Error) and not isinstance(error, tls.CutOff):
            return CannotConnect(
                f"{address} is not a bpbroker: it does not speak TLS as one does ({error.reason or error})"
            )
        return NotReached(f"{address} ended the connection before it showed its certificate")

    def _make_settings(self) -> Settings:
        from bpbroker.client import tls  # here: `bpclient discover` needs none of it

        cacert = self._trust.cacert
        # Otherwise the certificate is compared with the expected one, byte for byte, before anything is sent.
        settings = tls.new_settings(checks=bool(cacert))
        if cacert:
            try:
                settings.load_verify_locations(cadata=_bundle(cacert))
            except (OSError, ValueError) as error:
                why = (error.strerror if isinstance(error, OSError) else None) or str(error)
                if isinstance(error, tls.Error):
                    why = "it holds no certificate in PEM form"
                raise UsageError(f"The file {cacert!r} of --cacert cannot be used: {why}") from None
        return settings

    def _check(self, certificate: bytes | None, address: BrokerAddress) -> None:
        """Check that the server is the expected one.

        Raises:
            NotTrusted: it is not.
        """
        from bpbroker.client.tls import fingerprint

        found = fingerprint(certificate or b"")
        expected = self._trust.fingerprints
        if expected and found not in expected:
            from bpbroker.discovery.jointoken import shown_fingerprint

            raise NotTrusted(
                f"The certificate of {address} is not the expected one; nothing was sent. "
                f"Expected SHA-256 {' or '.join(map(shown_fingerprint, expected))}, found {shown_fingerprint(found)}"
            )
        if not (expected or self._trust.cacert or self._trust.insecure):
            self._pins.check(str(address), found)


def _bundle(path: str) -> str:
    """Return the text of a file with certificates, comments included.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty, or larger than any bundle.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib is slow to load
        data = file.read(_BUNDLE_MAX_BYTES + 1)
    if len(data) > _BUNDLE_MAX_BYTES:
        raise ValueError(f"it is larger than {_BUNDLE_MAX_BYTES} bytes")
    if not data:
        raise ValueError("it is empty")
    if data[:1] in (b"\xff", b"\xfe", b"\xef"):  # a mark: a shell of Windows wrote it
        from bpbroker.text import decode

        data = decode(data, "replace").encode()
    return data.decode("ascii", "replace").replace("\ufffd", "?")  # comments may be in any encoding


def _numeric(address: BrokerAddress) -> tuple[Any, ...] | None:
    """Return the socket address of a numeric address; None for a name, which needs a lookup."""
    try:
        host = host_bytes(address.host)
        return native.getaddrinfo(host, address.port, type=native.SOCK_STREAM, flags=native.AI_NUMERICHOST)[0]
    except (native.gaierror, UnicodeError):
        return None


def _wrapped(raw: Socket, settings: Settings, address: BrokerAddress) -> TlsSocket:
    """Return a connected socket with TLS on it, before the handshake."""
    from bpbroker.client import tls

    if raw.family in (native.AF_INET, native.AF_INET6):
        raw.setsockopt(native.IPPROTO_TCP, native.TCP_NODELAY, 1)
    return tls.wrap(raw, settings, host_bytes(address.host.partition("%")[0]))


def _own_ip(sock: TlsSocket) -> str:
    name = sock.getsockname()
    return str(name[0]).partition("%")[0] if isinstance(name, tuple) else ""  # a Unix socket has a path


def _receiver(sock: TlsSocket, deadline: Deadline) -> Callable[[int], bytes]:
    def receive(size: int) -> bytes:
        sock.settimeout(deadline.remaining())
        return sock.recv(size)

    return receive


def _send(sock: TlsSocket, data: bytes, deadline: Deadline) -> OSError | None:
    """Send all; return the error of a server that stopped reading, as it may have responded all the same."""
    rest = memoryview(data)
    while rest:
        sock.settimeout(deadline.remaining())
        try:
            rest = rest[sock.send(rest[:_SEND_BYTES]) :]
        except _TIMED_OUT:
            raise
        except OSError as error:
            return error
    return None


def _is_stale(sock: TlsSocket) -> bool:
    """Whether an idle connection has ended, or holds bytes that are no response to a request."""
    from bpbroker.client import tls

    sock.settimeout(0)
    try:
        sock.recv(1)
    except tls.WantRead:
        return False
    except OSError:
        return True
    return True

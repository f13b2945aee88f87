"""TLS: the server's context, and a stream that never blocks.

With either of cheroot's adapters, clients can stall the server: ``builtin`` does the handshake in the one accept
thread (cheroot #748), ``pyopenssl`` in a worker, polling, and a body that comes a moment late becomes a 500 (#113,
#245). Here each step of a handshake is done without blocking, and :mod:`bpbroker.server.event_loop` decides when.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from enum import Enum
from pathlib import Path
from typing import Final

from OpenSSL import SSL

from bpbroker import files
from bpbroker.errors import ConfigurationError
from bpbroker.text import mark_fault

logger = logging.getLogger(__name__)

_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
_GROUPS: Final = b"X25519:P-256:P-384"
"""For the key exchange. Groups that a new version of OpenSSL adds by itself make each handshake slower."""
_FEED_BYTES: Final = 16 * 1024
"""How many bytes OpenSSL gets at a time, which bounds its work before other connections have their turn."""
_SUSPECT_BYTES: Final = 2 * 1024
"""The same for a client whose last bytes brought no data: 75 KeyUpdates, a third of a millisecond."""
_RECORD_BYTES: Final = 16 * 1024
"""The most data that a record holds."""
_SLICE_BYTES: Final = 8 * 1024
"""How many bytes are put into OpenSSL's memory at once: it keeps so much as long as the connection lives."""
_OVERHEAD_BYTES: Final = 64
"""A bound on the difference between the size of a record and that of its data."""
_EMPTY_BURST_BYTES: Final = 32 * 1024
"""A record that comes in pieces looks empty until its last piece is there, so this is more than a record."""
_EMPTY_BYTES_PER_SEC: Final = 8 * 1024
"""How many bytes without data a client may send: KeyUpdates, empty records, attempts to renegotiate."""
_RELEASE_BUFFERS: Final = 0x10
"""SSL_MODE_RELEASE_BUFFERS, which pyOpenSSL has no name for: saves 34 KiB for each idle connection."""
Context = SSL.Context
"""The TLS context of a server; other modules do not name OpenSSL."""


def context(cert: Path, key: Path) -> Context:
    """Create the server's TLS context: TLS 1.2 or newer, forward secrecy, AEAD, the whole chain, session tickets.

    Raises:
        ConfigurationError, StartError: certificate and key cannot be used together, or not be read.
    """
    marked = {}
    for path, what in ((cert, "certificate"), (key, "private key")):
        try:
            with path.open("rb") as file:
                # A file may open and still be unreadable on a bad disk: OpenSSL would not say so.
                marked[path] = mark_fault(file.read(3))
        except OSError as error:
            raise files.start_error(f"Cannot read the {what} {path}: {error.strerror}", error) from None
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    made.set_min_proto_version(SSL.TLS1_2_VERSION)
    made.set_options(SSL.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    # An end without close_notify is harmless: the length of a request is in its head.
    made.set_options(getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0))
    made.set_cipher_list(_CIPHERS)
    if SSL._lib.SSL_CTX_set1_curves_list(made._context, _GROUPS) != 1:  # type: ignore[attr-defined]  # noqa: SLF001 - pyOpenSSL has no name for it
        raise ConfigurationError("This OpenSSL does not know the key exchange groups X25519, P-256 and P-384")
    made.set_session_id(b"bpbroker")  # without it OpenSSL refuses to resume sessions
    made.set_mode(_RELEASE_BUFFERS)
    try:
        made.use_certificate_chain_file(str(cert))
    except SSL.Error:
        why = f": {marked[cert]}" if marked[cert] else ""
        raise ConfigurationError(f"{cert} holds no usable certificate in PEM form{why}") from None
    try:
        made.use_privatekey_file(str(key))
        made.check_privatekey()
    except SSL.Error:
        raise ConfigurationError(
            f"The private key {key} cannot be used with the certificate {cert}: "
            f"{marked[key] or 'they are not a pair, or it is no key'}"
        ) from None
    return made


class Want(Enum):
    """The event that a stream waits for before it can go on."""

    READ = "read"
    WRITE = "write"


class StreamBroken(Exception):
    """The client breaks the rules of TLS, or has gone without close_notify."""


class Stream:
    """The server's end of one TLS connection on a non-blocking socket.

    OpenSSL reads from memory, not from the socket: one ``SSL_read`` goes on as long as records without data arrive,
    and a flood of TLS 1.3 KeyUpdate blocked the loop's thread for 39 s. Here one call passes at most 16 KiB to it, and
    a client that sends too many records without data is cut off.
    """

    __slots__ = (
        "_accepted", "_allowance", "_allowance_at", "_at_boundary", "_header", "_missing", "_outgoing", "_socket",
        "_tls", "_unread", "ended",
    )  # fmt: skip

    def __init__(self, server_context: Context, sock: socket.socket) -> None:
        self.ended = False
        """Whether the client has said that it sends no more (close_notify)."""
        self._socket = sock
        self._tls = SSL.Connection(server_context, None)
        self._tls.set_accept_state()
        self._accepted = False
        self._outgoing = memoryview(b"")
        """Bytes that OpenSSL has made and the socket has not accepted."""
        self._unread = False
        """Whether the last bytes of the handshake may have data behind them."""
        self._header = b""
        """The beginning of a record's header that is not complete."""
        self._missing = 0
        """How many bytes are missing of the record that was begun."""
        self._at_boundary = True
        """Whether no record has begun."""
        self._allowance = float(_EMPTY_BURST_BYTES)
        self._allowance_at = time.monotonic()

    @property
    def held_bytes(self) -> int:
        """Number of bytes that wait for the socket."""
        return len(self._outgoing)

    def handshake(self) -> Want | None:
        """Go on with the handshake; None when it is done.

        Raises:
            StreamBroken: it failed.
            OSError: the connection is lost.
        """
        if not self.flush():
            return Want.WRITE
        if self._accepted:
            return None
        try:
            incoming = self._socket.recv(_FEED_BYTES)
        except BlockingIOError:
            return Want.READ
        if not incoming:
            raise StreamBroken("the connection was cut")
        self._follow_records(incoming)
        self._spend(len(incoming), 0)
        self._tls.bio_write(incoming)
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self._end_broken()
            raise StreamBroken(_reason(error)) from None
        else:
            self._accepted = self._unread = True
            self._allowance = _EMPTY_BURST_BYTES
        self._take_out(_RECORD_BYTES)
        if not self.flush():
            return Want.WRITE
        return None if self._accepted else Want.READ

    def receive(self) -> bytes | Want:
        """Return the data that has come in, at most about 16 KiB; ``b""`` at its end.

        No data is left in OpenSSL, where the selector would not see it.

        Raises:
            StreamBroken: the client does not speak TLS as it should, or sends too many records without data.
            OSError: the connection is lost.
        """
        if self._unread:
            self._unread = False
            data = self._decrypt(b"", one_record=False)
            if data:
                return data
        had_ended = self.ended
        if had_ended:
            return b""
        suspect = self._allowance < _EMPTY_BURST_BYTES
        try:
            incoming = self._socket.recv(_SUSPECT_BYTES if suspect else _FEED_BYTES)
        except BlockingIOError:
            return Want.READ if self.flush() else Want.WRITE
        size = len(incoming)
        if not size:
            return b""
        if self._at_boundary and 5 <= size <= _SLICE_BYTES and incoming[3] << 8 | incoming[4] == size - 5:
            data = self._decrypt(incoming, one_record=True)
        else:
            self._follow_records(incoming)
            slices = [incoming[at : at + _SLICE_BYTES] for at in range(0, size, _SLICE_BYTES)]
            data = b"".join([self._decrypt(part, one_record=False) for part in slices])
        if suspect or size > 2 * len(data):
            self._spend(size, len(data))
        if data:
            return data
        if self.ended:
            return b""
        self._take_out(_RECORD_BYTES)  # a reply to a KeyUpdate, or an alert
        return Want.READ if self.flush() else Want.WRITE

    def _decrypt(self, incoming: bytes, *, one_record: bool) -> bytes:
        """Return the data in what came in.

        Args:
            incoming: at most 8 KiB.
            one_record: whether ``incoming`` is exactly one record, as nearly always. OpenSSL is then asked once: a
                second call would only raise an error.
        """
        tls = self._tls
        parts = []
        try:
            if incoming:
                tls.bio_write(incoming)
            if one_record:
                return tls.recv(len(incoming))
            while True:
                parts.append(tls.recv(_RECORD_BYTES))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.ended = True
        except SSL.Error as error:
            self._end_broken()
            raise StreamBroken(_reason(error)) from None
        return b"".join(parts)

    def _follow_records(self, incoming: bytes) -> None:
        """Follow the records in the bytes that came, to know whether their end is the end of a record."""
        size, position = len(incoming), 0
        while position < size:
            if self._missing:
                step = min(self._missing, size - position)
                self._missing -= step
            else:
                step = min(5 - len(self._header), size - position)
                self._header += incoming[position : position + step]
                if len(self._header) == 5:
                    self._missing = int.from_bytes(self._header[3:])
                    self._header = b""
            position += step
        self._at_boundary = not self._missing and not self._header

    def _spend(self, came: int, data: int) -> None:
        """Subtract bytes without data from the client's allowance.

        Bytes up to twice the data are free: a record of 29 bytes has this overhead.

        Raises:
            StreamBroken: nothing of the allowance is left.
        """
        now = time.monotonic()
        refill = (now - self._allowance_at) * _EMPTY_BYTES_PER_SEC
        self._allowance_at = now
        self._allowance = min(float(_EMPTY_BURST_BYTES), self._allowance + refill + 2 * data - came)
        if self._allowance < 0:
            raise StreamBroken("too many records without data")

    def send(self, content: bytes | memoryview) -> int | Want:
        """Encrypt content to be sent, if all earlier bytes are sent; return how many bytes of it were taken.

        :meth:`flush` says when all of it is sent.

        Raises:
            StreamBroken: the client does not speak TLS as it should.
            OSError: the connection is lost.
        """
        if self._outgoing and not self.flush():
            return Want.WRITE
        tls = self._tls
        size = len(content)
        try:
            if size <= _SLICE_BYTES:
                sent = tls.send(content)
                made = self._made(size + _OVERHEAD_BYTES)
            else:
                parts = []
                sent = 0
                while sent < size:
                    sent += tls.send(content[sent : sent + _SLICE_BYTES])
                    parts.append(self._made(_SLICE_BYTES + _OVERHEAD_BYTES))
                made = b"".join(parts)
        except SSL.WantReadError:
            return Want.READ
        except SSL.Error as error:
            raise StreamBroken(_reason(error)) from None
        try:
            gone = self._socket.send(made)
        except BlockingIOError:
            gone = 0
        if gone < len(made):
            self._outgoing = memoryview(made)[gone:]
        return sent

    def flush(self) -> bool:
        """Send the encrypted bytes; return whether all of them are sent.

        Raises:
            OSError: the connection is lost.
        """
        while self._outgoing:
            try:
                sent = self._socket.send(self._outgoing)
            except BlockingIOError:
                return False
            self._outgoing = self._outgoing[sent:]
        return True

    def say_goodbye(self) -> None:
        """Send close_notify, so that the client knows that it has everything."""
        with contextlib.suppress(SSL.Error, OSError):
            self._tls.shutdown()
            self._take_out(_RECORD_BYTES)
            self.flush()

    def _end_broken(self) -> None:
        """Send the alert that OpenSSL has made for a message that it refused."""
        with contextlib.suppress(OSError):
            self._take_out(_RECORD_BYTES)
            self.flush()

    def _take_out(self, size: int) -> None:
        """Take the bytes that OpenSSL has to send, if any; ``size`` is nearly always large enough for all."""
        try:
            made = self._made(size)
        except SSL.WantReadError:
            return
        self._outgoing = memoryview(bytes(self._outgoing) + made) if self._outgoing else memoryview(made)

    def _made(self, size: int) -> bytes:
        """Return the bytes that OpenSSL has to send; ``size`` is nearly always large enough for all.

        Raises:
            SSL.WantReadError: there is nothing.
        """
        made = self._tls.bio_read(size)
        while not len(made) % size:
            try:
                made += self._tls.bio_read(size)
            except SSL.WantReadError:
                break
        return made


def _reason(error: SSL.Error) -> str:
    """Return the last reason of an OpenSSL error, such as ``http request``."""
    if isinstance(error, SSL.SysCallError):
        return "the connection was cut"
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return str(reasons[-1][2]) if reasons else "unknown"

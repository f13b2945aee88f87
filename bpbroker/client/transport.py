"""HTTPS to one broker: one connection, kept open, with the certificate checked before anything is sent.

Requests are written and answers read here instead of by ``http.client``: it
takes a third of a one-shot call's time only to be imported.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bpbroker.client.address import Address
from bpbroker.client.pins import Pins
from bpbroker.errors import CannotConnect, ClientError, GaveUp, NotTrusted

ANSWER_MAX_BYTES = 256 * 1024 * 1024
_HEAD_MAX_BYTES = 64 * 1024
_CONNECT_SECS = 10.0


class Reply(NamedTuple):
    """One answer."""

    status: int
    reason: str
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes

    def json(self) -> dict[str, Any]:
        """Give the body as a JSON object.

        Raises:
            ClientError: it is none, so this is hardly a broker.
        """
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ClientError(
                f"The server answered {self.status} with something that is no JSON object; is it a broker?"
            )
        return value


class Trust(NamedTuple):
    """How the server proves who it is; without any of these, by the pin of the first contact."""

    fingerprint: str | None = None
    """SHA-256 of its certificate."""
    cacert: str | None = None
    """File of certificate authorities; host name and chain are checked."""
    insecure: bool = False
    known_brokers: str | None = None
    """Path of the pins, if not the user's own."""


class Cut(CannotConnect):
    """The connection ended before a whole answer came."""


def normal_fingerprint(text: str) -> str:
    """Give a SHA-256 fingerprint as pairs of upper-case digits with colons, however it was written.

    Raises:
        NotTrusted: it is none.
    """
    digits = text.strip().lower().removeprefix("sha256:").replace(":", "")
    if len(digits) != 64 or any(digit not in "0123456789abcdef" for digit in digits):
        raise NotTrusted(f"'{text}' is no SHA-256 fingerprint: 64 hexadecimal digits, with or without colons")
    return ":".join(digits[index : index + 2] for index in range(0, 64, 2)).upper()


class Transport:
    """The connection to one broker; made when it is first needed."""

    def __init__(self, address: Address, trust: Trust, said: Callable[[str], None]) -> None:
        self._address = address
        self._trust = trust
        self._said = said
        self._socket: ssl.SSLSocket | None = None
        self._rest = b""

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._rest = b""

    def exchange(self, path: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Reply:
        """Send one POST and give its answer.

        Args:
            path: with the slashes.
            headers: beside those that every request has.
            body: JSON.
            deadline: monotonic time after which to give up.

        Raises:
            CannotConnect: no connection, or it ended half-way.
            NotTrusted: the certificate is not the expected one.
            GaveUp: the time is over.
        """
        kept = self._socket is not None
        try:
            return self._once(path, headers, body, deadline)
        except Cut:
            self.close()
            if not kept:
                raise
            # The server closed an idle connection as we were about to use it.
            return self._once(path, headers, body, deadline)
        except BaseException:
            self.close()
            raise

    def _once(self, path: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Reply:
        sock = self._connected(deadline)
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {self._address}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        try:
            sock.settimeout(_left(deadline))
            sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            return self._read(sock, deadline)
        except TimeoutError:
            raise GaveUp(f"{self._address} did not answer in time") from None
        except OSError as error:
            raise Cut(f"The connection to {self._address} broke: {error.strerror or error}") from None

    def _connected(self, deadline: float) -> ssl.SSLSocket:
        if self._socket is None:
            self._socket = self._connect(deadline)
            self._rest = b""
        return self._socket

    def _connect(self, deadline: float) -> ssl.SSLSocket:
        trust = self._trust
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if trust.cacert is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared below, before anything is sent
        else:
            try:
                context.load_verify_locations(trust.cacert)
            except (OSError, ssl.SSLError) as error:
                raise NotTrusted(f"Cannot use --cacert {trust.cacert}: {error}") from None
        try:
            plain = socket.create_connection(self._address, timeout=min(_CONNECT_SECS, _left(deadline)))
        except socket.gaierror:
            raise CannotConnect(f"There is no host {self._address.host}; check the name given with -b") from None
        except TimeoutError:
            raise CannotConnect(f"{self._address} does not answer; check the address and the firewall") from None
        except OSError as error:
            raise CannotConnect(
                f"Cannot connect to {self._address}: {error.strerror or error}; is the broker running there?"
            ) from None
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(min(_CONNECT_SECS, _left(deadline)))
            sock = context.wrap_socket(plain, server_hostname=self._address.host)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise NotTrusted(f"The certificate of {self._address} is not trusted: {error.verify_message}") from None
        except TimeoutError:
            plain.close()
            raise CannotConnect(f"{self._address} accepts connections but does not speak TLS in time") from None
        except OSError as error:
            plain.close()
            reason = getattr(error, "reason", None) or error.strerror or error
            raise CannotConnect(f"{self._address} does not speak TLS as a broker does: {reason}") from None
        try:
            self._check(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _check(self, sock: ssl.SSLSocket) -> None:
        """Compare the certificate with what is expected.

        Raises:
            NotTrusted: it is another one.
        """
        trust = self._trust
        if trust.cacert is not None:
            return
        digest = hashlib.sha256(sock.getpeercert(binary_form=True) or b"").hexdigest()
        fingerprint = normal_fingerprint(digest)
        if trust.fingerprint is not None:
            wanted = normal_fingerprint(trust.fingerprint)
            if fingerprint != wanted:
                raise NotTrusted(
                    f"The certificate of {self._address} has another fingerprint, so nothing was sent. "
                    f"Expected: {wanted}. Found: {fingerprint}"
                )
        elif not trust.insecure and Pins(trust.known_brokers).check(self._address, fingerprint):
            self._said(f"First contact with {self._address}: its certificate {fingerprint} is trusted from now on")

    # --- reading ---

    def _more(self, sock: ssl.SSLSocket, deadline: float) -> bytes:
        sock.settimeout(_left(deadline))
        try:
            return sock.recv(256 * 1024)
        except ssl.SSLEOFError:
            return b""

    def _read(self, sock: ssl.SSLSocket, deadline: float) -> Reply:
        content = self._rest
        while b"\r\n\r\n" not in content:
            received = self._more(sock, deadline)
            if not received:
                raise Cut(f"{self._address} closed the connection without an answer")
            content += received
            if len(content) > _HEAD_MAX_BYTES and b"\r\n\r\n" not in content:
                raise ClientError(f"{self._address} does not answer as a broker does: its header does not end")
        head, _, rest = content.partition(b"\r\n\r\n")
        version, status, reason, headers = _parse_head(head, self._address)
        if status == 100:
            self._rest = rest
            return self._read(sock, deadline)
        body, self._rest = self._read_body(sock, headers, rest, deadline, no_body=status == 304)
        ends = "close" in headers.get("connection", "").lower() or (version == "HTTP/1.0")
        if ends or ("content-length" not in headers and "transfer-encoding" not in headers):
            self.close()
        return Reply(status, reason, headers, body)

    def _read_body(
        self, sock: ssl.SSLSocket, headers: Mapping[str, str], rest: bytes, deadline: float, *, no_body: bool
    ) -> tuple[bytes, bytes]:
        """Give the body, and what came behind it."""
        if no_body:
            return b"", rest
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._read_chunks(sock, rest, deadline)
        length = headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise ClientError(f"{self._address} does not answer as a broker does: its Content-Length is no number")
        wanted = int(length) if length is not None else None
        if (wanted or 0) > ANSWER_MAX_BYTES:
            raise ClientError(f"The answer of {self._address} is larger than {ANSWER_MAX_BYTES} bytes")
        parts, size = [rest], len(rest)
        while wanted is None or size < wanted:
            received = self._more(sock, deadline)
            if not received:
                if wanted is None:
                    break
                raise Cut(f"{self._address} closed the connection in the middle of its answer")
            parts.append(received)
            size += len(received)
            if size > ANSWER_MAX_BYTES:
                raise ClientError(f"The answer of {self._address} is larger than {ANSWER_MAX_BYTES} bytes")
        content = b"".join(parts)
        return (content, b"") if wanted is None else (content[:wanted], content[wanted:])

    def _read_chunks(self, sock: ssl.SSLSocket, content: bytes, deadline: float) -> tuple[bytes, bytes]:
        body = b""
        while True:
            line, found, rest = content.partition(b"\r\n")
            try:
                size = int(line.partition(b";")[0], 16) if found else None
            except ValueError:
                raise ClientError(f"{self._address} does not answer as a broker does: a chunk has no size") from None
            if size is not None and len(rest) >= size + 2:
                if size == 0:
                    return body, rest[2:]
                body, content = body + rest[:size], rest[size + 2 :]
                continue
            received = self._more(sock, deadline)
            if not received:
                raise Cut(f"{self._address} closed the connection in the middle of its answer")
            content += received
            if len(body) + len(content) > ANSWER_MAX_BYTES:
                raise ClientError(f"The answer of {self._address} is larger than {ANSWER_MAX_BYTES} bytes")


def _parse_head(head: bytes, address: Address) -> tuple[str, int, str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or not (status.isascii() and status.isdigit()):
        raise ClientError(f"{address} does not answer as a broker does: it does not speak HTTP")
    fields = (line.partition(":") for line in lines[1:])
    return version, int(status), reason, {name.strip().lower(): value.strip() for name, _, value in fields}


def _left(deadline: float) -> float:
    """Give the seconds left.

    Raises:
        GaveUp: none are.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise GaveUp("The time is over")
    return left

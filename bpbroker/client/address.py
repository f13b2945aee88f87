"""Broker addresses as people write them, and the errors for one that cannot be reached. Pure."""

from __future__ import annotations

from bpbroker import DEFAULT_PORT
from bpbroker.client.sockets import native
from bpbroker.errors import CannotConnect, UsageError


class NotReached(CannotConnect):
    """Nothing was sent, so each call may be tried again."""


class BrokerAddress:
    """Host and port of a broker.

    Args:
        host: a name, an IPv4 address, or an IPv6 address without brackets, perhaps with a scope (``fe80::1%eth0``).
        port: 1 to 65535.
    """

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int = DEFAULT_PORT) -> None:
        self.host = host
        self.port = port

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BrokerAddress) and (self.host, self.port) == (other.host, other.port)

    def __hash__(self) -> int:
        return hash((self.host, self.port))

    def __repr__(self) -> str:
        return f"BrokerAddress({self.host!r}, {self.port})"

    @property
    def brief(self) -> str:
        """The address as ``-b`` takes it: without the port if that is the default."""
        return self.host if self.port == DEFAULT_PORT else str(self)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> BrokerAddress:
    """Read ``host``, ``host:port``, ``[ipv6]:port``, ``[ipv6]`` or a bare IPv6 address.

    Raises:
        UsageError: the text has none of these forms; the message says what is wrong.
    """
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise _fault(text, "an IPv6 address is written [address]:port")
        port = rest[1:] if rest else None
    elif text.count(":") > 1:
        host, port = text, None
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
    if not host:
        raise _fault(text, "the host is missing")
    if "://" in text or any(character in "/@?#[]\\ " or not character.isprintable() for character in host):
        raise _fault(text, "only host and port, no URL")
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise _fault(text, "the host is no name that can be looked up") from None
    if ":" in host and not _is_ipv6(host):
        raise _fault(text, "that is no IPv6 address, and one with a port is written [address]:port")
    name, scoped, interface = host.partition("%")  # the name of an interface keeps its case
    return BrokerAddress(f"{name.lower()}{scoped}{interface}", default_port if port is None else parse_port(port, text))


def _is_ipv6(host: str) -> bool:
    import socket  # most addresses have no colon

    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return False
    return True


def parse_port(text: str, whole: str = "") -> int:
    """Read a port number.

    Raises:
        UsageError: the text is no port number.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise _fault(whole or text, f"the port {text!r} is no number from 1 to 65535")
    return int(text)


def _fault(text: str, why: str) -> UsageError:
    return UsageError(
        f"The broker address {text[:200]!r} cannot be used: {why}; write HOST:PORT, such as 10.0.0.5:20443"
    )


def host_bytes(host: str) -> bytes:
    """Return a host as bytes, for the resolver and TLS. With text, Python would load its IDNA tables, 3 ms.

    Raises:
        UnicodeError: it is no name, such as with two dots in a row.
    """
    if not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
        raise UnicodeError("label empty or too long")
    return host.encode("ascii")


def unreached(address: BrokerAddress, why: str) -> NotReached:
    """Return the error for a connection that could not be made."""
    hint = "is the broker running, and is this its address?"
    if lacks_interface(address):
        hint = f"a link-local address needs the interface that leads there: {address.host}%INTERFACE, such as %eth0"
    return NotReached(f"Cannot connect to {address}: {why}; {hint}")


def lacks_interface(address: BrokerAddress) -> bool:
    """Return whether the address is link-local and lacks the name of its interface."""
    host = address.host
    return ":" in host and "%" not in host and host.startswith(("fe8", "fe9", "fea", "feb"))


def not_known(host: str, error: Exception) -> CannotConnect:
    """Return the error for a host that cannot be looked up."""
    if isinstance(error, UnicodeError):
        return CannotConnect(f"The host name {host[:200]!r} cannot be looked up: check the address")
    if "%" in host:
        interface = host.partition("%")[2]
        return CannotConnect(f"The address {host!r} cannot be used: is there an interface {interface!r} on this host?")
    kind = NotReached if isinstance(error, OSError) and error.errno == native.EAI_AGAIN else CannotConnect
    why = (error.strerror if isinstance(error, OSError) else None) or error
    return kind(f"The host name {host!r} cannot be looked up: {why}; check the address")

"""A request, as the server hands it to the application. Plain data."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """One HTTP request that is complete, its framing checked.

    Header fields have their own names in lower case: a name with an underscore and one with a hyphen are different,
    which WSGI cannot express.
    """

    method: str
    path: str
    """Without percent-escapes, its bytes shown as Latin-1; an escaped slash stays ``%2F``."""
    query: str
    """As it came, without the question mark."""
    fields: Mapping[str, str]
    """Header fields by lower-case name, as Latin-1; one that came several times is joined with commas. Shared between
    requests: do not change it."""
    address: str = ""
    """The client's IP address; IPv4 in its plain form on an IPv6 socket, too."""
    body: bytes = b""
    version: tuple[int, int] = (1, 1)
    keeps_alive: bool = True
    """Whether the client wants the connection to go on."""


def network_of(address: str) -> str:
    """Return the network that counts as one client: an IPv4 address, or the /64 network of an IPv6 address.

    A host on the IPv6 internet has a whole /64, and so could use another address for each connection.
    """
    if ":" not in address:
        return address
    try:
        number = int(ipaddress.IPv6Address(plain_address(address).partition("%")[0]))
    except ValueError:
        return plain_address(address)
    return str(ipaddress.IPv6Address(number >> 64 << 64))


def plain_address(address: str) -> str:
    """Return an address as clients know it: IPv4 in IPv6 as plain IPv4."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address

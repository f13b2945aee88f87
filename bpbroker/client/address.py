"""A broker's address as people write it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from bpbroker.errors import UsageError

DEFAULT_PORT = 20443


class Address(NamedTuple):
    """Host and port."""

    host: str
    """Name or IP address; IPv6 without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``host``, ``host:port``, ``[ipv6]:port`` or a bare IPv6 address; the port is 20443 if not given.

    Raises:
        UsageError: it is none of these.
    """
    text = text.strip()
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise UsageError(f"'{text}' is no address: an IPv6 address is written [::1]:20443")
        port = rest[1:]
    elif text.count(":") > 1:
        host, rest, port = text, "", ""
    else:
        host, rest, port = text.partition(":")
    if not host or any(character.isspace() or character in "/@?#" for character in host):
        raise UsageError(f"'{text}' is no address: it must be host:port, such as 10.0.0.5:20443")
    if rest and not port:
        raise UsageError(f"'{text}' has no port after the colon")
    if not port:
        return Address(host, DEFAULT_PORT)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"'{text}': the port must be a number from 1 to 65535")
    return Address(host, int(port))

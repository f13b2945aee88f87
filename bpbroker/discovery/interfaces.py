"""This host's network interfaces and their addresses, for discovery: ``ifaddr`` reads them, on every system.

``ifaddr`` is imported at the first call, so that loading this module costs a client nothing.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import ifaddr

_HOST_PREFIX: Final = 31
"""From this prefix length on (RFC 3021), a network has no broadcast address."""


class Interface(NamedTuple):
    """One address of one network interface."""

    name: str
    """As the system's own tools show it: ``eth0``, on Windows ``Ethernet``; empty where that is not known."""
    number: int
    """The system's number for it; 0 where that is not known."""
    address: str
    """IPv4, or an IPv6 address without its scope."""
    broadcast: str
    """Its network's broadcast address; empty for IPv6, loopback, point-to-point links, and where it is not known."""
    loopback: bool
    link_local: bool
    """IPv6 and only valid together with the interface."""

    @property
    def ipv6(self) -> bool:
        """Whether the address is IPv6."""
        return ":" in self.address


_DEFAULT_ROUTE: Final = [
    Interface("", 0, "127.0.0.1", "", loopback=True, link_local=False),
    Interface("", 0, "0.0.0.0", "", loopback=False, link_local=False),  # noqa: S104 - to send from, not to serve on
]
"""Where the system does not tell (a sandbox may forbid it): a broadcast still leaves by the default route."""


def interfaces() -> list[Interface]:
    """Return every address of this host, interface by interface."""
    import ifaddr

    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:
        return _DEFAULT_ROUTE
    return [_interface(adapter.index or 0, ip) for adapter in adapters for ip in adapter.ips]


def _interface(number: int, ip: ifaddr.IP) -> Interface:
    # An address may carry a label, as in eth0:1; the interface is called eth0.
    name = ip.nice_name.partition(":")[0]
    if isinstance(ip.ip, tuple):
        address = IPv6Address(ip.ip[0])
        return Interface(name, number, str(address), "", address.is_loopback, address.is_link_local)
    own = IPv4Interface((ip.ip, ip.network_prefix))
    # `ip addr add` sets no broadcast address unless asked, yet the kernel routes this one as broadcast.
    reachable = ip.network_prefix < _HOST_PREFIX and not own.is_loopback
    return Interface(
        name, number, ip.ip, str(own.network.broadcast_address) if reachable else "", own.is_loopback, link_local=False
    )

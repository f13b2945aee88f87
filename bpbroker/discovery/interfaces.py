"""This host's network interfaces and their addresses: ``ifaddr`` reads them, on every system.

``ifaddr`` is imported at the first call, so that loading this module costs a client nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from functools import lru_cache
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


_FRESH_SECS: Final = 10.0
_ANY: Final = "0.0.0.0"  # noqa: S104 - to send from, not to serve on

_DEFAULT_ROUTE: Final = [
    Interface("", 0, "127.0.0.1", "", loopback=True, link_local=False),
    Interface("", 0, _ANY, "", loopback=False, link_local=False),
]
"""Used where the system does not list them (a sandbox may forbid it): a broadcast still leaves by the default route."""


def interfaces() -> list[Interface]:
    """Return every address of this host, interface by interface."""
    import ifaddr

    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:
        return _DEFAULT_ROUTE
    return [_interface(adapter.index or 0, ip) for adapter in adapters for ip in adapter.ips]


def is_loopback(address: str) -> bool:
    """Whether an address, as text, means the host itself."""
    return address.startswith("127.") or address == "::1"


def reached_at(listen_ip: str, found: Iterable[Interface]) -> list[str]:
    """Return the addresses at which others reach what listens on ``listen_ip`` by TCP, IPv4 first.

    Args:
        listen_ip: as :func:`bpbroker.server.listener.bind_tcp` takes it: empty for all of IPv4 and IPv6.
        found: the host's addresses.
    """
    if listen_ip not in ("", "::", _ANY):
        return [listen_ip]
    families = {"": (False, True), _ANY: (False,), "::": (True,)}[listen_ip]
    outer = [item for item in found if not (item.loopback or item.link_local or item.address == _ANY)]
    return [item.address for ipv6 in families for item in outer if item.ipv6 == ipv6]


def seen_by_others(source: str, configured: str = "auto", listen_ip: str = "") -> str:
    """Return the address by which other hosts know who writes from ``source``: for loopback this host's own.

    Args:
        source: the requesting address.
        configured: ``api.loopback_as``.
        listen_ip: where the broker listens. On loopback alone nothing is for other hosts, and ``source`` stays.
    """
    return for_loopback(source, fixed_for_loopback(configured, listen_ip)) if is_loopback(source) else source


def fixed_for_loopback(configured: str, listen_ip: str) -> str | None:
    """Return what does not change of :func:`seen_by_others`: an address, "" to leave it; None: :func:`own_address`."""
    if configured == "off":
        return ""
    if configured != "auto":
        return configured
    if listen_ip in ("", "::", _ANY):
        return None
    return "" if is_loopback(listen_ip) else listen_ip.partition("%")[0]


def for_loopback(source: str, fixed: str | None) -> str:
    """Return the address for a loopback ``source``; ``fixed`` is of :func:`fixed_for_loopback`."""
    return (own_address() if fixed is None else fixed) or source


def own_address() -> str:
    """Return this host's address on the network; empty when it has none but loopback.

    It is the one from which the default route leaves, else the first one. IPv4 goes before IPv6. It is looked up
    once in ten seconds at most: addresses come and go.
    """
    return _own_address(int(time.monotonic() / _FRESH_SECS))


@lru_cache(maxsize=1)
def _own_address(_moment: int) -> str:
    for family, anywhere in ((socket.AF_INET, "192.0.2.255"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((anywhere, 9))  # sends nothing: the kernel only chooses the address to send from
            address = str(sock.getsockname()[0])
            if not is_loopback(address):
                return address
        found = (item for item in interfaces() if item.ipv6 == (family == socket.AF_INET6))
        usable = [item.address for item in found if not (item.loopback or item.link_local or item.address == _ANY)]
        if usable:
            return usable[0]
    return ""


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

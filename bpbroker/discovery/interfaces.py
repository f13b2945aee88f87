"""This host's network interfaces and their addresses, for discovery, from the standard library alone.

On Linux the kernel is asked by netlink (RTM_GETADDR, RFC 3549), which gives
every address with its prefix. Elsewhere the addresses of the host's own name
must do; there a socket bound to each of them reaches its network's limited
broadcast address.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final, NamedTuple

_ANSWER_SECS: Final = 2.0

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_RTM_GETADDR: Final = 22
_RTM_NEWADDR: Final = 20
_NLM_F_DUMP_REQUEST: Final = 0x301
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_RT_SCOPE_LINK: Final = 253
_RT_SCOPE_HOST: Final = 254


class Interface(NamedTuple):
    """One address of one network interface."""

    name: str
    """As the system calls it; empty where that is not known."""
    number: int
    """The system's number for it; 0 where that is not known."""
    address: str
    """IPv4, or an IPv6 address without its scope."""
    broadcast: str
    """Its network's broadcast address; empty for IPv6, point-to-point links, and where it is not known."""
    loopback: bool
    link_local: bool
    """IPv6 and only valid together with the interface."""

    @property
    def ipv6(self) -> bool:
        """Whether the address is IPv6."""
        return ":" in self.address


def interfaces() -> list[Interface]:
    """Give every address of this host; empty if the system does not tell."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid netlink
            return list(_netlink())
    return list(_by_host_name())


def _netlink() -> Iterator[Interface]:
    names = dict(socket.if_nameindex())
    # The constants exist on Linux alone; this function runs nowhere else.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_ANSWER_SECS)
        request = struct.pack("=IHHIIBxxx", 20, _RTM_GETADDR, _NLM_F_DUMP_REQUEST, 1, 0, socket.AF_UNSPEC)
        sock.send(request)
        while True:
            packet = sock.recv(65536)
            at = 0
            while at + 16 <= len(packet):
                length, kind = struct.unpack_from("=IH", packet, at)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < 16:
                    return
                if kind == _RTM_NEWADDR:
                    yield from _address(packet[at + 16 : at + length], names)
                at += (length + 3) & ~3


def _address(body: bytes, names: dict[int, str]) -> Iterator[Interface]:
    """Read one ``struct ifaddrmsg`` and its attributes."""
    family, prefix, _flags, scope, index = struct.unpack_from("=BBBBI", body)
    attributes: dict[int, bytes] = {}
    at = 8
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        attributes[kind] = body[at + 4 : at + length]
        at += (length + 3) & ~3
    # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL one's own.
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    peer = attributes.get(_IFA_ADDRESS, raw)
    if family not in (socket.AF_INET, socket.AF_INET6) or len(raw) not in (4, 16):
        return
    loopback = scope == _RT_SCOPE_HOST
    broadcast = ""
    if family == socket.AF_INET and prefix < 31 and not loopback and peer == raw:
        # Not IFA_BROADCAST: `ip addr add` sets none unless asked, yet the kernel routes this address as broadcast.
        broadcast = str(IPv4Address(int.from_bytes(raw, "big") | (0xFFFFFFFF >> prefix)))
    address = socket.inet_ntop(family, raw)
    link_local = family == socket.AF_INET6 and scope == _RT_SCOPE_LINK
    yield Interface(names.get(index, ""), index, address, broadcast, loopback, link_local)


def _by_host_name() -> Iterator[Interface]:
    yield Interface("", 0, "127.0.0.1", "", loopback=True, link_local=False)
    with contextlib.suppress(OSError):
        for family, _, _, _, where in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_DGRAM):
            address = str(where[0]).partition("%")[0]
            if family == socket.AF_INET and not address.startswith("127."):
                yield Interface("", 0, address, "", loopback=False, link_local=False)
            elif family == socket.AF_INET6 and address.startswith("fe80:") and len(where) == 4:
                yield Interface("", int(where[3]), address, "", loopback=False, link_local=True)

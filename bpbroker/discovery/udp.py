"""The broker's UDP sockets: which ones are needed to hear every way of asking, and how they are made."""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from typing import Final

from bpbroker.discovery.datagram import MULTICAST_GROUP
from bpbroker.discovery.interfaces import interfaces
from bpbroker.errors import cannot_listen

logger = logging.getLogger(__name__)

RECEIVE_BUFFER_BYTES: Final = 1 << 20
"""Asked for, the system may give less: what a burst of questions waits in."""
_ATTEMPTS: Final = 20


def bind_udp(ip: str, port: int) -> list[socket.socket]:
    """Bind discovery's sockets; the first of each family is the one to answer from.

    Args:
        ip: an address of this host; empty for all interfaces.
        port: 0 takes one that is free for every socket.

    Raises:
        InUse: another process has the port.
        StartError: the address is not one of this host, or the port is not allowed.
    """
    for attempt in range(_ATTEMPTS):
        sockets: list[socket.socket] = []
        try:
            for family, address in _places(ip):
                chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
                sockets.append(_bound(family, address, chosen))
            if ip not in _EVERYWHERE:
                sockets += _ears(ip, sockets[0].getsockname()[1])
        except OSError as error:
            for sock in sockets:
                sock.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < _ATTEMPTS - 1:
                continue
            raise cannot_listen(error, "UDP", ip, port) from None
        join_groups(sockets)
        return sockets
    raise AssertionError("the last attempt returns or raises")


_EVERYWHERE: Final = ("", "::", "0.0.0.0")  # noqa: S104 - recognised here, bound only when the operator says so


def _places(ip: str) -> list[tuple[socket.AddressFamily, str]]:
    """Return family and address of every socket that this ``listen_ip`` means."""
    if ip in ("", "::"):
        both = [(socket.AF_INET, "0.0.0.0")]  # noqa: S104 - the default: all interfaces
        return [*both, (socket.AF_INET6, "::")] if _ipv6_works() else both
    # As it is: what the system makes of a link-local address leaves out the interface.
    found = socket.getaddrinfo(ip, None, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST)
    return [(family, ip) for family, *_ in found[:1]]


def _ipv6_works() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if sys.platform == "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setblocking(False)
        where = socket.getaddrinfo(address, port, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4]
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _ears(ip: str, port: int) -> list[socket.socket]:
    """Return sockets that hear broadcasts and multicasts on the network of one address.

    On Linux a socket bound to one address hears neither broadcasts nor
    multicasts; on Windows it hears broadcasts.
    """
    bare, _, zone = ip.partition("%")
    own = next(
        (each for each in interfaces() if each.address == bare and zone in ("", each.name, str(each.number))), None
    )
    if sys.platform != "linux" or own is None:
        return []
    if own.ipv6:
        places = [(socket.AF_INET6, MULTICAST_GROUP)]
    else:
        places = [(socket.AF_INET, address) for address in (own.broadcast, "255.255.255.255") if own.broadcast]
    ears = []
    for family, address in places:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            # Brokers on other addresses of this host listen here too: the system gives what is for all to each.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            if family == socket.AF_INET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, own.name.encode())
                sock.bind((address, port))
            else:
                sock.bind((address, port, 0, own.number))
                _join(sock, own.number)
        except OSError as error:
            sock.close()
            logger.warning("Discovery does not hear datagrams to %s on %s: %s", address, own.name, error)
            continue
        ears.append(sock)
    return ears


def join_groups(sockets: list[socket.socket]) -> None:
    """Join IPv6's discovery group on every interface; again is harmless and takes new interfaces in."""
    for sock in sockets:
        if sock.family != socket.AF_INET6 or sock.getsockname()[0] != "::":
            continue
        # Also those that have no IPv6 address yet: a broker may boot before its network.
        for index, _ in socket.if_nameindex():
            try:
                _join(sock, index)
            except OSError:  # joined already, or an interface without multicast
                continue


def _join(sock: socket.socket, index: int) -> None:
    membership = socket.inet_pton(socket.AF_INET6, MULTICAST_GROUP) + struct.pack("@I", index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)

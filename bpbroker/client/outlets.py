"""The sockets through which discovery asks: one for each network interface, as interfaces come and go."""

from __future__ import annotations

import selectors
import socket
import struct
from types import TracebackType
from typing import TYPE_CHECKING, Final

from bpbroker.discovery.datagram import MULTICAST_GROUP
from bpbroker.discovery.interfaces import Interface, interfaces
from bpbroker.errors import UsageError

if TYPE_CHECKING:  # novm
    from typing import Self, TypeAlias

_EVERYBODY: Final = "255.255.255.255"
_OUTLETS_MAX: Final = 128

Place: TypeAlias = "tuple[str, int] | tuple[str, int, int, int]"


class Outlets:
    """A socket for every address of this host, or of one interface, and the addresses that each of them sends to.

    A broadcast leaves through an interface if its socket is bound to the interface's address, on Linux and on Windows.

    Args:
        selector: gets every socket, for reading.
        wanted: name or address of the only interface to use; empty for all.
        port: to send to.
    """

    def __init__(self, selector: selectors.BaseSelector, wanted: str, port: int) -> None:
        self.failure = ""
        """Why the last send failed on all sockets; empty if one of them worked."""
        self._selector = selector
        self._wanted = wanted
        self._port = port
        self._open: dict[Interface, tuple[socket.socket, list[Place]]] = {}
        self._began = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for interface in list(self._open):
            self._close(interface)

    def refresh(self) -> set[str]:
        """Open and close sockets as the interfaces have changed; return all addresses of this host.

        Raises:
            UsageError: the wanted interface does not exist, the first time.
        """
        found = interfaces()
        chosen = [item for item in found if self._wanted in ("", item.name, item.address)]
        if not chosen and not self._began and self._wanted:
            known = ", ".join(sorted({item.name or item.address for item in found}))
            raise UsageError(f"There is no interface {self._wanted[:80]!r} here; there are: {known}")
        self._began = True
        for item in set(self._open) - set(chosen):
            self._close(item)
        for item in chosen[:_OUTLETS_MAX]:
            if item not in self._open and not (item.ipv6 and item.loopback):
                self._make(item)
        return {item.address for item in found}

    def send(self, payloads: list[bytes]) -> None:
        """Send each payload to all addresses; failures are common, an interface may just go down."""
        problem = "this host has no network"
        sent = 0
        for sock, places in self._open.values():
            for place in places:
                for payload in payloads:
                    try:
                        sock.sendto(payload, place)
                        sent += 1
                    except OSError as error:
                        problem = error.strerror or str(error)
        self.failure = "" if sent else problem

    def _make(self, item: Interface) -> None:
        sock = socket.socket(socket.AF_INET6 if item.ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            places: list[Place]
            if item.ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, struct.pack("@I", item.number))
                # To a global address, the broker answers from a global address of its own, which other hosts can use
                # as well.
                sock.bind((item.address, 0, 0, item.number if item.link_local else 0))
                places = [(MULTICAST_GROUP, self._port, 0, item.number)]
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.bind((item.address, 0))
                hosts = (item.address,) if item.loopback else (item.broadcast, _EVERYBODY)
                places = [(host, self._port) for host in hosts if host]
        except OSError:  # the address has gone, or is still being checked (IPv6 duplicate detection): next time
            sock.close()
            return
        self._open[item] = (sock, places)
        self._selector.register(sock, selectors.EVENT_READ)

    def _close(self, item: Interface) -> None:
        sock, _ = self._open.pop(item)
        self._selector.unregister(sock)
        sock.close()

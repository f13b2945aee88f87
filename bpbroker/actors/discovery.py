"""The discovery actor: owns the UDP sockets and answers who asks for a name."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final

from bpbroker import config, datagram, schema
from bpbroker.actors.base import Actor
from bpbroker.datagram import Answer, Echo, Lookup
from bpbroker.errors import BpbrokerError, InUse
from bpbroker.messages import Address, Datagram, Exists, Pong, Settings, SettingsChanged

logger = logging.getLogger(__name__)

_TICK_SECS: Final = 0.01
_PER_TICK: Final = 40
"""Datagrams taken in one tick, so 4,000 a second; the kernel drops what a flood sends beyond that."""
_WAITING_MAX: Final = 1000
_EXISTS_SECS: Final = 2.0


def bind_udp(ip: str, port: int) -> list[socket.socket]:
    """Bind the sockets for discovery.

    Args:
        ip: address; empty is all interfaces, IPv4 and, where it exists, IPv6.
        port: the TCP port's number.

    Raises:
        InUse: the port is taken.
    """
    wanted = [(ip, socket.AF_INET6 if ":" in ip else socket.AF_INET)] if ip else [("0.0.0.0", socket.AF_INET)]  # noqa: S104 - what an empty listen_ip asks for
    if not ip and socket.has_ipv6:
        wanted.append(("::", socket.AF_INET6))
    sockets: list[socket.socket] = []
    try:
        for host, family in wanted:
            try:
                sockets.append(_bind(host, port, family))
            except OSError:
                if host != "::":  # IPv6 may be switched off
                    raise
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise InUse(
            f"Cannot listen on port {port} (UDP){f' of {ip}' if ip else ''}: {error.strerror}; "
            "choose another with api.listen_port or --listen-port, or stop who uses it"
        ) from None
    if ip and ":" not in ip and not ip.startswith("127.") and sys.platform == "linux":
        # A socket bound to one address does not hear broadcasts.
        with contextlib.suppress(OSError):
            sockets.append(_bind("255.255.255.255", port, socket.AF_INET))
    return sockets


def _bind(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        if family == socket.AF_INET6:
            _join_groups(sock)
    except OSError:
        sock.close()
        raise
    return sock


def _join_groups(sock: socket.socket) -> None:
    group = socket.inet_pton(socket.AF_INET6, datagram.GROUP)
    for index, _name in socket.if_nameindex():
        with contextlib.suppress(OSError):  # an interface without IPv6, or without multicast
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index))


class Discovery(Actor):
    """Answers datagrams.

    Args:
        sockets: from :func:`bind_udp`; they stay the caller's to close.
        registry: asked whether it holds a name.
        settings: the settings in force.
        identity: what the broker says of itself, unsigned.
    """

    def __init__(
        self, sockets: Sequence[socket.socket], registry: Address, settings: Settings, identity: Answer
    ) -> None:
        super().__init__()
        self._sockets = sockets
        self._registry = registry
        self._identity = identity
        self._answered = 0
        self._apply_settings(settings)
        self._receiver = threading.Thread(target=self._receive, name="discovery-receiver", daemon=True)
        self.handlers = {
            Datagram: self._datagram,
            SettingsChanged: lambda message: self._apply_settings(message.settings),
        }

    def started(self) -> None:
        """Begin to receive."""
        self._receiver.start()

    def stopped(self) -> None:
        """Wait for the receiver to see it."""
        self._receiver.join(1.0)

    def status(self) -> Pong:
        """Give the number of answers; not well when the receiver has ended."""
        alive = self._receiver.is_alive()
        detail = "" if alive else "its receiver has ended"
        return Pong(alive, detail, {"answered": self._answered, "mode": self._mode})

    def _apply_settings(self, settings: Settings) -> None:
        self._mode: str = schema.option(settings, "_global", "discovery")
        self._keys = config.access_keys(settings, config.REGISTRY_SECTION)

    def _receive(self) -> None:
        """Tell the actor what comes in, a bounded number each tick: a flood must not take the GIL from requests."""
        with selectors.DefaultSelector() as selector:
            for sock in self._sockets:
                selector.register(sock, selectors.EVENT_READ)
            while not self.actor_stopped.is_set():
                began = time.monotonic()
                taken = 0
                for key, _ in selector.select(0.5):
                    taken += self._take_from(key.fileobj, _PER_TICK - taken)
                if taken >= _PER_TICK:
                    time.sleep(max(0.0, began + _TICK_SECS - time.monotonic()))

    def _take_from(self, sock: Any, most: int) -> int:
        for number in range(most):
            try:
                payload, sender = sock.recvfrom(datagram.REQUEST_MAX_BYTES + 1)
            except BlockingIOError:
                return number
            except OSError:  # such as an ICMP error for an earlier answer
                continue
            if self.actor_inbox.qsize() < _WAITING_MAX:
                self.tell_self(Datagram(payload, (sock, sender)))
        return most

    def _datagram(self, message: Datagram) -> None:
        asked = datagram.decode(message.payload)
        if asked is None or self._mode == "off":
            return
        if isinstance(asked, Echo):
            if self._mode == "open":
                self._send(message, asked.data)
            return
        if self._mode == "authenticated" and not (asked.nonce and self._keys):
            return
        try:
            reply = self._registry.ask(Exists(asked.name), _EXISTS_SECS)
        except BpbrokerError:
            return
        # Not waited for: this actor must stay able to answer a ping while the registry is busy.
        reply.add_done_callback(lambda reply: self._answer(message, asked, reply))

    def _answer(self, message: Datagram, asked: Lookup, reply: Future[bool]) -> None:
        if reply.cancelled() or reply.exception(0) is not None or not reply.result(0):
            return
        if not asked.nonce:
            self._send(message, datagram.EXISTS)
            return
        said = self._identity
        if self._keys:
            said = said._replace(signature=datagram.sign(self._keys[0], asked.name, asked.nonce, said))
        self._send(message, datagram.answer(asked, said))

    def _send(self, message: Datagram, content: bytes) -> None:
        """Send an answer, never one that would make the port an amplifier."""
        sock, sender = message.sender
        if content and len(content) <= len(message.payload) + len(datagram.EXISTS):
            source = self._sockets[0] if sock.family == socket.AF_INET else sock
            with contextlib.suppress(OSError):
                source.sendto(content, sender)
                self._answered += 1

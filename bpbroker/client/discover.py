"""Finding the broker that holds a name, by asking everybody nearby."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from bpbroker import datagram
from bpbroker.client.address import Address
from bpbroker.errors import GaveUp, SeveralBrokers, UsageError

DEFAULT_TIMEOUT_SECS = 3.0
SETTLE_SECS = 0.2
"""How long to listen for a second broker after the first answer."""
_FIRST_PAUSE_SECS = 0.25
_LONGEST_PAUSE_SECS = 5.0


class Found(NamedTuple):
    """One responder."""

    host: str
    port: int
    registry: str
    """The registry's id; empty when the broker speaks the old format only."""
    fingerprint: str
    signed: bool

    @property
    def address(self) -> Address:
        """Where to reach it."""
        return Address(self.host, self.port)


def discover(
    name: str,
    *,
    port: int = 20443,
    timeout_secs: float = DEFAULT_TIMEOUT_SECS,
    interface: str | None = None,
    key: str | None = None,
    first: bool = False,
) -> Found:
    """Find the broker whose registry holds ``name``.

    Args:
        name: a registered name.
        port: UDP port of the brokers.
        timeout_secs: how long to ask.
        interface: only through this network interface.
        key: take only answers that prove knowledge of this access key.
        first: take the first answer, whoever else answers.

    Raises:
        GaveUp: nobody answered.
        SeveralBrokers: different registries answered; ``addresses`` has them.
    """
    answers: list[Found] = []
    for found in listen(name, port=port, timeout_secs=timeout_secs, interface=interface, key=key, settle=True):
        answers.append(found)
        if first:
            return found
    chosen = one_each(answers)
    if not chosen:
        raise GaveUp(f"No broker that holds '{name}' answered within {timeout_secs:g} s")
    if len(chosen) > 1:
        addresses = tuple(str(found.address) for found in chosen)
        raise SeveralBrokers(
            f"Different brokers answer for '{name}': {', '.join(addresses)}. Use a name that only one of them holds, "
            "or --first",
            addresses,
        )
    return chosen[0]


def one_each(answers: list[Found]) -> list[Found]:
    """Give one responder for each registry: the one that other machines can reach best, in order of arrival.

    An answer in the old format counts only if its sender gave no other one,
    and a loopback address only if nothing else is known.
    """
    new = [found for found in answers if found.registry]
    hosts = {found.host for found in new}
    old = [found for found in answers if not found.registry and found.host not in hosts]
    best: dict[str, Found] = {}
    for found in (*new, *old):
        group = found.registry or f"host {found.host}"
        if group not in best or (_is_loopback(best[group].host) and not _is_loopback(found.host)):
            best[group] = found
    if any(not _is_loopback(found.host) for found in best.values()):
        # A broker of the old kind on this machine answers from its own address too.
        best = {group: found for group, found in best.items() if found.registry or not _is_loopback(found.host)}
    return list(best.values())


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"


def listen(
    name: str, *, port: int, timeout_secs: float, interface: str | None, key: str | None, settle: bool
) -> Iterator[Found]:
    """Ask again and again, and give each responder once, as they answer; with ``settle`` end soon after the first."""
    nonce = os.urandom(16).hex()
    asked = [datagram.question(name, nonce)]
    if key is None:
        asked.append(name.encode() + b"\n")
    deadline = time.monotonic() + timeout_secs
    seen: set[Found] = set()
    with contextlib.ExitStack() as stack:
        ways = [(stack.enter_context(sock), target) for sock, target in _ways(port, interface)]
        if not ways:
            raise UsageError(f"There is no network interface {interface}" if interface else "There is no network here")
        sockets = list({id(sock): sock for sock, _ in ways}.values())
        pause, next_time = _FIRST_PAUSE_SECS, 0.0
        while (now := time.monotonic()) < deadline:
            if now >= next_time:
                for sock, target in ways:
                    for content in asked:
                        with contextlib.suppress(OSError):  # an interface that is down, or does no broadcast
                            sock.sendto(content, target)
                next_time, pause = now + pause, min(pause * 2, _LONGEST_PAUSE_SECS)
            ready, _, _ = select.select(sockets, [], [], max(0.0, min(next_time, deadline) - now))
            for sock in ready:
                found = _receive(sock, name, nonce, port, key)
                if found is not None and found not in seen:
                    if not seen and settle:
                        deadline = min(deadline, time.monotonic() + SETTLE_SECS)
                    seen.add(found)
                    yield found


def _receive(sock: socket.socket, name: str, nonce: str, port: int, key: str | None) -> Found | None:
    try:
        content, sender = sock.recvfrom(datagram.REQUEST_MAX_BYTES + 1)
    except OSError:
        return None
    host = str(sender[0])
    said = datagram.read_answer(content, nonce)
    if said is not None:
        signed = key is not None and datagram.is_signed(key, name, nonce, said)
        if key is not None and not signed:
            return None
        return Found(host, said.port, said.registry, said.fingerprint, signed)
    if content == datagram.EXISTS and key is None:
        return Found(host, port, "", "", signed=False)
    return None


def _ways(
    port: int, interface: str | None
) -> Iterator[tuple[socket.socket, tuple[str, int] | tuple[str, int, int, int]]]:
    """Give sockets and where to send from each: every broadcast address, every IPv6 link, this machine."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setblocking(False)
    if interface is None:
        yield sock, ("127.0.0.1", port)
        yield sock, ("255.255.255.255", port)
    names = [(index, name) for index, name in socket.if_nameindex() if interface in (None, name)]
    if sys.platform == "linux":
        for _, name in names:
            for target in _broadcast(sock, name):
                yield sock, (target, port)
    if interface in ("lo", "127.0.0.1"):
        yield sock, ("127.0.0.1", port)
    if not socket.has_ipv6:
        return
    with contextlib.suppress(OSError):
        sock6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock6.setblocking(False)
        for index, name in names:
            if name != "lo":
                yield sock6, (datagram.GROUP, port, 0, index)


def _broadcast(sock: socket.socket, name: str) -> Iterator[str]:
    """Give the broadcast address of an interface, if it has one (netdevice(7))."""
    import fcntl

    request = struct.pack("256s", name.encode()[:15])
    with contextlib.suppress(OSError):
        flags = struct.unpack("H", fcntl.ioctl(sock, 0x8913, request)[16:18])[0]  # SIOCGIFFLAGS
        if flags & 0x3 == 0x3:  # up, and with broadcast
            yield socket.inet_ntoa(fcntl.ioctl(sock, 0x8919, request)[20:24])  # SIOCGIFBRDADDR

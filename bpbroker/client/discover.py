"""Finding the broker that holds a name, by asking everybody nearby."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Self

from bpbroker.client.responders import Broker, Responders
from bpbroker.client.retry import pauses
from bpbroker.datagram import (
    DEFAULT_PORT,
    MULTICAST_GROUP,
    PLAIN_REPLY,
    Question,
    decode_answer,
    plain_question,
    signed_question,
)
from bpbroker.entry import check_name
from bpbroker.errors import BadRequest, GaveUp, UsageError
from bpbroker.interfaces import Interface, interfaces

TIMEOUT_SECS: Final = 3.0
_EVERYBODY: Final = "255.255.255.255"
_REPLY_MAX_BYTES: Final = 2048
_PLACES_MAX: Final = 128


class Credentials(NamedTuple):
    """By what an answer is known to come from the right broker."""

    key: str = ""
    """An access key of the broker; with one, unsigned, forged and passed-on answers are ignored."""
    fingerprint: str = ""
    """SHA-256 of the broker's certificate, canonical; with one, other answers are ignored."""


def discover(
    name: str,
    *,
    key: str = "",
    fingerprint: str = "",
    port: int = DEFAULT_PORT,
    timeout_secs: float = TIMEOUT_SECS,
    interface: str = "",
    first: bool = False,
) -> Broker:
    """Find the broker whose registry holds ``name``.

    Args:
        name: of an entry; what one cluster shares, and no other.
        key: an access key of the broker; makes question and answer authenticated.
        fingerprint: of the broker's certificate, 64 hexadecimal digits.
        port: UDP port to ask on.
        timeout_secs: how long to ask.
        interface: only on this interface, by its name or by this host's address there.
        first: take the first answer, whoever else answers.

    Raises:
        GaveUp: nobody answered.
        SeveralBrokers: brokers with different registries answered.
        UsageError: no such interface, or no name that an entry can have.
    """
    responders = Responders(first=first)
    _ask(name, Credentials(key, fingerprint), port, timeout_secs, interface, responders)
    return responders.the_one(name)


def discover_all(
    name: str,
    *,
    key: str = "",
    fingerprint: str = "",
    port: int = DEFAULT_PORT,
    timeout_secs: float = TIMEOUT_SECS,
    interface: str = "",
) -> list[Broker]:
    """Find everybody who answers for ``name`` within ``timeout_secs``; arguments and errors as of :func:`discover`."""
    responders = Responders(everybody=True)
    _ask(name, Credentials(key, fingerprint), port, timeout_secs, interface, responders)
    return responders.everybody()


def _ask(
    name: str, credentials: Credentials, port: int, timeout_secs: float, interface: str, responders: Responders
) -> None:
    """Ask until ``responders`` have heard enough.

    Raises:
        GaveUp: nobody answered in time.
    """
    try:
        check_name(name, max_bytes=4096)
    except BadRequest as error:
        raise UsageError(f"No broker can hold {name[:80]!r}: {error}") from None
    question = Question(name, os.urandom(16).hex())
    signed = signed_question(name, question.nonce, credentials.key)
    # With credentials a plain answer counts for nothing, so it is not asked for.
    wanted = [signed] if any(credentials) else [signed, plain_question(name)]
    found = interfaces()
    responders.own_addresses = {item.address for item in found}
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        outlets = [stack.enter_context(outlet) for outlet in _outlets(_chosen(found, interface), port)]
        for outlet in outlets:
            selector.register(outlet.sock, selectors.EVENT_READ)
        end = time.monotonic() + timeout_secs
        again = 0.0
        pause = pauses(jitter=False)
        failures: list[str] = []
        while (now := time.monotonic()) < min(end, responders.enough_at):
            if now >= again:
                failures = [failure for outlet in outlets for failure in outlet.send(wanted)]
                again = now + next(pause)
            for key, _ in selector.select(max(0.0, min(end, again, responders.enough_at) - now)):
                assert isinstance(key.fileobj, socket.socket)  # noqa: S101 - nothing else was registered
                _hear(key.fileobj, question, credentials, responders)
    if not responders.any():
        why = f" ({failures[0]})" if failures and len(failures) >= len(outlets) * len(wanted) else ""
        raise GaveUp(
            f"No broker that holds '{name}' answered within {timeout_secs:g} s{why}; "
            "is one running on this network, is the name registered there, is UDP allowed?"
        )


def _hear(sock: socket.socket, question: Question, credentials: Credentials, responders: Responders) -> None:
    try:
        payload, sender = sock.recvfrom(_REPLY_MAX_BYTES)
    except OSError:  # an earlier question met a closed port
        return
    address = _scoped(sender)
    if payload == PLAIN_REPLY:
        if not any(credentials):
            responders.heard(Broker(address, int(sender[1])), time.monotonic())
        return
    answer = decode_answer(payload, question, credentials.key)
    if answer is None or (credentials.fingerprint and answer.fingerprint != credentials.fingerprint):
        return
    if credentials.key and answer.address != address.partition("%")[0]:
        return  # honest words, passed on by somebody else
    authentic = bool(credentials.key)
    responders.heard(Broker(address, answer.port, answer.registry, answer.fingerprint, authentic), time.monotonic())


def _scoped(sender: tuple[Any, ...]) -> str:
    """Give a socket address's host, with the interface where it means nothing without that."""
    address = str(sender[0])
    if len(sender) < 4 or not sender[3] or "%" in address:
        return address
    try:
        return f"{address}%{socket.if_indextoname(sender[3])}"
    except OSError:  # the interface is gone
        return f"{address}%{sender[3]}"


class _Outlet:
    """A socket on one interface and everybody whom it reaches."""

    def __init__(self, sock: socket.socket, places: list[tuple[str, int] | tuple[str, int, int, int]]) -> None:
        self.sock = sock
        self._places = places

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, payloads: list[bytes]) -> Iterator[str]:
        """Send each payload everywhere; gives what went wrong, which is common: an interface may just go down."""
        for payload in payloads:
            problem = ""
            reached = False
            for place in self._places:
                try:
                    self.sock.sendto(payload, place)
                    reached = True
                except OSError as error:
                    problem = error.strerror or str(error)
            if not reached:
                yield problem


def _chosen(found: list[Interface], wanted: str) -> list[Interface]:
    if not wanted:
        return found
    chosen = [item for item in found if wanted in (item.name, item.address)]
    if not chosen:
        known = ", ".join(sorted({item.name or item.address for item in found}))
        raise UsageError(f"There is no interface {wanted[:80]!r} here; there are: {known}")
    return chosen


def _outlets(found: list[Interface], port: int) -> Iterator[_Outlet]:
    """Make a socket for each interface, bound to its address: that is how a broadcast leaves through it."""
    for item in found[:_PLACES_MAX]:
        if item.ipv6 and not item.link_local:
            continue
        family = socket.AF_INET6 if item.ipv6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if item.ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, struct.pack("@I", item.number))
                sock.bind((item.address, 0, 0, item.number))
                yield _Outlet(sock, [(MULTICAST_GROUP, port, 0, item.number)])
            elif item.loopback:
                sock.bind((item.address, 0))
                yield _Outlet(sock, [(item.address, port)])
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.bind((item.address, 0))
                yield _Outlet(sock, [(place, port) for place in (item.broadcast, _EVERYBODY) if place])
        except OSError:  # the address went away, or is still being checked (IPv6 duplicate detection)
            sock.close()

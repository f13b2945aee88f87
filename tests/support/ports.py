"""Ports for programs that tests start, and start again, and ports at which nothing listens."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

_PORTS: Final = range(20_500, 32_000)
"""Below those that the system gives to clients: nobody gets one while its program is dead for a moment."""
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6) if socket.has_dualstack_ipv6() else (socket.AF_INET,)
_chance: Final = random.SystemRandom()


def free_port(address: str = "") -> int:
    """Return a port that is free, for TCP and UDP, at one address or at all: a broker listens at all."""
    while True:
        port = _chance.choice(_PORTS)
        with ExitStack() as bound, suppress(OSError):
            for family in _FAMILIES if not address else (socket.AF_INET,):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sock = bound.enter_context(socket.socket(family, kind))
                    if family == socket.AF_INET6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    sock.bind((address, port))
            return port


@contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a TCP port of 127.0.0.1 that refuses connections.

    It stays bound: a port that was merely free a moment ago may be another test's server now.
    """
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        yield port

"""Ports for programs that tests start, and start again, and ports at which nothing listens."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_PORTS: Final = range(20_500, 32_000)
"""Below those that the system gives to clients: nobody gets one while its program is dead for a moment."""
_chance: Final = random.SystemRandom()


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that is free, for TCP and UDP."""
    while True:
        port = _chance.choice(_PORTS)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, suppress(OSError):
            tcp.bind((address, port))
            udp.bind((address, port))
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

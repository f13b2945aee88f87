"""Ports for programs that tests start, and start again."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
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

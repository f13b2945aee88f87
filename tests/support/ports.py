"""Ports for programs that tests start, and start again, and ports at which nothing listens."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PORTS: Final = range(29_500, 32_000) if os.name == "nt" else range(20_500, 29_500)
"""Below those that the system gives to clients; tests under Wine run beside others, with ports of their own."""
_left: Final[list[int]] = []
"""Those that were not given yet."""


def _shuffled() -> list[int]:
    """Return the ports of this worker of xdist: those that test at the same time have others."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = list(_PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))])
    random.SystemRandom().shuffle(own)
    return own


def free_port(address: str = "") -> int:
    """Return a port that is free, for TCP and UDP, at one address or at all: a broker listens at all."""
    port, kept = kept_port(address)
    kept.close()
    return port


def kept_port(address: str = "") -> tuple[int, socket.socket]:
    """Return a port as of :func:`free_port`, and what keeps it until it is closed, also while its program is dead.

    No other test is given it then. The program can listen there all the same, if it sets ``SO_REUSEADDR``.
    """
    while True:
        if not _left:
            _left.extend(_shuffled())
        port = _left.pop()
        kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            kept.bind((address, port))
            _see_that_it_is_free(address, port)
        except OSError:
            kept.close()
            continue
        if os.name == "nt":  # there it would keep the program away, too
            kept.close()
        else:
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return port, kept


def _see_that_it_is_free(address: str, port: int) -> None:
    """See that nothing else is bound to a port either, but TCP of IPv4."""
    others = [(socket.AF_INET, socket.SOCK_DGRAM)]
    if not address and socket.has_dualstack_ipv6():
        others += [(socket.AF_INET6, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM)]
    for family, kind in others:
        with socket.socket(family, kind) as sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))


@contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a TCP port of 127.0.0.1 that refuses connections.

    It stays bound: a port that was merely free a moment ago may be another test's server now.
    """
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        yield port

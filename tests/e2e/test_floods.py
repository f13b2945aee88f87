"""Clients that make the broker work hard for nothing harm nobody else; none of them needs a key.

With ``BPBROKER_LONG=1`` the attacks go on for half a minute.
"""

from __future__ import annotations

import logging
import select
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support import tls_flood
from tests.support.witness import CANARY, LONG, SLOWEST_SECS, Attacked, Witness

logger = logging.getLogger(__name__)

SECS = 30.0 if LONG else 4.0
WITHIN_SECS = 2.0
"""A good call is answered while the flood goes on, not after it."""


@pytest.mark.skipif(tls_flood.library() is None, reason="there is no libssl that could be called")
def test_key_updates_without_end(attack: Callable[..., Attacked]) -> None:
    attacked = attack()
    flooder = [sys.executable, "-m", "tests.support.tls_flood", str(attacked.broker.port), str(SECS)]
    if shutil.which("nice"):  # they stand for other machines, which take no CPU from the broker's
        flooder = ["nice", "-n", "10", *flooder]
    with ExitStack() as stack:
        flooders = [
            stack.enter_context(
                subprocess.Popen(flooder, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
            )
            for _ in range(4)
        ]
        with Witness(attacked.broker) as witness:
            ends = time.monotonic() + SECS
            took: list[float] = []
            while time.monotonic() < ends or len(took) < 200:
                begun = time.monotonic()
                assert attacked.broker.request("/live", "GET").status == 200
                took.append(time.monotonic() - begun)
        sent = [int(each.communicate(timeout=60)[0]) for each in flooders]
    logger.info("KeyUpdates %s: %s; slowest of %d fresh /live %.3f s", sent, witness.figures, len(took), max(took))
    assert max(took) <= (1.0 if LONG else SLOWEST_SECS)  # long: on a machine that does nothing else
    assert min(sent) > 100
    assert witness.figures.slowest_secs < WITHIN_SECS


def test_bodies_in_tiny_chunks(attack: Callable[..., Attacked]) -> None:
    attacked = attack()
    with Witness(attacked.broker) as witness:
        sent = send_tiny_chunks(attacked, 40, SECS)
    logger.info("tiny chunks %s bytes: %s", sent, witness.figures)
    assert sent > 100_000
    assert witness.figures.slowest_secs < WITHIN_SECS


def send_tiny_chunks(attacked: Attacked, connections: int, secs: float) -> int:
    """Send chunked bodies of one-byte chunks on so many connections; give how many bytes were sent."""

    def connect() -> ssl.SSLSocket:
        client = attacked.tls()
        client.sendall(b"POST /ping/Ping/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.setblocking(False)
        return client

    until = time.monotonic() + secs
    sent = 0
    clients = [connect() for _ in range(connections)]
    try:
        while time.monotonic() < until:
            for client in select.select([], clients, [], 0.1)[1]:
                try:
                    sent += client.send(b"1\r\nx\r\n" * 2700)
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    pass
                except OSError:  # it was refused
                    client.close()
                    clients[clients.index(client)] = connect()
    finally:
        for client in clients:
            client.close()
    return sent


@pytest.mark.skipif(not LONG, reason="takes half a minute; BPBROKER_LONG=1")
def test_memory_that_slow_readers_and_unfinished_uploads_take(attack: Callable[..., Attacked]) -> None:
    attacked = attack()
    for number in range(10):
        attacked.call("Replace", name=f"large-{number}", data="x" * 1_000_000)
    with ExitStack() as stack:
        for _ in range(100):  # each asks for 10 MB and reads nothing
            reader = stack.enter_context(attacked.tls())
            reader.sendall(f"GET /services/List/ HTTP/1.1\r\nHost: x\r\nX-Access-Key: {CANARY}\r\n\r\n".encode())
        for _ in range(300):
            loader = stack.enter_context(attacked.tls())
            loader.sendall(b"POST /services/Replace/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            with suppress(OSError):
                loader.sendall(b"x" * 999_999)
        assert attacked.process.memory_info().rss < 400 * 1024 * 1024
        attacked.memory_bytes = attacked.process.memory_info().rss  # malloc keeps some of it for the next time

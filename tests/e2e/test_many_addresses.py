"""Who has many addresses, or a whole IPv6 network, keeps nobody else out and is one client.

With ``BPBROKER_LONG=1`` there are as many addresses as the broker takes connections.
"""

from __future__ import annotations

import json
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from tests.support.network import Network, needs_namespaces, wired
from tests.support.running import RunningBroker, is_closed, untrusting
from tests.support.witness import CANARY, LONG, Attacked, Witness, eventually

logger = logging.getLogger(__name__)

ONE, OTHER = "2001:db8:1::", "2001:db8:2::"
"""Two networks of 64 bits each."""
_FREEBIND = 78
"""IPV6_FREEBIND: an address of a whole network that is local is none that a card has."""
KEY = f"{CANARY}\r\n\r\n".encode()


@pytest.mark.timeout(600)
def test_a_new_client_is_served_while_many_addresses_each_hold_half_a_request(attack: Callable[..., Attacked]) -> None:
    most = 8192 if LONG else 400
    attackers = most + most // 2
    needed = attackers + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    attacked = attack(max_connections=most, request_timeout_secs=600.0)
    with Witness(attacked.broker) as witness, ExitStack() as held:  # the witness is a new client all the time
        clients = []
        for number in range(attackers):
            client = held.enter_context(
                attacked.tls(f"127.{10 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}")
            )
            client.sendall(b"GET /services/List/ HTTP/1.1\r\nHo")
            clients.append(client)
        eventually(lambda: sum(map(is_closed, clients)) >= attackers - most)
        # It is the oldest that went, and it goes on like that.
        assert all(map(is_closed, clients[: (attackers - most) // 2]))
        assert not any(map(is_closed, clients[-most // 4 :]))
    logger.info("%d addresses: %s", attackers, witness.figures)
    if LONG:  # on a machine that does nothing else
        assert witness.figures.slowest_secs <= 1.0
    attacked.memory_bytes = attacked.process.memory_info().rss  # malloc keeps some of it for the next time


@pytest.fixture(scope="module")
def host() -> Iterator[Network]:
    """Yield a host that has two whole networks of IPv6."""

    def wire(network: Network) -> None:
        full = network.host("six")
        for prefix in (ONE, OTHER):
            network.ip("-n", full, "-6", "route", "add", "local", f"{prefix}/64", "dev", "lo")

    with wired(Network("my"), wire) as network:
        yield network


@needs_namespaces
def test_a_network_of_ipv6_is_one_client_everywhere(host: Network, make_broker: Callable[..., RunningBroker]) -> None:
    api = {"max_connections_per_address": 12, "wrong_keys_per_minute": 5, "max_waiting": 16}
    broker = make_broker({"api": api, "services": {"_access_key": CANARY}})
    broker.prefix = host.words("six")
    broker.inside = lambda: host.inside("six")
    broker.start()

    def connect(source: str) -> ssl.SSLSocket:
        with host.inside("six"):
            sock = socket.socket(socket.AF_INET6)
        try:
            sock.settimeout(30)
            sock.setsockopt(socket.IPPROTO_IPV6, _FREEBIND, 1)
            sock.bind((source, 0))
            sock.connect((f"{ONE}1", broker.port))
            return untrusting().wrap_socket(sock, suppress_ragged_eofs=False)
        except OSError:
            sock.close()
            raise

    def ask(source: str, key: str, path: str = "/services/List/") -> int:
        with closing(connect(source)) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Access-Key: {key}\r\n\r\n".encode())
            return int(client.recv(65536).split()[1])

    # Connections.
    with ExitStack() as held:
        for number in range(12):
            held.enter_context(connect(f"{ONE}a:{number}"))
        with suppress(OSError), closing(connect(f"{ONE}ffff:1")):
            pytest.fail("a thirteenth connection from one network was taken")
        held.enter_context(connect(f"{OTHER}1"))

    def is_served() -> bool:
        with suppress(OSError, IndexError):  # the broker has not seen yet that the others went
            return ask(f"{ONE}b:1", CANARY) == 200
        return False

    eventually(is_served)

    # Wrong keys.
    assert [ask(f"{ONE}c:{number}", "wrong") for number in range(6)] == [401] * 5 + [429]
    assert ask(f"{OTHER}c:1", "wrong") == 401
    assert ask(f"{ONE}c:7", CANARY) == 200

    # Waiting requests: a client gets half of the places at most.
    def wait(source: str) -> ssl.SSLSocket:
        client = waiting.enter_context(connect(source))
        client.sendall(b"GET /services/Get/?name=none&wait=60 HTTP/1.1\r\nHost: x\r\nX-Access-Key: " + KEY)
        return client

    def waits() -> int:
        parts = json.loads(broker.request("/health", "GET").body)["data"]["parts"]
        return next(int(part["figures"]["waiting"]) for part in parts if part["name"] == "registry")

    with ExitStack() as waiting:
        for number in range(8):
            wait(f"{ONE}d:{number}")
        eventually(lambda: waits() == 8)
        refused = wait(f"{ONE}e:1")
        assert refused.recv(65536).startswith(b"HTTP/1.1 503 ")
        wait(f"{OTHER}d:1")
        eventually(lambda: waits() == 9)

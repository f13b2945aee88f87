"""Discovery over real networks (``tests/support/network.py``).

Two subnets, A (10.91.1.0/24) and B (10.91.2.0/24), each a bridge in a namespace of its own::

    alpha   10.91.1.10                 broker
    gate    10.91.1.20 + 10.91.2.20    on both
    beta    10.91.2.30
    rogue   10.91.1.66                 answers whatever it likes
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.network import Network, needs_namespaces, wired
from tests.support.running import RunningBroker

pytestmark = needs_namespaces

Ended = subprocess.CompletedProcess[str]
PORT = 20443

ROGUE = """
import socket, sys
mode = sys.argv[1]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
sock.bind(("0.0.0.0", 20443))
upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
upstream.settimeout(0.2)
print("ready", flush=True)
seen = b""
while True:
    data, sender = sock.recvfrom(4096)
    if mode == "plain":
        sock.sendto(b"Key Exists\\n", sender)
    elif data.startswith(b"_bpb2 ? "):
        nonce = data.split(b" ")[2]
        if mode == "forge":
            claims = b"00" * 16 + b" " + b"11" * 32 + b" 20443 10.91.1.66"
            for mac in (b"-", b"22" * 32):
                sock.sendto(b"_bpb2 ! " + nonce + b" " + mac + b" " + claims + b"\\n", sender)
        else:  # pass the question on to the honest broker, and its answer back; or replay an older one
            upstream.sendto(data, ("10.91.1.10", 20443))
            try:
                answer = upstream.recv(4096)
            except TimeoutError:
                continue
            if mode == "relay":
                sock.sendto(answer, sender)
            elif mode == "replay":
                if seen:
                    sock.sendto(seen, sender)
                seen = answer
"""


def rogue(network: Network, mode: str) -> None:
    process = subprocess.Popen(
        [*network.words("rogue"), sys.executable, "-c", ROGUE, mode], stdout=subprocess.PIPE, text=True
    )
    network.run(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def wire(network: Network) -> None:
    for switch in ("swa", "swb"):
        network.switch(switch)
    for host in ("alpha", "gate", "beta", "rogue"):
        network.host(host)
    network.cable("alpha", "eth0", "swa", "10.91.1.10/24")
    network.cable("gate", "eth0", "swa", "10.91.1.20/24")
    network.cable("gate", "eth1", "swb", "10.91.2.20/24")
    network.cable("beta", "eth0", "swb", "10.91.2.30/24")
    network.cable("rogue", "eth0", "swa", "10.91.1.66/24")


@pytest.fixture(scope="module")
def wires() -> Iterator[Network]:
    with wired(Network(), wire) as network:
        yield network


@pytest.fixture
def network(wires: Network) -> Iterator[Network]:
    """Yield the network with nothing running on it."""
    yield wires
    wires.quiet()


Start = Callable[..., RunningBroker]
Run = Callable[..., Ended]


@pytest.fixture
def start(network: Network, make_broker: Callable[..., RunningBroker]) -> Start:
    """Return a starter of a broker on a host, holding ``foo``."""

    def run(
        host: str, configuration: object = None, *options: str, name: str = "foo", at: str = "127.0.0.1"
    ) -> RunningBroker:
        broker = make_broker(configuration, *options)
        broker.port = PORT
        broker.prefix = network.words(host)
        broker.start()
        done = client(
            network, broker, host, "-q", "-b", at, "--token", broker.token(),
            "service", "register", "--name", name, "--data", host,
        )  # fmt: skip
        assert done.returncode == 0, done
        return broker

    return run


def client(network: Network, broker: RunningBroker, host: str, *arguments: str, **environ: str) -> Ended:
    """Run ``bpclient`` on a host."""
    return subprocess.run(
        [*network.words(host), *broker.command("bpbroker.client", *arguments)],
        env={**broker.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def discovers(network: Network, broker: RunningBroker, host: str, *arguments: str) -> str:
    ended = client(network, broker, host, *arguments, "discover", "--name", "foo")
    assert ended.returncode == 0, ended
    assert ended.stderr == ""
    return ended.stdout


def finds_nobody(network: Network, broker: RunningBroker, host: str, *arguments: str) -> None:
    ended = client(network, broker, host, "--timeout", "1200ms", *arguments, "discover", "--name", "foo")
    assert (ended.returncode, ended.stdout) == (124, ""), ended


def test_found_from_the_next_host_and_from_its_own(network: Network, start: Start) -> None:
    broker = start("alpha")
    assert discovers(network, broker, "gate") == "10.91.1.10\n"
    assert discovers(network, broker, "alpha") == "10.91.1.10\n"
    finds_nobody(network, broker, "beta")


def test_a_host_on_two_networks_asks_on_both(network: Network, start: Start) -> None:
    broker = start("beta")
    assert discovers(network, broker, "gate") == "10.91.2.30\n"
    assert discovers(network, broker, "gate", "--interface", "eth1") == "10.91.2.30\n"
    assert discovers(network, broker, "gate", "--interface", "10.91.2.20") == "10.91.2.30\n"
    finds_nobody(network, broker, "gate", "--interface", "eth0")


def test_a_broker_on_two_networks_is_found_on_both_and_is_one(network: Network, start: Start) -> None:
    broker = start("gate")
    assert discovers(network, broker, "alpha") == "10.91.1.20\n"
    assert discovers(network, broker, "beta") == "10.91.2.20\n"
    assert discovers(network, broker, "gate") in ("10.91.1.20\n", "10.91.2.20\n")


def test_a_broker_on_one_address_is_found_there_and_nowhere_else(network: Network, start: Start) -> None:
    broker = start("gate", None, "--listen-ip", "10.91.1.20", at="10.91.1.20")
    assert discovers(network, broker, "alpha") == "10.91.1.20\n"
    finds_nobody(network, broker, "beta")


def test_find_and_do_in_one_call_from_another_host(network: Network, start: Start) -> None:
    broker = start("alpha")
    ended = client(network, broker, "gate", "--discover", "foo", "service", "register", "--name", "gate", "--data", "x")
    assert (ended.returncode, ended.stdout) == (0, "x\n")
    written = client(
        network, broker, "gate", "-b", "10.91.1.10", "service", "get", "--name", "gate", "--field", "last_write_ip"
    )
    assert written.stdout == "10.91.1.20\n"


def test_asking_goes_on_until_somebody_is_there(
    network: Network, start: Start, make_broker: Callable[..., RunningBroker]
) -> None:
    command = RunningBroker.command("bpbroker.client", "discover", "--name", "foo", "--wait", "1m")
    asking = subprocess.Popen(
        [*network.words("gate"), *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=make_broker().environ,
    )  # fmt: skip
    start("alpha")
    assert asking.communicate(timeout=90) == ("10.91.1.10\n", "")


def test_two_brokers_for_one_name_are_a_split_brain(network: Network, start: Start) -> None:
    broker = start("alpha")
    start("beta")
    ended = client(network, broker, "gate", "discover", "--name", "foo")
    assert (ended.returncode, ended.stdout) == (7, "")
    assert "10.91.1.10" in ended.stderr
    assert "10.91.2.30" in ended.stderr
    everybody = client(network, broker, "gate", "--timeout", "1s", "discover", "--name", "foo", "--all")
    assert sorted(everybody.stdout.split()) == ["10.91.1.10", "10.91.2.30"]
    first = client(network, broker, "gate", "discover", "--name", "foo", "--first")
    assert first.stdout.strip() in everybody.stdout.split()
    as_json = client(network, broker, "gate", "-f", "json", "--timeout", "1s", "discover", "--name", "foo", "--all")
    assert {item["port"] for item in json.loads(as_json.stdout)} == {PORT}
    nothing_done = client(network, broker, "gate", "--discover", "foo", "service", "get", "--name", "foo")
    assert (nothing_done.returncode, nothing_done.stdout) == (7, "")
    # On one of its networks alone there is no doubt.
    assert discovers(network, broker, "gate", "--interface", "eth0") == "10.91.1.10\n"


def test_a_liar_makes_doubt_where_nothing_is_authenticated(network: Network, start: Start) -> None:
    broker = start("alpha")
    rogue(network, "plain")
    ended = client(network, broker, "gate", "discover", "--name", "foo")
    assert ended.returncode == 7
    assert "10.91.1.66" in ended.stderr


@pytest.mark.parametrize("mode", ["plain", "forge", "relay", "replay"])
def test_with_a_token_no_liar_is_believed(network: Network, start: Start, mode: str) -> None:
    broker = start("alpha", {"services": {"_access_key": "canary"}})
    token = broker.token()
    rogue(network, mode)
    for _ in range(2):
        assert discovers(network, broker, "gate", "--token", token) == "10.91.1.10\n"
    ended = client(network, broker, "gate", "--token", token, "--discover", "foo", "service", "get", "--name", "foo")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("alpha\n", "", 0)
    broker.stop()
    finds_nobody(network, broker, "gate", "--token", token)


def test_a_liar_gets_no_key(network: Network, start: Start) -> None:
    broker = start("alpha", {"services": {"_access_key": "canary"}})
    broker.stop()
    rogue(network, "plain")
    ended = client(
        network,
        broker,
        "gate",
        "-a",
        "canary",
        "--timeout",
        "2s",
        "--discover",
        "foo",
        "service",
        "get",
        "--name",
        "foo",
    )
    assert ended.returncode == 6, ended


@pytest.mark.parametrize("mode", ["forge", "relay"])
def test_a_fingerprint_tells_the_right_broker(network: Network, start: Start, mode: str) -> None:
    broker = start("alpha")
    rogue(network, mode)
    # A token of the first form. Where a liar claims the right fingerprint, too, TLS decides.
    token = f"bpb1:{broker.note['fingerprint'].replace(':', '')}:"
    assert discovers(network, broker, "gate", "--token", token) == "10.91.1.10\n"


def test_authenticated_brokers_tell_strangers_nothing(network: Network, start: Start) -> None:
    broker = start("alpha", {"services": {"_access_key": "canary"}, "_global": {"discovery": "authenticated"}})
    finds_nobody(network, broker, "gate")
    finds_nobody(network, broker, "gate", "-a", "canary")
    assert discovers(network, broker, "gate", "--token", broker.token()) == "10.91.1.10\n"


def test_ipv6_alone_is_enough(network: Network, make_broker: Callable[..., RunningBroker]) -> None:
    host = network.tag
    for name in ("six1", "six2"):
        network.host(name)
    network.ip(
        "link", "add", "eth0", "netns", f"{host}six1", "type", "veth", "peer", "name", "eth0", "netns", f"{host}six2"
    )
    for name in ("six1", "six2"):
        # Duplicate detection would take the address a second to become usable.
        subprocess.run(
            [*network.words(name), "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad"], check=True
        )
        network.ip("-n", f"{host}{name}", "link", "set", "eth0", "up")
    broker = make_broker()
    broker.port = PORT
    broker.prefix = network.words("six1")
    broker.start()
    ended = client(network, broker, "six1", "-q", "-b", "[::1]", "service", "register", "--name", "foo", "--data", "x")
    assert ended.returncode == 0, ended
    found = client(network, broker, "six2", "discover", "--name", "foo", "--wait", "30s")
    assert found.returncode == 0, found
    assert found.stdout.startswith("fe80::")
    assert found.stdout.endswith("%eth0\n")
    used = client(network, broker, "six2", "--discover", "foo", "service", "get", "--name", "foo")
    assert (used.returncode, used.stdout) == (0, "x\n"), used
    address = found.stdout.strip()
    for target in (address, f"[{address}]", f"[{address}]:{PORT}"):
        used = client(network, broker, "six2", "-q", "-b", target, "service", "get", "foo")
        assert (used.returncode, used.stdout) == (0, "x\n"), used

    # That address alone can be listened on, by TCP and UDP.
    broker.stop()
    link_local = subprocess.run(
        [*network.words("six1"), "ip", "-6", "-brief", "address", "show", "dev", "eth0"],
        capture_output=True, text=True, check=True,
    ).stdout.split()[2].partition("/")[0]  # fmt: skip
    options, broker.options = broker.options, ("--listen-ip", f"{link_local}%eth0")
    broker.start()
    found = client(network, broker, "six2", "discover", "--name", "foo", "--wait", "30s")
    assert (found.returncode, found.stdout) == (0, f"{address}\n"), found
    broker.stop()
    broker.options = options
    broker.start()

    # An address that other hosts can use as well is better than one with a zone.
    for number, name in enumerate(("six1", "six2"), 1):
        network.ip("-n", f"{host}{name}", "address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
    found = client(network, broker, "six2", "discover", "--name", "foo", "--wait", "30s")
    assert (found.returncode, found.stdout) == (0, "2001:db8::1\n"), found


def test_a_host_without_any_network_says_so_quickly(network: Network, tmp_path: Path) -> None:
    network.host("alone")
    broker = RunningBroker(tmp_path / "home")
    finds_nobody(network, broker, "alone")

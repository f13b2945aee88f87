"""Reaching a broker by a name or by several addresses: nothing dead, silent or false among them holds it up."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from bpbroker.client import Client
from bpbroker.client.dialing import STEP_SECS, _interleaved
from bpbroker.errors import CannotConnect, NotTrusted, UsageError, WaitTimeout
from tests.support.fake_broker import FakeBroker, answer, failure, success
from tests.support.ports import refusing_port

AF_INET6 = socket.AF_INET6
PONG = answer(200, {"src": "127.0.0.1", "data": {"_str": ""}})


@pytest.fixture(autouse=True)
def _echoing(fake: FakeBroker) -> None:
    fake.answers = [PONG]


@contextlib.contextmanager
def _full() -> Iterator[str]:
    """Yield an address whose backlog is full: connections get no answer at all, as from a host that is off."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        where = listening.getsockname()
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(where)
        yield f"127.0.0.1:{where[1]}"


@contextlib.contextmanager
def _silent() -> Iterator[str]:
    """Yield an address that takes connections and says nothing, as a broker that is stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Answer lookups of names from a dictionary: name to addresses, an error, or an event that is waited for."""
    known: dict[str, Any] = {}
    real = socket.getaddrinfo
    over = threading.Event()

    def look_up(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in known or more.get("flags"):
            return real(host, port, *rest, **more)
        found = known[name]
        if isinstance(found, Exception):
            raise found
        if found is None:
            over.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (place.partition(":")[0], int(place.partition(":")[2])))
            for place in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield known
    over.set()


@pytest.mark.parametrize("dead", [_full, _silent])
def test_a_dead_first_address_of_a_name_costs_a_quarter_of_a_second(
    fake: FakeBroker, places: dict[str, Any], dead: Any
) -> None:
    with dead() as address:
        places["two.example"] = [address, fake.address]
        client = Client(f"two.example:{fake.port}", fingerprint=fake.fingerprint, timeout_secs=30)
        began = time.monotonic()
        with client:
            client.ping()
        assert STEP_SECS <= time.monotonic() - began < 8  # 10 s is what a connection alone may take


@pytest.mark.parametrize("dead", [_full, _silent])
def test_of_several_addresses_the_one_that_answers_is_used_and_tried_first_from_then_on(
    fake: FakeBroker, known_brokers: Any, dead: Any
) -> None:
    assert not known_brokers.exists()
    fake.answers = [answer(200, {"src": "x", "data": {}}, Connection="close")]
    with dead() as address, Client([address, fake.address], fingerprint=fake.fingerprint) as client:
        client.ping()
        assert str(client.address) == fake.address
        began = time.monotonic()
        client.ping()
        assert time.monotonic() - began < STEP_SECS + 5
        assert fake.connections == 2


def test_a_refused_connection_has_the_next_address_tried_at_once(fake: FakeBroker) -> None:
    with (
        refusing_port() as port,
        Client([f"127.0.0.1:{port}", fake.address], fingerprint=fake.fingerprint) as client,
    ):
        client.ping()
        assert str(client.address) == fake.address


def test_a_broker_with_the_wrong_certificate_is_passed_over_and_named(fake: FakeBroker, authority: trustme.CA) -> None:
    said: list[str] = []
    other = FakeBroker(authority)
    try:
        with Client([other.address, fake.address], fingerprint=fake.fingerprint, tell=said.append) as client:
            client.ping()
        assert not other.requests
        assert len(said) == 1
        assert other.address in said[0]
        with (
            refusing_port() as port,
            Client([other.address, f"127.0.0.1:{port}"], fingerprint=fake.fingerprint, retries=0) as client,
            pytest.raises(CannotConnect, match=f"certificate of {other.address} is not.*; Cannot connect to 127"),
        ):
            client.ping()
        with (
            Client([other.address], fingerprint=fake.fingerprint) as client,
            pytest.raises(NotTrusted, match="nothing was sent"),
        ):
            client.ping()
    finally:
        other.close()


def test_a_broker_that_cannot_serve_gives_way_to_the_next_one(
    fake: FakeBroker, authority: trustme.CA, quick: list[float]
) -> None:
    full = FakeBroker(authority)
    full.answers = [failure(503, "The disk is full")]
    fake.answers = [success({"a": 1})]
    try:
        both = (full.fingerprint, fake.fingerprint)
        with Client([full.address, fake.address], fingerprint=both) as client:
            assert client.get("n") == {"a": 1}
        assert (len(full.requests), len(fake.requests), len(quick)) == (1, 1, 1)
    finally:
        full.close()


@pytest.mark.parametrize("several", [False, True])
def test_a_name_server_that_is_silent_ends_with_the_timeout(places: dict[str, Any], several: bool) -> None:
    places |= {"slow.example": None, "slow2.example": None}
    names = ["slow.example:1", "slow2.example:1"] if several else ["slow.example:1"]
    began = time.monotonic()
    with Client(names, timeout_secs=0.5) as client, pytest.raises((CannotConnect, WaitTimeout), match="no name server"):
        client.ping()
    assert time.monotonic() - began < 8


def test_a_silent_name_server_for_one_name_does_not_hold_up_another_address(
    fake: FakeBroker, places: dict[str, Any]
) -> None:
    places["slow.example"] = None
    began = time.monotonic()
    with Client(["slow.example:1", fake.address], fingerprint=fake.fingerprint) as client:
        client.ping()
    assert time.monotonic() - began < 8


def test_a_lookup_that_fails_names_each_host(places: dict[str, Any]) -> None:
    places |= {
        "a.example": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        "b.example": socket.gaierror(socket.EAI_NONAME, "No such thing"),
    }
    with (
        Client(["a.example:1", "b.example:1"]) as client,
        pytest.raises(CannotConnect, match=r"'a\.example' cannot be looked up: Name.*'b\.example' .*: No such thing"),
    ):
        client.ping()


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 64}.example", "."])
def test_a_host_that_is_no_name_is_a_usage_error(host: str, fake: FakeBroker) -> None:
    with Client(host) as client, pytest.raises((UsageError, CannotConnect), match="looked up"):
        client.ping()
    with Client([host, fake.address], fingerprint=fake.fingerprint) as client:
        client.ping()


def test_a_zone_that_this_host_does_not_have_is_named() -> None:
    with (
        Client("[fe80::1%nope0]:1", retries=0) as client,
        pytest.raises(CannotConnect, match="interface 'nope0' on this host"),
    ):
        client.ping()


def test_families_take_turns_beginning_with_the_systems_choice() -> None:
    four, six = [(socket.AF_INET, n) for n in range(3)], [(AF_INET6, n) for n in range(2)]
    assert _interleaved([*six, *four]) == [six[0], four[0], six[1], four[1], four[2]]
    assert _interleaved(four) == four
    assert _interleaved([]) == []


@pytest.mark.parametrize("wait_secs", [0.0, 60.0])
def test_a_limit_for_everything_ends_waits_too(fake: FakeBroker, wait_secs: float) -> None:
    over = threading.Event()

    def silent(_sock: object) -> None:
        over.wait(30)

    fake.handler = silent
    began = time.monotonic()
    with (
        Client(fake.address, fingerprint=fake.fingerprint, total_secs=0.4) as client,
        pytest.raises(WaitTimeout, match=r"0\.4 s"),
    ):
        client.get("n", wait_secs=wait_secs)
    assert time.monotonic() - began < 8
    over.set()


def test_a_wait_that_the_timeout_cuts_short_says_so(fake: FakeBroker) -> None:
    fake.answers = [failure(404, "Entry 'n' not found")]
    with (
        Client(fake.address, fingerprint=fake.fingerprint, total_secs=0.3) as client,
        pytest.raises(WaitTimeout, match=r"did not appear within 0\.3 s, the timeout, which is shorter than the wait"),
    ):
        client.get("n", wait_secs=60)


def test_a_link_local_address_without_its_interface_is_told_what_it_lacks(fake: FakeBroker) -> None:
    for targets in ("[fe80::1]:1", ["[fe80::1]:1", "[fe80::2]:1"]):
        with (
            Client(targets, retries=0, timeout_secs=30) as client,
            pytest.raises(CannotConnect, match=r"needs the interface that leads there: fe80::[12]%INTERFACE"),
        ):
            client.ping()
    with Client(["[fe80::1]:1", fake.address], fingerprint=fake.fingerprint) as client:
        client.ping()


def test_a_wait_gives_a_silent_name_server_no_more_than_the_timeout(places: dict[str, Any]) -> None:
    places["silent.example"] = None
    with Client("silent.example", total_secs=0.4) as client, pytest.raises(WaitTimeout) as caught:
        client.get("x", wait_secs=30)
    (tried,) = re.findall(r"looked up within ([0-9.]+) s", str(caught.value))
    assert float(tried) <= 0.4

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from bpbroker import DEFAULT_PORT
from bpbroker.actors.base import ActorAddress, launch, wait_for
from bpbroker.actors.discovery import DATAGRAMS_PER_SEC, Discovery, bind_udp
from bpbroker.config import layers
from bpbroker.discovery.datagram import (
    GROWTH_MAX,
    PLAIN_REPLY,
    Question,
    Reply,
    decode_answer,
    plain_question,
    signed_answer,
    signed_question,
)
from bpbroker.errors import Overloaded
from bpbroker.messages import CertificateChanged, Exists, Ping, SettingsChanged
from bpbroker.registry.discovery_secret import DiscoverySecret

NONCE = "0f" * 16
QUESTION = Question("foo", NONCE)
FINGERPRINT = "ab" * 32
REGISTRY = "cd" * 16
SECRET, OTHER = "5e" * 32, "07" * 32
ALIVE = b"ping/Ping?data=alive"


class Registry:
    """Holds ``foo``; answers at once, late, or not at all."""

    name = "registry"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.late: list[Future[str]] | None = None
        self.overloaded = False
        self.everything = False
        """Whether it holds every name."""
        self.free = threading.Event()
        """While this is not set, who asks is kept waiting."""
        self.free.set()

    def ask(self, message: Exists, timeout_secs: float) -> Future[Any]:
        assert timeout_secs > 0
        if self.overloaded:
            raise Overloaded("too many")
        self.asked.append(message.name)
        assert self.free.wait(20)
        reply: Future[str] = Future()
        if self.late is not None:
            self.late.append(reply)
        else:
            reply.set_result(REGISTRY if message.name == "foo" or self.everything else "")
        return reply

    def tell(self, message: Any) -> None:
        raise AssertionError(message)


def settings(**sections: Any) -> Any:
    return layers.freeze(layers.layered(layers.DEFAULTS, sections))


class Running:
    """A discovery actor and a client's socket."""

    def __init__(
        self, address: ActorAddress, registry: Registry, where: tuple[str, int], client: socket.socket, wrong: list[str]
    ) -> None:
        self.address = address
        self.registry = registry
        self.where = where
        self.port = where[1]
        self.client = client
        self.wrong = wrong
        """The addresses of wrong macs."""

    def ask(self, payload: bytes) -> bytes:
        self.client.sendto(payload, ("127.0.0.1", self.port))
        return self.client.recv(4096)

    def is_silent(self, payload: bytes) -> bool:
        """Whether nothing is answered: what is asked next is the next answer."""
        self.client.sendto(payload, ("127.0.0.1", self.port))
        if self.ask(ALIVE) != b"alive":
            return False
        self.settle()
        return self.ask(ALIVE) == b"alive"

    def settle(self) -> None:
        """Wait until all that was read is done: of what comes together, pings are answered before names."""
        for _ in range(2):  # the first follows the batch, the second what the registry said of it
            wait_for(self.address.ask(Ping(), 10), 10)

    def configure(self, **sections: Any) -> None:
        self.address.tell(SettingsChanged(settings(**sections)))
        wait_for(self.address.ask(Ping(), 10), 10)


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    undo: list[Callable[[], object]] = []

    def make(*, ip: str = "127.0.0.1", shared: DiscoverySecret | None = None, **sections: Any) -> Running:
        sockets = bind_udp(ip, 0)
        registry = Registry()
        wrong: list[str] = []
        ref = launch(Discovery, sockets, registry, settings(**sections), FINGERPRINT, wrong.append, shared)
        address = ActorAddress("discovery", ref)
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(20)
        undo.extend((lambda: address.stop(10), client.close, *(sock.close for sock in sockets)))
        return Running(address, registry, sockets[0].getsockname(), client, wrong)

    yield make
    for step in undo:
        step()


def test_a_held_name_is_answered_as_0_22_did(run: Callable[..., Running]) -> None:
    running = run()
    for payload in (b"foo", b"foo\n", b"  foo \r\n"):
        assert running.ask(payload) == PLAIN_REPLY


@pytest.mark.parametrize("payload", [b"bar", b"", b" \n", b"_access_key", b"_x", b"\xff", b"foo\0", b"x" * 65000])
def test_anything_else_meets_silence(run: Callable[..., Running], payload: bytes) -> None:
    assert run().is_silent(payload)


def test_the_udp_ping_comes_back_and_not_more(run: Callable[..., Running]) -> None:
    running = run()
    assert running.ask(b"ping/Ping?data=X") == b"X"
    assert running.is_silent(b"ping/Ping?data=")
    large = b"y" * 8000
    running.client.sendto(b"ping/Ping?data=" + large, ("127.0.0.1", running.port))
    assert running.client.recv(65535) == large


def test_a_signed_question_gets_an_authentic_answer(run: Callable[..., Running]) -> None:
    running = run(_discovery={"secret": SECRET})
    request = signed_question("foo", NONCE, SECRET)
    reply = running.ask(request)
    assert decode_answer(reply, QUESTION, SECRET) == Reply(REGISTRY, FINGERPRINT, running.port, "127.0.0.1")
    assert len(reply) <= len(request) + GROWTH_MAX
    assert running.is_silent(signed_question("foo", NONCE, OTHER))


def test_a_shared_registry_s_secret_counts_from_the_moment_it_is_told(run: Callable[..., Running]) -> None:
    shared = DiscoverySecret()
    running = run(_discovery={"secret": OTHER}, _global={"discovery": "authenticated"}, shared=shared)
    for secret in (SECRET, OTHER):
        assert running.is_silent(signed_question("foo", NONCE, secret))
    assert running.wrong == []  # whether it was wrong is not known yet
    shared.take(json.dumps({"secret": SECRET}).encode())
    assert decode_answer(running.ask(signed_question("foo", NONCE, SECRET)), QUESTION, SECRET) is not None
    assert running.is_silent(signed_question("foo", NONCE, OTHER))
    assert running.wrong == ["127.0.0.1"]


def test_an_access_key_signs_nothing(run: Callable[..., Running]) -> None:
    """A packet that was signed with a key would be an oracle for it: guesses could be tried against it for ever."""
    key = "0a" * 32
    running = run(services={"_access_key": key})
    assert running.is_silent(signed_question("foo", NONCE, key))
    unsigned = running.ask(signed_question("foo", NONCE))
    assert decode_answer(unsigned, QUESTION, key) is None


def test_without_the_secret_the_same_is_said_unsigned(run: Callable[..., Running]) -> None:
    running = run(_discovery={"secret": SECRET})
    reply = running.ask(signed_question("foo", NONCE))
    assert decode_answer(reply, QUESTION) is not None
    assert decode_answer(reply, QUESTION, SECRET) is None


def test_wrong_macs_are_counted_by_address_where_only_signed_questions_are_answered(
    run: Callable[..., Running],
) -> None:
    running = run(_global={"discovery": "authenticated"}, _discovery={"secret": SECRET}, ping={"_access_key": "k"})
    for _ in range(3):
        running.client.sendto(signed_question("foo", NONCE, OTHER), ("127.0.0.1", running.port))
    assert decode_answer(running.ask(signed_question("foo", NONCE, SECRET)), QUESTION, SECRET) is not None
    assert running.wrong == ["127.0.0.1"] * 3
    assert wait_for(running.address.ask(Ping(), 10), 10).figures["wrong_macs"] == 3


def test_a_question_that_is_too_short_for_its_answer_meets_silence(run: Callable[..., Running]) -> None:
    assert run().is_silent(signed_question("foo", NONCE).rstrip())


def test_authenticated_answers_only_who_has_the_secret(run: Callable[..., Running]) -> None:
    running = run(_global={"discovery": "authenticated"}, _discovery={"secret": SECRET}, services={"_access_key": "k"})
    assert running.is_silent(plain_question("foo"))
    assert running.is_silent(signed_question("foo", NONCE))
    assert decode_answer(running.ask(signed_question("foo", NONCE, SECRET)), QUESTION, SECRET) is not None


def test_off_answers_nobody(run: Callable[..., Running]) -> None:
    running = run(_global={"discovery": "off"}, services={"_access_key": "k"})
    for payload in (plain_question("foo"), signed_question("foo", NONCE, OTHER), ALIVE):
        running.client.sendto(payload, ("127.0.0.1", running.port))
    while wait_for(running.address.ask(Ping(), 10), 10).figures["read"] < 3:
        time.sleep(0.005)
    running.configure(services={"_access_key": "k"})
    assert running.ask(plain_question("foo")) == PLAIN_REPLY


def test_a_key_of_ping_silences_the_udp_ping(run: Callable[..., Running]) -> None:
    running = run(ping={"_access_key": "k"})
    running.client.sendto(ALIVE, ("127.0.0.1", running.port))
    assert running.ask(plain_question("foo")) == PLAIN_REPLY


def test_a_new_certificate_is_told_of(run: Callable[..., Running]) -> None:
    running = run()
    running.address.tell(CertificateChanged(":".join(["EF"] * 32)))
    answer = decode_answer(running.ask(signed_question("foo", NONCE)), QUESTION)
    assert answer is not None
    assert answer.fingerprint == "ef" * 32


def test_a_slow_registry_does_not_keep_the_actor_from_its_ping(run: Callable[..., Running]) -> None:
    running = run()
    running.registry.late = []
    running.client.sendto(plain_question("foo"), ("127.0.0.1", running.port))
    assert running.ask(ALIVE) == b"alive"
    assert wait_for(running.address.ask(Ping(), 10), 10).ok
    running.registry.late[0].set_result(REGISTRY)
    assert running.client.recv(100) == PLAIN_REPLY


def test_a_registry_in_trouble_means_silence_not_an_error(run: Callable[..., Running]) -> None:
    running = run()
    running.registry.overloaded = True
    assert running.is_silent(plain_question("foo"))
    running.registry.overloaded = False
    running.registry.late = []
    running.client.sendto(plain_question("foo"), ("127.0.0.1", running.port))
    assert running.ask(ALIVE) == b"alive"
    running.settle()
    running.registry.late[0].set_exception(Overloaded("too many"))
    running.registry.late = None
    assert running.ask(plain_question("foo")) == PLAIN_REPLY


def test_a_burst_for_one_name_asks_the_registry_far_fewer_times(run: Callable[..., Running]) -> None:
    running = run()
    running.registry.free.clear()
    for _ in range(100):
        running.client.sendto(plain_question("foo"), ("127.0.0.1", running.port))
    running.registry.free.set()
    for _ in range(100):
        assert running.client.recv(100) == PLAIN_REPLY
    # One batch in hand and eight waiting, each as small as one datagram; then all the rest at once, by 64.
    assert len(running.registry.asked) <= 12


def test_a_flood_is_read_only_within_the_allowance(run: Callable[..., Running]) -> None:
    running = run()
    end = time.monotonic() + 1.5
    sent = 0
    while time.monotonic() < end:
        running.client.sendto(b"nobody", ("127.0.0.1", running.port))
        sent += 1
    pong = wait_for(running.address.ask(Ping(), 10), 10)
    assert pong.ok
    # The first burst, what one and a half seconds allow, and wide room for a machine that stumbles.
    assert pong.figures["read"] <= min(sent, DATAGRAMS_PER_SEC * 5)
    for _ in range(50):
        running.client.sendto(plain_question("foo"), ("127.0.0.1", running.port))
        running.client.settimeout(0.25)
        try:
            assert running.client.recv(100) == PLAIN_REPLY
            break
        except TimeoutError:  # the system's buffer is full still: clients ask again, too
            continue
    else:
        pytest.fail("it did not recover from the flood")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_is_not_well_when_its_thread_has_ended(run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    running = run()
    assert wait_for(running.address.ask(Ping(), 10), 10).ok

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bpbroker.actors.discovery._Receiver._read", broken)
    running.client.sendto(b"foo", ("127.0.0.1", running.port))
    while (pong := wait_for(running.address.ask(Ping(), 10), 10)).ok:
        time.sleep(0.005)
    assert "has ended" in pong.detail


def test_another_actor_can_take_the_sockets_over() -> None:
    sockets = bind_udp("127.0.0.1", 0)
    try:
        for _ in range(2):
            address = ActorAddress("discovery", launch(Discovery, sockets, Registry(), settings(), FINGERPRINT))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(20)
                client.sendto(b"foo", sockets[0].getsockname())
                assert client.recv(100) == PLAIN_REPLY
            assert address.stop(10)
    finally:
        for sock in sockets:
            sock.close()


# --- brokers that are made to answer each other ---


class Forger:
    """Sends datagrams on loopback that pretend another source; needs root."""

    def __init__(self) -> None:
        try:
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        except PermissionError:
            pytest.skip("a raw socket needs root")
        self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)

    def send(self, payload: bytes, source: tuple[str, int], target: tuple[str, int]) -> None:
        """Send one datagram from ``source``; no checksums, loopback wants none (RFC 768)."""
        udp = struct.pack("!HHHH", source[1], target[1], 8 + len(payload), 0) + payload
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
        self._sock.sendto(head + addresses + udp, (target[0], 0))

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def forger() -> Iterator[Forger]:
    made = Forger()
    yield made
    made.close()


def total(brokers: list[Running], what: str) -> int:
    return sum(wait_for(broker.address.ask(Ping(), 10), 10).figures[what] for broker in brokers)


def exchange(brokers: list[Running], send: Callable[[], None], count: int) -> int:
    """Send datagrams, wait until the brokers have nothing more to say, and give how often they answered."""
    read, answered = total(brokers, "read"), total(brokers, "answered")
    send()
    while total(brokers, "read") < read + count:
        time.sleep(0.002)
    said = (0, 0)
    while (now := (total(brokers, "read"), total(brokers, "answered"))) != said:
        said = now
        for broker in brokers:
            broker.settle()
        time.sleep(0.05)
        assert total(brokers, "answered") - answered <= 50 * count, "they talk for ever"
    return total(brokers, "answered") - answered


@pytest.mark.skipif(sys.platform != "linux", reason="forging is tested on Linux")
def test_two_brokers_never_talk_to_each_other(run: Callable[..., Running], forger: Forger) -> None:
    brokers = [run(ip="127.0.0.1"), run(ip="127.0.0.2")]
    for broker in brokers:
        broker.registry.everything = True
    one, two = (broker.where for broker in brokers)
    nested = b"ping/Ping?data=" * 200 + b"x"
    # What it costs: no reply, or one; an echo of a name has one that is smaller than what it took.
    for payload, replies in (
        (b"foo", 1),
        (b"Key Exists\n", 0),
        (nested, 0),
        (b"ping/Ping?data=" + signed_question("foo", NONCE), 0),
        (b"ping/Ping?data=Key Exists", 0),
        (signed_question("foo", NONCE), 1),
        (signed_answer(QUESTION, Reply(REGISTRY, FINGERPRINT, 5, "127.0.0.2")), 0),
        (b"ping/Ping?data=" + b"\xff" * 100, 1),
        (b"ping/Ping?data=foo", 2),
    ):
        assert exchange(brokers, partial(forger.send, payload, two, one), 1) == replies, payload


@pytest.mark.skipif(sys.platform != "linux", reason="forging is tested on Linux")
def test_no_answer_goes_to_a_brokers_port_or_a_system_services(run: Callable[..., Running], forger: Forger) -> None:
    running = run()
    target = ("127.0.0.1", running.port)
    for port in (running.port, DEFAULT_PORT, 7, 53, 123, 1023):
        for payload in (b"foo", signed_question("foo", NONCE), ALIVE):
            forger.send(payload, ("127.0.0.9", port), target)
    assert exchange([running], lambda: forger.send(b"foo", ("127.0.0.9", 50000), target), 1) == 1

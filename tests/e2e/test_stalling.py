"""Clients that hold on to the broker harm no other client.

With ``BPBROKER_LONG=1`` the attacks have the size that the cases name.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import client as load
from tests.support.running import RunningBroker, is_closed, untrusting
from tests.support.witness import CANARY, KEY, LONG, SLOWEST_SECS, Attacked, Witness, eventually

logger = logging.getLogger(__name__)

ADDRESSES = 50
REQUEST = f"X-Access-Key: {CANARY}\r\n\r\n".encode()


@contextmanager
def witnessed(attacked: Attacked, during: str) -> Iterator[Witness]:
    """Have the good client measure during the block; its figures are logged (``--log-cli-level=INFO``)."""
    with Witness(attacked.broker) as witness:
        yield witness
    logger.info("%s: %s", during, witness.figures)


def test_two_hundred_clients_that_keep_their_connections(attack: Callable[..., Attacked]) -> None:
    attacked = attack()
    calls = [
        f"POST /services/{method}/?name=kept-{number % 50}&data=x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n".encode()
        + REQUEST
        for number in range(997)
        for method in ("Replace", "Get")
    ]
    load.run(load.Job(attacked.broker.port, "http", calls[:100:2], 1))  # so that each name is there to be read
    job = load.Job(attacked.broker.port, "http", calls, 200, 30.0 if LONG else 3.0)
    with witnessed(attacked, "200 keep-alive clients"):
        outcome = load.run(job)  # raises at any answer that is no success, and when a connection is closed
    logger.info("200 keep-alive clients: %s", outcome)
    assert outcome.per_second > 100


def test_idle_tls_connections_and_the_cap_of_an_address(attack: Callable[..., Attacked]) -> None:
    each = 100 if LONG else 12
    attacked = attack(max_connections_per_address=each, request_timeout_secs=600.0)  # none goes for being idle

    def comes_in(address: int) -> bool:
        try:
            attacked.tls(f"127.0.1.{address}").close()
        except OSError:
            return False
        return True

    with witnessed(attacked, "idle TLS connections"):
        for _ in range(2):
            with ExitStack() as held:
                idle = [
                    held.enter_context(attacked.tls(f"127.0.1.{address}"))
                    for address in range(1, ADDRESSES + 1)
                    for _ in range(each)
                ]
                assert not any(comes_in(address) for address in (1, ADDRESSES) for _ in range(20))
                assert not any(is_closed(client) for client in idle)
                idle.pop().close()
                eventually(lambda: comes_in(ADDRESSES))
            eventually(lambda: attacked.process.num_fds() <= attacked.descriptors + 20)
            # What so many need once malloc keeps for the next time (23 KiB each), which must not need more.
            attacked.memory_bytes = min(
                attacked.process.memory_info().rss, attacked.memory_bytes + len(idle) * 32 * 1024
            )


def test_when_all_places_are_taken_the_greediest_gives_way(attack: Callable[..., Attacked]) -> None:
    attacked = attack(max_connections=100)
    with witnessed(attacked, "too many connections"), ExitStack() as held:
        greedy = [
            held.enter_context(socket.create_connection(("127.0.0.1", attacked.broker.port), 30, ("127.0.2.1", 0)))
            for _ in range(300)
        ]
        eventually(lambda: sum(map(is_closed, greedy)) >= 200)
        time.sleep(0.5)  # the witness calls all the while


def test_silent_connections_and_half_hellos(attack: Callable[..., Attacked]) -> None:
    count = 1000 if LONG else 400
    attacked = attack()
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        untrusting().wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    half = hello.read()[:100]
    with witnessed(attacked, "silent connections and half hellos"), ExitStack() as held:
        clients = []
        begun = time.monotonic()
        for number in range(2 * count):
            client = held.enter_context(socket.create_connection(("127.0.0.1", attacked.broker.port), 30))
            if number % 2:
                client.sendall(half)
            clients.append(client)
        connected = time.monotonic()
        eventually(lambda: all(map(is_closed, clients)))
        logger.info("all were closed %.1f s after the last had connected", time.monotonic() - connected)
        assert time.monotonic() - begun >= 4.0
        assert time.monotonic() - connected <= 6.0 * 5


@pytest.mark.parametrize(
    "trickle",
    [
        b"POST /services/Replace/?name=slow&data=x HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST /services/Replace/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n",
        b"POST /services/Replace/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n",
    ],
    ids=["head", "body", "chunk"],
)
def test_a_request_that_trickles_in_is_ended_by_one_deadline(attack: Callable[..., Attacked], trickle: bytes) -> None:
    attacked = attack(request_timeout_secs=1.0)
    with attacked.tls() as client:
        begun = time.monotonic()
        client.settimeout(0.1)
        client.sendall(trickle)
        received = b""
        while not received:
            assert time.monotonic() - begun < 30
            try:
                received = client.recv(65536)
            except TimeoutError:
                client.sendall(b"x")  # each byte is progress, and none of them counts
        took = time.monotonic() - begun
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout_secs" in received
    assert 0.9 <= took <= SLOWEST_SECS


def test_idle_connections_are_closed_in_time_and_with_a_word(attack: Callable[..., Attacked]) -> None:
    attacked = attack(request_timeout_secs=1.0, keep_alive_secs=1.0)
    with attacked.tls() as silent, attacked.tls() as kept:
        kept.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert silent.recv(65536) == b""  # not an error: close_notify came
        assert kept.recv(65536) == b""


def test_a_body_that_comes_a_moment_after_its_head(attacked: Attacked) -> None:
    body = b'{"name": "late", "data": "x"}'
    head = (
        b"POST /services/Replace/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n" % len(body)
    )
    with attacked.tls() as client:
        client.sendall(head + REQUEST)
        time.sleep(0.3)
        client.sendall(body)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_request_that_comes_byte_by_byte(attacked: Attacked) -> None:
    with attacked.tls() as client:
        for byte in b"GET /services/List/?prefix=none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + REQUEST:
            client.sendall(bytes([byte]))  # one TLS record each
        received = b""
        while part := client.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"data": {}, ' in received


def test_many_requests_at_once_are_answered_in_order(attacked: Attacked) -> None:
    count = 200
    sent = b"".join(b"GET /ping/Ping/?data=%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(count))
    with attacked.tls() as client:
        client.sendall(sent + b"GET /ping/Ping/?data=last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while part := client.recv(65536):
            received += part
    assert received.count(b"HTTP/1.1 200 ") == count + 1
    echoed = [answer.partition(b'"_str": "')[2].partition(b'"')[0] for answer in received.split(b"HTTP/1.1 ")[1:]]
    assert echoed == [*(str(number).encode() for number in range(count)), b"last"]


def test_a_client_that_waits_for_the_go_ahead(attacked: Attacked) -> None:
    with attacked.tls() as client:
        client.sendall(
            b"POST /services/Replace/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
            b"Content-Length: 30\r\n" + REQUEST
        )
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b'{"name": "asked", "data": "x"}')
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_large_answer_arrives_whole_at_a_reader_that_pauses(attacked: Attacked) -> None:
    large = "x" * (500 * 1024)
    names = [f"large-{number}" for number in range(60)]
    for name in names:
        assert attacked.call("Replace", name=name, data=large).status == 200
    with Witness(attacked.broker), attacked.tls() as client:
        client.sendall(b"GET /services/List/?prefix=large- HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + REQUEST)
        time.sleep(1)
        received = bytearray()
        while part := client.recv(1 << 20):
            received += part
    found = json.loads(bytes(received).partition(b"\r\n\r\n")[2])["data"]
    assert sorted(found) == sorted(names)
    assert all(each["_str"] == large for each in found.values())
    for name in names:
        attacked.call("Delete", name=name)
    attacked.memory_bytes += 64 * 1024 * 1024  # the answer was 30 MB, and malloc keeps some of it


@pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="slowhttptest is not installed")
def test_slowhttptest_cannot_make_it_unavailable(attack: Callable[..., Attacked], tmp_path: Path) -> None:
    attacked = attack(max_connections_per_address=4096)
    connections, secs = (1000, 40) if LONG else (300, 6)
    url = f"https://127.0.0.1:{attacked.broker.port}/services/Get/?name=witness"
    common = ["-c", str(connections), "-r", str(connections // 3), "-l", str(secs), "-i", "1", "-p", "5", "-u", url]
    modes = {
        "headers": ["-H"],
        "body": ["-B", "-t", "POST", "-s", "8192"],
        "slow read": ["-X", "-k", "5", "-w", "1", "-y", "10", "-z", "1", "-n", "2"],
    }

    def run(mode: str) -> str:
        return subprocess.run(
            ["slowhttptest", *modes[mode], *common],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=secs + 120,
            check=False,
        ).stdout

    with witnessed(attacked, "slowhttptest"), ThreadPoolExecutor(len(modes)) as pool:
        outputs = dict(zip(modes, pool.map(run, modes), strict=True))
    for mode, output in outputs.items():
        available = [line.split()[-1] for line in output.splitlines() if "service available" in line]
        assert available, (mode, output[-2000:])
        assert all("YES" in each for each in available), (mode, output[-2000:])


def test_a_thousand_waiting_clients_and_sixteen_writers(make_broker: Callable[..., RunningBroker]) -> None:
    waiters, writes = (1000, 300) if LONG else (500, 60)
    broker = make_broker({"services": {"_access_key": CANARY}}).start()
    attacked = Attacked(broker)
    calm = p99_of_writers(attacked, writes)
    with Witness(broker) as witness, ExitStack() as held:
        waiting = []
        for number in range(waiters):
            client = held.enter_context(attacked.tls())
            client.sendall(f"GET /services/Get/?name=w{number}&wait=120 HTTP/1.1\r\nHost: x\r\n".encode() + REQUEST)
            waiting.append(client)
        eventually(lambda: attacked.process.num_fds() >= attacked.descriptors + waiters)
        busy = p99_of_writers(attacked, writes)
        assert not any(map(is_closed, waiting))
        slowest = max(wake(attacked, number, waiting[number]) for number in range(0, waiters, waiters // 50))
        # All the others at once.
        with ThreadPoolExecutor(8) as pool:
            rest = [number for number in range(waiters) if number % (waiters // 50)]
            slowest = max(slowest, *pool.map(lambda number: wake(attacked, number, waiting[number]), rest))
    logger.info("waiting clients: %s", witness.figures)
    logger.info("writers' p99 %.4f s alone, %.4f s beside the waiting; slowest wake %.4f s", calm, busy, slowest)
    # Three times is the figure of a quiet machine.
    assert busy <= 15 * max(calm, 0.005)
    assert slowest <= SLOWEST_SECS
    attacked.unharmed()


def wake(attacked: Attacked, number: int, client: ssl.SSLSocket) -> float:
    """Register what a client waits for; give the seconds from the answer until the client has its own."""
    assert attacked.call("Register", name=f"w{number}", data="here").status == 200
    begun = time.monotonic()
    client.settimeout(60)
    received = client.recv(65536)
    took = time.monotonic() - begun
    assert received.startswith(b"HTTP/1.1 200 "), received
    assert b'"here"' in received
    return took


def p99_of_writers(attacked: Attacked, writes: int) -> float:
    """Let sixteen clients write at the same time; give the 99th percentile of their calls, in seconds."""
    took: list[float] = []
    faults: list[Any] = []

    def write(writer: int) -> None:
        connection = attacked.broker.connect()
        try:
            for number in range(writes):
                begun = time.monotonic()
                connection.request(
                    "POST", f"/services/Replace/?name=p{writer}-{number % 10}&data={number}", headers=KEY
                )
                response = connection.getresponse()
                if response.status != 200:
                    faults.append(response.reason)
                response.read()
                took.append(time.monotonic() - begun)
        finally:
            connection.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(took) == 16 * writes
    return sorted(took)[len(took) * 99 // 100]

"""A running broker whose actors are killed and held from inside."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Answer, RunningBroker
from tests.support.witness import eventually

PERIOD_SECS = 4.0
WATCHDOG_SECS = 10.0
WAIT_SECS = 120.0
PARTS = {
    "Registry": "registry",
    "ConfigStore": "config store",
    "Backup": "backup",
    "Discovery": "discovery",
    "Extension": "extension demo",
}
"""Actors' class to the part's name in health."""
MODULE = """
import os, time
from pathlib import Path
def Hello(rh):
    rh.data = "hello"
def Begin(rh):
    Path(__file__).with_name("pid").write_text(str(os.getpid()))
    time.sleep(1000)
"""


class Sabotaged:
    """A broker, and what harms it from inside."""

    def __init__(self, broker: RunningBroker, address: Path) -> None:
        self.broker = broker
        self._address = address
        self._written = 0

    def tell(self, *words: str) -> str:
        """Have the saboteur do something; comes back when it is done."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT_SECS)
            client.connect(str(self._address))
            with client.makefile("rw") as stream:
                stream.write(" ".join(words) + "\n")
                stream.flush()
                return stream.readline().strip()

    def health(self) -> Answer:
        return self.broker.request("/health", "GET")

    def part(self, name: str) -> dict[str, Any]:
        (found,) = [part for part in self.health().json["data"]["parts"] if part["name"] == name]
        return dict(found)

    def until(self, status: int) -> float:
        """Wait for a status of ``/health``; gives the seconds that it took."""
        begin = time.monotonic()
        while (answer := self.health()).status != status:
            assert time.monotonic() < begin + WAIT_SECS, answer
            time.sleep(0.02)
        return time.monotonic() - begin

    def write(self) -> None:
        self._written += 1
        assert self.broker.register(f"name-{self._written}").status == 200

    def works(self) -> None:
        """See that every part does its work, and that what was written before is there."""
        self.write()
        for number in range(1, self._written + 1):
            assert self.broker.get(f"name-{number}").status == 200
        assert self.broker.request("/demo/Hello").body == b"hello"
        self.discovers()
        done = self.broker.bpbroker("backup")
        assert done.returncode == 0, done.stderr

    def discovers(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(WAIT_SECS)
            client.connect(("127.0.0.1", self.broker.port))
            for _ in range(20):
                client.send(b"name-1\n")
                assert client.recv(100) == b"Key Exists\n"
            # Nobody else may read from the port and keep what it reads to itself. A dead one's thread
            # sees at the next datagram that it is not wanted any more, whenever it gets its turn.
            deadline = time.monotonic() + WAIT_SECS
            while self.tell("threads", "discovery receiver") != "1":
                assert time.monotonic() < deadline
                client.send(b"name-1\n")
                assert client.recv(100) == b"Key Exists\n"


@pytest.fixture
def sabotaged(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> Sabotaged:
    broker = make_broker({"_global": {"healthcheck_freq_sec": PERIOD_SECS}, "demo": {}})
    address = tmp_path / "saboteur"
    broker.program = (sys.executable, str(Path(__file__).parents[1] / "support" / "saboteur.py"))
    broker.environ["SABOTEUR"] = str(address)
    broker.environ["WATCHDOG_USEC"] = str(int(WATCHDOG_SECS * 1_000_000))
    (broker.lib / "demo.py").write_text(MODULE)
    broker.start()
    subject = Sabotaged(broker, address)
    subject.works()
    return subject


@pytest.mark.parametrize("actor", PARTS)
def test_a_killed_part_is_told_and_replaced(sabotaged: Sabotaged, actor: str) -> None:
    assert sabotaged.until(200) < WAIT_SECS
    sabotaged.tell("kill", actor)
    assert sabotaged.until(503) < PERIOD_SECS
    assert sabotaged.part(PARTS[actor])["detail"] == "it has died"  # told by the healthcheck itself, never stale
    assert sabotaged.broker.request("/live", "GET").status == 200
    assert sabotaged.until(200) < 5 * PERIOD_SECS  # one period on a quiet machine
    part = sabotaged.part(PARTS[actor])
    assert (part["ok"], part["restarts"]) == (True, 1)
    sabotaged.works()
    assert sabotaged.broker.stop() == 0
    assert sabotaged.broker.text.count(f"The {PARTS[actor]} is not well") == 1  # however often somebody asked


@contextmanager
def heard(broker: RunningBroker) -> Iterator[list[float]]:
    """Gives the times at which the service manager hears a ping of the watchdog."""
    times, path, over = [time.monotonic()], broker.notify, threading.Event()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(0.1)

        def hear() -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    if b"WATCHDOG=1" in manager.recv(65536):
                        times.append(time.monotonic())

        thread = threading.Thread(target=hear)
        thread.start()
        try:
            yield times
        finally:
            over.set()
            thread.join()


def test_the_watchdog_hears_from_a_broker_that_replaces_parts(sabotaged: Sabotaged) -> None:
    with heard(sabotaged.broker) as times:
        for actor in (*PARTS, "Healthcheck"):
            sabotaged.tell("hold", actor)
        for actor in (*PARTS, "Healthcheck"):  # first the one who replaces the others
            while sabotaged.tell("count", actor) != "2":
                assert time.monotonic() < times[0] + WAIT_SECS, actor
                time.sleep(0.05)
        sabotaged.until(200)
    pauses = [after - before for before, after in itertools.pairwise([*times, time.monotonic()])]
    assert max(pauses) < WATCHDOG_SECS / 2
    sabotaged.tell("release")
    assert sabotaged.broker.stop() == 0


def test_stuck_parts_are_told_and_replaced(sabotaged: Sabotaged) -> None:
    for actor in PARTS:
        sabotaged.tell("hold", actor)
    held = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        caught = pool.submit(sabotaged.broker.register, "caught")
        sabotaged.until(503)
        assert time.monotonic() - held < 5 * 2 * PERIOD_SECS  # two periods on a quiet machine
        parts = {part["name"]: part for part in sabotaged.health().json["data"]["parts"]}
        assert {parts[name]["detail"] for name in PARTS.values()} <= {"it does not answer", ""}
        sabotaged.until(200)
        assert [sabotaged.part(name)["restarts"] for name in PARTS.values()] == [1] * len(PARTS)
        sabotaged.works()
        sabotaged.tell("release")
        assert caught.result(WAIT_SECS).status in (200, 503, 504)
    for actor in PARTS:  # who was stuck ends when it comes to itself
        while sabotaged.tell("count", actor) != "1":
            assert time.monotonic() < held + 3 * WAIT_SECS, actor
            time.sleep(0.05)
    sabotaged.works()
    assert sabotaged.broker.stop() == 0


@pytest.mark.parametrize("harm", ["kill", "hold"])
def test_calls_and_processes_end_with_the_part_that_has_them(sabotaged: Sabotaged, harm: str) -> None:
    broker = sabotaged.broker
    pid, keyed = broker.lib / "pid", {"Idempotency-Key": "one"}
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(broker.call, "/demo/Begin", keyed)
        eventually(lambda: pid.exists() and pid.read_text() != "")
        behind = pool.submit(broker.request, "/demo/Hello")
        eventually(lambda: sabotaged.part("extension demo")["figures"].get("waiting") == 1)
        harmed = time.monotonic()
        sabotaged.tell(harm, "Extension")
        answers = [begun.result(WAIT_SECS), behind.result(WAIT_SECS)]
        assert time.monotonic() - harmed < 5 * 4 * PERIOD_SECS  # four periods on a quiet machine
    assert [answer.status for answer in answers] == [503, 503]
    assert "Begin was begun; what it did is not known" in answers[0].json["message"]
    assert "nothing was done" in answers[1].json["message"]
    eventually(lambda: not Path("/proc", pid.read_text()).exists())
    sabotaged.until(200)
    sabotaged.tell("release")
    sabotaged.works()
    again = broker.call("/demo/Begin", keyed)
    assert again.status == 500
    assert broker.stop() == 0


def test_settings_that_were_added_outlive_the_part_that_owns_them(sabotaged: Sabotaged) -> None:
    broker = sabotaged.broker
    script = broker.home / "late.py"
    script.write_text("def Hello(rh): rh.data = 'late'\n")
    done = broker.bpbroker("install-extension", "--script", str(script), "--enable")
    assert done.returncode == 0, done.stderr
    sabotaged.tell("kill", "ConfigStore")
    sabotaged.until(503)
    sabotaged.until(200)
    assert broker.request("/late/Hello").body == b"late"
    assert broker.stop() == 0
    assert json.loads(broker.config.read_text())["late"] == {}


@pytest.mark.parametrize("harm", ["kill", "hold"])
def test_who_watches_is_watched(sabotaged: Sabotaged, harm: str) -> None:
    sabotaged.tell(harm, "Healthcheck")
    assert sabotaged.health().status == 503
    sabotaged.until(200)
    sabotaged.works()
    sabotaged.tell("kill", "Registry")
    sabotaged.until(503)
    sabotaged.until(200)
    assert sabotaged.part("registry")["restarts"] == 1
    sabotaged.works()
    assert sabotaged.broker.stop() == 0

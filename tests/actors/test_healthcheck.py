"""The healthcheck with real actors that die, hang and come back."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pykka
import pytest

from bpbroker.actors import restart_pauses, supervisor
from bpbroker.actors.base import Actor, ActorAddress, launch, wait_for
from bpbroker.actors.healthcheck import Healthcheck, Probe
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.config import layers
from bpbroker.errors import StorageFailed, Unavailable
from bpbroker.messages import (
    Address,
    Delete,
    Get,
    Health,
    HealthReport,
    PartHealth,
    Ping,
    Pong,
    Register,
    Replace,
    Settings,
    SettingsChanged,
)
from bpbroker.storage.embedded.store import EmbeddedStore

WAIT_SECS = 30.0


@dataclass(frozen=True)
class _Busy:
    """Work for so long."""

    secs: float


class Worker(Actor):
    """Holds still for whoever tells it to."""

    def __init__(self) -> None:
        super().__init__()
        self.pong = Pong(figures={"born": time.time()})
        self.handlers = {
            threading.Event: lambda event: event.wait(60),
            Pong: self.become,
            _Busy: lambda busy: time.sleep(busy.secs),
        }

    def become(self, pong: Pong) -> None:
        self.pong = pong

    def status(self) -> Pong:
        if self.pong.detail == "raise":
            raise ValueError("canary-7391")
        return self.pong


class Ward:
    """Parts with a healthcheck over them."""

    def __init__(self) -> None:
        self.addresses: dict[str, Address] = {}
        self.factories: dict[str, Callable[[], pykka.ActorRef[Any]]] = {}
        self.probes: dict[str, Probe] = {}
        self.held = threading.Event()
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()

    def add(self, name: str, factory: Callable[[], pykka.ActorRef[Any]] | None = None) -> ActorAddress:
        self.factories[name] = factory or (lambda: launch(Worker))
        address = ActorAddress(name, self.factories[name]())
        self.addresses[name] = address
        return address

    def start(self, every_secs: float = 0.1, stuck_secs: float = 0.3) -> None:
        ref = launch(
            Healthcheck,
            self.addresses,
            lambda name: self.factories[name](),
            settings(every_secs),
            self.probes,
            stuck_secs,
            self.said.put,
        )
        self.addresses["healthcheck"] = ActorAddress("healthcheck", ref)

    def report(self) -> HealthReport:
        reply = self.addresses["healthcheck"].ask(Health(), WAIT_SECS)
        found: HealthReport = wait_for(reply, WAIT_SECS)
        return found

    def part(self, name: str) -> PartHealth:
        (found,) = [part for part in self.report().parts if part.name == name]
        return found

    def until(self, seen: Callable[[HealthReport], bool]) -> HealthReport:
        deadline = time.monotonic() + WAIT_SECS
        while not seen(report := self.report()):
            assert time.monotonic() < deadline, report
            time.sleep(0.02)
        return report

    def hold(self, address: Address) -> None:
        """Make an actor stuck until the test is over."""
        address.tell(self.held)


def refuse() -> pykka.ActorRef[Any]:
    raise Unavailable("no journal")


def settings(every_secs: float) -> Settings:
    changed = layers.override(layers.DEFAULTS, {"_global.healthcheck_freq_sec": every_secs})
    return layers.freeze(changed)  # type: ignore[no-any-return]  # a frozen mapping is Settings


@pytest.fixture
def ward() -> Iterator[Ward]:
    ward = Ward()
    yield ward
    ward.held.set()
    for address in [ward.addresses.pop("healthcheck", None), *ward.addresses.values()]:
        if isinstance(address, ActorAddress):
            assert address.stop(WAIT_SECS)
    pykka.ActorRegistry.stop_all(timeout=WAIT_SECS)


def test_every_part_says_how_it_is(ward: Ward) -> None:
    good, bad = ward.add("good"), ward.add("bad")
    ward.probes["loop"] = lambda: Pong(figures={"turns": 7})
    bad.tell(Pong(ok=False, detail="the disk is full"))
    ward.start(every_secs=3600)
    report = ward.report()
    assert not report.ok
    assert [(part.name, part.ok, part.detail) for part in report.parts] == [
        ("good", True, ""),
        ("bad", False, "the disk is full"),
        ("loop", True, ""),
    ]
    assert report.parts[1].since >= report.parts[0].since
    bad.tell(Pong())
    report = ward.report()  # not what was known an hour ago
    assert report.ok
    assert report.parts[1].figures["last_error"] == "the disk is full"
    assert good.alive


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        (
            "The last backup failed: Cannot make the backups folder /opt/bp broker/backups: File exists",
            "The last backup failed: Cannot make the backups folder …/backups: File exists",
        ),
        ("Cannot write '/etc/x/bpbroker.json': Disk full", "Cannot write '…/bpbroker.json': Disk full"),
        (r"Cannot read C:\Program Files\bpbroker\etc\b.json: Denied", "Cannot read …/b.json: Denied"),
        ("there is no pkg/sub.py in the lib folder", "there is no pkg/sub.py in the lib folder"),
        ("ImportError of a, line 7; 3/4", "ImportError of a, line 7; 3/4"),
    ],
)
def test_folders_are_told_to_the_operator_alone(ward: Ward, detail: str, shown: str) -> None:
    ward.probes["disk"] = lambda: Pong(ok=False, detail=detail, figures={"paths": [detail]})
    ward.start()
    told = ward.part("disk")
    assert (told.detail, told.figures["paths"], told.figures["last_error"]) == (shown, (shown,), shown)
    report = wait_for(ward.addresses["healthcheck"].ask(Health(folders=True), WAIT_SECS), WAIT_SECS)
    (full,) = [part for part in report.parts if part.name == "disk"]
    assert (full.detail, full.figures["paths"]) == (detail, [detail])


def test_what_is_not_well_is_told_when_it_changes_and_only_then(ward: Ward) -> None:
    good, bad = ward.add("good"), ward.add("bad")
    ward.start(every_secs=0.05)
    assert ward.said.get(timeout=WAIT_SECS) == ""  # a fresh healthcheck says it whatever the one before has said
    bad.tell(Pong(ok=False, detail="the disk is full"))
    assert ward.said.get(timeout=WAIT_SECS) == "bad: the disk is full"
    good.tell(Pong(ok=False, detail="so is this one"))
    assert ward.said.get(timeout=WAIT_SECS) == "good: so is this one; bad: the disk is full"
    for each in (good, bad):
        each.tell(Pong())
    while ward.said.get(timeout=WAIT_SECS):
        pass
    ward.report()
    assert ward.said.empty()


@pytest.mark.parametrize("name", ["log", "certificate"])
def test_what_has_failed_beside_the_registry_takes_nothing_out_of_service(ward: Ward, name: str) -> None:
    ward.probes[name] = lambda: Pong(ok=False, detail="has expired")
    ward.start()
    report = ward.report()
    assert report.ok
    assert [(part.name, part.ok) for part in report.parts] == [(name, False)]


def test_an_extension_that_is_not_well_makes_the_broker_not_unwell(ward: Ward) -> None:
    ward.add("registry")
    ward.add("extension x").tell(Pong(ok=False, detail="it cannot be imported"))
    ward.start()
    report = ward.report()
    assert report.ok
    assert not report.parts[1].ok


@pytest.fixture
def told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LATE_SECS", 0.2)


def test_an_extensions_actor_that_is_dead_or_stuck_makes_the_broker_unwell(ward: Ward) -> None:
    dead, stuck = ward.add("extension dead"), ward.add("extension stuck")
    ward.start(every_secs=1.0, stuck_secs=3600)
    assert ward.report().ok
    ward.hold(stuck)
    ward.until(lambda report: not report.ok and report.parts[0].ok)
    ward.held.set()
    ward.until(lambda report: report.ok)
    ward.factories["extension dead"] = refuse
    assert dead.stop(WAIT_SECS)
    ward.until(lambda report: not report.ok and report.parts[1].ok)


def test_a_dead_actor_is_replaced(ward: Ward) -> None:
    address = ward.add("worker")
    ward.start(every_secs=0.1)
    first = ward.part("worker").figures["born"]
    assert address.stop(WAIT_SECS)
    assert not ward.report().ok
    ward.until(lambda report: report.ok)
    part = ward.part("worker")
    assert part.restarts == 1
    assert part.figures["born"] > first
    assert part.figures["last_error"] == "it has died"
    assert address.alive


def test_a_dead_actor_is_logged_once_however_often_somebody_asks(ward: Ward, caplog: pytest.LogCaptureFixture) -> None:
    address = ward.add("worker")
    ward.start(every_secs=3600)
    assert address.stop(WAIT_SECS)
    for _ in range(5):
        assert ward.report().parts[0].detail == "it has died"
    assert caplog.text.count("is not well") == 1


@pytest.mark.usefixtures("told_soon")
def test_a_stuck_actor_is_replaced_and_ends_when_it_comes_to_itself(ward: Ward) -> None:
    address = ward.add("worker")
    other = ward.add("other")
    ward.start(every_secs=0.2, stuck_secs=0.8)
    ward.report()
    stuck = address._ref
    assert stuck is not None
    ward.hold(address)
    begin = time.monotonic()
    while "worker: it does not answer" not in ward.said.get(timeout=WAIT_SECS):
        pass
    assert time.monotonic() - begin < 10  # two periods on a quiet machine
    assert wait_for(other.ask(Ping(), WAIT_SECS), WAIT_SECS).ok
    ward.until(lambda report: report.ok)
    assert ward.part("worker").restarts == 1
    assert stuck.is_alive()
    ward.held.set()
    deadline = time.monotonic() + WAIT_SECS
    while stuck.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("told_soon")
def test_a_slow_actor_is_told_but_not_replaced(ward: Ward) -> None:
    address = ward.add("worker")
    ward.start(every_secs=0.1, stuck_secs=3600)
    ward.hold(address)
    report = ward.until(lambda report: not report.ok)
    assert report.parts[0].detail == "it does not answer"
    ward.held.set()
    ward.until(lambda report: report.ok)
    assert ward.part("worker").restarts == 0


def test_an_actor_that_works_through_much_is_well_and_not_replaced(ward: Ward) -> None:
    """A ping waits behind 20 messages of 50 ms each, three times as long as a stuck actor would be left alone."""
    address = ward.add("worker")
    ward.start(every_secs=0.1, stuck_secs=0.3)
    ward.report()
    for _ in range(20):
        address.tell(_Busy(0.05))
    done = address.ask(Ping(), WAIT_SECS)
    while not done.done():
        assert ward.report().ok
        time.sleep(0.02)
    assert ward.part("worker").restarts == 0


def test_health_is_answered_while_actors_hang(ward: Ward) -> None:
    ward.hold(ward.add("worker"))
    ward.start(every_secs=3600, stuck_secs=3600)
    begin = time.monotonic()
    healthcheck_address = ward.addresses["healthcheck"]
    replies = [healthcheck_address.ask(Health(), WAIT_SECS) for _ in range(100)]
    for reply in replies:
        wait_for(reply, WAIT_SECS)
    assert time.monotonic() - begin < 5


def test_restarts_are_limited(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_pauses, "BACKOFF_SECS", 0.05)
    address = ward.add("worker")
    tried: list[float] = []

    def refuse() -> pykka.ActorRef[Any]:
        tried.append(time.monotonic())
        raise Unavailable("no journal")

    ward.start(every_secs=0.01)
    ward.factories["worker"] = refuse
    address.stop(WAIT_SECS)
    ward.until(lambda report: "rests for a while" in report.parts[0].detail)
    time.sleep(0.2)
    assert len(tried) == restart_pauses.RESTARTS_MAX
    monkeypatch.setattr(restart_pauses, "RESTARTS_WINDOW_SECS", 0.1)
    ward.factories["worker"] = lambda: launch(Worker)
    ward.until(lambda report: report.ok)


def test_why_it_could_not_be_started_again_is_told(ward: Ward) -> None:
    address = ward.add("worker")
    ward.start(every_secs=0.05)

    ward.factories["worker"] = refuse
    address.stop(WAIT_SECS)
    ward.until(
        lambda report: report.parts[0].detail.startswith("it has died and could not be started again: no journal")
    )


def test_a_failing_ping_and_a_failing_probe_tell_nothing_secret(ward: Ward) -> None:
    ward.add("worker").tell(Pong(detail="raise"))

    def probe() -> Pong:
        raise ValueError("canary-7391")

    ward.probes["probe"] = probe
    ward.start()
    report = ward.report()
    assert not any(part.ok for part in report.parts)
    assert "ValueError" in report.parts[0].detail
    assert "canary" not in repr(report)


def test_parts_come_and_go(ward: Ward) -> None:
    ward.add("one")
    ward.start(every_secs=0.05)
    ward.add("two")
    ward.until(lambda report: [part.name for part in report.parts] == ["one", "two"])
    gone = ward.addresses.pop("one")
    ward.until(lambda report: [part.name for part in report.parts] == ["two"])
    assert isinstance(gone, ActorAddress)
    assert gone.stop(WAIT_SECS)


def test_another_period_takes_effect(ward: Ward) -> None:
    address = ward.add("worker")
    ward.start(every_secs=3600)
    address.stop(WAIT_SECS)
    ward.addresses["healthcheck"].tell(SettingsChanged(settings(0.05)))
    ward.until(lambda report: report.ok)


def test_a_part_that_is_no_actor_is_pinged_but_not_replaced(ward: Ward) -> None:
    class Loop:
        name = "broker"

        def tell(self, message: Any) -> None:
            raise AssertionError(message)

        def ask(self, message: Any, timeout_secs: float) -> Any:
            assert isinstance(message, Ping), timeout_secs
            raise Unavailable("The loop has ended")

        def reply_now(self, message: Any) -> Any:
            raise AssertionError(message)

    ward.addresses["broker"] = Loop()
    ward.start()
    assert ward.report().parts[0].detail == "The loop has ended"


# --- a replaced registry ---


def write(address: Address, message: Any) -> Any:
    return wait_for(address.ask(message, WAIT_SECS), WAIT_SECS)


def test_a_stuck_registry_is_replaced_with_all_its_entries_and_fenced_off(ward: Ward, tmp_path: Path) -> None:
    blocked, release = threading.Event(), threading.Event()

    class Slow(EmbeddedStore):
        """Hangs in the commit of one entry, as on a disk that does not answer."""

        def commit(self, groups: Any) -> Any:
            if any("stuck" in group.names for group in groups) and not release.is_set():
                blocked.set()
                assert release.wait(60)
            return super().commit(groups)

    journal = tmp_path / "journal"
    address = ward.add("registry", lambda: launch(Registry, LocalBackend(lambda: Slow(journal, dict)), settings(10)))
    write(address, Register("kept", {"n": 1}, "10.0.0.7"))
    write(address, Register("gone", {}, "10.0.0.7"))
    write(address, Delete("gone"))
    old = ActorAddress("old", address._ref)
    ward.start(every_secs=0.2, stuck_secs=0.5)
    late = address.ask(Replace("stuck", {"n": 1}, "10.0.0.7"), WAIT_SECS)
    assert blocked.wait(WAIT_SECS)
    behind = address.ask(Replace("kept", {"n": 2}, "10.0.0.7"), WAIT_SECS)
    ward.until(lambda report: report.parts[0].restarts > 0)
    ward.until(lambda report: report.ok)
    assert json.loads(write(address, Get("kept")).json)["n"] == 1
    write(address, Replace("kept", {"n": 3}, "10.0.0.8"))
    release.set()
    for reply in (late, behind):
        with pytest.raises((StorageFailed, Unavailable)):
            wait_for(reply, WAIT_SECS)
    assert old.stop(WAIT_SECS)
    assert json.loads(write(address, Get("kept")).json)["n"] == 3
    assert ward.report().ok

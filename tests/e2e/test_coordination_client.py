"""What servers need from each other while a cluster comes up: real processes of ``bpclient``, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO

import pytest

from tests.support.running import RunningBroker
from tests.support.set_clock import CLOCK, TEN_YEARS


@pytest.fixture
def coordinating(broker: RunningBroker) -> RunningBroker:
    return broker


def started(
    broker: RunningBroker,
    *words: str,
    stdout: int | IO[str] = subprocess.PIPE,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[str]:
    command = broker.command("bpbroker.client", "-q", "-b", f"127.0.0.1:{broker.port}", *words)
    process = subprocess.Popen(
        command,
        env={**broker.environ, "BPBROKER": f"127.0.0.1:{broker.port}", **environ},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []
"""What the present test has started."""


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """End what a test that failed has left, stopped or not, with all that it has started."""
    yield
    for process in _started:
        if process.poll() is None:
            for pid in (*_below(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()
    _started.clear()


def await_true(true: Callable[[], bool], secs: float = 60.0) -> None:
    deadline = time.monotonic() + secs
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_once_goes_on_when_the_host_that_does_it_dies(coordinating: RunningBroker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    script = f"echo run >> {log}; [ $(wc -l < {log}) -gt 1 ] || sleep 1000"
    words = ("once", "--name", "foo/initdb", "--ttl", "2s", "--wait", "60s", "--", "sh", "-c", script)
    runs = [started(coordinating, *words) for _ in range(5)]
    await_true(lambda: bool(log.read_text()))
    # Its shell becomes the sleep: for a moment ps shows neither of them.
    winners: list[subprocess.Popen[str]] = []

    def has_begun() -> bool:
        winners.extend(each for each in runs if "sleep" in _children(each.pid))
        return bool(winners)

    await_true(has_begun)
    (winner,) = winners
    os.killpg(winner.pid, signal.SIGKILL)
    codes = [each.wait(60) for each in runs]
    for each in runs:
        each.communicate()
    assert sorted(codes) == [-signal.SIGKILL, 0, 0, 0, 0]
    assert log.read_text() == "run\n" * 2
    assert coordinating.bpclient(*words).returncode == 0
    assert log.read_text() == "run\n" * 2


def _children(pid: int) -> str:
    """Return the commands that a process has started, and those below."""
    return "".join(f"{command}\n" for command in _below(pid).values())


def _below(pid: int) -> dict[int, str]:
    """Return the processes that a process has started, and those below, with their commands."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    found: dict[int, str] = {}
    parents = {str(pid)}
    while parents:  # not in the order of their numbers, which begin again at 1 some time
        children = [row for row in rows if row[1] in parents]
        found |= {int(row[0]): row[2] for row in children}
        parents = {row[0] for row in children}
    return found


def test_numbers_are_given_once(coordinating: RunningBroker) -> None:
    def numbers() -> list[int]:
        runs = [started(coordinating, "number", "--pool", "foo/id", "--for", f"n{each}") for each in range(20)]
        return [int(each.communicate(timeout=60)[0]) for each in runs]

    first = numbers()
    assert sorted(first) == list(range(1, 21))
    assert numbers() == first


class Holder:
    """A command that has a lock for 2 seconds at a time, and writes with its token when it is told to."""

    def __init__(self, broker: RunningBroker, folder: Path, environ: Mapping[str, str] = MappingProxyType({})) -> None:
        self._broker = broker
        self._note, self._go = folder / "holder", folder / "go"
        self.write = " ".join(broker.command("bpbroker.client", "-q", "service", "replace", "e", "--data"))
        script = f"while ! [ -e {self._go} ]; do sleep 0.1; done; {self.write} old; echo $? >> {self._note}; sleep 1000"
        self.process = started(
            broker, "lock", "--name", "l", "--ttl", "2s", "--", "sh", "-c",
            f"trap '' TERM; echo $BPBROKER_LOCK > {self._note}; {script}", environ=environ,
        )  # fmt: skip
        await_true(lambda: self._note.exists() and self._note.read_text().endswith("\n"))
        self.token = int(self._note.read_text().rpartition(":")[2])

    def go_on(self) -> int:
        """Let the command write; return with what that ended."""
        self._go.touch()
        await_true(lambda: self._note.read_text().count("\n") == 2)
        return int(self._note.read_text().split()[1])

    def await_next(self) -> int:
        """Let another one have the lock, and write; return its token."""
        second = started(
            self._broker, "lock", "--name", "l", "--ttl", "2s", "--", "sh", "-c",
            f"{self.write} new > /dev/null && echo $BPBROKER_LOCK",
        )  # fmt: skip
        printed, complaint = second.communicate(timeout=60)
        assert second.returncode == 0, complaint
        return int(printed.rpartition(":")[2])

    def is_lost(self) -> None:
        """See that it has ended, and that what the next one wrote is there."""
        assert self.process.wait(60) == 111
        self.process.communicate()
        assert json.loads(self._broker.bpclient("service", "get", "e", "--raw").stdout)["data"]["_str"] == "new"


def test_a_stopped_holder_is_fenced_and_the_next_token_is_larger(coordinating: RunningBroker, tmp_path: Path) -> None:
    """Its command goes on."""
    holder = Holder(coordinating, tmp_path)
    holder.process.send_signal(signal.SIGSTOP)
    assert holder.await_next() > holder.token
    assert holder.go_on() == 4
    holder.process.send_signal(signal.SIGCONT)
    holder.is_lost()


def test_a_suspended_host_is_fenced_and_clocks_that_are_set_end_nothing(
    coordinating: RunningBroker, tmp_path: Path
) -> None:
    clock = tmp_path / "clock"
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    holder = Holder(coordinating, tmp_path, {"PYTHONPATH": str(tmp_path), "CLOCK": str(clock)})
    for secs in (TEN_YEARS, -TEN_YEARS):
        clock.write_text(str(secs))
        time.sleep(2.6)  # not renewed, the session is over by then; so would be a wait that reckons with this clock
        held = json.loads(coordinating.bpclient("lock", "holder", "--name", "l", "--raw").stdout)
        assert held["data"]["token"] == holder.token
        assert holder.process.poll() is None
    whole = [holder.process.pid, *_below(holder.process.pid)]
    assert len(whole) > 2
    for pid in whole:
        with suppress(ProcessLookupError):  # a sleep of its script that has just ended
            os.kill(pid, signal.SIGSTOP)
    assert holder.await_next() > holder.token
    for pid in reversed(whole[1:]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert holder.go_on() == 4
    holder.process.send_signal(signal.SIGCONT)
    holder.is_lost()


def test_an_entry_goes_with_the_command_that_kept_it(coordinating: RunningBroker, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    inner = " ".join(coordinating.command("bpbroker.client", "-q", "service", "register", "inner", "--data", "x"))
    run = started(
        coordinating, "session", "run", "--ttl", "60s", "--name", "node", "--data", "up", "--",
        "sh", "-c", f"{inner} && touch {ready}; sleep 1000",
    )  # fmt: skip
    await_true(ready.exists)
    assert coordinating.bpclient("service", "list", "--keys").stdout == "inner\nnode\n"
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 128 + signal.SIGTERM
    run.communicate()
    assert coordinating.bpclient("service", "list", "--keys").stdout == ""


def test_a_watch_that_is_killed_goes_on_where_it_was(coordinating: RunningBroker, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    words = ("watch", "--prefix", "w/", "--cursor-file", str(cursor))
    printed = tmp_path / "printed"
    with printed.open("w") as file:
        first = started(coordinating, *words, stdout=file)
    await_true(cursor.exists)
    for number in range(20):
        coordinating.register(f"w/{number}", str(number))
    await_true(lambda: printed.read_text().count("\n") >= 5)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    for number in range(20, 30):
        coordinating.register(f"w/{number}", str(number))
    rest = tmp_path / "rest"
    with rest.open("w") as file:
        again = started(coordinating, *words, stdout=file)
    await_true(lambda: '"w/29"' in rest.read_text())
    os.killpg(again.pid, signal.SIGKILL)
    again.communicate()
    last = coordinating.bpclient(*words, "--timeout", "1s")
    assert last.returncode == 124
    assert "The watch has ended: the time of --timeout is over" in last.stderr
    lines = [*printed.read_text().splitlines(), *rest.read_text().splitlines(), *last.stdout.splitlines()]
    seen = [json.loads(line)["name"] for line in lines if line.strip().endswith("}")]
    assert list(dict.fromkeys(seen)) == [f"w/{number}" for number in range(30)]
    assert len(seen) <= 30 + 2  # at each of the two kills at most the last event comes again


def test_who_waits_for_a_change_hears_at_once_that_the_entry_is_deleted(coordinating: RunningBroker) -> None:
    coordinating.call("/services/Register/", name="a", data="x")
    tag = coordinating.call("/services/Get/", name="a").headers["ETag"].strip('"')
    waiting = started(coordinating, "service", "get", "--name", "a", "--changed-from", tag, "--wait", "5m")
    coordinating.call("/services/Delete/", name="a")
    assert waiting.wait(20) == 3
    assert "not found" in waiting.communicate()[1]

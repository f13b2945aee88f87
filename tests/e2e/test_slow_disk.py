"""Slow is not stuck: case C11, a broker with many entries on a disk whose every sync takes long.

``strace`` makes the syncs slow. It must not filter in the kernel (``--seccomp-bpf``): then nothing is injected.
``BPBROKER_LONG=1`` takes so many entries that a file needs minutes.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bpbroker.storage import backups, config_file
from bpbroker.storage.embedded.journal import journal_path, read_journal
from tests.support.running import RunningBroker

LONG = os.environ.get("BPBROKER_LONG") == "1"
WAIT_SECS = 900.0 if LONG else 120.0
WATCHDOG_SECS = 4.0


@dataclass(frozen=True)
class Load:
    """How much there is to write, and how slowly it goes."""

    entries: int
    sync_secs: float


pytestmark = pytest.mark.timeout(2 * WAIT_SECS)

LOADS = [Load(6_000, 0.4), *([Load(200_000, 0.7), Load(1_000_000, 0.1)] if LONG else [])]


class Slow:
    """A broker on a slow disk, and what is seen of it from outside."""

    def __init__(self, home: Path, load: Load) -> None:
        if shutil.which("strace") is None:
            pytest.skip("strace is not installed")
        settings = {
            "_global": {"healthcheck_freq_sec": 1.0},
            "_config": {"backup_freq_secs": 1.0, "backup_retain_n": 2},
        }
        self.load = load
        self.broker = broker = RunningBroker(home, settings)
        entries = {f"node-{number:07}": b'{"v": "%s"}' % (b"x" * 200) for number in range(load.entries)}
        config_file.write(broker.config, settings, entries)
        self.said: list[tuple[float, str]] = []
        self.looks: Counter[int] = Counter()
        self.halves = 0
        self._looking = threading.Event()
        self._looking.set()
        self._hearing = threading.Event()
        self._hearing.set()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(home / "manager"))
        self._manager.settimeout(0.2)
        micro = int(load.sync_secs * 1e6)
        inject = ("-e", "trace=fsync,fdatasync", "-e", f"inject=fsync,fdatasync:delay_enter={micro}")
        environ = {"NOTIFY_SOCKET": str(home / "manager"), "WATCHDOG_USEC": str(int(WATCHDOG_SECS * 1e6))}
        self.begun = time.monotonic()
        with broker.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["strace", "-f", "-qq", "-o", "/dev/null", *inject, *broker.program, "start", "--listen-port", "0"],
                env={**broker.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._ear = threading.Thread(target=self._hear)
        self._ear.start()
        self._eye = threading.Thread(target=self._look)

    def _hear(self) -> None:
        while self._hearing.is_set():
            with suppress(TimeoutError):
                self.said.append((time.monotonic(), self._manager.recv(65536).decode()))

    def heard(self, word: str) -> list[float]:
        """When the service manager heard this."""
        return [at for at, text in self.said if word in text]

    def await_said(self, word: str) -> float:
        """Wait until the service manager has heard this; gives when."""
        until = time.monotonic() + WAIT_SECS
        while not self.heard(word):
            assert self.process.poll() is None, self.broker.text
            assert time.monotonic() < until, self.broker.text
            time.sleep(0.05)
        return self.heard(word)[0]

    def ready(self) -> float:
        """Wait until it is ready; gives the seconds that its start took."""
        took = self.await_said("READY=1") - self.begun
        self.broker.port = self.broker.note["port"]
        self._eye.start()
        return took

    def _look(self) -> None:
        """Look at its health again and again, and at what is half written."""
        folder = backups.folder_for(self.broker.config)
        while self._looking.is_set():
            try:
                answer = self.broker.request("/health", "GET")
            except OSError:
                answer = None
            self.looks[0 if answer is None else answer.status] += 1
            if answer is not None and answer.status != 200:
                print(answer.body)  # noqa: T201 - shown when it fails
            if folder.exists():
                self.halves = max(self.halves, sum(path.suffix == ".tmp" for path in folder.iterdir()))
            time.sleep(0.1)

    def restarts(self) -> int:
        parts = self.broker.request("/health", "GET").json["data"]["parts"]
        return sum(part["restarts"] for part in parts)

    def back_up(self) -> int:
        """Run ``bpbroker backup``; gives its exit code."""
        words = self.broker.command("bpbroker", "backup")
        return subprocess.run(words, env=self.broker.environ, timeout=WAIT_SECS, check=False).returncode

    def stop(self) -> tuple[int, float]:
        """End it; gives exit code and seconds."""
        self._looking.clear()
        self._eye.join()
        begun = time.monotonic()
        os.kill(self.broker.note["pid"], signal.SIGTERM)
        code = self.process.wait(WAIT_SECS)
        return code, time.monotonic() - begun

    def close(self) -> None:
        self._looking.clear()
        if self.process.poll() is None:
            with suppress(ProcessLookupError, OSError, KeyError, ValueError):
                os.kill(self.broker.note["pid"], signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        self._hearing.clear()
        for thread in (self._ear, self._eye):
            if thread.ident is not None:
                thread.join()
        self._manager.close()


@pytest.fixture(params=LOADS, ids=lambda load: f"{load.entries}x{load.sync_secs}")
def slow(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Slow]:
    made = Slow(tmp_path / "home", request.param)
    yield made
    made.close()


def test_c11_many_entries_on_a_slow_disk(slow: Slow) -> None:
    broker = slow.broker
    start_secs = slow.ready()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(slow.back_up) for _ in range(2)]
        for number in range(5):
            assert broker.register(f"new-{number}").status == 200
        codes = [each.result() for each in asked]
    restarts = slow.restarts()
    memory = psutil.Process(broker.note["pid"]).memory_info().rss >> 20
    made = [Path(info.path).name for info in backups.found(broker.config)]
    assert broker.register("last").status == 200
    code, stop_secs = slow.stop()
    pings = [at for at in slow.heard("WATCHDOG=1") if at > slow.begun + start_secs]
    gap_secs = max(after - before for before, after in itertools.pairwise(pings))
    print(  # noqa: T201 - for -s
        f"{slow.load}: start {start_secs:.1f} s, stop {stop_secs:.1f} s, {memory} MiB, health {dict(slow.looks)},"
        f" restarts {restarts}, backups {made}, halves at once {slow.halves}, longest without a ping {gap_secs:.1f} s,"
        f" more time asked {len(slow.heard('EXTEND_TIMEOUT_USEC'))} times"
    )
    assert codes == [0, 0], broker.text
    assert (code, restarts, slow.halves) == (0, 0, 1), broker.text
    assert set(slow.looks) == {200}
    assert gap_secs < WATCHDOG_SECS / 2 * 1.5  # four times in it on a quiet machine
    assert slow.heard("EXTEND_TIMEOUT_USEC")
    assert any("Stopping: writing the configuration file" in text for _, text in slow.said)
    entries = config_file.read(broker.config)[1]
    assert len(entries) == slow.load.entries + 6
    assert "last" in entries
    assert read_journal(journal_path(broker.config)).changes == {}
    assert [path.name for path in broker.config.parent.iterdir() if path.suffix == ".tmp"] == []


def test_a_stop_in_the_middle_of_a_start_ends_when_the_file_is_written(tmp_path: Path) -> None:
    slow = Slow(tmp_path / "home", LOADS[0])
    try:
        slow.await_said("Starting")
        begun = time.monotonic()
        os.kill(int(psutil.Process(slow.process.pid).children()[0].pid), signal.SIGTERM)
        assert slow.process.wait(WAIT_SECS) == 0, slow.broker.text
        print(f"{time.monotonic() - begun:.1f} s")  # noqa: T201 - for -s
        assert "Told to stop before it was ready" in slow.broker.text
        assert not slow.heard("READY=1")
        assert len(config_file.read(slow.broker.config)[1]) == LOADS[0].entries
    finally:
        slow.close()


def middle_ms(broker: RunningBroker, path: str, **body: object) -> float:
    """Give the middle of 300 calls on one connection, in milliseconds."""
    connection = broker.connect()
    taken = []
    try:
        for number in range(300):
            text = json.dumps({"name": f"node-{number * 3:07}", **body})
            begun = time.perf_counter()
            connection.request("POST", path, text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            taken.append(time.perf_counter() - begun)
            assert response.status == 200
    finally:
        connection.close()
    return sorted(taken)[150] * 1e3


@pytest.mark.skipif(not LONG, reason="BPBROKER_LONG=1 runs it")
def test_a_million_entries_cost_no_request_more(make_broker: Callable[..., RunningBroker]) -> None:
    """A start of at most 15 s, 600 MiB, requests at most twice as slow as at 1,000 entries; on a quiet machine."""
    costs, figures = [], ""
    for count in (1_000, 1_000_000):
        settings = {"_config": {"backup_freq_secs": 86_400}}
        broker = make_broker(settings)
        entry = b'{"role": "replica", "address": "10.0.0.1", "last_write_ip": "10.0.0.1", "last_write_ts": 1795520000}'
        config_file.write(broker.config, settings, {f"node-{number:07}": entry for number in range(count)})
        begun = time.monotonic()
        broker.start()
        start_secs = time.monotonic() - begun
        assert broker.bpbroker("backup").returncode == 0
        memory = psutil.Process(broker.pid).memory_info().rss >> 20
        costs.append(
            [
                min(middle_ms(broker, "/services/Get/") for _ in range(3)),
                min(middle_ms(broker, "/services/Replace/", data={"n": 1}) for _ in range(3)),
            ]
        )
        begun = time.monotonic()
        assert broker.stop() == 0, broker.text
        figures += f"{count}: start {start_secs:.1f} s, stop {time.monotonic() - begun:.1f} s, {memory} MiB,"
        figures += f" Get {costs[-1][0]:.2f} ms, Replace {costs[-1][1]:.2f} ms; "
    print(figures)  # noqa: T201 - for -s
    assert start_secs < 15 * 3  # a shared machine
    assert memory < 600
    assert all(many < 2 * few for few, many in zip(*costs, strict=True))

"""Cases C4, C6, C8, C9, S1, B1, L14 of a real broker: its disk, its files, its lock."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from bpbroker.config import layers
from bpbroker.storage import config_file
from bpbroker.storage.embedded.journal import journal_path, read_journal
from tests.support.running import RunningBroker
from tests.support.witness import eventually

Make = Callable[..., RunningBroker]
MANY = 100_000


def refused(broker: RunningBroker, within_secs: float = 60.0) -> tuple[int, str]:
    """Start a broker that should not start; give its exit code and what it said."""
    said = len(broker.text) if broker.log.exists() else 0
    broker.start(wait=False)
    return broker.wait(within_secs), broker.text[said:]


def health(broker: RunningBroker) -> tuple[int, str]:
    answer = broker.request("/health", "GET")
    return answer.status, answer.body.decode()


def becomes(broker: RunningBroker, status: int) -> None:
    """Wait for a status of the health: a part that does not answer in time is shown as it was before."""
    eventually(lambda: health(broker)[0] == status, lambda: health(broker))


@pytest.fixture
def mounted() -> Iterator[Callable[[RunningBroker], Path]]:
    """Puts a broker's configuration folder on a file system of 2 MiB of its own."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folders: list[Path] = []

    def mount(broker: RunningBroker) -> Path:
        folder = broker.config.parent
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not let root mount a file system")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# --- C4, C6: the disk ---


def test_a_full_disk_refuses_writes_and_recovers(make_broker: Make, mounted: Callable[[RunningBroker], Path]) -> None:
    broker = make_broker()
    folder = mounted(broker)
    broker.start()
    assert broker.register("old", "1").status == 200
    filler = folder / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(b"x" * 65536)
                file.flush()
        except OSError:
            pass
    answers = [broker.call("/services/Replace/", name="old", data="y" * 50_000) for _ in range(3)]
    assert [answer.status for answer in answers] == [503, 503, 503]
    assert "disk is full: nothing was changed" in answers[0].json["message"]
    assert broker.get("old").json["data"]["_str"] == "1"
    becomes(broker, 503)
    assert "disk is full" in health(broker)[1]
    before = broker.config.read_bytes()
    filler.unlink()
    becomes(broker, 200)
    assert broker.call("/services/Replace/", name="old", data="y" * 50_000).status == 200
    assert broker.config.read_bytes() == before
    broker.restart()
    assert broker.get("old").json["data"]["_str"] == "y" * 50_000
    assert broker.stop() == 0


def test_a_disk_that_fills_up_before_the_exit_loses_nothing(
    make_broker: Make, mounted: Callable[[RunningBroker], Path]
) -> None:
    broker = make_broker()
    folder = mounted(broker)
    broker.start()
    before = broker.config.read_bytes()
    assert broker.call("/services/Replace/", name="a", data="1").status == 200
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with suppress(OSError):  # the broker may have taken some of it
        (folder / "filler").write_bytes(b"x" * free)
    assert broker.stop() == 1
    assert broker.config.read_bytes() == before
    assert "the configuration file was not written" in broker.text
    assert "nothing acknowledged is lost, the journal has it" in broker.text
    (folder / "filler").unlink()
    broker.start()
    assert broker.get("a").json["data"]["_str"] == "1"


def test_a_disk_that_becomes_read_only_stops_the_writes_until_a_restart(broker: RunningBroker) -> None:
    """The kernel does not let a busy file system become read-only for a test: strace makes its answer."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    stored = broker.register("a", "1").json["data"]
    inject = ("-e", "trace=pwrite64", "-e", "inject=pwrite64:error=EROFS")
    with subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", *inject, "-p", str(broker.pid)], stderr=subprocess.PIPE, text=True
    ) as strace:
        assert strace.stderr is not None
        if "attached" not in (line := strace.stderr.readline()):
            pytest.skip(f"this machine does not let strace attach: {line}")
        try:
            assert broker.register("b").status == 503
        finally:
            strace.terminate()
    refusal = broker.register("b")
    assert refusal.status == 503
    assert "until a restart" in refusal.json["message"]
    assert str(broker.home) not in refusal.json["message"]
    assert broker.get("a").json["data"] == stored
    becomes(broker, 503)
    assert "until a restart" in health(broker)[1]
    broker.restart()
    becomes(broker, 200)
    assert broker.get("a").json["data"] == stored
    assert broker.register("c").status == 200


def test_what_a_commit_replaces_is_written_nowhere_else(broker: RunningBroker, tmp_path: Path) -> None:
    """SQLite may keep old rows in a temporary file, which nothing overwrites: with secrets, or on a full disk."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    names, opened = [f"large-{number}" for number in range(8)], tmp_path / "opened"

    def replace(letter: str) -> None:
        operations = [{"method": "Replace", "name": name, "data": {"a": letter * 100_000}} for name in names]
        answer = broker.call("/services/Batch/", id=letter, operations=operations)
        assert answer.status == 200, answer.body

    replace("a")
    with subprocess.Popen(
        ["strace", "-f", "-e", "trace=open,openat", "-o", opened, "-p", str(broker.pid)],
        stderr=subprocess.PIPE,
        text=True,
    ) as strace:
        assert strace.stderr is not None
        if "attached" not in (line := strace.stderr.readline()):
            pytest.skip(f"this machine does not let strace attach: {line}")
        try:
            replace("b")
        finally:
            strace.terminate()
    made = [line for line in opened.read_text().splitlines() if "O_CREAT" in line and str(broker.home) not in line]
    assert not made


def test_a_read_only_folder_at_the_start(make_broker: Make, mounted: Callable[[RunningBroker], Path]) -> None:
    broker = make_broker()
    folder = mounted(broker)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    code, said = refused(broker)
    assert code == 78
    assert str(folder) in said
    assert "Traceback" not in said


# --- C8: damaged files ---


@pytest.mark.parametrize("content", [b"", b"[]", b"\x00\xff\x13", b'{"services": {"a": {}, "a": {}}}'])
def test_a_damaged_file_stops_the_start_and_names_the_backup(broker: RunningBroker, content: bytes) -> None:
    broker.register("a", "good")
    made = broker.bpbroker("backup").stdout.strip()
    broker.register("b", "later")
    assert broker.stop() == 0
    broker.config.write_bytes(content)
    code, said = refused(broker)
    assert code == 78
    assert broker.config.read_bytes() == content
    assert str(broker.config) in said
    command = re.search(r"bpbroker (--config \S+ restore \S+)", said)
    assert command is not None, said
    assert command[1].endswith(f"restore {made}")
    restored = broker.bpbroker(*command[1].split())
    assert restored.returncode == 0, restored.stderr
    broker.start()
    assert broker.get("a").json["data"]["_str"] == "good"
    assert broker.get("b").status == 404


def test_one_flipped_bit_in_the_journal_stops_the_start(broker: RunningBroker) -> None:
    made = broker.bpbroker("backup").stdout.strip()
    for number in range(5):
        broker.register(f"n{number}", "canary")
    broker.kill()
    log = broker.config.with_name("bpbroker.json.journal-wal")
    content = bytearray(log.read_bytes())
    content[content.rindex(b"canary")] ^= 1
    log.write_bytes(content)
    before = {
        path.name: path.read_bytes() for path in broker.config.parent.iterdir() if path.suffix not in (".lock", ".sock")
    }
    code, said = refused(broker)
    assert code == 78
    assert f"restore {made}" in said
    for name, was in before.items():
        if not name.endswith("-shm"):
            assert broker.config.with_name(name).read_bytes() == was, name
    checked = broker.bpbroker("check")
    assert checked.returncode == 78
    assert "fail" in checked.stdout


# --- C9: one broker a file ---


def test_a_second_broker_and_configure_are_refused_at_once(broker: RunningBroker) -> None:
    broker.register("a")
    for arguments in (("start", "--listen-port", "0"), ("configure", "--config-file", "-"), ("restore", "x")):
        begun = time.monotonic()
        done = broker.bpbroker(*arguments, stdin='{"x": {}}')
        assert done.returncode not in (0, 78), arguments
        assert str(broker.pid) in done.stderr, arguments
        assert time.monotonic() - begun < 10
    assert broker.get("a").status == 200


# --- S1: the end ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_middle_of_writes_loses_nothing(broker: RunningBroker, number: int) -> None:
    acknowledged: dict[str, int] = {}
    started = threading.Barrier(9)

    def write(writer: int) -> None:
        connection = broker.connect()
        try:
            for count in range(100_000):
                body = json.dumps({"name": f"w{writer}", "data": {"count": count}})
                connection.request("POST", "/services/Replace/", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    return
                acknowledged[f"w{writer}"] = count
                if count == 3:
                    started.wait(30)
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()

    writers = [threading.Thread(target=write, args=(writer,), daemon=True) for writer in range(8)]
    for writer in writers:
        writer.start()
    started.wait(60)
    time.sleep(0.2)
    broker.signal(number)
    assert broker.wait(60) == 0
    for writer in writers:
        writer.join(30)
    settings, entries = config_file.read(broker.config)
    assert settings["_config"] == layers.DEFAULTS["_config"]
    for name, count in acknowledged.items():
        assert json.loads(entries[name])["count"] in (count, count + 1)
    assert read_journal(journal_path(broker.config)).changes == {}
    assert not journal_path(broker.config).with_name("bpbroker.json.journal-mark").exists()


# --- B1 ---


def test_exactly_as_many_backups_as_wanted_are_kept(make_broker: Make) -> None:
    broker = make_broker({"_config": {"backup_freq_secs": 0.2, "backup_retain_n": 3}}).start()
    folder = broker.home / "backups"
    seen = set[str]()
    end = time.monotonic() + 60
    for number in range(100_000):
        assert broker.call("/services/Replace/", name="n", data={"number": number}).status == 200
        seen |= {path.name for path in folder.glob("*.json")}
        if len(seen) >= 6 or time.monotonic() > end:
            break
    assert len(seen) >= 6
    assert broker.stop() == 0
    left = sorted(folder.iterdir())
    assert len(left) == 3
    numbers = []
    for path in left:
        assert path.stat().st_mode & 0o777 == 0o600
        numbers.append(json.loads(config_file.read(path)[1]["n"])["number"])
    assert numbers == sorted(set(numbers))


# --- L14: many entries ---


@pytest.fixture
def many(make_broker: Make) -> RunningBroker:
    """A broker, not started, whose file has 100,000 entries."""
    broker = make_broker()
    entry = b'{"role": "replica", "address": "10.0.0.1", "last_write_ip": "10.0.0.1", "last_write_ts": 1795520000}'
    config_file.write(broker.config, layers.DEFAULTS, {f"node-{number:06}": entry for number in range(MANY)})
    return broker


def cost(broker: RunningBroker) -> float:
    """Return the seconds of the middle of 200 writes on one connection."""
    connection = broker.connect()
    taken = []
    try:
        for number in range(200):
            body: dict[str, Any] = {"name": f"node-{number * 499:06}", "data": {"number": number}}
            begun = time.perf_counter()
            connection.request("POST", "/services/Replace/", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            taken.append(time.perf_counter() - begun)
            assert response.status == 200
    finally:
        connection.close()
    return sorted(taken)[100]


def test_many_entries_cost_neither_start_nor_memory_nor_writes(many: RunningBroker, make_broker: Make) -> None:
    """The row's numbers are 3 s, 250 MiB and 1.2 times; the bounds here are wide, except for the memory."""
    few = make_broker().start()
    begun = time.monotonic()
    many.start()
    start_secs = time.monotonic() - begun
    memory = psutil.Process(many.pid).memory_info().rss / 1024 / 1024
    costs = [cost(broker) for _ in range(3) for broker in (few, many)]
    at_few, at_many = min(costs[::2]), min(costs[1::2])
    assert many.bpbroker("backup").returncode == 0
    peak = psutil.Process(many.pid).memory_info().rss / 1024 / 1024
    print(f"start {start_secs:.2f} s, {memory:.0f} MiB, then {peak:.0f};", end=" ")  # noqa: T201 - for -s
    print(f"a write {at_few * 1e3:.2f} ms at few, {at_many * 1e3:.2f} at many")  # noqa: T201 - for -s
    assert start_secs < 15
    assert max(memory, peak) < 250
    assert at_many < 5 * at_few
    listed = many.call("/services/List/", prefix="node-09999").json["data"]
    assert len(listed) == 10
    begun = time.monotonic()
    assert many.stop() == 0
    assert time.monotonic() - begun < 30
    assert len(config_file.read(many.config)[1]) == MANY

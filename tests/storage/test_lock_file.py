"""One broker per configuration file: the lock, and what others can learn from it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker.errors import ConfigurationError, InUse
from bpbroker.storage import lock_file
from tests.support.systems import is_private

HOLD = """
import sys, time
from pathlib import Path
from bpbroker.storage.lock_file import FileLock
held = FileLock(Path(sys.argv[1]))
held.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "bpbroker.json"


@pytest.fixture
def other(config_file: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(config_file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_nobody_holds_what_was_never_locked(config_file: Path) -> None:
    assert lock_file.holder(config_file) is None
    assert not lock_file.lock_path(config_file).exists()


def test_the_note_is_there_while_the_lock_is_held(config_file: Path) -> None:
    held = lock_file.FileLock(config_file)
    with held:
        note = lock_file.holder(config_file)
        assert note is not None
        assert note["pid"] == os.getpid()
        assert lock_file.is_process_of(note)
        held.describe(pid=1, token="t" * 100)
        assert lock_file.holder(config_file) == {"pid": 1, "token": "t" * 100}
        held.describe(pid=2)
        assert lock_file.holder(config_file) == {"pid": 2}
        assert is_private(lock_file.lock_path(config_file))
    assert lock_file.holder(config_file) is None
    assert lock_file.lock_path(config_file).read_bytes() == b""


def test_it_can_be_taken_again(config_file: Path) -> None:
    held = lock_file.FileLock(config_file)
    held.acquire()
    held.release()
    held.release()
    with held, pytest.raises(InUse):
        lock_file.FileLock(config_file).acquire()


def test_another_process_is_refused_quickly_with_the_pid(config_file: Path, other: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    with pytest.raises(InUse, match=rf"in use by process {other.pid}\b") as caught:
        lock_file.FileLock(config_file).acquire()
    assert time.monotonic() - started < 2
    assert str(config_file) in str(caught.value)
    note = lock_file.holder(config_file)
    assert note is not None
    assert note["pid"] == other.pid


def test_the_kernel_releases_it_at_death(config_file: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait(10)
    assert lock_file.holder(config_file) is None
    with lock_file.FileLock(config_file):
        note = lock_file.holder(config_file)
        assert note is not None
        assert note["pid"] == os.getpid()
        assert lock_file.is_process_of(note)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no shared lock of this kind")
def test_two_that_look_do_not_take_each_other_for_a_broker(config_file: Path) -> None:
    import fcntl

    with lock_file.FileLock(config_file):
        pass
    with lock_file.lock_path(config_file).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert lock_file.holder(config_file) is None


def test_who_looks_does_not_keep_a_broker_from_starting(config_file: Path) -> None:
    with lock_file.FileLock(config_file):
        pass
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            lock_file.holder(config_file)
            time.sleep(0.001)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(20):
            with lock_file.FileLock(config_file):
                pass
    finally:
        stop.set()
        looking.join()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none[/\\]b\.json\.lock"):
        lock_file.FileLock(tmp_path / "none" / "b.json").acquire()


def test_a_note_that_is_no_note_is_no_error(config_file: Path, other: subprocess.Popen[str]) -> None:
    lock_file.lock_path(config_file).write_bytes(b"\xff[")
    assert lock_file.holder(config_file) == {}
    with pytest.raises(InUse, match="in use by another process"):
        lock_file.FileLock(config_file).acquire()
    assert other.poll() is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_lock_file_that_others_could_read_is_closed_to_them(config_file: Path) -> None:
    path = lock_file.lock_path(config_file)
    path.touch(0o644)
    path.chmod(0o644)
    with lock_file.FileLock(config_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
@pytest.mark.parametrize(
    "change", [{"pid": 1}, {"process": ""}, {"process": "pid:[1] boot 7"}, {"pid": -1}, {"pid": "1"}]
)
def test_a_number_is_a_broker_only_if_all_that_was_noted_fits(change: dict[str, object]) -> None:
    note = lock_file.process_note()
    assert lock_file.is_process_of(note)
    assert not lock_file.is_process_of({**note, **change})

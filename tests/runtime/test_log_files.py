"""The log never holds up or takes along what writes it: full files, pipes that nothing reads, devices, links."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker.runtime import log_files
from bpbroker.runtime.log_files import LogFile, LogStream, Writer, handler_of
from tests.support.systems import posix_only

RECORD = logging.LogRecord("bpbroker.x", logging.INFO, "file", 1, "%s", ("x" * 100,), None)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "FILE_MAX_BYTES", 1000)
    monkeypatch.setattr(log_files, "PATIENCE_SECS", 0.05)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def test_a_full_file_that_cannot_be_moved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = LogFile(tmp_path / "log")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    for _ in range(30):
        handler.emit(RECORD)
    assert len((tmp_path / "log").read_text().splitlines()) == 30
    assert "cannot be rotated: Permission denied" in handler.trouble
    monkeypatch.undo()
    assert handler.reopen() == ""
    assert handler.trouble == ""
    handler.emit(RECORD)
    assert (tmp_path / "log.1").exists()
    handler.close()


@posix_only("an open file that is renamed")
def test_a_file_that_cannot_be_opened_anew_goes_on_in_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = LogFile(path)
    path.rename(tmp_path / "moved")
    path.mkdir()
    assert "cannot be opened: Is a directory" in handler.reopen()
    handler.emit(RECORD)
    assert len((tmp_path / "moved").read_text().splitlines()) == 1
    assert "cannot be opened" in handler.trouble
    handler.close()


@posix_only("links without an administrator's right")
def test_a_link_is_not_moved(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "log")
    handler = handler_of(tmp_path / "link")
    for _ in range(30):
        handler.emit(RECORD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "log"]
    assert len((tmp_path / "log").read_text().splitlines()) == 30
    handler.close()


@posix_only("pipes that have a name")
def test_a_fifo_needs_no_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    handler = handler_of(tmp_path / "fifo")
    began = time.monotonic()
    for _ in range(1000):
        handler.emit(RECORD)
    assert time.monotonic() - began < 10
    assert "nothing reads it" in handler.trouble
    handler.close()


@posix_only("the device full")
def test_a_device_without_room_is_told() -> None:
    handler = handler_of(Path("/dev/full"))
    handler.emit(RECORD)
    assert handler.trouble == "the log cannot be written: No space left on device"
    handler.close()


@posix_only("pipes that do not block")
def test_what_was_lost_is_counted_when_the_pipe_is_read_again(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    handler = LogStream(Writer(writer))
    for _ in range(1500):  # a pipe takes 64 KiB
        handler.emit(RECORD)
    assert "nothing reads it" in handler.trouble
    read = os.read(reader, 1 << 20)
    handler.emit(RECORD)
    assert handler.trouble == ""
    read += os.read(reader, 1 << 20)
    *whole, last, said = read.decode().splitlines()
    lost = int(said.split(" lines of the log before this one were lost")[0].rpartition(" ")[2])
    assert len(whole) + lost == 1500 or len(whole) - 1 + lost == 1500  # the last one may be half written
    assert last == "x" * 100
    assert os.get_blocking(reader)
    handler.close()


@posix_only("pipes that do not block")
def test_the_stream_of_the_starter_is_left_as_it_was(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    stream = Writer(os.dup(writer))
    assert os.get_blocking(writer)
    stream.close()
    os.close(writer)


@posix_only("/dev/stdout")
def test_the_systems_own_stdout_is_not_moved(tmp_path: Path) -> None:
    program = """
import logging, sys
from pathlib import Path
from bpbroker.runtime import log_files
log_files.FILE_MAX_BYTES = 1000
from bpbroker.runtime.logs import LogOptions, setup_logging
setup_logging(LogOptions(Path(sys.argv[1])))
for _ in range(30):
    logging.error("x" * 100)
"""
    (tmp_path / "stdout").symlink_to("/dev/stdout")
    for name in ("/dev/stdout", "/dev/fd/1", str(tmp_path / "stdout")):
        with (tmp_path / "out").open("wb") as out:
            subprocess.run([sys.executable, "-c", program, name], stdout=out, check=True, timeout=60)
        assert len((tmp_path / "out").read_text().splitlines()) == 30, name
        done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, check=True, timeout=60)
        assert len(done.stdout.splitlines()) == 30, name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "stdout"]
    assert Path("/dev/stdout").is_symlink()

"""Torn or damaged: what a write-ahead log tells about itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker.storage.embedded import wal
from bpbroker.storage.embedded.wal import LogState, examine

FRAME = 4096 + 24


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    yield connection
    connection.close()


@pytest.fixture
def log(database: sqlite3.Connection, tmp_path: Path) -> Path:
    """A copy of a log of four commits, of one, three, one and one frames."""
    for size in (1, 6000, 3, 4):
        database.execute("INSERT INTO t (v) VALUES (?)", ("x" * size,))
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "db-wal").read_bytes())
    assert commits(copy) == [0, 3, 4, 5]
    return copy


def commits(log: Path) -> list[int]:
    content = log.read_bytes()
    heads = [content[offset : offset + 24] for offset in range(32, len(content), FRAME)]
    return [number for number, head in enumerate(heads) if head[4:8] != bytes(4)]


def flip(log: Path, offset: int) -> None:
    content = bytearray(log.read_bytes())
    content[offset] ^= 4
    log.write_bytes(content)


def cut(log: Path, size: int) -> LogState:
    content = log.read_bytes()
    log.write_bytes(content[:size])
    try:
        return examine(log)
    finally:
        log.write_bytes(content)


def test_no_log_is_a_good_log(tmp_path: Path) -> None:
    assert examine(tmp_path / "none") == LogState()
    (tmp_path / "empty").touch()
    assert examine(tmp_path / "empty") == LogState()


def test_a_whole_log_is_a_good_log(log: Path) -> None:
    assert examine(log) == LogState()


def test_what_is_behind_the_last_whole_commit_is_torn(log: Path) -> None:
    ends = [32, *(32 + (number + 1) * FRAME for number in commits(log))]
    for size in [*range(33, log.stat().st_size, 211), *ends]:
        good = max(end for end in ends if end <= size)
        assert cut(log, size) == LogState(torn_bytes=size - good), size
    for size in range(1, 32):
        assert cut(log, size) == LogState(torn_bytes=size)


# A damaged salt in a commit of one frame, the last but one: only the mark beside the journal can tell.
WITHIN = [(frame, where) for frame in range(5) for where in (0, 9, 17, 24, 4119) if (frame, where) != (4, 9)]


@pytest.mark.parametrize(("frame", "where"), WITHIN)
def test_damage_before_the_last_commit_is_damage(log: Path, frame: int, where: int) -> None:
    flip(log, 32 + frame * FRAME + where)
    assert examine(log).damage


def test_the_last_commit_may_be_torn(log: Path) -> None:
    flip(log, 32 + 5 * FRAME + 2000)
    assert examine(log) == LogState(torn_bytes=FRAME)


def test_a_commit_of_which_only_the_end_reached_the_disk_is_torn(log: Path) -> None:
    content = log.read_bytes()[: 32 + 4 * FRAME]
    log.write_bytes(content[: 32 + FRAME] + bytes(2 * FRAME) + content[32 + 3 * FRAME :])
    assert examine(log) == LogState(torn_bytes=3 * FRAME)


def test_the_remains_of_an_older_log_are_nothing(database: sqlite3.Connection, log: Path, tmp_path: Path) -> None:
    database.execute("PRAGMA wal_checkpoint(RESTART)")
    database.execute("INSERT INTO t (v) VALUES ('y')")
    log.write_bytes((tmp_path / "db-wal").read_bytes())
    assert log.stat().st_size == 32 + 6 * FRAME
    assert examine(log) == LogState()
    assert cut(log, 32 + FRAME - 1) == LogState(torn_bytes=FRAME - 1)


@pytest.mark.parametrize("where", [0, 3, 10, 18, 25, 31])
def test_a_damaged_header_is_damage_when_frames_follow(log: Path, where: int) -> None:
    flip(log, where)
    assert examine(log) == LogState(damage="its header is damaged")
    assert cut(log, 32) == LogState(torn_bytes=32)


def test_a_log_that_is_begun_anew_while_it_is_read_is_read_again(
    database: sqlite3.Connection, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "db-wal"
    parse = wal._parse_header
    begun: list[bool] = []

    def begin_anew(content: bytes) -> object:
        if not begun:
            begun.append(True)
            database.execute("PRAGMA wal_checkpoint(RESTART)")
            database.execute("INSERT INTO t (v) VALUES ('y')")
        return parse(content)

    monkeypatch.setattr(wal, "_parse_header", begin_anew)
    assert live.read_bytes() == log.read_bytes()
    assert examine(live) == LogState()
    assert live.read_bytes() != log.read_bytes()


def test_both_byte_orders(log: Path) -> None:
    """SQLite writes the machine's own; a log may have been copied from another machine."""
    import struct

    content = log.read_bytes()[: 32 + FRAME]

    def checksum(data: bytes, start: tuple[int, int]) -> tuple[int, int]:
        first, second = start
        words = struct.unpack(f">{len(data) // 4}I", data)
        for even, odd in zip(words[::2], words[1::2], strict=True):
            first = (first + even + second) % 2**32
            second = (second + odd + first) % 2**32
        return first, second

    header = struct.pack(">I", 0x377F0683) + content[4:24]
    running = checksum(header, (0, 0))
    header += struct.pack(">2I", *running)
    running = checksum(content[56:], checksum(content[32:40], running))
    log.write_bytes(header + content[32:48] + struct.pack(">2I", *running) + content[56:])
    assert examine(log) == LogState()

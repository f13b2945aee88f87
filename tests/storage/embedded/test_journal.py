"""A damaged journal, cut or flipped at each byte. Never a wrong entry, never a changed file."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from bpbroker import files
from bpbroker.errors import ConfigurationError, DamagedFile
from bpbroker.storage import backups, config_file
from bpbroker.storage.embedded.journal import Mark, create, files_of, read_journal
from tests.support.extent import THOROUGH, examples
from tests.support.systems import slow_under_wine

LONG = os.environ.get("BPBROKER_LONG") == "1"
LOG_FRAME_BYTES = 4096 + 24

Crashed = Callable[[], Path]
Load = Callable[[Path], Mapping[str, bytes]]
Look = Callable[[Path], dict[str, bytes]]


def outcome(journal: Path, load: Load, look: Look) -> Mapping[str, bytes] | None:
    """Load a journal; None when it is refused, and then nothing may have been changed."""
    before = look(journal.parent)
    try:
        return load(journal)
    except ConfigurationError as error:
        assert error.exit_code == 78
        assert look(journal.parent) == before
        return None


def test_reading_changes_nothing(crashed: Crashed, look: Look) -> None:
    journal = crashed()
    before = look(journal.parent)
    assert len(read_journal(journal).changes) == 5
    assert look(journal.parent) == before


@pytest.mark.parametrize("which", [0, 1, 2], ids=["journal", "log", "mark"])
@slow_under_wine(20)
def test_cut_at_any_offset(crashed: Crashed, load: Load, look: Look, state: dict[str, bytes], which: int) -> None:
    whole = files_of(crashed())[which].read_bytes()
    every = 1 if LONG or len(whole) < 100 else 61 if THOROUGH else 241
    edges = {edge + near for edge in range(0, len(whole), 4096) for near in (0, 1, 24, 32, 56)}
    edges |= {32 + LOG_FRAME_BYTES * frame + near for frame in range(9) for near in (-1, 0, 1, 24)}
    for size in sorted({*range(0, len(whole), every), *(edge for edge in edges if 0 <= edge < len(whole))}):
        journal = crashed()
        os.truncate(files_of(journal)[which], size)
        assert outcome(journal, load, look) in (None, state), f"{which} cut at {size}"


@slow_under_wine(18)
def test_a_log_cut_at_any_offset_when_the_mark_was_not_yet_on_the_disk(
    crashed: Crashed, load: Load, look: Look, base: dict[str, bytes], state: dict[str, bytes]
) -> None:
    """A power cut may leave an older mark, or none: then whole commits count, and no more than whole ones."""
    possible: list[Mapping[str, bytes]] = []
    seen = dict(base) | {"replaced": state["replaced"]}
    del seen["deleted"]
    possible.append(dict(seen))
    for name in ("added", "more", "last"):
        seen[name] = state[name]
        possible.append(dict(seen))
    size = files_of(crashed())[1].stat().st_size
    found = []
    for cut in (*range(0, size, 1 if LONG else 97 if THOROUGH else 389), size):
        journal = crashed()
        _, log, mark = files_of(journal)
        mark.unlink()
        os.truncate(log, cut)
        entries = outcome(journal, load, look)
        assert entries in possible, f"cut at {cut}"
        found.append(possible.index(entries))
    assert found == sorted(found)
    assert set(found) == {0, 1, 2, 3}


@slow_under_wine(21)
def test_any_flipped_bit(crashed: Crashed, load: Load, look: Look, state: dict[str, bytes]) -> None:
    """Refused, or of no consequence: a bit in unused space."""
    random_bits = random.Random(20)  # noqa: S311 - the same bits in every run
    refused = 0
    cases: list[tuple[int, int]] = []
    for which, path in enumerate(files_of(crashed())):
        bits = path.stat().st_size * 8
        heads = range(0, min(bits, 112 * 8), 1 if LONG else 7 if THOROUGH else 29)
        cases += [
            (which, bit)
            for bit in (*heads, *random_bits.sample(range(bits), min(bits, 4000 if LONG else examples(150))))
        ]
    for which, bit in cases:
        journal = crashed()
        path = files_of(journal)[which]
        content = bytearray(path.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        entries = outcome(journal, load, look)
        assert entries in (None, state), f"bit {bit} of {path.name}"
        refused += entries is None
    assert refused > len(cases) // 3


@pytest.mark.parametrize("folded", [False, True], ids=["log", "journal"])
@slow_under_wine(14)
def test_a_flipped_bit_in_any_row_is_refused(crashed: Crashed, load: Load, folded: bool) -> None:
    """Where the entries themselves stand there is no unused space."""
    whole = crashed()
    if folded:
        load(whole)  # closing it moves everything from the log into the journal
    which = 0 if folded else 1
    content = files_of(whole)[which].read_bytes()
    for value in (b'{"v": "new", ', b'{"v": 1, ', b'{"v": "last", ', b"replaced", b"deleted", b"more"):
        start = content.rindex(value)
        for bit in range(len(value) * 8):
            damaged = bytearray(content)
            damaged[start + bit // 8] ^= 1 << bit % 8
            journal = whole.with_name(f"{value.hex()}-{bit}.journal")
            for path, copy in zip(files_of(whole), files_of(journal), strict=True):
                if path.exists():
                    shutil.copy(path, copy)
            files_of(journal)[which].write_bytes(damaged)
            with pytest.raises(DamagedFile):
                read_journal(journal)


def test_a_torn_tail_is_dropped_with_a_warning(
    crashed: Crashed, load: Load, state: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """What a crash leaves of a commit that nobody was told of: the mark is not there yet."""
    journal = crashed()
    _, log, mark = files_of(journal)
    os.truncate(log, log.stat().st_size - 10)
    behind = Mark(journal)
    behind.open(4)
    behind.close(remove=False)
    with caplog.at_level(logging.WARNING):
        entries = load(journal)
    assert entries == {name: value for name, value in state.items() if name != "last"}
    assert "cut off; it was never acknowledged and is dropped" in caplog.text
    assert mark.exists()
    caplog.clear()
    load(journal)
    assert not caplog.text


@pytest.mark.parametrize(
    ("which", "message"),
    [(0, "bpbroker.json.journal is gone, but"), (1, "is incomplete: it ends with commit ")],
)
def test_a_missing_part_is_missed(crashed: Crashed, load: Load, look: Look, which: int, message: str) -> None:
    journal = crashed()
    files_of(journal)[which].unlink()
    before = look(journal.parent)
    with pytest.raises(DamagedFile) as caught:
        load(journal)
    assert message in str(caught.value)
    assert look(journal.parent) == before


def test_a_journal_and_log_that_are_gone_are_missed(crashed: Crashed, load: Load) -> None:
    journal = crashed()
    for path in files_of(journal)[:2]:
        path.unlink()
    with pytest.raises(DamagedFile, match=r"commit \d+ was acknowledged \(to go on without .*journal-mark\)"):
        load(journal)
    files_of(journal)[2].unlink()
    load(journal)


@pytest.mark.parametrize("content", [b"", b"x", b"no database at all " * 500, b"SQLite format 3\0" + b"\0" * 5000])
def test_something_else_in_its_place(journal: Path, load: Load, look: Look, content: bytes) -> None:
    journal.write_bytes(content)
    assert outcome(journal, load, look) is None


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE other (x)",
        "DROP TABLE owner",
        "DELETE FROM owner",
        "UPDATE owner SET sequence = sequence + 1",
        "UPDATE owner SET sequence = 'x'",
        "UPDATE journal SET value = '{}' WHERE name = 'last'",
        "UPDATE journal SET name = x'00' WHERE name = 'last'",
        "UPDATE journal SET sequence = 99 WHERE name = 'last'",
        "UPDATE journal SET value = NULL WHERE name = 'last'",
        "UPDATE journal SET checksum = 'x' WHERE name = 'last'",
        "INSERT INTO journal VALUES ('a', 9, x'7b7d', 1)",
        "PRAGMA journal_mode = DELETE",
    ],
)
def test_what_sqlite_accepts_but_the_broker_did_not_write(crashed: Crashed, load: Load, statement: str) -> None:
    journal = crashed()
    other = sqlite3.connect(journal, isolation_level=None)
    other.execute(statement)
    other.close()
    with pytest.raises(DamagedFile):
        load(journal)


def test_a_journal_of_a_later_version_is_refused_with_words(crashed: Crashed, load: Load) -> None:
    journal = crashed()
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("PRAGMA user_version=2")
    with pytest.raises(DamagedFile, match=r"journal was written by a later version of bpbroker \(format 2\)"):
        load(journal)


def test_the_newest_good_backup_is_named(crashed: Crashed, load: Load) -> None:
    journal = crashed()
    own = journal.with_name("bpbroker.json")
    settings: dict[str, dict[str, str]] = {"services": {}, "api": {}}
    good = backups.make(own, config_file.chunks(settings, {"a": b"{}"}))
    bad = backups.make(own, iter([b"cut"]))
    files_of(journal)[0].write_bytes(b"x" * 4096)
    with pytest.raises(DamagedFile) as caught:
        load(journal)
    assert f"bpbroker --config {own} restore {good.path}" in str(caught.value)
    assert "(1 entries)" in str(caught.value)
    assert bad.path not in str(caught.value)


def test_a_restore_that_was_cut_off_bars_the_start(journal: Path, load: Load) -> None:
    mark = Mark(journal)
    mark.block()
    mark.close(remove=False)
    with pytest.raises(DamagedFile, match=r"restore of .*bpbroker\.json was cut off; do it again"):
        load(journal)


def test_a_journal_that_cannot_be_made_leaves_no_half(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Path, __: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, "settle", failing)
        with pytest.raises(OSError, match="Input/output error"):
            create(journal, "0" * 32)
    assert list(journal.parent.glob(f"{journal.name}*")) == []
    create(journal, "0" * 32)
    assert read_journal(journal).changes == {}


@pytest.mark.parametrize("left", [b"", b"\0" * 5, b"\0" * 12, b"\0" * 28, struct.pack(">Q", 7)])
def test_a_mark_that_a_power_cut_left_empty_or_short_is_only_behind(journal: Path, load: Load, left: bytes) -> None:
    create(journal, "0" * 32)
    mark = journal.with_name(f"{journal.name}-mark")
    mark.write_bytes(left)
    assert Mark(journal).read() is None
    assert read_journal(journal).changes == {}
    load(journal)


def test_a_mark_of_full_length_that_the_broker_did_not_write_is_damage(journal: Path) -> None:
    create(journal, "0" * 32)
    journal.with_name(f"{journal.name}-mark").write_bytes(b"\0" * 11 + b"\1")
    with pytest.raises(DamagedFile, match="-mark is damaged"):
        read_journal(journal)


@pytest.mark.parametrize("length", range(13, 29))
def test_a_longer_mark_that_the_broker_did_not_write_is_damage(journal: Path, length: int) -> None:
    create(journal, "0" * 32)
    journal.with_name(f"{journal.name}-mark").write_bytes(b"\1" * length)
    with pytest.raises(DamagedFile, match="-mark is damaged"):
        read_journal(journal)


def test_a_mark_of_an_earlier_version_counts(journal: Path) -> None:
    create(journal, "1" * 32)
    number = struct.pack(">Q", 7)
    journal.with_name(f"{journal.name}-mark").write_bytes(number + struct.pack(">I", zlib.crc32(number)))
    with pytest.raises(DamagedFile, match="ends with commit 0, but commit 7 was acknowledged"):
        read_journal(journal)


def test_a_mark_of_another_registry_is_not_believed(journal: Path, load: Load) -> None:
    """It says nothing about this journal, neither that all is there nor that something is missing."""
    create(journal, "1" * 32)
    for number in (0, 10**15):
        mark = Mark(journal, "2" * 32)
        mark.open(number)
        mark.close(remove=False)
        with pytest.raises(DamagedFile, match=r"-mark is of another registry \(2{32}\) than .* remove .*-mark\)"):
            read_journal(journal)
    files_of(journal)[2].unlink()
    load(journal)


def test_it_can_be_checked_beside_a_running_broker(journal: Path) -> None:
    create(journal, "0" * 32)
    writer = sqlite3.connect(journal, isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        assert read_journal(journal).changes == {}
    finally:
        writer.close()


def test_a_folder_in_its_place_cannot_be_read(journal: Path) -> None:
    journal.with_name(f"{journal.name}-mark").mkdir()
    with pytest.raises(ConfigurationError, match=r"Cannot read .*-mark"):
        read_journal(journal)

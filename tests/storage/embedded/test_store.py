"""The embedded store: what is committed lasts, what fails is said to have failed."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bpbroker.errors import ConfigurationError, DamagedFile, StorageFailed, StorageFull, Unavailable
from bpbroker.registry.changes import Committed
from bpbroker.storage import config_file
from bpbroker.storage.config_file import Origin
from bpbroker.storage.embedded.journal import config_path, files_of, read_journal
from bpbroker.storage.embedded.recovery import match
from bpbroker.storage.embedded.store import EmbeddedStore
from tests.support.changes import change, without_revisions
from tests.support.systems import is_private

Opened = Callable[[], EmbeddedStore]
BIG = b'{"v": "' + b"x" * 100_000 + b'"}'


def changes_of(journal: Path) -> dict[str, bytes | None]:
    """Return what a journal holds, as clients see it."""
    changes = read_journal(journal).changes
    there = without_revisions({name: value for name, value in changes.items() if value is not None})
    return {name: there.get(name) for name in changes}


def connection_of(store: EmbeddedStore) -> sqlite3.Connection:
    assert store._connection is not None
    return store._connection


def test_a_new_journal_adds_nothing(journal: Path, base: dict[str, bytes]) -> None:
    store = EmbeddedStore(journal, lambda: base)
    assert store.load() == base
    store.close()
    assert changes_of(journal) == {}


def test_what_is_committed_survives_a_crash(
    crashed: Callable[[], Path], load: Callable[[Path], Mapping[str, bytes]], state: dict[str, bytes]
) -> None:
    journal = crashed()
    assert load(journal) == state
    assert load(journal) == state


def test_a_commit_says_so(opened: Opened) -> None:
    one, two = opened().commit([change("a", b"{}"), change("b", None)])
    assert isinstance(one, Committed)
    assert one == two
    assert one.revision > 1_700_000_000_000


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_a_commit_of_any_size_is_written_whole(journal: Path, opened: Opened, count: int) -> None:
    values = {f"name-{number}": b'{"n": %d}' % number if number % 3 else None for number in range(count)}
    opened().commit([change(name, value, place) for place, (name, value) in enumerate(values.items(), 1)])
    assert changes_of(journal) == values


def test_only_the_owner_may_read_it(journal: Path, opened: Opened) -> None:
    opened().commit([change("a", b"{}")])
    for path in journal.parent.glob("*.journal*"):
        assert is_private(path), path


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_it_to_the_owner_of_the_file(journal: Path, opened: Opened) -> None:
    os.chown(journal.with_name("bpbroker.json"), 1234, 1234)
    opened().commit([change("a", b"{}")])
    for path in journal.parent.glob("*.journal*"):
        assert path.stat().st_uid == 1234, path


def test_the_number_of_the_last_commit_never_falls(journal: Path, opened: Opened) -> None:
    store = opened()
    store.commit([change("a", b"{}")])
    store.commit([change("a", b"{}"), change("b", b"{}", 1)])
    last = store.sequence
    assert not store.forget(last)
    store.close()
    assert read_journal(journal).sequence == last
    again = opened()
    assert again.sequence >= last
    again.commit([change("a", b"{}")])
    assert again.sequence > last


def test_it_forgets_what_the_file_holds_and_nothing_else(journal: Path, opened: Opened) -> None:
    store = opened()
    store.commit([change(f"n{number:05}", b"{}") for number in range(3000)])
    saved = store.sequence
    newer = {f"n{number:05}": b'{"v": 2}' for number in range(0, 3000, 7)}
    store.commit([change(name, value) for name, value in newer.items()])
    pieces = 1
    while store.forget(saved):
        pieces += 1
        store.commit([change("n00001", b'{"v": %d}' % pieces)])
        newer["n00001"] = b'{"v": %d}' % pieces
    assert pieces > 3
    assert changes_of(journal) == newer
    assert not store.forget(store.sequence)
    assert changes_of(journal) == {}


def test_forgetting_anew_begins_at_the_front(journal: Path, opened: Opened) -> None:
    store = opened()
    store.commit([change(f"n{number:05}", b"{}") for number in range(1500)])
    assert store.forget(store.sequence - 1)
    store.commit([change("n00000", b"{}")])
    saved = store.sequence
    store.commit([change("z", b"{}")])
    while store.forget(saved):
        pass
    assert set(read_journal(journal).changes) == {"z"}


def test_after_a_clean_end_the_journal_is_empty_and_alone(journal: Path, opened: Opened) -> None:
    store = opened()
    store.commit([change("a", b"{}")])
    store.forget(store.sequence)
    store.close()
    store.close()
    assert sorted(path.name for path in journal.parent.iterdir()) == [
        "bpbroker.json",
        "bpbroker.json.journal",
        "bpbroker.json.revisions",
    ]


def test_a_closed_store_takes_nothing(opened: Opened) -> None:
    store = opened()
    store.close()
    with pytest.raises(StorageFailed, match="closed"):
        store.commit([change("a", b"{}")])


def test_an_older_store_is_fenced_off(journal: Path, opened: Opened) -> None:
    old = opened()
    old.commit([change("a", b'{"v": 1}')])
    new = opened()
    new.commit([change("b", b'{"v": 2}')])
    for attempt in (lambda: old.commit([change("a", b'{"v": 3}')]), lambda: old.forget(9), old.probe):
        with pytest.raises(StorageFailed, match="another registry") as caught:
            attempt()
        assert caught.value.outcome_known
    old.close()
    new.commit([change("c", b'{"v": 4}')])
    assert changes_of(journal) == {"a": b'{"v": 1}', "b": b'{"v": 2}', "c": b'{"v": 4}'}


def test_an_older_store_that_closes_leaves_the_mark(journal: Path, opened: Opened) -> None:
    old, new = opened(), opened()
    old.close()
    assert journal.with_name(f"{journal.name}-mark").exists()
    new.commit([change("a", b'{"v": 1}')])


def test_the_base_is_read_behind_the_fence(journal: Path, opened: Opened) -> None:
    """The file may be saved, and the old store told to forget, at any moment up to the fence."""
    old = opened()
    old.commit([change("a", b'{"v": 1}')])

    def base() -> Mapping[str, bytes]:
        with pytest.raises(StorageFailed):
            old.forget(old.sequence)
        return {}

    store = EmbeddedStore(journal, base)
    assert without_revisions(store.load()) == {"a": b'{"v": 1}'}
    store.close()


def test_figures_are_in_bytes(opened: Opened) -> None:
    store = opened()
    store.commit([change("a", BIG)])
    figures = store.figures
    assert 100_000 < figures["journal_bytes"] < 10_000_000
    assert figures["disk_free_bytes"] > 0


# --- failures ---


class Failing:
    """Stands before a connection and fails at one statement."""

    def __init__(self, connection: sqlite3.Connection, statement: str, code: int) -> None:
        self._connection = connection
        self._statement = statement
        self._code = code

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement.startswith(self._statement):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self._code
            raise error
        return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def break_at(store: EmbeddedStore, statement: str, code: int) -> None:
    store._connection = Failing(connection_of(store), statement, code)  # type: ignore[assignment]  # it is like one


def test_after_a_failed_sync_the_outcome_is_unknown_and_nothing_more_is_taken(opened: Opened) -> None:
    store = opened()
    break_at(store, "COMMIT", sqlite3.SQLITE_IOERR_FSYNC)
    with pytest.raises(StorageFailed, match="not known") as caught:
        store.commit([change("a", b'{"v": 1}')])
    assert not caught.value.outcome_known
    assert not isinstance(caught.value, StorageFull)
    for _ in range(2):
        with pytest.raises(StorageFailed, match=r"Nothing was changed; .* until a restart") as caught:
            store.commit([change("a", b'{"v": 1}')])
        assert caught.value.outcome_known
    with pytest.raises(StorageFailed):
        store.probe()
    assert store.sequence == 0


def test_an_error_that_is_kept_keeps_no_journal_open(journal: Path, opened: Opened) -> None:
    store = opened()
    store.commit([change("a", b'{"v": 1}')])
    (log,) = (path for path in files_of(journal) if path.name.endswith("-wal"))
    break_at(store, "COMMIT", sqlite3.SQLITE_IOERR_FSYNC)
    with pytest.raises(StorageFailed) as caught:
        store.commit([change("a", b'{"v": 2}')])
    assert log.exists()
    store.close()
    assert caught.value.__traceback__ is not None
    assert not log.exists()  # or what stands in it and was never known to be durable would come back at the next start


def test_a_failure_before_the_commit_changed_nothing(journal: Path, opened: Opened) -> None:
    store = opened()
    break_at(store, "BEGIN", sqlite3.SQLITE_IOERR_READ)
    with pytest.raises(StorageFailed, match="Nothing was changed") as caught:
        store.commit([change("a", b'{"v": 1}')])
    assert caught.value.outcome_known
    assert changes_of(journal) == {}


def test_a_full_database_changes_nothing_and_recovers(journal: Path, opened: Opened) -> None:
    store = opened()
    store.commit([change("a", b'{"v": 1}')])
    connection = connection_of(store)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 1}")
    with pytest.raises(StorageFull, match="nothing was changed") as caught:
        store.commit([change("a", b'{"v": 2}'), change("big", BIG)])
    assert caught.value.outcome_known
    store.commit([change("small", b'{"v": 3}')])
    connection.execute("PRAGMA max_page_count=1000000")
    store.commit([change("big", b'{"v": 4}')])
    assert changes_of(journal) == {"a": b'{"v": 1}', "small": b'{"v": 3}', "big": b'{"v": 4}'}


def test_a_busy_journal_is_no_reason_to_give_up(journal: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpbroker.storage.embedded.store._BUSY_TIMEOUT_SECS", 0.01)
    store = opened()
    other = sqlite3.connect(journal, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="busy") as caught:
            store.commit([change("a", b'{"v": 1}')])
        assert not isinstance(caught.value, StorageFailed)
    finally:
        other.close()
    store.commit([change("a", b'{"v": 1}')])


def test_a_mark_that_cannot_be_written_is_said_and_no_more(
    opened: Opened, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._mark, "write", full)
    with caplog.at_level(logging.WARNING):
        store.commit([change("a", b'{"v": 1}')])
    assert "its mark cannot be written" in caplog.text


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none[/\\]b\.json\.journal"):
        EmbeddedStore(tmp_path / "none" / "b.json.journal", dict).load()


def test_a_file_that_is_gone_while_its_journal_has_changes(
    crashed: Callable[[], Path], load: Callable[[Path], Mapping[str, bytes]]
) -> None:
    journal = crashed()
    journal.with_name("bpbroker.json").unlink()
    with pytest.raises(DamagedFile, match=r"bpbroker\.json is gone, .*\n.*no good backup"):
        load(journal)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_refuses_writes_and_recovers_by_itself(tmpfs: Path) -> None:
    """C4, without the broker around it: again and again, at another byte each time."""
    (tmpfs / "b.json").write_text("{}")
    journal = tmpfs / "b.json.journal"
    store = EmbeddedStore(journal, dict)
    store.load()
    expected: dict[str, bytes] = {}
    filler = tmpfs / "filler"
    refused = 0
    for turn in range(40):
        free = os.statvfs(tmpfs).f_bavail * os.statvfs(tmpfs).f_frsize
        filler.write_bytes(b"x" * max(0, free - turn * 4096))
        for number in range(4):
            values = {
                f"n{number}": b'{"v": "%b"}' % (b"%d" % turn * (2000 * number + 1)),
                "both": b'{"v": "%d %d"}' % (turn, number),
            }
            try:
                store.commit([change(name, value) for name, value in values.items()])
            except StorageFull:
                refused += 1
            else:
                expected |= values
        filler.unlink()
        assert changes_of(journal) == expected
        store.probe()
    assert refused > 10
    store.forget(store.sequence)
    store.close()
    assert changes_of(journal) == {}


def test_a_write_costs_no_more_when_there_are_many_rows(opened: Opened) -> None:
    """A wide bound: machines vary. The benchmark has the figures."""

    def cost(store: EmbeddedStore) -> float:
        begun = time.perf_counter()
        for number in range(100):
            store.commit([change(f"n{number * 97:05}", b'{"v": 1}')])
        return time.perf_counter() - begun

    store = opened()
    cost(store)
    few = min(cost(store) for _ in range(3))
    for start in range(0, 50_000, 5000):
        store.commit([change(f"n{number:05}", b'{"v": 0}') for number in range(start, start + 5000)])
    many = min(cost(store) for _ in range(3))
    assert many < 5 * few


def test_a_torn_end_is_gone_before_the_log_is_written(
    crashed: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash while it is written over leaves a commit in front of another one's: that looks like damage."""
    journal = crashed()
    _, log, mark = files_of(journal)
    mark.unlink()
    os.truncate(log, log.stat().st_size - 10)
    found = list[int]()

    def write_owner(_: EmbeddedStore, __: sqlite3.Connection) -> None:
        found.append(log.stat().st_size)
        raise sqlite3.OperationalError("killed here")

    monkeypatch.setattr(EmbeddedStore, "_write_owner", write_owner)
    with pytest.raises(ConfigurationError, match="killed here"):
        EmbeddedStore(journal, dict).load()
    assert found == [0]


def test_a_start_that_is_cut_off_does_not_make_the_file_look_old(journal: Path) -> None:
    """Revisions are reserved ahead: a start begins with a higher one than the file's, which lacks nothing."""
    own = config_path(journal)
    first = EmbeddedStore(journal, dict, "1" * 32, 0)
    first.load()
    first.commit([change("a", b'{"v": 1}')])
    commit = first.sequence
    config_file.write(own, {"services": {}}, {"a": b'{"v": 1}'}, origin=Origin("1" * 32, commit))
    first.forget(commit)
    connection_of(first).close()
    for _ in range(3):  # killed before the file is saved
        fit = match(own, config_file.read_content(own).origin, read_journal(journal))
        assert fit.warning == ""
        store = EmbeddedStore(journal, dict, "1" * 32, fit.commit)
        store.load()
        assert store.sequence > commit
        connection_of(store).close()

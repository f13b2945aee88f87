"""What was deleted is nowhere in the journal's files, and the journal is as whole as before."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bpbroker.errors import Unavailable
from bpbroker.storage.embedded import erasing
from bpbroker.storage.embedded.erasing import erase
from bpbroker.storage.embedded.journal import files_of, read_journal
from bpbroker.storage.embedded.store import EmbeddedStore
from tests.support.changes import change


def test_nothing_deleted_is_left(journal: Path, opened: Callable[[], EmbeddedStore]) -> None:
    store = opened()
    chance = random.Random(1)  # noqa: S311 - for chance, not for secrets
    there: dict[str, bytes] = {}
    gone: set[bytes] = set()
    for _ in range(1500):
        name = f"n{chance.randrange(200)}"
        gone.add(there.pop(name, b""))
        if chance.random() < 0.7:
            there[name] = b"CANARY%016x" % chance.getrandbits(64)
            value = b'{"v": "%b"}' % (there[name] * chance.choice((1, 3, 30, 300)))
            store.commit([change(name, value)])
        else:
            store.commit([change(name, None)])
    gone.discard(b"")
    erase(journal)
    content = b"".join(path.read_bytes() for path in files_of(journal) if path.exists())
    assert [each for each in gone if each in content] == []
    # All else is there, also for who reads it beside the store or starts on a copy; and the store goes on.
    assert {name for name, value in read_journal(journal).changes.items() if value} == set(there)
    copy = journal.parent / "copy"
    copy.mkdir()
    for path in (journal.with_name("bpbroker.json"), *files_of(journal)):
        if path.exists():
            shutil.copy(path, copy)
    assert {name for name, value in read_journal(copy / journal.name).changes.items() if value} == set(there)
    store.commit([change("later", b'{"v": 1}')])
    assert "later" in read_journal(journal).changes


def test_it_says_why_not(journal: Path, opened: Callable[[], EmbeddedStore], monkeypatch: pytest.MonkeyPatch) -> None:
    opened().commit([change("a", b"{}")])
    monkeypatch.setattr(erasing, "_BUSY_SECS", 0.05)
    other = sqlite3.connect(journal, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        erase(journal)
    other.close()
    monkeypatch.setattr(erasing, "_PACKED_BYTES", 0)
    with pytest.raises(Unavailable, match="too large"):
        erase(journal)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_what_is_not_deleted_goes_into_no_file_elsewhere(
    journal: Path, opened: Callable[[], EmbeddedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite packs in a temporary file, when a journal is larger than its cache."""
    store = opened()
    for number in range(150):
        store.commit([change(f"n{number}", b'{"v": "%b"}' % (b"x" * 30_000))])
    files: set[str] = set()
    connect = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_progress_handler(lambda: files.update(_open_files()), 100)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    erase(journal)
    assert str(journal) in files
    assert {path for path in files if "etilqs" in path} == set()


def _open_files() -> Iterator[str]:
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            yield str(each.readlink())

"""A journal, and what a crash would leave of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bpbroker.storage.embedded.journal import files_of
from bpbroker.storage.embedded.store import EmbeddedStore
from tests.support.changes import change, without_revisions

BASE = {"kept": b'{"v": "base"}', "replaced": b'{"v": "base"}', "deleted": b'{"v": "base"}'}
CHANGES = {
    "replaced": b'{"v": "new"}',
    "deleted": None,
    "added": b'{"v": "' + b"x" * 5000 + b'"}',
    "more": b'{"v": 1}',
    "last": b'{"v": "last"}',
}
STATE = {"kept": BASE["kept"], **{name: value for name, value in CHANGES.items() if value is not None}}


def files_in(folder: Path) -> dict[str, bytes]:
    """Everything that counts; SQLite's ``-shm`` and an empty log are made anew by whoever comes first."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
    return {name: content for name, content in found.items() if content or not name.endswith("-wal")}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a journal may be made; its configuration file is there."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "bpbroker.json").write_text("{}")
    return folder / "bpbroker.json.journal"


@pytest.fixture
def opened(journal: Path) -> Iterator[Callable[[], EmbeddedStore]]:
    """Makes loaded stores on that journal; all are closed in the end."""
    stores: list[EmbeddedStore] = []

    def make() -> EmbeddedStore:
        store = EmbeddedStore(journal, lambda: BASE)
        store.load()
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def crashed(journal: Path, opened: Callable[[], EmbeddedStore], tmp_path: Path) -> Callable[[], Path]:
    """Return the journal of a fresh copy of what is left when the broker is killed after :data:`CHANGES`.

    Half of the changes are in the journal itself, the others, each a commit of its own, in its log.
    """
    store = opened()
    items = list(CHANGES.items())
    for number, (name, value) in enumerate(items):
        store.commit([change(name, value)])
        if number == 1:
            assert store._connection is not None
            store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    left = tmp_path / "left"
    left.mkdir()
    for path in (journal.with_name("bpbroker.json"), *files_of(journal)):
        shutil.copy(path, left)
    numbers = iter(range(1_000_000))

    def copy() -> Path:
        folder = tmp_path / f"copy-{next(numbers)}"
        shutil.copytree(left, folder)
        return folder / journal.name

    return copy


@pytest.fixture
def load() -> Callable[[Path], Mapping[str, bytes]]:
    """Loads a journal as a start does, and closes it."""

    def load(journal: Path) -> Mapping[str, bytes]:
        store = EmbeddedStore(journal, lambda: BASE)
        try:
            return without_revisions(store.load())
        finally:
            store.close()

    return load


@pytest.fixture
def state() -> dict[str, bytes]:
    """The entries after :data:`CHANGES`."""
    return STATE


@pytest.fixture
def base() -> dict[str, bytes]:
    """The entries that the configuration file holds."""
    return BASE


@pytest.fixture
def look() -> Callable[[Path], dict[str, bytes]]:
    """Return the content of all files in a folder that count."""
    return files_in

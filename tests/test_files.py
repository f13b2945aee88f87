"""Files that are replaced as a whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker import files
from bpbroker.errors import StorageFailed, StorageFull
from bpbroker.storage import config_file

SETTINGS = {"api": {"listen_port": 1}, "_config": {"backup_retain_n": 3}, "services": {"_access_key": "k"}}
ENTRIES = {"b": b'{"x": 1}', "a": b'{"_str": "x"}'}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bpbroker.json"


@pytest.mark.parametrize(
    ("call", "number", "kind"),
    [
        ("open", errno.EACCES, StorageFailed),
        ("open", errno.ENOSPC, StorageFull),
        ("fsync", errno.ENOSPC, StorageFull),
        ("fsync", errno.EIO, StorageFailed),
        ("replace", errno.EROFS, StorageFailed),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[Exception]
) -> None:
    config_file.write(file, SETTINGS, ENTRIES)
    before = file.read_bytes()

    def failing(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(kind, match="Cannot write") as caught:
        config_file.write(file, {}, {})
    monkeypatch.undo()
    assert isinstance(caught.value, (StorageFull, StorageFailed))
    assert caught.value.outcome_known
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_after_the_rename_the_outcome_is_not_known(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "sync_folder", failing)
    with pytest.raises(StorageFailed) as caught:
        config_file.write(file, SETTINGS, {})
    assert not caught.value.outcome_known


def test_what_a_crash_left_half_written_is_replaced(file: Path) -> None:
    file.with_name("bpbroker.json.tmp").write_bytes(b"half")
    config_file.write(file, SETTINGS, ENTRIES)
    assert config_file.read(file) == (SETTINGS, ENTRIES)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "bpbroker.json"
    link.symlink_to(tmp_path / "real" / "b.json")
    config_file.write(link, SETTINGS, ENTRIES)
    assert link.is_symlink()
    assert config_file.read(tmp_path / "real" / "b.json") == (SETTINGS, ENTRIES)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_the_file_to_its_owner(file: Path, tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    config_file.write(file, SETTINGS, {})
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 1234)
    os.chown(file, 4321, 1234)
    config_file.write(file, SETTINGS, {})
    assert (file.stat().st_uid, file.stat().st_gid) == (4321, 1234)


def test_a_large_file_is_synced_in_pieces(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def counting(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counting)
    files.replace(file, iter([b"x" * 600_000] * 10))
    assert file.stat().st_size == 6_000_000
    assert len([size for size in synced if size]) >= 5


def test_gently_lets_others_run_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    assert list(files.gently(iter([b"a", b"b"]))) == [b"a", b"b"]
    assert len(slept) == 2


def test_a_source_that_fails_leaves_the_old_file(file: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.EIO, "Input/output error")

    file.write_bytes(b"old")
    with pytest.raises(StorageFailed):
        files.replace(file, broken())
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    files.make_folder(folder, tmp_path / "x")
    files.make_folder(folder, tmp_path / "x")
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "file", tmp_path / "x")

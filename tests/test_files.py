"""Files that are replaced as a whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpbroker import files, windows
from bpbroker.errors import StorageFailed, StorageFull
from bpbroker.storage import config_file
from tests.support.systems import is_private, posix_only

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

    if sys.platform == "win32" and call == "open":  # private from its first moment on
        monkeypatch.setattr(windows, "create_private", failing)
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(kind, match="Cannot write") as caught:
        config_file.write(file, {}, {})
    monkeypatch.undo()
    assert isinstance(caught.value, (StorageFull, StorageFailed))
    assert caught.value.outcome_known
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_after_the_rename_the_outcome_is_not_known(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files._Folder, "sync", failing)
    with pytest.raises(StorageFailed) as caught:
        config_file.write(file, SETTINGS, {})
    assert not caught.value.outcome_known


def test_halves_that_a_crash_left_are_swept_and_nothing_else(tmp_path: Path) -> None:
    halves = [files.temporary_name("b.json"), f"{files.temporary_name('b.json')}-wal"]
    others = ["b.json.tmp", files.temporary_name("other"), "b.json", "b.json.0123.tmp", f"{halves[0]}.old"]
    for name in (*halves, *others):
        (tmp_path / name).write_bytes(b"half")
    halves.append(files.temporary_name("b.json"))
    (tmp_path / halves[-1] / "folder").mkdir(parents=True)
    kept = {path.name for path in tmp_path.iterdir()} - set(halves)
    assert sorted(path.name for path in files.sweep(tmp_path, "b.json".__eq__)) == sorted(halves)
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert files.sweep(tmp_path / "gone", bool) == []


def test_a_half_that_is_being_written_is_not_swept(file: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x" * 300_000
        assert files.sweep(file.parent, file.name.__eq__) == []
        yield b"y"

    files.replace(file, chunks())
    assert file.stat().st_size == 300_001


def test_two_writers_at_once_do_not_share_a_half(file: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"old "
        files.replace(file, [b"new"])
        yield b"writer"

    files.replace(file, chunks())
    assert file.read_bytes() == b"old writer"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
@posix_only("modes")
def test_the_mode_is_exact_whatever_the_umask(file: Path, mode: int) -> None:
    file.touch(0o640)
    before = os.umask(0o077)
    try:
        files.write_whole(file, [b"x"], mode=mode)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o7777 == mode


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Return a folder of another user."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can be led astray")
    folder = tmp_path / "foreign"
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    return folder


@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_root_is_not_led_out_of_the_folder_of_another_user(
    foreign: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    before = secret.stat()
    path = foreign / "b.json"
    plant(secret, path)
    for flags in (os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC, os.O_RDWR):
        with pytest.raises(OSError, match=r"symbolic links|second name"):
            files.open_private(path, flags, tighten=True)
    if plant is os.symlink:
        with pytest.raises(StorageFailed, match="it is a link"):
            files.replace(path, [b"x"])
    else:  # only the name is replaced
        files.replace(path, [b"x"])
        assert (path.read_bytes(), path.stat().st_uid) == (b"x", 1234)
    after = secret.stat()
    assert secret.read_bytes() == b"secret"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@posix_only("modes, pipes that have a name")
def test_a_private_file_is_made_taken_up_and_tightened(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError):
        files.open_private(path, os.O_RDWR)
    os.close(files.open_private(path, os.O_RDWR | os.O_CREAT))
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"note")
    path.chmod(0o644)
    os.close(files.open_private(path, os.O_RDWR | os.O_CREAT))
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"note", 0o644)
    os.close(files.open_private(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, tighten=True))
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"", 0o600)
    for name in ("pipe", "folder"):
        (tmp_path / "folder").mkdir() if name == "folder" else os.mkfifo(tmp_path / name)
        with pytest.raises(OSError):
            files.open_private(tmp_path / name, os.O_RDWR | os.O_CREAT)


def test_a_finished_file_gets_its_name(file: Path) -> None:
    new = file.with_name(files.temporary_name(file.name))
    new.write_bytes(b"new")
    files.settle(new, file)
    assert file.read_bytes() == b"new"
    assert not new.exists()


def test_what_is_gone_may_be_removed(file: Path) -> None:
    file.touch()
    files.remove(file)
    files.remove(file)
    assert not file.exists()


@posix_only("links without an administrator's right")
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
    assert is_private(folder)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "file", tmp_path / "x")


def test_a_file_that_is_a_mount_cannot_be_replaced_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "source").touch()
    script = 'mount --bind "$1" "$2" && exec "$3" -c "$4" "$2"'
    program = (
        "import sys; from pathlib import Path; from bpbroker import files; files.replace(Path(sys.argv[1]), [b'x'])"
    )
    words = ["sh", "-c", script, "sh", tmp_path / "source", tmp_path / "target", sys.executable, program]
    mounted = ["unshare", "--mount", *map(str, words)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root mounts")
    done = subprocess.run(mounted, capture_output=True, text=True, timeout=60, check=False)
    assert "mount its folder instead" in done.stderr

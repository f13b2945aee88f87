"""The backups folder: names, order, rotation, what reads back well."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bpbroker.errors import StorageFailed, Unavailable
from bpbroker.storage import backups, config_file
from bpbroker.text import command_line
from tests.support.systems import is_private, is_wine

SETTINGS = {"services": {}, "api": {"listen_port": 1}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "bpbroker.json"


def make(file: Path, number: int = 0) -> Path:
    return Path(backups.make(file, config_file.chunks(SETTINGS, {"n": b'{"v": %d}' % number})).path)


def paths(file: Path) -> list[Path]:
    return [Path(info.path) for info in backups.found(file)]


@pytest.mark.parametrize(
    ("own", "folder"),
    [
        ("/usr/local/bpbroker/etc/bpbroker.json", "/usr/local/bpbroker/backups"),
        ("/srv/foo.json", "/srv/backups"),
        ("/etc/foo.json", "/backups"),
    ],
)
def test_where_they_are(own: str, folder: str) -> None:
    assert backups.folder_for(Path(own)) == Path(folder)


def test_they_are_named_by_utc_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1769903999.123456)
    info = backups.make(file, config_file.chunks(SETTINGS, {}))
    assert Path(info.path).name == "bpbroker-20260131T235959.123456Z.json"
    assert info.made_at == pytest.approx(1769903999.123456, abs=1e-6)
    assert info.size_bytes == Path(info.path).stat().st_size
    assert backups.found(file) == [info]


def test_a_new_one_is_the_newest_whatever_the_clock_says(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [make(file)]
    for moment in (0.0, 1769903999.0, 1769903999.0):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        made.append(make(file))
    assert paths(file) == made[::-1]
    backups.rotate(file, 2)
    assert paths(file) == made[:1:-1]


def test_only_the_owner_can_look(file: Path) -> None:
    path = make(file)
    assert is_private(path)
    assert is_private(path.parent)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_them_to_the_owner_of_the_file(file: Path) -> None:
    os.chown(file.parent, 1234, 1234)
    path = make(file)
    assert path.stat().st_uid == 1234
    assert path.parent.stat().st_uid == 1234


def test_two_brokers_share_a_folder_in_peace(file: Path) -> None:
    other = file.with_name("bpbroker-2.json")
    for number in range(3):
        make(file, number)
        make(other, number)
    backups.rotate(file, 1)
    assert len(paths(file)) == 1
    assert len(paths(other)) == 3


def test_what_is_no_backup_is_left_alone(file: Path) -> None:
    folder = make(file).parent
    for name in ("bpbroker-20261399T000000.000000Z.json", "bpbroker-x.json", "bpbroker.json", "notes.txt"):
        (folder / name).write_text("mine")
    (folder / "bpbroker-20260131T235959.000000Z.json").mkdir()
    if os.name == "posix":
        (folder / "bpbroker-20260131T235958.000000Z.json").symlink_to("/nowhere")
    before = set(folder.iterdir())
    own = set(paths(file))
    backups.rotate(file, 0)
    assert paths(file) == []
    assert {str(path) for path in before - set(folder.iterdir())} == {str(path) for path in own}


def test_none_yet(file: Path) -> None:
    assert backups.found(file) == []
    assert backups.newest_good(file) is None
    assert f"no good backup in {backups.folder_for(file)}" in backups.advice(file)
    assert command_line("bpbroker", "--config", str(file), "restore", "FILE") in backups.advice(file)
    assert "move it away" in backups.advice(file)  # a next step there must be
    assert "move it away" not in backups.advice(file, of_backup=True)
    backups.rotate(file, 1)


def test_a_backup_is_read_back(file: Path) -> None:
    good, bad, empty = make(file), make(file), make(file)
    bad.write_bytes(bad.read_bytes()[:-5])
    empty.write_text("{}")
    checked = [backups.check(info) for info in backups.found(file)]
    assert [(each.entries, bool(each.problem)) for each in checked] == [(0, True), (0, True), (1, False)]
    assert str(bad) in checked[1].problem
    newest = backups.newest_good(file)
    assert newest is not None
    assert newest.info.path == str(good)
    assert f"bpbroker --config {file} restore {good}" in backups.advice(file)


def test_a_backup_with_which_nothing_starts_is_not_good(file: Path) -> None:
    good = make(file)
    make(file).write_text('{"api": {"listen_port": "x"}, "_config": {"backup_retain_n": 0}}')
    problem = backups.check(backups.found(file)[0]).problem
    assert "api.listen_port" in problem
    assert "_config.backup_retain_n" in problem
    newest = backups.newest_good(file)
    assert newest is not None
    assert newest.info.path == str(good)


def test_the_advice_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    (tmp_path / "my home").mkdir()
    file = tmp_path / "my home" / "b.json"
    backup = make(file)
    assert command_line("bpbroker", "--config", str(file), "restore", str(backup)) in backups.advice(file)


def test_it_is_seen_whether_a_backup_holds_a_state(file: Path) -> None:
    info = backups.make(file, config_file.chunks(SETTINGS, {"a": b"{}"}))
    assert backups.holds(info, config_file.chunks(SETTINGS, {"a": b"{}"}))
    for settings, entries in ((SETTINGS, {}), ({}, {"a": b"{}"}), (SETTINGS, {"a": b"{}", "b": b"{}"})):
        assert not backups.holds(info, config_file.chunks(settings, entries))
    with Path(info.path).open("ab") as backup:
        backup.write(b"\n")
    assert not backups.holds(info, config_file.chunks(SETTINGS, {"a": b"{}"}))
    Path(info.path).unlink()
    assert not backups.holds(info, config_file.chunks(SETTINGS, {"a": b"{}"}))


def test_a_folder_that_is_something_else_is_named(file: Path) -> None:
    backups.folder_for(file).write_text("x")
    with pytest.raises(StorageFailed, match=r"Cannot make the backups folder .*backups: "):
        make(file)
    assert is_wine() or backups.found(file) == []  # Wine has another error for that


def test_a_folder_that_cannot_be_read_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(Unavailable, match="Cannot read the backups folder"):
        backups.found(file)
    assert "Cannot read the backups folder" in backups.advice(file)


def test_what_is_about_to_be_replaced_is_kept(file: Path) -> None:
    assert backups.keep_aside(file, "edited") is None
    file.write_bytes(b"\xff")
    copy = backups.keep_aside(file, "edited")
    assert copy is not None
    assert copy.parent == backups.folder_for(file)
    assert copy.name.startswith("bpbroker.json.edited-2")
    assert copy.read_bytes() == b"\xff"
    assert backups.found(file) == []

"""What is done with a stopped broker's files: read, back up, restore, check."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bpbroker import files
from bpbroker.errors import ConfigurationError, DamagedFile, InUse, StorageFailed, Unavailable
from bpbroker.storage import backups, config_file, offline
from bpbroker.storage.embedded.journal import Mark, files_of, journal_path, read_journal
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.lock_file import FileLock
from tests.support.changes import change, without_revisions
from tests.support.systems import posix_only

SETTINGS = {"services": {"_access_key": "k"}, "_config": {"backup_retain_n": 3}}
ENTRIES = {"a": b'{"v": 1}', "b": b'{"v": 1}'}
STATE = {"b": b'{"v": 2}', "c": b'{"v": 2}'}
OTHER_SETTINGS: dict[str, Any] = {"services": {}, "api": {"listen_port": 9}}
OTHER = {"a": b'{"v": 9}', "b": b'{"v": 2}', "z": b'{"v": 9}'}


def shown(state: Any) -> tuple[Any, dict[str, bytes]]:
    """Return settings and entries as clients see them."""
    return state[0], without_revisions(state[1])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file, with a journal that changes it, as after a crash."""
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "bpbroker.json"
    config_file.write(path, SETTINGS, ENTRIES)
    store = EmbeddedStore(journal_path(path), lambda: ENTRIES)
    store.load()
    store.commit([change("a", None), change("b", STATE["b"]), change("c", STATE["c"])])
    store.close()
    return path


@pytest.fixture
def backup(file: Path) -> Path:
    return Path(backups.make(file, config_file.chunks(OTHER_SETTINGS, OTHER)).path)


def start(file: Path) -> dict[str, bytes]:
    """Return the entries that a start finds."""
    store = EmbeddedStore(journal_path(file), lambda: config_file.read(file)[1])
    try:
        return without_revisions(store.load())
    finally:
        store.close()


def everything(file: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in file.parent.iterdir() if path.suffix != ".lock"}


def test_the_state_has_the_journal_in_it(file: Path) -> None:
    before = everything(file)
    assert shown(offline.state_of(file)) == (SETTINGS, STATE)
    assert {name: everything(file)[name] for name in before} == before


def test_saving_empties_the_journal(file: Path) -> None:
    offline.save(file, *offline.state_of(file))
    assert read_journal(journal_path(file)).changes == {}
    assert shown(offline.state_of(file)) == (SETTINGS, STATE)


# --- back up ---


def test_a_backup_of_a_stopped_broker(file: Path) -> None:
    made = [offline.back_up(file) for _ in range(4)]
    assert shown(config_file.read(Path(made[-1].path))) == (SETTINGS, STATE)
    assert [info.path for info in backups.found(file)] == [info.path for info in made[:0:-1]]


def test_no_backup_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no .*b\.json to back up"):
        offline.back_up(tmp_path / "b.json")


@pytest.fixture
def running(file: Path) -> Iterator[None]:
    with FileLock(file):
        yield


@pytest.mark.usefixtures("running")
def test_not_beside_a_running_broker(file: Path, backup: Path) -> None:
    for attempt in (lambda: offline.back_up(file), lambda: offline.restore(file, backup)):
        with pytest.raises(InUse, match=f"process {os.getpid()}"):
            attempt()
    with pytest.raises(InUse, match=rf"process {os.getpid()}(.|\n)*There is no backup 'nope'"):
        offline.restore(file, Path("nope"))
    assert [finding.level for finding in offline.check(file)] == ["ok", "ok", "ok"]


# --- restore ---


def test_restoring_replaces_everything_and_keeps_what_was(file: Path, backup: Path) -> None:
    restored = offline.restore(file, backup)
    assert shown(offline.state_of(file)) == (OTHER_SETTINGS, OTHER)
    assert start(file) == OTHER
    (kept,) = restored.kept
    assert shown(config_file.read(kept)) == (SETTINGS, STATE)
    assert backups.found(file)[0].path == str(kept)
    assert restored.backup == backup
    assert restored.difference == offline.Difference(
        entries=offline.NamesThatDiffer(added=("a", "z"), removed=("c",)),
        keys=offline.NamesThatDiffer(),
        others=offline.NamesThatDiffer(),
        sections_changed=("_config", "api", "services"),
    )
    assert files_of(journal_path(file))[2].exists() is False
    again = offline.restore(file, kept)
    assert again.difference is not None
    assert again.difference.entries.added == ("c",)
    assert start(file) == STATE


def test_named_keys_and_the_registrys_own_records_are_no_entries(file: Path) -> None:
    own = {
        "_keys/ops": b'{"sha256": "%b", "allow": ["services:get"]}' % (b"0" * 64),
        "_taken/a": b'{"receiver": "x"}',
    }
    backup = Path(backups.make(file, config_file.chunks(SETTINGS, {**STATE, **own})).path)
    would = offline.restore(file, backup, dry_run=True)
    nothing = offline.NamesThatDiffer()
    added = offline.NamesThatDiffer(added=("ops",)), offline.NamesThatDiffer(added=("_taken/a",))
    assert would.difference == offline.Difference(nothing, *added, sections_changed=())


def test_a_dry_run_only_tells(file: Path, backup: Path) -> None:
    before, folder = everything(file), sorted(backup.parent.iterdir())
    restored = offline.restore(file, backup, dry_run=True)
    assert restored.difference is not None
    assert restored.difference.entries.removed == ("c",)
    assert restored.kept == ()
    after = everything(file)
    assert {name: after[name] for name in before} == before
    assert sorted(backup.parent.iterdir()) == folder


def test_a_backup_may_be_called_by_its_bare_name(file: Path, backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(backup.parent.parent)
    assert offline.restore(file, Path(backup.name)).backup == backup


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no backup"),
        ("{", "line 1, column 2"),
        ("{}", "holds nothing"),
        ('{"api": {"listen_port": "x"}}', r"api\.listen_port is \"x\": must be"),
    ],
)
def test_what_is_no_good_backup_is_refused(file: Path, backup: Path, content: str | None, message: str) -> None:
    if content is None:
        backup.unlink()
    else:
        backup.write_text(content)
    before = everything(file)
    with pytest.raises(ConfigurationError, match=message):
        offline.restore(file, backup)
    after = everything(file)
    assert {name: after[name] for name in before} == before


def test_in_the_place_of_a_bad_backup_the_newest_good_one_is_named(file: Path, backup: Path) -> None:
    newest = Path(backups.make(file, [b"{"]).path)
    with pytest.raises(ConfigurationError, match=rf"Nothing was changed(.|\n)*restore {re.escape(str(backup))}"):
        offline.restore(file, newest)


def test_onto_a_new_machine(tmp_path: Path) -> None:
    backup = tmp_path / "saved.json"
    config_file.write(backup, OTHER_SETTINGS, OTHER)
    file = tmp_path / "new" / "etc" / "bpbroker.json"
    with pytest.raises(ConfigurationError, match="There is no backup 'nope'"):
        offline.restore(file, Path("nope"))
    would = offline.restore(file, backup, dry_run=True)
    assert would.difference is not None
    assert would.difference.entries.added == ("a", "b", "z")
    assert not file.parent.parent.exists()
    offline.restore(file, backup)
    assert shown(offline.state_of(file)) == (OTHER_SETTINGS, OTHER)


def test_onto_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bpbroker.json"
    backup = backups.make(file, config_file.chunks(OTHER_SETTINGS, OTHER))
    restored = offline.restore(file, Path(backup.path))
    assert restored.kept == ()
    assert shown(offline.state_of(file)) == (OTHER_SETTINGS, OTHER)


def damage_file(file: Path) -> None:
    file.write_bytes(b"garbage")


def damage_journal(file: Path) -> None:
    journal_path(file).write_bytes(b"garbage" * 1000)


def lose_file(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [damage_file, damage_journal, lose_file])
def test_over_damaged_files_which_are_kept_byte_by_byte(
    file: Path, backup: Path, damage: Callable[[Path], None]
) -> None:
    damage(file)
    with pytest.raises(DamagedFile):
        offline.state_of(file)
    before = {path.name: path.read_bytes() for path in (file, *files_of(journal_path(file))) if path.exists()}
    restored = offline.restore(file, backup)
    assert restored.difference is None
    assert {path.name.partition(".damaged-")[0]: path.read_bytes() for path in restored.kept} == before
    assert start(file) == OTHER


@posix_only("a death played within a process, which leaves files open")
@pytest.mark.parametrize("damage", [lambda _: None, damage_file, damage_journal, lose_file])
def test_a_restore_cut_off_anywhere_is_never_half_a_state(
    file: Path, backup: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at the n-th change to the disk, for each n: then nothing starts, or it starts on the old or the new state."""
    damage(file)
    whole = {path: path.read_bytes() for path in file.parent.iterdir()}
    try:
        before: dict[str, bytes] | None = start(file)
    except ConfigurationError:
        before = None
    finished = False
    for steps in range(60):
        for path in file.parent.iterdir():
            path.unlink()
        for path, content in whole.items():
            path.write_bytes(content)
        with monkeypatch.context() as patch, suppress(_Death):
            _die_after(steps, patch)
            offline.restore(file, backup)
            finished = True
        try:
            found = start(file)
        except ConfigurationError:
            pass  # nothing starts on half a state
        else:
            assert found in (before, OTHER), steps
        if finished:
            assert found == OTHER
            break
        if not any(path.name == backup.name for path in backup.parent.iterdir()):
            raise AssertionError("the backup is gone")
        offline.restore(file, backup)
        assert start(file) == OTHER
    assert finished
    assert steps > 8


class _Death(BaseException):
    pass


def _die_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process 'die' after this many calls that change names or make something durable."""
    left = [steps]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise _Death
            left[0] -= 1
            return function(*args, **kwargs)

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (files, "sync_folder"), (Mark, "close")):
        patch.setattr(module, name, counted(getattr(module, name)))


def test_a_disk_error_is_an_error_of_ours(file: Path, backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Mark) -> None:
        raise OSError(5, "Input/output error", "the mark")

    monkeypatch.setattr(Mark, "block", fail)
    with pytest.raises(StorageFailed, match="Cannot write the mark: Input/output error"):
        offline.restore(file, backup)


def test_a_bare_name_means_the_backups_folder(
    file: Path, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    config_file.write(here / backup.name, OTHER_SETTINGS, {"planted": b"{}"})
    monkeypatch.chdir(here)
    assert offline.restore(file, Path(backup.name)).backup == backup
    assert offline.restore(file, here / backup.name).backup == here / backup.name


# --- check ---


def levels(file: Path) -> dict[str, str]:
    return {finding.what: finding.level for finding in offline.check(file)}


def test_all_is_well(file: Path, backup: Path) -> None:
    before = everything(file)
    findings = {finding.what: finding for finding in offline.check(file)}
    assert {name: finding.level for name, finding in findings.items()} == {
        "journal": "ok",
        "file": "ok",
        "backups": "ok",
    }
    assert "3 changed entries" in findings["journal"].detail
    assert f"{backup}: 3 entries" in findings["backups"].detail
    after = everything(file)
    assert {name: after[name] for name in before} == before


def test_nothing_there_yet(tmp_path: Path) -> None:
    assert levels(tmp_path / "b.json") == {"journal": "ok", "file": "warning", "backups": "warning"}


@pytest.mark.parametrize(("damage", "what"), [(damage_file, "file"), (damage_journal, "journal"), (lose_file, "file")])
def test_damage_is_found(file: Path, damage: Callable[[Path], None], what: str) -> None:
    damage(file)
    assert levels(file)[what] == "fail"


def test_a_file_that_is_gone_though_it_has_backups_is_missed(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    backup = backups.make(file, config_file.chunks(OTHER_SETTINGS, OTHER))
    (found,) = [finding for finding in offline.check(file) if finding.what == "file"]
    assert found.level == "warning"
    assert f"restore {backup.path}" in found.detail


def test_backups_that_cannot_be_read_are_a_finding(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise Unavailable("Cannot read the backups folder")

    monkeypatch.setattr(backups, "newest_good", fail)
    assert levels(file) == {"journal": "ok", "file": "ok", "backups": "warning"}


def test_settings_that_cannot_be_used_are_found(file: Path) -> None:
    document = json.loads(file.read_text())
    document["api"] = {"listen_port": -1}
    file.write_text(json.dumps(document))
    assert levels(file)["settings"] == "fail"


def test_a_torn_end_is_only_a_warning(file: Path) -> None:
    log = files_of(journal_path(file))[1]
    log.write_bytes(b"\x37\x7f\x06\x82")
    assert levels(file)["journal's end"] == "warning"
    with FileLock(file):  # a running broker's commit, half written
        assert "journal's end" not in levels(file)


@pytest.mark.parametrize(
    ("origin", "level", "says"),
    [
        (config_file.Origin("2" * 32, 0), "fail", "do not belong together"),
        (config_file.Origin("1" * 32, 2**50), "warning", "is newer"),
        (config_file.Origin("1" * 32, 0), None, ""),
    ],
)
def test_it_says_whether_file_and_journal_belong_together(
    tmp_path: Path, origin: config_file.Origin, level: str | None, says: str
) -> None:
    own = tmp_path / "bpbroker.json"
    store = EmbeddedStore(journal_path(own), dict, "1" * 32)
    store.load()
    store.commit([change("a", b"{}")])
    store.close()
    config_file.write(own, SETTINGS, {}, origin=origin)
    found = {each.what: each for each in offline.check(own)}.get("file and journal")
    assert (found.level if found else None) == level
    assert says in (found.detail if found else "")


def test_a_restore_brings_back_nothing_that_belongs_to_a_session(file: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.json"
    stored = {
        "stays": b'{"v": 1, "last_write_revision": 5000}',
        "node-1": b'{"v": 1, "last_write_revision": 5001, "last_write_session": "s"}',
        "_session/s": b'{"ttl": 60, "last_write_revision": 5002}',
        "_lock/db": b'{"limit": 1, "places": [], "last_write_revision": 5003}',
        "_taken/key": b'{"receiver": "r", "when": 1, "entry": {}, "last_write_revision": 5004}',
    }
    config_file.write(backup, SETTINGS, stored)
    assert set(config_file.read(backup)[1]) == set(stored)
    offline.restore(file, backup)
    assert offline.state_of(file).entries == {name: stored[name] for name in ("stays", "_taken/key")}

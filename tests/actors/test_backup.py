"""The backup actor: schedule, rotation, what it says of itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.actors.backup import Backup
from bpbroker.actors.base import Actor, wait_for
from bpbroker.actors.ownership import Owned
from bpbroker.config import layers
from bpbroker.errors import StorageFailed, Unavailable
from bpbroker.messages import BackupInfo, BackupNow, Document, GetDocument, ListBackups, Ping, SettingsChanged
from bpbroker.storage import backups, config_file
from bpbroker.storage.backup_identity import Identity
from tests.support.systems import is_private, is_wine

if TYPE_CHECKING:
    from tests.actors.conftest import Asked

HOUR = {"_config": {"backup_freq_secs": 3600, "backup_retain_n": 3}}


class State:
    """What the pretended config store gives."""

    def __init__(self) -> None:
        self.document = Document(layers.freeze({"services": {}}), {"n": b'{"v": 0}'}, 0)
        self.asked = 0
        self.error: Unavailable | None = None

    def change(self) -> None:
        number = self.document.sequence + 1
        self.document = Document(self.document.settings, {"n": b'{"v": %d}' % number}, number)


class Pretended(Actor):
    def __init__(self, state: State, *, changing: bool) -> None:
        super().__init__()
        self._state = state
        self._changing = changing
        self.handlers = {GetDocument: self.document}

    def document(self, _: GetDocument) -> Document:
        self._state.asked += 1
        if self._state.error:
            raise self._state.error
        if self._changing:
            self._state.change()
        return self._state.document


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "bpbroker.json"
    path.write_text("{}")
    return path


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def start(file: Path, run: Callable[..., Asked], state: State) -> Callable[..., Asked]:
    """Starts a backup actor with these settings of ``_config``."""

    def start(
        *, changing: bool = False, identity: Callable[[Any], Identity] = lambda _: Identity(), **options: Any
    ) -> Asked:
        class Store(Pretended):
            def __init__(self) -> None:
                super().__init__(state, changing=changing)

        store = run(Store)
        return run(Backup, file, Owned(None), store.address, settings_of(**options), identity)

    return start


def settings_of(**options: Any) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = layers.freeze({"_config": {**HOUR["_config"], **options}})
    return settings


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def content(info: BackupInfo) -> dict[str, bytes]:
    return config_file.read(Path(info.path))[1]


def test_the_first_is_made_at_once_when_there_is_none(start: Callable[..., Asked], file: Path, state: State) -> None:
    start()
    until(lambda: len(backups.found(file)) == 1)
    assert content(backups.found(file)[0]) == state.document.entries


def test_the_first_is_made_when_the_newest_is_old_enough(start: Callable[..., Asked], file: Path, state: State) -> None:
    backups.make(file, config_file.chunks({"services": {}}, {}))
    begun = time.time()
    backup = start(backup_freq_secs=1.0)
    until(lambda: len(backups.found(file)) == 2)
    assert time.time() - begun > 0.5
    assert content(backup(ListBackups())[0]) == state.document.entries


def test_exactly_as_many_as_wanted_are_kept_each_a_committed_state(start: Callable[..., Asked], file: Path) -> None:
    backup = start(changing=True, backup_freq_secs=0.1, backup_retain_n=3)
    seen = set[str]()

    def enough() -> bool:
        found = backups.found(file)
        seen.update(info.path for info in found)
        return len(seen) >= 8

    until(enough)
    # A new one is there before the oldest goes: only when none is being made there are exactly three.
    backup(SettingsChanged(settings_of()))
    backup(BackupNow())
    found = backup(ListBackups())
    assert len(found) == 3
    numbers = [json.loads(content(info)["n"])["v"] for info in found]
    assert numbers[0] > numbers[1] > numbers[2]
    for info in found:
        assert is_private(Path(info.path))
        assert backups.check(info).problem == ""


def test_nothing_is_made_when_nothing_changed(start: Callable[..., Asked], file: Path, state: State) -> None:
    backup = start(backup_freq_secs=0.1)
    until(lambda: state.asked >= 3)
    assert len(backup(ListBackups())) == 1
    state.change()
    until(lambda: len(backups.found(file)) == 2)


def test_nothing_is_made_when_nothing_changed_since_an_earlier_run(
    start: Callable[..., Asked], file: Path, state: State
) -> None:
    content = config_file.chunks(state.document.settings, state.document.entries, backed_up=Identity())
    backups.make(file, content)
    start(backup_freq_secs=0.1)
    until(lambda: state.asked >= 3)
    assert len(backups.found(file)) == 1


def test_a_renewed_certificate_or_another_extension_makes_one(
    start: Callable[..., Asked], file: Path, state: State
) -> None:
    identities = [Identity(b"old", b"k")]
    start(backup_freq_secs=0.1, identity=lambda _: identities[-1])
    until(lambda: state.asked >= 3)
    assert len(backups.found(file)) == 1
    identities.append(Identity(b"new", b"k", left_out=("the extension x: why",)))
    until(lambda: len(backups.found(file)) == 2)
    before = state.asked
    until(lambda: state.asked >= before + 3)
    assert len(backups.found(file)) == 2
    assert config_file.read_backup(Path(backups.found(file)[0].path))[1] == identities[-1]


def test_on_request_one_is_made_in_any_case(start: Callable[..., Asked], file: Path) -> None:
    backup = start()
    until(lambda: len(backups.found(file)) == 1)
    made = [backup(BackupNow()), backup(BackupNow())]
    assert [info.path for info in backup(ListBackups())][:2] == [made[1].path, made[0].path]
    assert made[0].size_bytes == Path(made[0].path).stat().st_size
    backup(BackupNow())
    assert len(backup(ListBackups())) == 3


def test_new_settings_count_at_once(start: Callable[..., Asked], file: Path) -> None:
    backup = start(changing=True)
    until(lambda: len(backups.found(file)) == 1)
    backup(SettingsChanged(settings_of(backup_freq_secs=0.1, backup_retain_n=2)))
    until(lambda: len(backups.found(file)) == 2)
    backup(SettingsChanged(settings_of(backup_retain_n=1)))
    backup(BackupNow())
    assert len(backup(ListBackups())) == 1


def test_status_tells_the_age(start: Callable[..., Asked], file: Path) -> None:
    backups.make(file, config_file.chunks({"services": {}}, {}))
    backup = start()
    until(lambda: backup(Ping()).figures["newest_backup_age_secs"] is not None)
    status = backup(Ping())
    assert status.ok
    assert 0 <= status.figures["newest_backup_age_secs"] < 60


@pytest.mark.skipif(is_wine(), reason="Wine says something else of a file in place of a folder")
def test_an_error_is_said_and_the_next_one_may_work(
    start: Callable[..., Asked], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """B3: something else has the folder's name."""
    folder = backups.folder_for(file)
    folder.write_text("not a folder")
    backup = start(backup_freq_secs=0.1)
    until(lambda: not backup(Ping()).ok)
    assert "The last backup failed: Cannot make the backups folder" in backup(Ping()).detail
    assert "ERROR" in caplog.text
    with pytest.raises(StorageFailed):
        backup(BackupNow())
    folder.unlink()
    until(lambda: bool(backup(Ping()).ok))
    assert len(backup(ListBackups())) == 1


def test_a_config_store_that_does_not_answer_is_said(start: Callable[..., Asked], state: State) -> None:
    state.error = Unavailable("not running")
    backup = start()
    until(lambda: not backup(Ping()).ok)
    assert backup(Ping()).detail == "The last backup failed: not running"


def test_one_that_failed_is_tried_again_before_the_next_is_due(
    start: Callable[..., Asked], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that starts while its registry's cluster is away must not be ill for an hour."""
    monkeypatch.setattr("bpbroker.actors.backup._RETRY_SECS", 0.05)
    state.error = Unavailable("not running")
    backup = start(backup_freq_secs=3600)
    until(lambda: state.asked >= 3)
    assert not backup(Ping()).ok
    state.error = None
    until(lambda: bool(backup(Ping()).ok))
    assert len(backup(ListBackups())) == 1


# --- slow, and replaced ---


class Gate:
    """Stands in the middle of the first backup, as a disk that takes long."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.shut = True

    def chunks(
        self, settings: Mapping[str, Any], entries: Mapping[str, bytes], *, backed_up: Identity
    ) -> Iterator[bytes]:
        if self.shut:
            self.shut = False
            yield b"{"
            self.reached.set()
            assert self.open.wait(60)
        yield from _chunks(settings, entries, backed_up=backed_up)


_chunks = config_file.chunks


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(config_file, "chunks", gate.chunks)
    yield gate
    gate.open.set()


def test_it_answers_while_it_makes_one_and_those_who_ask_meanwhile_share_the_next(
    start: Callable[..., Asked], gate: Gate, file: Path
) -> None:
    backup = start()
    assert gate.reached.wait(10)
    assert backup(Ping()).figures["at_work"].startswith("making a backup")
    assert backup(Ping()).ok
    assert backup(ListBackups()) == ()
    asked = [backup.send(BackupNow()) for _ in range(3)]
    backup(Ping())
    assert len(list(backups.folder_for(file).iterdir())) == 1  # the half of the first one
    gate.open.set()
    made = [wait_for(reply, 10) for reply in asked]
    assert made[0] == made[1] == made[2]
    assert len(backup(ListBackups())) == 2


def test_one_that_was_replaced_puts_nothing_into_the_folder(
    gate: Gate, file: Path, state: State, run: Callable[..., Asked]
) -> None:
    folder = Owned(None)

    class Store(Pretended):
        def __init__(self) -> None:
            super().__init__(state, changing=False)

    config_store = run(Store)
    old = run(Backup, file, folder, config_store.address, settings_of())
    assert gate.reached.wait(10)
    behind = old.send(BackupNow())
    old(Ping())
    old.address.abandon()
    with pytest.raises(Unavailable, match="is being replaced; nothing was done"):
        wait_for(behind, 10)
    new = run(Backup, file, folder, config_store.address, settings_of())
    until(lambda: len(backups.found(file)) == 1)
    made = backups.found(file)
    gate.open.set()
    assert old.workers_end()
    assert backups.found(file) == made
    assert [path.name for path in backups.folder_for(file).iterdir()] == [Path(made[0].path).name]
    assert new(Ping()).ok

"""The config store: the settings in force, and the file that it owns."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.actors import config_store, worker
from bpbroker.actors.base import wait_for
from bpbroker.actors.config_store import ConfigStore
from bpbroker.actors.ownership import Owned
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.config import layers
from bpbroker.errors import ConfigurationError, StorageFailed, StorageFull, Unavailable
from bpbroker.messages import (
    ApplyConfiguration,
    DropAccessKey,
    GetDocument,
    Ping,
    Register,
    ReloadSettings,
    RenewSecret,
    Save,
    Settings,
)
from bpbroker.registry.named_keys import digest_of
from bpbroker.storage import backups, config_file
from bpbroker.storage.embedded.journal import journal_path, read_journal
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.sources import Loaded, Sources

if TYPE_CHECKING:
    from tests.actors.conftest import Asked

START = {"services": {"_access_key": "k", "old": {"x": 1}}, "_future": {"kept": True}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "bpbroker.json"
    path.write_text(json.dumps(START))
    return path


@pytest.fixture
def published() -> list[Settings]:
    return []


@pytest.fixture
def registry(file: Path, run: Callable[..., Asked]) -> Asked:
    return run(
        Registry,
        LocalBackend(lambda: EmbeddedStore(journal_path(file), lambda: config_file.read(file)[1])),
        layers.DEFAULTS,
    )


@pytest.fixture
def sources(file: Path) -> Sources:
    return Sources(file, overrides={"api.listen_port": 7})


@pytest.fixture
def owned(sources: Sources, published: list[Settings]) -> Owned[Loaded]:
    return Owned(sources.load(), lambda loaded: published.append(loaded.effective))


@pytest.fixture
def store(run: Callable[..., Asked], registry: Asked, sources: Sources, owned: Owned[Loaded]) -> Asked:
    return run(ConfigStore, sources, owned, registry.address)


def finish(store: Asked) -> None:
    """Wait until it has done all that was begun."""
    store(Ping())
    store(ApplyConfiguration({}))


class Gate:
    """Stands in the middle of a file that is written, as a disk that takes long."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.shut = True

    def chunks(
        self, settings: Settings, entries: Mapping[str, bytes], origin: config_file.Origin | None = None
    ) -> Iterator[bytes]:
        content = b"".join(_chunks(settings, entries, origin))
        yield content[:20]
        if self.shut:
            self.shut = False  # only the first one that comes waits
            self.reached.set()
            assert self.open.wait(60)
        yield content[20:]


_chunks = config_file.chunks


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(config_file, "chunks", gate.chunks)
    yield gate
    gate.open.set()


def test_the_settings_in_force_have_the_overrides_and_the_file_has_not(store: Asked, file: Path) -> None:
    assert store(ReloadSettings())["api"]["listen_port"] == 7
    store(Save())
    settings, entries = config_file.read(file)
    assert settings["api"] == layers.DEFAULTS["api"]
    assert settings["_future"] == {"kept": True}
    assert settings["services"] == {"_access_key": "k"}
    assert entries == {"old": b'{"x": 1}'}


def test_saving_empties_the_journal(store: Asked, registry: Asked, file: Path) -> None:
    registry(Register("new", {"y": 2}, "i"))
    assert set(read_journal(journal_path(file)).changes) == {"new"}
    store(Save())
    assert read_journal(journal_path(file)).changes == {}
    assert set(config_file.read(file)[1]) == {"old", "new"}


def test_a_configuration_is_added_saved_and_published(store: Asked, file: Path, published: list[Settings]) -> None:
    applied = store(ApplyConfiguration({"ossec": {"_access_key": "s"}, "services": {"_access_key": "other"}}))
    assert applied.added == ("ossec",)
    assert applied.kept == ("services._access_key",)
    assert config_file.read(file)[0]["ossec"] == {"_access_key": "s"}
    assert config_file.read(file)[0]["services"] == {"_access_key": "k"}
    assert [settings["ossec"]["_access_key"] for settings in published] == ["s"]
    assert published[0]["api"]["listen_port"] == 7
    again = store(ApplyConfiguration({"ossec": {"_access_key": "s"}}))
    assert (again.added, again.kept) == ((), ())
    assert len(published) == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"_config": {"backup_retain_n": "many"}, "api": {"workers": 0}}, "backup_retain_n.*\n.*workers"),
        ({"x": 1}, "x is 1: a section must be an object"),
        ({"services": {"name": {}}}, "registered with bpclient while the broker runs: name"),
    ],
)
def test_what_cannot_be_used_changes_nothing(
    store: Asked, file: Path, published: list[Settings], document: dict[str, Any], message: str
) -> None:
    before, settings = file.read_bytes(), store(GetDocument()).settings
    with pytest.raises(ConfigurationError, match=message):
        store(ApplyConfiguration(document))
    assert file.read_bytes() == before
    assert store(GetDocument()).settings is settings
    assert published == []


def failing(error: Unavailable) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_configuration_that_cannot_be_saved_is_not_applied(
    store: Asked, file: Path, published: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_file, "write", failing(StorageFull("full")))
    with pytest.raises(StorageFailed, match="Nothing was changed: full"):
        store(ApplyConfiguration({"ossec": {}}))
    assert "ossec" not in store(GetDocument()).settings
    assert published == []
    assert store(Ping()).detail == "full"
    monkeypatch.undo()
    store(ApplyConfiguration({"ossec": {}}))
    assert store(Ping()).ok
    assert "ossec" in config_file.read(file)[0]


def test_a_save_that_fails_leaves_everything_in_the_journal(
    store: Asked, registry: Asked, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(Register("new", {}, "i"))
    monkeypatch.setattr(config_file, "write", failing(StorageFailed("broken")))
    with pytest.raises(StorageFailed):
        store(Save())
    assert not store(Ping()).ok
    assert set(read_journal(journal_path(file)).changes) == {"new"}


def test_reload_takes_settings_from_the_file_and_leaves_the_entries(
    store: Asked, file: Path, published: list[Settings]
) -> None:
    edited = {"_config": {"backup_retain_n": 5}, "services": {"sneaked in": {}}}
    file.write_text(json.dumps(edited))
    settings = store(ReloadSettings())
    assert settings["_config"]["backup_retain_n"] == 5
    assert settings["api"]["listen_port"] == 7
    assert published == [settings]
    store(Save())
    assert set(config_file.read(file)[1]) == {"old"}
    assert config_file.read(file)[0]["_config"]["backup_retain_n"] == 5


def test_the_global_files_settings_are_in_force_and_never_written_into_the_own_file(
    run: Callable[..., Asked], registry: Asked, file: Path, tmp_path: Path
) -> None:
    below = tmp_path / "below.json"
    made = {"ssl_cert": "/their.crt", "ssl_key": "/their.key"}
    below.write_text(json.dumps({"demo": {"_access_key": "hidden"}, "api": made, "_discovery": {"secret": "a" * 64}}))
    file.write_text("{}")
    sources = Sources(file, below)
    store = run(ConfigStore, sources, Owned(sources.load(), lambda _: None), registry.address)
    assert store(ApplyConfiguration({"demo": {"_access_key": "own"}})).added == ("demo",)
    below.write_text(json.dumps({"other": {"_access_key": "hidden"}}))
    settings = store(ReloadSettings())
    assert settings["other"]["_access_key"] == "hidden"
    assert settings["demo"]["_access_key"] == "own"
    # A broker that runs keeps the pair and the secret that it began with.
    assert (settings["api"]["ssl_cert"], settings["_discovery"]["secret"]) == ("/their.crt", "a" * 64)
    store(Save())
    assert not [word for word in ("hidden", "their", "aaaa", "other") if word in file.read_text()]


def test_a_reload_of_what_cannot_be_used_changes_nothing(store: Asked, file: Path, published: list[Settings]) -> None:
    before = store(GetDocument()).settings
    for text in ("{", '{"api": {"listen_port": "x"}}'):
        file.write_text(text)
        with pytest.raises(ConfigurationError):
            store(ReloadSettings())
    assert store(GetDocument()).settings is before
    assert published == []


def test_a_document_is_a_complete_state_and_shortens_a_long_journal(
    store: Asked, registry: Asked, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(Save())
    registry(Register("early", {}, "i"))
    store(GetDocument())
    finish(store)
    assert set(read_journal(journal_path(file)).changes) == {"early"}
    monkeypatch.setattr(config_store, "COMMITS_MAX", 2)
    registry(Register("new", {}, "i"))
    document = store(GetDocument())
    assert set(document.entries) == {"old", "early", "new"}
    assert document.settings["services"] == {"_access_key": "k"}
    assert document.sequence > 1_700_000_000_000
    finish(store)
    assert read_journal(journal_path(file)).changes == {}
    assert set(config_file.read(file)[1]) == {"old", "early", "new"}
    written = file.stat().st_mtime_ns
    store(GetDocument())
    finish(store)
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("value", ["hidden", ""])
def test_a_key_that_the_global_file_has_is_not_taken_out(
    run: Callable[..., Asked], registry: Asked, file: Path, tmp_path: Path, value: str
) -> None:
    """Else the namespace would be open to whoever has that one, or to everybody."""
    below = tmp_path / "below.json"
    below.write_text(json.dumps({"services": {"_access_key": value}}))
    sources = Sources(file, below)
    owned = Owned(sources.load(), lambda _: None)
    store = run(ConfigStore, sources, owned, registry.address)
    for digests in ((digest_of("k").hex(),), ()):
        with pytest.raises(ConfigurationError, match=r"below\.json"):
            store(DropAccessKey("services", digests))
    assert owned.value.effective["services"]["_access_key"] == "k"


def test_a_key_is_taken_out_if_it_is_the_one_that_was_meant(store: Asked, file: Path, owned: Owned[Loaded]) -> None:
    with pytest.raises(ConfigurationError, match="is another one by now"):
        store(DropAccessKey("services", (digest_of("other").hex(),)))
    assert owned.value.effective["services"]["_access_key"] == "k"
    store(DropAccessKey("services", (digest_of("k").hex(),)))
    assert "_access_key" not in owned.value.effective["services"]
    assert "_access_key" not in json.loads(file.read_text())["services"]


def test_another_discovery_secret_is_saved_before_it_counts(store: Asked, file: Path, owned: Owned[Loaded]) -> None:
    store(RenewSecret("5e" * 32))
    assert json.loads(file.read_text())["_discovery"] == {"secret": "5e" * 32}
    assert owned.value.effective["_discovery"]["secret"] == "5e" * 32
    with pytest.raises(ConfigurationError, match=r"Nothing was changed: _discovery\.secret: must be 64"):
        store(RenewSecret("hush"))
    assert owned.value.effective["_discovery"]["secret"] == "5e" * 32
    assert "5e" not in repr(RenewSecret("5e" * 32))


def test_an_edit_while_the_broker_runs_is_not_lost(
    store: Asked,
    registry: Asked,
    file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in 0.22, changes are overwritten at exit. But no backup does it before, and a copy is kept."""
    monkeypatch.setattr(config_store, "COMMITS_MAX", 1)
    edited = '{"_config": {"backup_retain_n": 9}}'
    file.write_text(edited)
    registry(Register("new", {}, "i"))
    store(GetDocument())
    finish(store)
    assert file.read_text() == edited
    with caplog.at_level(logging.WARNING):
        store(Save())
    copies = list(backups.folder_for(file).glob("bpbroker.json.edited-*"))
    assert [copy.read_text() for copy in copies] == [edited]
    assert "was changed while the broker ran" in caplog.text
    assert set(config_file.read(file)[1]) == {"old", "new"}
    store(Save())
    assert len(list(backups.folder_for(file).iterdir())) == 1


def test_a_registry_that_cannot_forget_does_not_fail_the_save(
    store: Asked, registry: Asked, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry(Register("new", {}, "i"))

    def failing_forget(_: EmbeddedStore, __: int) -> bool:
        raise StorageFull("full")

    monkeypatch.setattr(EmbeddedStore, "forget", failing_forget)
    with caplog.at_level(logging.WARNING):
        store(Save())
    assert "The journal could not be emptied: full" in caplog.text
    assert set(config_file.read(file)[1]) == {"old", "new"}


# --- slow, and replaced ---


def test_it_answers_while_it_writes_and_says_how_far_it_is(store: Asked, gate: Gate) -> None:
    saved = store.send(Save())
    assert gate.reached.wait(10)
    pong = store(Ping())
    assert pong.ok
    assert pong.figures["at_work"].startswith("writing the configuration file")
    document = store(GetDocument())
    assert (document.settings["services"]["_access_key"], set(document.entries)) == ("k", {"old"})
    assert not saved.done()
    gate.open.set()
    wait_for(saved, 10)
    assert "at_work" not in store(Ping()).figures


def test_work_without_a_step_is_told(store: Asked, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STALLED_SECS", 0.0)
    store.send(Save())
    assert gate.reached.wait(10)
    pong = store(Ping())
    assert not pong.ok
    assert "has made no step for" in pong.detail


def test_a_replaced_store_puts_no_file_in_its_place(
    store: Asked,
    registry: Asked,
    run: Callable[..., Asked],
    sources: Sources,
    owned: Owned[Loaded],
    gate: Gate,
    file: Path,
) -> None:
    registry(Register("early", {}, "i"))
    saved, behind = store.send(Save()), store.send(Save())
    assert gate.reached.wait(10)
    store.address.abandon()
    for reply, known in ((saved, False), (behind, True)):  # at once, although the thread still hangs
        with pytest.raises(Unavailable) as caught:
            wait_for(reply, 10)
        assert caught.value.outcome_known is known
    registry(Register("late", {}, "i"))
    successor = run(ConfigStore, sources, owned, registry.address)
    successor(Save())
    registry(Register("latest", {}, "i"))
    whole = file.read_bytes()
    gate.open.set()
    assert store.workers_end()
    assert file.read_bytes() == whole
    assert set(config_file.read(file)[1]) == {"old", "early", "late"}
    assert set(read_journal(journal_path(file)).changes) == {"latest"}
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".tmp"] == []


def test_a_setting_is_said_to_be_added_only_by_who_owns_the_settings(
    store: Asked,
    registry: Asked,
    run: Callable[..., Asked],
    sources: Sources,
    owned: Owned[Loaded],
    gate: Gate,
    published: list[Settings],
    file: Path,
) -> None:
    """Another one takes over, with the settings from before, in the moment between the file and the publication."""
    applied = store.send(ApplyConfiguration({"ossec": {}}))
    assert gate.reached.wait(10)
    successor = run(ConfigStore, sources, owned, registry.address)
    gate.open.set()
    with pytest.raises(Unavailable):
        wait_for(applied, 10)
    assert published == []
    assert "ossec" not in successor(GetDocument()).settings
    successor(ApplyConfiguration({"ossec": {}}))
    successor(Save())
    assert "ossec" in config_file.read(file)[0]
    assert "ossec" in published[-1]


def test_what_is_in_the_file_already_is_not_written_again(store: Asked, registry: Asked, file: Path) -> None:
    store(Save())
    inode = file.stat().st_ino
    store(Save())
    assert file.stat().st_ino == inode
    registry(Register("new", {}, "i"))
    store(Save())
    assert file.stat().st_ino != inode
    edited = file.read_text().replace('"new"', '"changed by hand"')
    file.write_text(edited)
    store(Save())
    assert set(config_file.read(file)[1]) == {"old", "new"}


def test_a_stop_ends_the_work_and_leaves_no_half(
    store: Asked, gate: Gate, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = file.read_bytes()
    saved = store.send(Save())
    assert gate.reached.wait(10)
    threading.Timer(0.2, gate.open.set).start()
    assert store.address.stop(10)
    with pytest.raises(Unavailable, match="The broker is stopping"):
        wait_for(saved, 10)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".tmp"] == []
    assert "Traceback" not in caplog.text

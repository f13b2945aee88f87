"""Moving a registry between a file and a real etcd cluster: whole, read back, again and again, never over others."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.config import layers
from bpbroker.errors import ConfigurationError, InUse, StartError, Unavailable
from bpbroker.record import Record
from bpbroker.registry.changes import Change, Group
from bpbroker.registry.discovery_secret import NAME
from bpbroker.registry.stored import split
from bpbroker.runtime.migration import Migrated, migrate
from bpbroker.storage import backups, config_file, offline
from bpbroker.storage.embedded.journal import Mark, journal_path
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.store import EtcdStore
from bpbroker.storage.lock_file import FileLock
from bpbroker.storage.sources import Sources
from tests.support.etcd_cluster import needs_etcd
from tests.support.groups import one, peeked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = needs_etcd

ENTRIES = {f"node-{number}": b'{"number": %d}' % number for number in range(250)} | {"ä b/c": b'{"_str": "x"}'}


class Moving:
    """A stopped broker's file, and the cluster."""

    def __init__(self, folder: Path, section: dict[str, Any]) -> None:
        self.file = folder / "bpbroker.json"
        self.section = {key: value for key, value in section.items() if key != "store"}
        self.store = EtcdStore(EtcdOptions.of({"_registry": section}))
        self.write(ENTRIES)

    def write(self, entries: dict[str, bytes]) -> None:
        config_file.write(self.file, layers.override(layers.DEFAULTS, {}) | {"_registry": self.section}, entries)

    def move(self, target: str, **terms: Any) -> Migrated:
        return migrate(Sources(self.file), target, **terms)

    @property
    def in_etcd(self) -> dict[str, bytes]:
        return peeked(self.store)

    @property
    def in_file(self) -> tuple[Any, dict[str, bytes]]:
        settings, entries, _ = offline.state_of(self.file)
        return settings["_registry"].get("store"), {name: split(name, entries[name]).json for name in entries}


@pytest.fixture
def moving(tmp_path: Path, etcd_section: dict[str, Any]) -> Iterator[Moving]:
    moving = Moving(tmp_path, etcd_section)
    yield moving
    moving.store.close()


def test_there_and_back_again(moving: Moving) -> None:
    told: list[tuple[int, int]] = []
    done = moving.move("etcd", tell=lambda done, of: told.append((done, of)))
    assert (done.copied, done.same, done.left) == (251, 0, ())
    assert moving.in_etcd == ENTRIES
    assert moving.in_file == ("etcd", {})
    assert told == [(0, 251), (100, 251), (200, 251), (251, 251)]
    assert done.kept is not None
    assert config_file.read(done.kept)[1] == ENTRIES
    back = moving.move("embedded")
    assert (back.copied, back.same, back.left) == (251, 0, ())
    assert moving.in_file == ("embedded", ENTRIES)
    assert moving.in_etcd == ENTRIES  # other brokers may use it


def test_the_discovery_secret_goes_along_as_a_setting(moving: Moving) -> None:
    """Only brokers that share a registry have it among its records."""
    moving.move("etcd")
    value = json.dumps({"secret": "5e" * 32}).encode()
    moving.store.commit([one(NAME, value, 0)])
    back = moving.move("embedded")
    assert back.copied == 251
    assert moving.in_file == ("embedded", ENTRIES)
    settings, _, _ = offline.state_of(moving.file)
    assert settings["_discovery"] == {"secret": "5e" * 32}
    moving.write(ENTRIES | {NAME: value})
    assert moving.move("etcd").copied == 0


def test_what_is_only_in_the_journal_is_moved_too(moving: Moving) -> None:
    store = EmbeddedStore(journal_path(moving.file), lambda: config_file.read(moving.file)[1])
    store.load()
    store.commit([one("late", b'{"late": 1}'), one("node-0", None)])
    store.close()
    moving.move("etcd")
    assert moving.in_etcd == {**{name: ENTRIES[name] for name in ENTRIES if name != "node-0"}, "late": b'{"late": 1}'}
    assert moving.in_file == ("etcd", {})


def test_a_dry_run_changes_nothing(moving: Moving) -> None:
    before = moving.file.read_bytes()
    assert moving.move("etcd", dry_run=True) == Migrated(251, 0, (), None)
    assert (moving.in_etcd, moving.file.read_bytes()) == ({}, before)


def test_it_goes_on_where_it_was_cut_off(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, calls = EtcdStore.commit, []

    def cut_off(self: EtcdStore, changes: Any) -> Any:
        calls.append(len(changes))
        if len(calls) == 2:
            raise Unavailable("The registry's etcd cluster does not answer")
        return commit(self, changes)

    with monkeypatch.context() as patch:
        patch.setattr(EtcdStore, "commit", cut_off)
        with pytest.raises(Unavailable):
            moving.move("etcd")
    assert len(moving.in_etcd) == 100
    assert moving.in_file[1] == ENTRIES
    done = moving.move("etcd")
    assert (done.copied, done.same) == (151, 100)
    assert moving.in_etcd == ENTRIES


class _Cut(BaseException):
    """Ends the command at once, as a kill does."""


@pytest.mark.parametrize("target", ["etcd", "embedded"])
@pytest.mark.parametrize("last", range(8))
def test_cut_off_at_any_step_of_the_switch_nothing_is_lost_and_it_can_be_done_again(
    moving: Moving, monkeypatch: pytest.MonkeyPatch, target: str, last: int
) -> None:
    entries = {"a": b'{"n": 1}', "b": b'{"n": 2}'}
    if target == "embedded":
        moving.write(entries)
        moving.move("etcd")
        moving.write({})
        moving.move("etcd")
    else:
        moving.write({"a": b'{"n": 1}', "gone": b"{}"})
        store = EmbeddedStore(journal_path(moving.file), lambda: config_file.read(moving.file)[1])
        store.load()
        store.commit([one("b", b'{"n": 2}'), one("gone", None)])
        store.close()
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps > last:
            raise _Cut

    def cutting(function: Callable[..., Any]) -> Callable[..., Any]:
        def cut(*args: Any, **how: Any) -> Any:
            step()
            result = function(*args, **how)
            step()
            return result

        return cut

    for owner, name in ((config_file, "write"), (offline, "forget_all"), (backups, "make")):
        monkeypatch.setattr(owner, name, cutting(getattr(owner, name)))
    for name in ("block", "unblock", "close"):
        monkeypatch.setattr(Mark, name, cutting(getattr(Mark, name)))
    with suppress(_Cut):
        moving.move(target)
    monkeypatch.undo()
    store_now, in_file = moving.in_file
    assert (moving.in_etcd if store_now == "etcd" else in_file) == entries
    moving.move(target)
    assert moving.in_file == (target, entries if target == "embedded" else {})
    assert moving.in_etcd == entries
    assert all(result.level != "fail" for result in offline.check(moving.file))


def test_others_are_not_touched(moving: Moving) -> None:
    moving.store.open()
    moving.store.commit([one("node-1", b'{"other": 1}', 0), one("theirs", b"{}", 0)])
    with pytest.raises(StartError, match=r"holds 2 other entries \(node-1, theirs\)\. Nothing was changed"):
        moving.move("etcd")
    assert len(moving.in_etcd) == 2
    done = moving.move("etcd", merge=True)
    assert (done.copied, done.same, done.left) == (250, 0, ("node-1",))
    assert moving.in_etcd == {**ENTRIES, "node-1": b'{"other": 1}', "theirs": b"{}"}


def test_who_brings_nothing_joins_what_is_there(moving: Moving) -> None:
    moving.move("etcd")
    moving.write({})
    done = moving.move("etcd")
    assert (done.copied, done.same, done.left) == (0, 0, ())
    assert moving.in_file == ("etcd", {})
    assert moving.in_etcd == ENTRIES


def test_a_file_with_other_entries_is_not_written_over(moving: Moving) -> None:
    moving.move("etcd")
    moving.write({"mine": b"{}", "node-1": b'{"mine": 1}'})
    with pytest.raises(StartError, match=r"holds 2 other entries \(mine, node-1\)"):
        moving.move("embedded")
    done = moving.move("embedded", merge=True)
    assert (done.copied, done.left) == (250, ("node-1",))
    assert moving.in_file[1] == {**ENTRIES, "mine": b"{}", "node-1": b'{"mine": 1}'}


def test_what_was_copied_is_read_back(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = EtcdStore.commit

    def altered(self: EtcdStore, changes: Any) -> Any:
        return commit(self, [one(each.names[0], b'{"altered": 1}', 0) for each in changes])

    monkeypatch.setattr(EtcdStore, "commit", altered)
    with pytest.raises(StartError, match="nothing was switched over"):
        moving.move("etcd")
    assert moving.in_file == (None, ENTRIES)


def test_what_etcd_cannot_take_is_said_first(moving: Moving) -> None:
    moving.write({**ENTRIES, "large": json.dumps({"x": "x" * 1024 * 1024}).encode()})
    with pytest.raises(ConfigurationError, match="no entry of more than 1048576 bytes: large"):
        moving.move("etcd")
    assert moving.in_etcd == {}


def test_it_needs_a_stopped_broker_and_a_cluster(moving: Moving) -> None:
    with FileLock(moving.file), pytest.raises(InUse):
        moving.move("etcd")
    moving.section.pop("endpoints")
    moving.write(ENTRIES)
    with pytest.raises(ConfigurationError, match=r"_registry\.endpoints is missing"):
        moving.move("etcd")


def test_revisions_go_along_and_never_back(moving: Moving) -> None:
    stored = {"a": b'{"x": 1, "last_write_revision": 1795000000123}', "_counter/c": b'{"n": 7}'}
    gone = {"b": b'{"last_write_session": "s"}', "_session/s": b"{}", "_lock/l": b"{}"}
    high = 3 * 10**15
    config_file.write(
        moving.file,
        layers.override(layers.DEFAULTS, {}) | {"_registry": moving.section},
        {**stored, **gone},
        origin=config_file.Origin("a" * 32, high),
    )
    moving.move("etcd")
    found = {seen.name: seen.record for seen in moving.store.open().entries}
    assert sorted(found) == ["_counter/c", "a"]
    assert found["a"] == Record("a", b'{"x": 1}', 1795000000123)
    outcome = moving.store.commit([Group((Change("new", Record("new", b"{}"), 0),))])[0]
    assert getattr(outcome, "revision", 0) > high
    moving.move("embedded")
    _, entries, origin = offline.state_of(moving.file)
    assert split("a", entries["a"]).revision == 1795000000123
    assert split("new", entries["new"]).revision == getattr(outcome, "revision", 0)
    assert origin is not None
    assert origin.commit > getattr(outcome, "revision", 0)

"""``bpbroker`` where the registry is in etcd: migrate, and what other commands say then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker import progress
from bpbroker.storage import config_file
from bpbroker.storage.embedded.journal import Mark, journal_path
from bpbroker.storage.etcd.store import read_all
from tests.support.etcd_cluster import needs_etcd

if TYPE_CHECKING:
    from tests.commands.conftest import Ran


@pytest.fixture
def file(home: Path, etcd_section: dict[str, Any]) -> Path:
    """A configuration with three entries that names a cluster and does not use it yet."""
    file = home / "etc" / "bpbroker.json"
    file.parent.mkdir(parents=True)
    section = {key: value for key, value in etcd_section.items() if key != "store"}
    file.write_text(json.dumps({"_registry": section, "services": {name: {"n": 1} for name in "abc"}}))
    return file


@needs_etcd
def test_moving_says_what_it_did(bpbroker: Callable[..., Ran], file: Path, etcd_section: dict[str, Any]) -> None:
    settings = {"_registry": etcd_section}
    before = file.read_bytes()
    tried = bpbroker("migrate", "--to", "etcd", "--dry-run")
    assert (tried.code, tried.out) == (0, "entries to copy: 3\nthere already: 0\nleft as they are there: 0\n")
    assert "Nothing was changed." in tried.err
    assert file.read_bytes() == before
    moved = bpbroker("migrate", "--to", "etcd")
    assert moved.code == 0
    assert "The registry is in etcd now; to start the broker: bpbroker start" in moved.err
    assert sorted(read_all(settings)) == ["a", "b", "c"]
    assert json.loads(file.read_text())["services"] == {}
    assert etcd_section["password"] not in moved.out + moved.err
    again = bpbroker("migrate", "--to", "etcd")
    assert (again.code, again.out.splitlines()[0]) == (0, "entries copied: 0")
    assert "The registry is in etcd already; nothing was changed." in again.err
    assert "kept as" not in again.err
    back = bpbroker("migrate", "--to", "embedded")
    assert (back.code, back.out.splitlines()[0]) == (0, "entries copied: 3")
    assert sorted(json.loads(file.read_text())["services"]) == ["a", "b", "c"]
    assert "What is in etcd stays there, and other brokers go on with it." in back.err
    there = bpbroker("migrate", "--to", "embedded")
    assert (there.code, there.out.splitlines()[0]) == (0, "entries copied: 0")
    assert "already; nothing was changed." in there.err


@needs_etcd
def test_that_the_registry_gets_a_new_id_is_no_alarming_news(bpbroker: Callable[..., Ran], file: Path) -> None:
    settings, entries, _ = config_file.read_content(file)
    high = 3 * 10**15  # revisions in etcd must go on from there
    config_file.write(file, settings, entries, origin=config_file.Origin("a" * 32, high))
    there = bpbroker("migrate", "--to", "etcd")
    assert there.code == 0
    assert "another one than before" not in there.err


@needs_etcd
def test_what_may_have_been_deleted_does_not_come_back_by_itself(bpbroker: Callable[..., Ran], file: Path) -> None:
    assert bpbroker("migrate", "--to", "etcd").code == 0
    assert bpbroker("migrate", "--to", "embedded").code == 0
    document = json.loads(file.read_text())
    del document["services"]["b"]
    file.write_text(json.dumps(document))
    refused = bpbroker("migrate", "--to", "embedded")
    assert refused.code == 1
    assert "is in use already, and lacks 1 entries (b): they may have been deleted there." in refused.err
    assert sorted(json.loads(file.read_text())["services"]) == ["a", "c"]
    assert bpbroker("migrate", "--to", "embedded", "--merge").code == 0
    assert sorted(json.loads(file.read_text())["services"]) == ["a", "b", "c"]


@needs_etcd
@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"password": "wrong"}, 78, "; correct _registry.user or _registry.password. {file} was not changed"),
        ({"prefix": "/not/ours"}, 78, "must be allowed to read and write all keys that begin with _registry.prefix"),
        ({"endpoints": ["https://127.0.0.1:1"], "timeout_secs": 0.5}, 1, "do it again when the cluster answers"),
    ],
)
def test_what_is_wrong_is_said_with_its_setting(
    bpbroker: Callable[..., Ran], file: Path, changed: dict[str, Any], code: int, said: str
) -> None:
    document = json.loads(file.read_text())
    document["_registry"] |= changed
    file.write_text(json.dumps(document))
    before = file.read_bytes()
    refused = bpbroker("migrate", "--to", "etcd")
    assert (refused.code, refused.out) == (code, "")
    assert said.format(file=file) in refused.err
    assert f"{file} was not changed" in refused.err
    assert file.read_bytes() == before


@needs_etcd
def test_a_broker_on_etcd_does_not_start_on_a_restore_that_was_cut_off(
    bpbroker: Callable[..., Ran], file: Path
) -> None:
    assert bpbroker("migrate", "--to", "etcd").code == 0
    document = json.loads(file.read_text())
    document["api"] = {**document.get("api", {}), "listen_ip": "192.0.2.1"}  # so that a start ends, whatever happens
    file.write_text(json.dumps(document))
    mark = Mark(journal_path(file), "a" * 32)
    mark.block()
    mark.close(remove=False)
    refused = bpbroker("start")
    assert refused.code == 78
    assert f"A restore of {file} was cut off; do it again" in refused.err


@needs_etcd
def test_other_entries_stop_it(bpbroker: Callable[..., Ran], file: Path) -> None:
    assert bpbroker("migrate", "--to", "etcd").code == 0
    document = json.loads(file.read_text())
    document["services"] = {"a": {"n": 2}, "d": {}}
    file.write_text(json.dumps(document))
    refused = bpbroker("migrate", "--to", "etcd")
    assert refused.code == 1
    assert "holds 3 other entries (a, b, c). Nothing was changed; with --merge" in refused.err
    merged = bpbroker("migrate", "--to", "etcd", "--merge")
    assert merged.code == 0
    assert merged.out == "entries copied: 1\nthere already: 0\nleft as they are there: 1 (a)\n"


@needs_etcd
def test_without_a_cluster_it_says_what_is_missing(bpbroker: Callable[..., Ran], home: Path) -> None:
    file = home / "etc" / "bpbroker.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    refused = bpbroker("migrate", "--to", "etcd")
    assert refused.code == 78
    assert "_registry.endpoints is missing" in refused.err
    assert bpbroker("migrate").code == 2
    assert bpbroker("migrate", "--to", "redis").code == 2


@needs_etcd
def test_backup_and_check_look_into_the_cluster(
    bpbroker: Callable[..., Ran], file: Path, etcd_section: dict[str, Any]
) -> None:
    assert bpbroker("migrate", "--to", "etcd").code == 0
    made = bpbroker("backup")
    assert made.code == 0
    assert sorted(json.loads(Path(made.out.strip()).read_text())["services"]) == ["a", "b", "c"]
    checked = bpbroker("check")
    assert checked.code == 0
    assert "ok       etcd: the registry is there: 3 entries" in checked.out
    restored = bpbroker("restore", made.out.strip())
    assert restored.code == 0
    assert "the 3 entries are in the file only" in restored.err
    checked = bpbroker("check")
    assert "so the 3 in the file are not used; bpbroker migrate --to etcd --merge" in checked.out
    document = json.loads(file.read_text())
    document["_registry"]["password"] = "wrong"
    file.write_text(json.dumps(document))
    failed = bpbroker("check")
    assert failed.code == 78
    assert "fail     etcd: The registry's etcd cluster refuses: etcdserver: authentication failed" in failed.out
    assert etcd_section["password"] not in failed.out


@needs_etcd
def test_a_cluster_that_is_away_is_no_reason_not_to_start(bpbroker: Callable[..., Ran], file: Path) -> None:
    assert bpbroker("migrate", "--to", "etcd").code == 0
    document = json.loads(file.read_text())
    document["_registry"] |= {"endpoints": ["https://127.0.0.1:1"], "timeout_secs": 0.5}
    file.write_text(json.dumps(document))
    checked = bpbroker("check")
    assert checked.code == 0
    assert "warning  etcd: The registry's etcd cluster does not answer; look at its members" in checked.out


@needs_etcd
def test_entries_are_not_configured_into_a_file_that_nobody_reads(bpbroker: Callable[..., Ran], file: Path) -> None:
    assert bpbroker("migrate", "--to", "etcd").code == 0
    before = file.read_bytes()
    refused = bpbroker("configure", stdin='{"services": {"new": {"n": 1}}}')
    assert refused.code == 78
    assert "use bpclient service register" in refused.err
    assert file.read_bytes() == before
    assert bpbroker("configure", stdin='{"services": {"_access_key": "secret"}}').code == 0


@needs_etcd
def test_how_far_it_is_is_told(file: Path, bpbroker: Callable[..., Ran]) -> None:
    assert file.exists()
    told: list[str] = []
    before = progress.show_on(progress.Telling(told.append, every_secs=0))
    try:
        assert bpbroker("migrate", "--to", "etcd").code == 0
    finally:
        progress.show_on(before)
    assert "Copying entries, 0 of 3, 0 %" in told
    assert "Copying entries, 3 of 3, 100 %" in told

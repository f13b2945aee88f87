"""``bpbroker`` where the registry is in etcd: migrate, and what other commands say then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker import progress
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
    assert (tried.code, tried.out) == (0, "entries copied: 3\nthere already: 0\nleft as they are there: 0\n")
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
    back = bpbroker("migrate", "--to", "embedded")
    assert (back.code, back.out.splitlines()[0]) == (0, "entries copied: 3")
    assert sorted(json.loads(file.read_text())["services"]) == ["a", "b", "c"]


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

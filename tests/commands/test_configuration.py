"""``configure`` and ``validate``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpbroker.storage.lock_file import FileLock
from tests.support.systems import is_private

Run = Callable[..., Any]


def settings_of(file: Path) -> Any:
    return json.loads(file.read_text())


def test_it_makes_the_global_file(bpbroker: Run, home: Path) -> None:
    done = bpbroker("configure", stdin='{"services": {"_access_key": "secret"}}')
    assert done == (0, "added services\n", "")
    assert settings_of(home / "etc" / "bpbroker.json") == {"services": {"_access_key": "secret"}}
    assert is_private(home / "etc" / "bpbroker.json")


def test_from_a_file_into_the_local_file(bpbroker: Run, home: Path, tmp_path: Path) -> None:
    own, extra = tmp_path / "own.json", tmp_path / "extra.json"
    extra.write_text('{"api": {"listen_port": 1234}}')
    assert bpbroker("configure", "--config", own, "--config-file", extra).code == 0
    assert settings_of(own)["api"] == {"listen_port": 1234}
    assert not home.exists()


def test_it_only_adds_at_every_depth(bpbroker: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(
        json.dumps(
            {
                "api": {"listen_port": 1},
                "ext": {"deep": {"a": 1}, "list": [1]},
                "services": {"node": {"role": "x", "last_write_ip": "10.0.0.1", "last_write_ts": 1}},
            }
        )
    )
    extra = json.dumps(
        {
            "api": {"listen_port": 2, "workers": 3},
            "ext": {"deep": {"a": 2, "b": 2}, "list": [2], "deep2": {}},
            "services": {"_access_key": "k", "node": {"role": "y", "size": 5}, "other": {"new": True}},
        }
    )
    done = bpbroker("-c", own, "configure", stdin=extra)
    assert done.code == 0
    said = set(done.out.splitlines())
    assert said == {
        "added api.workers",
        "added ext.deep.b",
        "added ext.deep2",
        "added services._access_key",
        "added services.node.size",
        "added services.other",
        "kept api.listen_port: it has another value already",
        "kept ext.deep.a: it has another value already",
        "kept ext.list: it has another value already",
        "kept services.node.role: it has another value already",
    }
    merged = settings_of(own)
    assert merged["api"] == {"listen_port": 1, "workers": 3}
    assert merged["ext"] == {"deep": {"a": 1, "b": 2}, "list": [1], "deep2": {}}
    assert merged["services"]["node"] == {
        "role": "x", "last_write_ip": "10.0.0.1", "last_write_ts": 1, "size": 5,
    }  # fmt: skip
    assert merged["services"]["other"] == {"new": True}


def test_twice_the_same_changes_nothing(bpbroker: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    extra = '{"ext": {"a": [1, {"b": null}]}, "services": {"e": {"x": 1.5}}}'
    assert bpbroker("-c", own, "configure", stdin=extra).code == 0
    before = (own.read_bytes(), own.stat().st_mtime_ns)
    done = bpbroker("-c", own, "configure", stdin=extra)
    assert done == (0, "", f"Nothing to add to {own}.\n")
    assert (own.read_bytes(), own.stat().st_mtime_ns) == before


def test_values_are_never_printed(bpbroker: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    for key in ("canary-one", "canary-two"):
        done = bpbroker("-c", own, "configure", stdin=json.dumps({"ossec": {"_access_key": key}}))
        assert "canary" not in done.out + done.err


def test_dry_run_only_says(bpbroker: Run, tmp_path: Path) -> None:
    own = tmp_path / "deep" / "own.json"
    done = bpbroker("-c", own, "configure", "--dry-run", stdin='{"ext": {}}')
    assert done == (0, "would add ext\n", "")
    assert not own.parent.exists()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("", "Standard input"),
        ("{", "line 1, column 2"),
        ("[]", "Standard input"),
        ('{"api": {"listen_port": 99999}, "services": {"_access_key": 0}}', "api.listen_port is 99999"),
        ('{"api": {"listen_port": 99999}, "services": {"_access_key": 0}}', "services._access_key"),
        ('{"services": {"e": "text"}}', "services.e"),
        ('{"services": {" ": {}}}', "services. "),
        ('{"ext": {"a": NaN}}', "NaN"),
        ('{"ext": {"a": 1, "a": 2}}', "twice"),
        ('{"ext": 1}', "ext is 1"),
    ],
)
def test_what_cannot_be_used_changes_nothing(bpbroker: Run, tmp_path: Path, extra: str, says: str) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"kept": {}}')
    done = bpbroker("-c", own, "configure", stdin=extra)
    assert done.code == 78
    assert says in done.err
    assert done.out == ""
    assert own.read_text() == '{"kept": {}}'


def test_a_damaged_file_is_left_alone(bpbroker: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"api": {')
    done = bpbroker("-c", own, "configure", stdin='{"ext": {}}')
    assert done.code == 78
    assert str(own) in done.err
    assert own.read_text() == '{"api": {'


def test_a_missing_file_to_read(bpbroker: Run, tmp_path: Path) -> None:
    done = bpbroker("configure", "--config-file", tmp_path / "nope")
    assert done.code == 78
    assert f"Cannot read {tmp_path / 'nope'}" in done.err


def test_beside_a_broker_it_refuses_and_names_it(bpbroker: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    with FileLock(own):
        done = bpbroker("-c", own, "configure", stdin='{"ext": {}}')
        assert done.code == 1
        assert str(os.getpid()) in done.err
        assert f"bpbroker --config {own} stop" in done.err
        done = bpbroker("-c", own, "configure", "--dry-run", stdin='{"ext": {}}')
        assert (done.code, done.out) == (0, "would add ext\n")
    assert not own.exists()


def test_a_section_that_looks_mistyped_is_warned_of(bpbroker: Run, tmp_path: Path) -> None:
    own, extra = tmp_path / "own.json", '{"servces": {"_access_key": "k"}}'
    told = "warning: servces is not known; did you mean services?\n"
    for options in (["--dry-run"], []):
        done = bpbroker("-c", own, "configure", *options, stdin=extra)
        assert (done.code, told in done.err) == (0, True)
    done = bpbroker("-c", own, "validate")
    assert (done.code, "servces is not known; did you mean services?" in done.err) == (0, True)


def test_validate(bpbroker: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"api": {"listen_port": "x", "workers": 0}, "_globl": {}}')
    done = bpbroker("-c", own, "validate")
    assert done.code == 78
    assert "api.listen_port" in done.err
    assert "api.workers" in done.err
    own.write_text('{"_globl": {}}')
    done = bpbroker("-c", own, "validate")
    assert done.code == 0
    assert "did you mean _global?" in done.err
    assert done.out == ""


def test_an_unset_variable_names_no_file(bpbroker: Run, home: Path, tmp_path: Path) -> None:
    for words in (("-c", "", "validate"), ("validate", "--config", ""), ("configure", "--config-file", "")):
        done = bpbroker(*words, stdin="{}")
        assert done.code == 2
        assert "the name is empty" in done.err
    assert not home.exists()
    assert not list(tmp_path.iterdir())

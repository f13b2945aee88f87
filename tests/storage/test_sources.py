"""Where a configuration comes from: its layers, and what is said of files that are missing or somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpbroker.errors import ConfigurationError
from bpbroker.storage import backups, config_file
from bpbroker.storage.sources import Sources


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    return tmp_path / "own" / "b.json"


@pytest.fixture
def below(tmp_path: Path) -> Path:
    """The global file, of a broker that has made a pair for itself."""
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "bpbroker.json"
    pair = {"ssl_cert": str(file.with_suffix(".crt")), "ssl_key": str(file.with_suffix(".key"))}
    config_file.write(file, {"api": {"listen_port": 7, **pair}, "services": {"_access_key": "k"}}, {"theirs": b"{}"})
    return file


def test_the_own_file_lies_over_the_global_one(own: Path, below: Path) -> None:
    own.write_text('{"api": {"listen_port": 8}, "services": {"mine": {}}}')
    loaded = Sources(own, below, {"api.listen_ip": "127.0.0.1"}).load()
    assert loaded.effective["api"]["listen_port"] == 8
    assert loaded.saved["api"]["listen_ip"] == ""
    assert loaded.effective["api"]["listen_ip"] == "127.0.0.1"
    assert loaded.effective["services"]["_access_key"] == "k"
    assert list(loaded.entries) == ["mine"]
    assert loaded.warnings == ()


def test_nothing_of_the_global_file_is_saved_into_the_own_one(own: Path, below: Path) -> None:
    cert = {"ssl_cert": "/theirs.crt", "ssl_key": "/theirs.key"}
    settings = {"api": {"listen_port": 7, **cert}, "services": {"_access_key": "k"}, "demo": {"a": 1}}
    config_file.write(below, {**settings, "_discovery": {"secret": "a" * 64}}, {})
    loaded = Sources(own, below).load()
    config_file.write(own, loaded.saved, loaded.entries)
    text = own.read_text()
    assert not [word for word in ('"k"', "theirs", "demo", "aaaa", "listen_port") if word in text]
    assert loaded.saved["_config"]["backup_retain_n"] == 24  # a default that the global file does not have
    again = Sources(own, below).load()  # what is saved hides nothing of it either
    assert again.effective == loaded.effective
    assert again.effective["api"]["listen_port"] == 7
    assert again.effective["demo"]["a"] == 1


def test_the_global_file_need_not_be_there(own: Path, tmp_path: Path) -> None:
    own.write_text("{}")
    assert Sources(own, tmp_path / "no" / "bpbroker.json").load().warnings == ()


def test_the_pair_of_the_global_files_broker_is_its_own(own: Path, below: Path, tmp_path: Path) -> None:
    assert Path(Sources(own, below).load().effective["api"]["ssl_cert"]).name == "dummy_api.crt"
    for cert in (tmp_path / "ours.crt", below.with_suffix(".crt")):  # somebody chose this one, or both parts of it
        pair = {"ssl_cert": str(cert), "ssl_key": str(tmp_path / "ours.key")}
        config_file.write(below, {"api": pair}, {})
        assert Sources(own, below).load().effective["api"]["ssl_cert"] == str(cert)


def test_a_global_file_of_somebody_else_is_left_out_and_said(
    own: Path, below: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == below:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    loaded = Sources(own, below).load()
    assert loaded.saved["api"]["listen_port"] == 20443
    assert loaded.warnings[0] == f"{below} may not be read by this user; its settings are left out"
    assert loaded.warnings[1:] == (f"{own} is not there: a start makes it, with new settings and no entries",)


def test_a_file_that_was_there_once_is_missed(own: Path) -> None:
    assert Sources(own).load().warnings == ()
    backup = backups.make(own, config_file.chunks({"services": {}}, {"a": b"{}"}))
    (warning,) = Sources(own).load().warnings
    assert f"{own} is not there" in warning
    assert f"bpbroker --config {own} restore {backup.path}" in warning
    own.write_text("{}")
    assert Sources(own).load().warnings == ()


def test_a_mistyped_section_leaves_none_open_in_silence(own: Path, tmp_path: Path) -> None:
    own.write_text('{"servces": {"_access_key": "k"}, "pings": {}}')
    (tmp_path / "pings.py").write_text("")
    (warning,) = Sources(own, is_installed=lambda name: (tmp_path / f"{name}.py").exists()).load().warnings
    assert warning == f"{own}: servces is not known; did you mean services?"


def test_what_is_only_doubtful_is_said_with_what_is_wrong(own: Path) -> None:
    own.write_text('{"api": {"listen_port": -1, "wrkers": 3}, "_config": {"backup_retain_n": "x"}}')
    with pytest.raises(ConfigurationError) as caught:
        Sources(own).load()
    assert len(caught.value.problems) == 2
    assert "did you mean api.workers?" in str(caught.value)

"""The form in which certificate, key and extensions stand in a backup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpbroker.errors import ConfigurationError, DamagedFile
from bpbroker.storage import backups, config_file
from bpbroker.storage.backup_identity import Identity, decode
from tests.support.systems import is_private

IDENTITY = Identity(b"cert", b"key", {"a.py": b"\xff\x00", "pkg/__init__.py": b""}, ("the extension b: why",))


@pytest.mark.parametrize("identity", [IDENTITY, Identity()])
def test_it_comes_back_from_a_backup(tmp_path: Path, identity: Identity) -> None:
    own = tmp_path / "bpbroker.json"
    made = backups.make(own, config_file.chunks({"services": {}}, {"n": b"{}"}, backed_up=identity))
    content, found = config_file.read_backup(Path(made.path))
    assert found == identity
    assert (content.settings, content.entries) == ({"services": {}}, {"n": b"{}"})
    assert is_private(Path(made.path))
    assert backups.check(made) == backups.Checked(made, 1, "", has_identity=True)
    # Copied in place by hand it is a configuration file like any other.
    assert config_file.read(Path(made.path)) == ({"services": {}}, {"n": b"{}"})


def test_a_backup_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    made = backups.make(tmp_path / "bpbroker.json", config_file.chunks({"services": {}}, {}))
    assert config_file.read_backup(Path(made.path))[1] is None
    assert not backups.check(made).has_identity


def test_its_digest_tells_a_change() -> None:
    assert IDENTITY.digest == Identity(b"cert", b"key", dict(IDENTITY.modules), IDENTITY.left_out).digest
    assert len({IDENTITY.digest, Identity().digest, Identity(b"cert", b"other").digest}) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"certificate": 1}, "not in the form"),
        ({"key": ""}, "not in the form"),
        ({"certificate": "ä"}, "not in the form"),
        ({"lib": []}, "not in the form"),
        ({"left_out": None}, "not in the form"),
        ({"lib": {"a.py": "%"}}, r"a\.py is damaged"),
        ({"lib": {"a.py": 1}}, r"a\.py is damaged"),
        ({"lib": {"../a.py": ""}}, "no path in the lib folder"),
        ({"lib": {"/etc/passwd": ""}}, "no path in the lib folder"),
        ({"lib": {"a\\b.py": ""}}, "no path in the lib folder"),
        ({"lib": {"C:a.py": ""}}, "no path in the lib folder"),
        ({"lib": {"": ""}}, "no path in the lib folder"),
    ],
)
def test_what_is_none_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"backup.json: .*{message}"):
        decode(IDENTITY.encode() | changed, "backup.json")


def test_a_section_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text('{"services": {}, "_identity": []}')
    with pytest.raises(ConfigurationError) as refused:
        config_file.read_backup(path)
    assert not isinstance(refused.value, DamagedFile)

"""Certificate, key and extensions on the disk: collected for a backup, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpbroker.config import layers
from bpbroker.config.paths import Home
from bpbroker.errors import ConfigurationError
from bpbroker.extensions import installing
from bpbroker.runtime.identity_files import IdentityFiles
from bpbroker.server import host_certificate
from bpbroker.storage import config_file, offline
from bpbroker.storage.backup_identity import Identity, PutBack
from tests.support.systems import is_private, posix_only

MODULE = "def Hello(rh):\n    rh.data = 'hello'\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a pair, a module and a package, and what is none of them."""
    made = Home(tmp_path / "home")
    for path, text in {
        "one.py": MODULE,
        "one.py.old": "x",
        "pkg/__init__.py": "",
        "pkg/sub/two.py": MODULE,
        "pkg/data.txt": "text",
        "pkg/.git/config": "x",
        "pkg/__pycache__/two.pyc": "x",
        "notes.txt": "x",
        "json.py": MODULE,
    }.items():
        (made.lib / path).parent.mkdir(parents=True, exist_ok=True)
        (made.lib / path).write_text(text)
    made.config_file.parent.mkdir()
    host_certificate.make_pair(*layers.own_pair(made.config_file))
    return made


def of(home: Home, own: Path | None = None) -> IdentityFiles:
    return IdentityFiles(own or home.config_file, home)


def settings(home: Home, **more: Any) -> dict[str, Any]:
    cert, key = layers.own_pair(home.config_file)
    return {"api": {"ssl_cert": str(cert), "ssl_key": str(key)}, "services": {}, **more}


def test_a_backup_has_the_pair_and_each_extension(home: Home) -> None:
    found = of(home).collect(settings(home))
    cert, key = layers.own_pair(home.config_file)
    assert (found.certificate, found.key) == (cert.read_bytes(), key.read_bytes())
    assert sorted(found.modules) == ["one.py", "pkg/__init__.py", "pkg/data.txt", "pkg/sub/two.py"]
    assert found.left_out == ()


def test_a_pair_of_the_operators_own_is_not_in_it(home: Home) -> None:
    mine = {"api": {"ssl_cert": "/etc/ssl/mine.crt", "ssl_key": "/etc/ssl/mine.key"}}
    assert of(home).collect(mine).certificate == b""


def test_of_a_shared_folder_only_what_is_enabled(home: Home, tmp_path: Path) -> None:
    own = tmp_path / "other.json"
    host_certificate.make_pair(*layers.own_pair(own))
    found = of(home, own).collect({"services": {}, "pkg.sub.two": {}})
    assert sorted(found.modules) == ["pkg/__init__.py", "pkg/data.txt", "pkg/sub/two.py"]
    assert found.certificate == layers.own_pair(own)[0].read_bytes()


@posix_only("links without an administrator's right")
def test_what_cannot_be_in_it_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    layers.own_pair(home.config_file)[1].write_text("no key")
    (home.lib / "link.py").symlink_to("/etc/hostname-of-nothing")
    monkeypatch.setattr("bpbroker.runtime.identity_files.MODULES_MAX_BYTES", len(MODULE) + 3)
    found = of(home).collect(settings(home))
    assert found.certificate == b""
    assert sorted(found.modules) == ["one.py"]
    certificate, link, package = found.left_out
    assert certificate == "the certificate: it is no certificate with its key in PEM form"
    assert link.startswith("the extension link: ")
    assert package == f"the extension pkg: all together are larger than {len(MODULE) + 3} bytes"


def test_all_of_it_comes_back_on_a_new_machine(home: Home, tmp_path: Path) -> None:
    backup = Identity(**_parts(of(home).collect(settings(home))))
    new = Home(tmp_path / "new")
    new.config_file.parent.mkdir(parents=True)
    would = of(new).put_back(backup, dry_run=True)
    assert not new.lib.exists()
    done = of(new).put_back(backup, dry_run=False)
    fingerprint = host_certificate.fingerprint(layers.own_pair(home.config_file)[0])
    assert done == would
    assert done.changed == (f"certificate changed: it is now SHA-256 {fingerprint}", "extensions changed: 2 (one, pkg)")
    assert of(new).collect({"services": {}}) == backup
    cert, key = layers.own_pair(new.config_file)
    assert is_private(key)
    assert not is_private(cert)
    assert not is_private(new.lib / "one.py")
    assert sorted(path.name for path in new.lib.iterdir()) == ["one.py", "pkg"]
    assert of(new).put_back(backup, dry_run=False) == PutBack()


def _parts(identity: Identity) -> dict[str, Any]:
    return {"certificate": identity.certificate, "key": identity.key, "modules": identity.modules}


def test_an_extension_that_changed_since_goes_back_and_is_kept(home: Home) -> None:
    backup = of(home).collect(settings(home))
    (home.lib / "one.py").write_text("def Other(rh):\n    pass\n")
    (home.lib / "pkg" / "more.py").write_text(MODULE)
    (home.lib / "new.py").write_text(MODULE)
    assert of(home).put_back(backup, dry_run=False).changed == ("extensions changed: 2 (one, pkg)",)
    assert (home.lib / "one.py").read_text() == MODULE
    assert "Other" in (home.lib / "one.py.old").read_text()
    assert not (home.lib / "pkg" / "more.py").exists()
    assert (home.lib / "new.py").exists()


@posix_only("permission bits of a folder")
def test_a_folder_that_is_not_ours_is_left_alone_and_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = of(home).collect(settings(home))
    (home.lib / "one.py").unlink()
    monkeypatch.setattr("bpbroker.runtime.identity_files.os.access", lambda *_: False)
    done = of(home).put_back(backup, dry_run=False)
    assert done.changed == ()
    assert "these extensions were not put back: one" in done.missing[0]


@pytest.mark.parametrize("name", ["json.py", "a b.py", ".hidden/x.py", "one.txt", "one.py/x.py", "pkg"])
def test_what_can_be_no_extension_is_refused(home: Home, name: str) -> None:
    with pytest.raises(ConfigurationError, match="can be no extension"):
        installing.put_back(home.lib, {name: b""})


def test_a_certificate_that_is_none_is_refused_before_anything_changes(home: Home) -> None:
    config_file.write(home.config_file, settings(home), {})
    before = home.config_file.read_bytes()
    bad = Identity(b"-----BEGIN CERTIFICATE-----\n", b"x")
    path = home.folder / "b.json"
    path.write_bytes(b"".join(config_file.chunks({"services": {}}, {}, backed_up=bad)))
    with pytest.raises(ConfigurationError, match="The certificate in the backup cannot be used"):
        offline.restore(home.config_file, path, identity=of(home))
    assert home.config_file.read_bytes() == before

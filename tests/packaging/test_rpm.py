"""The RPM package: built, read, checked, unpacked into a root. No Red Hat system is at hand to run its scripts on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bpbroker.service.templates import MARK, PACKAGED
from tests.packaging.conftest import LONG, build

pytestmark = pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="rpmbuild is not installed")


@pytest.fixture(scope="session")
def package(python: str, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    nowhere = {"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_EXTRA_INDEX_URL": ""}
    folder = tmp_path_factory.mktemp("rpms")
    (made,) = build("build-rpm", "--python", python, "--wheels", wheels, folder, **nowhere)
    return made


def rpm(*words: str | Path) -> str:
    return subprocess.run(["rpm", *words], capture_output=True, text=True, check=True, timeout=120).stdout


def test_it_unpacks_into_a_root(package: Path, python: str, tmp_path: Path) -> None:
    where = ("--root", tmp_path)
    rpm(*where, "--initdb")
    # Its scripts need the programs of that system, and so do what it requires.
    rpm(*where, "-i", "--nodeps", "--noscripts", package)
    assert rpm(*where, "-q", "bpbroker").startswith("bpbroker-1.0.0-1")
    assert rpm(*where, "-V", "--nodeps", "bpbroker") == ""
    assert (tmp_path / "opt/bpbroker/bin/python3").readlink() == Path(f"/usr/bin/python{python}")
    unit = (tmp_path / "usr/lib/systemd/system/bpbroker.service").read_text()
    assert PACKAGED in unit
    assert MARK not in unit
    assert "\nUser=bpbroker\n" in unit
    assert rpm(*where, "-qc", "bpbroker") == "/etc/sysconfig/bpbroker\n"
    assert f"/usr/bin/python{python}" in rpm(*where, "-qR", "bpbroker")
    rpm(*where, "-e", "--noscripts", "bpbroker")
    assert not (tmp_path / "opt/bpbroker").exists()
    assert not (tmp_path / "usr/bin/bpbroker").is_symlink()


def test_its_scripts_are_shell(package: Path, tmp_path: Path) -> None:
    scripts = rpm("-qp", "--qf", "%{PREIN}\n%{POSTIN}\n%{PREUN}\n%{POSTUN}\n%{POSTTRANS}\n", package)
    assert "@" not in scripts
    assert "(none)" not in scripts
    file = tmp_path / "scripts"
    file.write_text("#!/bin/sh\n" + scripts)
    for checker in (["sh", "-n"], ["shellcheck", "-S", "warning", "-s", "sh"]):
        if shutil.which(checker[0]) is not None:
            done = subprocess.run([*checker, file], capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not LONG, reason="takes its time: with BPBROKER_LONG=1")
def test_rpmlint_finds_no_error(package: Path) -> None:
    if shutil.which("rpmlint") is None:
        pytest.skip("rpmlint is not installed")
    done = subprocess.run(["rpmlint", package], capture_output=True, text=True, check=False, timeout=250)
    errors = [line for line in done.stdout.splitlines() if ": E: " in line]
    # An environment of its own in /opt, of wheels as their makers built them; signed and named by whom publishes it.
    accepted = "dir-or-file-in-opt wrong-script-interpreter non-executable-script zero-length files-duplicated-waste"
    accepted += " no-signature no-packager-tag no-group-tag no-changelogname-tag"
    assert not [line for line in errors if not any(f" {name}" in line for name in accepted.split())], "\n".join(errors)

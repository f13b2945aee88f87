"""The list of libraries with their versions, and what is known of these."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from packaging.version import Version

from deploy.packaging.constraints import FILE, Pin, installed, read, written
from tests.packaging.conftest import LONG


def test_what_is_installed_is_in_the_list() -> None:
    pins = read(FILE.read_text(encoding="utf-8"))
    versions = installed()
    assert {"cheroot", "cherrypy", "cryptography", "pykka", "urllib3"} <= versions.keys()  # near and far ones
    assert versions.keys() - pins.keys() == set(), "new libraries: look at them, then run deploy/build-constraints"
    # An environment brings a setuptools of its own, often one whose faults are known.
    older = {name for name, version in versions.items() if Version(version) < Version(pins[name].version)}
    assert older <= {"setuptools"}, "older than what was tested: pip install --upgrade, or mend the list"


def test_a_version_keeps_its_day() -> None:
    day, today = date(2026, 1, 2), date(2026, 3, 4)
    before = {"foo": Pin("1", day), "bar": Pin("1", day), "gone": Pin("1", day)}
    text = written({"foo": "1", "bar": "2", "new": "3"}, before, today)
    assert read(text) == {"bar": Pin("2", today), "foo": Pin("1", day), "new": Pin("3", today)}
    with pytest.raises(ValueError, match="not a pin"):
        read("foo==1\n")


@pytest.mark.skipif(not LONG, reason="downloads pip-audit: with BPBROKER_LONG=1")
def test_no_fault_of_them_is_known(tmp_path: Path) -> None:
    # Apart: it wants many libraries of its own.
    words = (sys.executable, "-m", "pip", "install", "-q", "--target", tmp_path, "pip-audit")
    subprocess.run(words, check=True, timeout=250)
    audit = (sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "-r", FILE)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(audit, env=environ, capture_output=True, text=True, check=False, timeout=250)
    said = done.stdout + done.stderr
    if "could not be audited" in said or "ConnectionError" in said or "ServiceError" in said:
        pytest.skip(f"the service that knows faults cannot be asked here: {said[-300:]}")
    assert done.returncode == 0, said

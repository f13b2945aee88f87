"""The examples for cloud-init, looked at by cloud-init itself, and what they type."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpbroker.client.cli.click_tree import parse
from bpbroker.config import schema
from tests.packaging.conftest import LONG, TOP

FILES = sorted((TOP / "deploy").glob("cloud-init*.yml"))


def loaded(file: Path) -> Any:
    text = file.read_text()
    assert text.startswith("#cloud-config\n")
    return yaml.safe_load(text)


def test_what_they_write_can_be_used() -> None:
    assert [file.name for file in FILES] == ["cloud-init-node.yml", "cloud-init.yml"]
    node, broker = map(loaded, FILES)
    (settings,) = (json.loads(each["content"]) for each in broker["write_files"])
    assert not [name for section in settings for name in [section] if section not in schema.KNOWN]
    (script,) = (each["content"] for each in node["write_files"] if each["path"].endswith("join-cluster"))
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False, timeout=60).returncode == 0
    parse(["--timeout", "10m", "service", "replace", "--name", "node-x", "--data", "{}"])
    assert "bpclient --timeout 10m service replace --name" in script


@pytest.mark.skipif(not LONG, reason="downloads cloud-init: with BPBROKER_LONG=1")
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="cloud-init is taken from Debian's package")
def test_cloud_init_likes_them(tmp_path: Path) -> None:
    # Unpacked only: installed, it would take over this machine's next boot.
    tmp_path.chmod(0o755)
    subprocess.run(["apt-get", "download", "-qq", "cloud-init"], cwd=tmp_path, check=True, timeout=120)
    (package,) = tmp_path.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, tmp_path / "unpacked"], check=True, timeout=60)
    needs = ("jsonschema", "pyyaml", "jinja2", "configobj", "requests", "oauthlib", "jsonpatch")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--target", tmp_path / "libraries")
    subprocess.run([*pip, *needs], check=True, timeout=250)
    paths = f"{tmp_path / 'unpacked/usr/lib/python3/dist-packages'}:{tmp_path / 'libraries'}"
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("#cloud-config\nruncmd: 1\npackages: {}\n")
    for file, code in ((FILES[0], 0), (FILES[1], 0), (wrong, 1)):
        words = [sys.executable, "-m", "cloudinit.cmd.main", "schema", "--config-file", str(file)]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": paths}
        done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr

"""What is handed out: the wheel, the client in one file, the bundle for isolated networks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import RunningBroker

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"


def run(*words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program with little more than a path in its environment."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PATH", "HOME", "PIP", "SSL", "TMP"))}
    done = subprocess.run(
        words,
        env={**kept, "PYTHON": sys.executable, **environ},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_wheel_has_deploy_and_no_private_key(tmp_path: Path) -> None:
    # From a copy: setuptools would leave a build folder, whose old files get into the next wheel.
    for folder in ("bpbroker", "deploy"):
        shutil.copytree(TOP / folder, tmp_path / "source" / folder)
    for file in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(TOP / file, tmp_path / "source")
    words = ("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "source")
    run(sys.executable, "-m", *words, BPBROKER_COMMIT="0123456789abcdef0123")
    (wheel,) = tmp_path.glob("bpbroker-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for shipped in (path for path in DEPLOY.iterdir() if path.is_file()):
            assert archive.read(f"bpbroker/deploy/{shipped.name}") == shipped.read_bytes()
        assert "bpbroker/py.typed" in names
        commit, day = archive.read("bpbroker/_stamp.txt").decode().split()
        assert (commit, len(day)) == ("0123456789ab", 10)
        assert not [name for name in names if name.endswith((".key", ".pem", ".crt"))]
        for name in names:
            assert b"-----BEGIN PRIVATE KEY-----\n" not in archive.read(name)
            assert b"-----BEGIN EC PRIVATE KEY-----\n" not in archive.read(name)
    folders = {path.parent for path in (TOP / "bpbroker").rglob("*.py")}
    packages = {f"bpbroker/{folder.relative_to(TOP / 'bpbroker')}/".replace("/./", "/") for folder in folders}
    for package in packages:
        assert f"{package}__init__.py" in names, f"{package} is not in pyproject.toml's list of packages"


def test_the_client_in_one_file_runs_with_nothing_installed(broker: RunningBroker, tmp_path: Path) -> None:
    file = tmp_path / "bpclient.pyz"
    run(DEPLOY / "build-zipapp", file)
    with zipfile.ZipFile(file) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".pyc"))]
    # -I and -S: neither the environment, nor the folder, nor what is installed
    words = (sys.executable, "-I", "-S", file, "-b", f"127.0.0.1:{broker.port}", "--insecure", "service")
    assert run(*words, "register", "--name", "foo", "--data", "bar").stdout == "bar\n"
    assert run(*words, "get", "--name", "foo").stdout == "bar\n"
    # discovery's library for interfaces is in it
    assert "networks: " in run(*words[:-1], "doctor").stdout
    with zipfile.ZipFile(file) as archive:
        first = archive.read("__main__.py").decode()
    # As an old Python would run it, which cannot even import the client.
    old = f"import sys; sys.version_info = (2, 7, 18); exec({first!r})"
    done = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("bpclient needs Python 3.9 or newer; this is ")
    assert done.stderr.endswith("Python 2.7\n")


def pythons() -> list[Path]:
    """Return each Python from 3.9 on that is on this machine: in the path or of pyenv."""
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found: dict[int, Path] = {}
    for minor in range(9, 16):
        system = shutil.which(f"python3.{minor}", path="/usr/bin")
        for candidate in [*home.glob(f"versions/3.{minor}.*/bin/python3"), *([Path(system)] if system else [])]:
            found.setdefault(minor, candidate)
    return list(found.values())


@pytest.mark.parametrize("built", [True, False], ids=["built", "served"])
def test_the_client_in_one_file_runs_with_every_python(
    built: bool, make_broker: Callable[..., RunningBroker], tmp_path: Path
) -> None:
    file = tmp_path / "bpclient.pyz"
    broker = make_broker({"services": {"_access_key": "a key of this test 0815"}}).start()
    said = broker.bpbroker("token")
    token = said.stdout.strip()
    if built:
        run(DEPLOY / "build-zipapp", file)
    else:
        served = broker.request("/bpclient.pyz", "GET")
        assert served.status == 200
        file.write_bytes(served.body)
        assert f"/bpclient.pyz, SHA-256 {hashlib.sha256(served.body).hexdigest()}\n" in said.stderr
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        libraries = {name.partition("/")[0] for name in names if "/" in name} - {"bpbroker", "licences"}
        assert {"click", "ifaddr"} <= libraries
        texts = [name for name in names if name.startswith("licences/") and archive.read(name)]
        assert {name.split("/")[1] for name in texts} == libraries
    assert pythons()
    for number, python in enumerate(pythons()):
        words = (python, "-I", "-S", file, "--token", token)
        name = f"node-{number}"
        assert run(*words, "service", "register", "--name", name, "--data", "bar").stdout == "bar\n", python
        assert run(*words, "service", "get", "--name", name, "--wait", "5s").stdout == "bar\n", python
        assert f":{broker.port}" in run(*words, "--port", str(broker.port), "discover", "--name", name).stdout, python
        late = subprocess.run(
            [*words, "service", "get", "--name", "absent", "--wait", "300ms"], capture_output=True, check=False
        )
        assert late.returncode == 124, (python, late.stderr)
        silent = subprocess.run(
            [*words, "--timeout", "300ms", "-b", "127.0.0.1:9", "ping"], capture_output=True, check=False
        )
        assert silent.returncode in (6, 124), (python, silent.stderr)
        # The broker's own click may be too new for an old Python; the file that is built has one for all.
        if built or "python3.9" not in str(python.resolve()):
            assert "register" in run(*words, "service", "--help").stdout, python
        assert "certificate" in run(*words, "doctor").stdout, python


@pytest.mark.skipif(os.environ.get("BPBROKER_LONG") != "1", reason="downloads every dependency")
def test_the_bundle_installs_without_an_index(tmp_path: Path) -> None:
    run(DEPLOY / "build-bundle", tmp_path / "bundle.tar.gz")
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    nowhere = {"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:1/", "LINKS": str(tmp_path / "bin")}
    run(tmp_path / "bpbroker-offline" / "install", tmp_path / "installed", **nowhere)
    assert run(tmp_path / "bin" / "bpbroker", "--version").stdout.startswith("bpbroker ")
    assert run(tmp_path / "bin" / "bpclient", "--version").stdout.startswith("bpclient ")


@pytest.mark.parametrize("name", ["build-zipapp", "build-bundle", "install-offline"])
def test_shellcheck_has_no_complaint(name: str) -> None:
    assert os.access(DEPLOY / name, os.X_OK)
    run("shellcheck", DEPLOY / name)

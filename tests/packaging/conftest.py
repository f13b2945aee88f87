"""Packages that are built once for all tests, and roots to install them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import bare_debian, debian_root

TOP = Path(__file__).parents[2]
LONG = os.environ.get("BPBROKER_LONG") == "1"
PYTHONS = ("3.11", "3.13") if LONG else ("3.11",)
"""Debian 12 in each run, Debian 13 too where there is time."""


@dataclass(frozen=True)
class Packages:
    """Two versions of the packages, of the same code."""

    python: str
    wheels: Path
    first: Path
    second: Path
    client: Path


def build(program: str, *words: str | Path, **environ: str) -> list[Path]:
    """Run a program of deploy/ and return the files that it names."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PATH", "HOME", "PIP", "SSL", "TMP"))}
    done = subprocess.run(
        [TOP / "deploy" / program, *words],
        env={**kept, "PYTHON": sys.executable, **environ},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def with_revision(package: Path, revision: int) -> Path:
    """Make the same package with a later version beside it; return it."""
    made = Path(str(package).replace("-1~deb", f"-{revision}~deb"))
    work = package.parent / "work"
    subprocess.run(["dpkg-deb", "-R", package, work], check=True, timeout=120)
    control = work / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("-1~deb", f"-{revision}~deb"))
    quick = ("-Zgzip", "-z1")
    subprocess.run(["dpkg-deb", *quick, "-b", work, made], check=True, timeout=120, stdout=subprocess.DEVNULL)
    shutil.rmtree(work)
    return made


@pytest.fixture(scope="session", params=PYTHONS)
def python(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="session")
def wheels(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    build("build-wheels", "--python", python, folder)
    return folder


@pytest.fixture(scope="session")
def packages(python: str, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not here")
    folder = tmp_path_factory.mktemp("debs")
    # No index is asked: it would not answer.
    nowhere = {"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_EXTRA_INDEX_URL": ""}
    first, client = build("build-deb", "--python", python, "--wheels", wheels, folder, **nowhere)
    second = with_revision(first, 2)
    return Packages(python, wheels, first, second, client)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of packed roots, which are made once and kept where that is asked for."""
    problem = debian_root.missing()
    if problem:
        pytest.skip(problem)
    place = os.environ.get(bare_debian.PLACE)
    return Path(place) / "packed" if place else tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="session")
def packed_root(python: str, kept: Path) -> Path:
    return debian_root.archive(python, kept)


@pytest.fixture(scope="session")
def packed_host(python: str, kept: Path) -> Path:
    """Return a packed root that can make virtual environments."""
    return debian_root.archive(python, kept, "python3-venv")


@pytest.fixture
def root(packed_root: Path) -> Iterator[debian_root.Root]:
    with debian_root.unpacked(packed_root) as made:
        yield made

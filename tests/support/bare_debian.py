"""The root of a bare Debian: its base system and its Python 3.9, no pip. Made by debootstrap once, and kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

SUITE: Final = "bullseye"
PLACE: Final = "BPBROKER_DEBIAN"
"""The folder in which it is kept; without this variable a test that needs one is skipped."""
_MAKE_SECS: Final = 240


class BareDebian:
    """A bare Debian, and a folder in it that is this test's own.

    Args:
        root: where it is.
        folder: on this host.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder

    def shell(self, script: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a script in the folder, with nothing but this environment."""
        words = ("chroot", str(self.root), "/bin/sh", "-c", f'cd "$1" && {script}', "sh")
        return subprocess.run(
            [*words, f"/{self.folder.relative_to(self.root)}"],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environ},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@contextmanager
def bare_debian() -> Iterator[BareDebian]:
    """Yield one; skip the test where none can be made."""
    place = os.environ.get(PLACE)
    if not place:
        pytest.skip(f"{PLACE} does not name a folder for a Debian, which takes half a minute to make")
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("a Debian is made by root, with debootstrap")
    root = _made(Path(place))
    folder = Path(tempfile.mkdtemp(dir=root / "tmp"))
    try:
        yield BareDebian(root, folder)
    finally:
        shutil.rmtree(folder)


def _made(place: Path) -> Path:
    """Return the root, which is made whole or not at all."""
    root = place / SUITE
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            making = Path(tempfile.mkdtemp(dir=place))
            try:
                _make(making / SUITE)
                (making / SUITE).rename(root)
            finally:
                shutil.rmtree(making)
    return root


def _make(root: Path) -> None:
    words = ("debootstrap", "--variant=minbase", "--include=python3", SUITE, str(root))
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_MAKE_SECS, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("Debian's packages did not come in time")
    if done.returncode != 0:
        pytest.skip(f"no Debian could be made here: {(done.stdout + done.stderr).strip().splitlines()[-1:]}")
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)

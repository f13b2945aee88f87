"""Trees that look like the root of a Linux system, with programs that record how they were called."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

_RECORDER = '#!/bin/sh\necho "${0##*/} $*" >>/calls\n'


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of trees into which one can chroot; the named programs only record their arguments in /calls."""

    def make(*programs: str, folders: tuple[str, ...] = ("etc/init.d",)) -> Path:
        root = tmp_path / "root"
        for folder in ("etc", "bin", "usr/sbin", *folders):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nbroker:x:4321:4322::/:/usr/sbin/nologin\n")
        _copy_with_libraries(Path("/bin/sh").resolve(), root, "bin/sh")
        for program in programs:
            path = root / "usr" / "sbin" / program
            path.write_text(_RECORDER)
            path.chmod(0o755)
        return root

    return make


def _copy_with_libraries(program: Path, root: Path, to: str) -> None:
    shutil.copy(program, root / to)
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True, timeout=30).stdout
    for word in listed.split():
        if word.startswith("/"):
            (root / word[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(word).resolve(), root / word[1:])


@pytest.fixture
def calls() -> Callable[[Path], list[str]]:
    """Return what reads the calls that a tree's programs recorded."""

    def read(root: Path) -> list[str]:
        path = root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    return read

"""A control group of the tests' own, in the real hierarchy (Linux, cgroup v2, as root)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.systems import is_root


def _mounted() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(point)
    return None


@contextmanager
def control_group(folder: Path) -> Iterator[Path]:
    """Make a group, and at the end kill what is in it and remove it; skips the test where that is impossible.

    Args:
        folder: where a hierarchy is mounted if there is none.
    """
    if sys.platform != "linux" or not is_root():
        pytest.skip("needs root and Linux")
    top, mounted = _mounted(), False
    if top is None:
        mounted = subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=False).returncode == 0
        top = folder
    made = top / f"bpbroker-tests-{uuid.uuid4().hex[:8]}"
    try:
        try:
            made.mkdir()
        except OSError as error:
            pytest.skip(f"no cgroup v2 that can be written: {error}")
        if not (made / "cgroup.kill").exists():
            pytest.skip("no cgroup.kill: Linux before 5.14")
        yield made
        (made / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 30
        while "populated 1" in (made / "cgroup.events").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        for each, _, _ in os.walk(made, topdown=False):
            with suppress(FileNotFoundError):
                Path(each).rmdir()
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)

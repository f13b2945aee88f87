"""Roots of Debian systems, made by mmdebstrap and kept in a cache, in which packages are installed for real."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.support.systems import is_root

SUITES: Final = {"3.11": "bookworm", "3.13": "trixie"}
_PACKAGES: Final = "adduser,init-system-helpers,libc6,procps,python3"
# invoke-rc.d refuses where no init system runs and no policy says otherwise.
_POLICY: Final = "#!/bin/sh\nexit 0\n"


def missing() -> str:
    """Return what keeps this host from making roots; empty when nothing does."""
    if not is_root():
        return "only root can make a root of another system"
    absent = [program for program in ("mmdebstrap", "chroot", "mount", "dpkg-deb") if shutil.which(program) is None]
    return f"{', '.join(absent)} not found" if absent else ""


def archive(python: str, cache: Path, *more: str) -> Path:
    """Return a root of the release with this Python, packed; make it first when the cache has none (30 s).

    Args:
        python: version of Python, such as ``3.11``.
        cache: where packed roots are kept.
        more: packages that the root has as well.
    """
    made = cache / f"{'-'.join((SUITES[python], *more))}-{hashlib.sha256(_PACKAGES.encode()).hexdigest()[:8]}.tar"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        words = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join((_PACKAGES, *more))}",
            SUITES[python],
        ]
        part = made.with_suffix(f".{os.getpid()}")  # another run may be making it, too
        with part.open("wb") as file:
            subprocess.run([*words, "-"], stdout=file, check=True, timeout=280)
        part.replace(made)
    return made


class Root:
    """A root to work in; its processes are this system's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, inside: str) -> Path:
        return self.folder / inside.lstrip("/")

    def run(self, *words: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a program inside."""
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            ["chroot", str(self.folder), *words],
            env={**environ, "HOME": "/root"},
            cwd="/",
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def do(self, *words: str, stdin: str = "") -> str:
        """Run a program inside that has to succeed; return what it printed."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def add(self, file: Path) -> str:
        """Copy a file to inside and return its path there."""
        to = self.path(f"/root/{file.name}")
        if not to.exists():
            shutil.copy(file, to)
        return f"/root/{file.name}"

    def processes(self) -> list[int]:
        """Return the processes that run inside."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                inside = (folder / "root").readlink()
            except OSError:
                continue
            if inside == self.folder:
                found.append(int(folder.name))
        return found


@contextmanager
def unpacked(packed: Path) -> Iterator[Root]:
    """Yield a root of its own, with /proc; what still runs in it is ended afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="root-"))
    folder.chmod(0o755)
    root = Root(folder)
    try:
        subprocess.run(["tar", "-x", "-f", packed, "-C", folder, "--numeric-owner"], check=True, timeout=120)
        policy = root.path("/usr/sbin/policy-rc.d")
        policy.write_text(_POLICY)
        policy.chmod(0o755)
        subprocess.run(["mount", "-t", "proc", "proc", folder / "proc"], check=True, timeout=60)
        yield root
    finally:
        deadline = time.monotonic() + 60
        while (left := root.processes()) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        subprocess.run(["umount", folder / "proc"], check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)

"""Wheels: of this checkout, and of all that it needs, for the Python and the architecture of a package."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpbroker import stamp

TOP: Final = Path(__file__).parents[2]
SOURCES: Final = ("bpbroker", "deploy", "pyproject.toml", "setup.py", "README.md")
EXTRAS: Final = "etcd,render"
"""A package has no pip to add them later."""

CLIENT_WHEELS: Final = "client"
"""Folder of the wheels that go into the client's one file, among the wheels."""

SHIPPED: Final = TOP / "deploy/shipped-constraints.txt"
"""Versions that may be given to others."""

MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's name of an architecture to that of wheels, of Red Hat and of the kernel."""
ELF_MACHINES: Final = {"amd64": 62, "arm64": 183}
"""The field ``e_machine`` of a program's head; see elf(5)."""


class BuildError(Exception):
    """What keeps a package from being built, in words for whom builds it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a package is for."""

    python: str
    """As in ``3.11``."""
    architecture: str
    """Debian's name."""
    glibc_minor: int = 36
    """Of the oldest C library 2.x that the package is to run with; Debian 12 has 2.36."""

    def pip_options(self) -> list[str]:
        """Return the options that make pip choose the wheels of this target."""
        machine = MACHINES[self.architecture]
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(self.glibc_minor, 4, -1)] + [
            f"manylinux2014_{machine}"
        ]
        options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", self.python]
        return options + [word for tag in tags for word in ("--platform", tag)]

    @property
    def glibc(self) -> str:
        """Return the oldest C library that such a package runs with."""
        return f"2.{self.glibc_minor}"


def own_architecture() -> str:
    """Return Debian's name of this machine's architecture.

    Raises:
        BuildError: no packages are made for it.
    """
    machine = platform.machine()
    for name, known in MACHINES.items():
        if known == machine:
            return name
    raise BuildError(f"No packages are made for {machine}; there are those for {', '.join(MACHINES)}")


def pip(*words: str | Path) -> None:
    """Run pip.

    Raises:
        BuildError: it failed.
    """
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if done.returncode != 0:
        raise BuildError(f"pip {words[0]} failed:\n{done.stdout}{done.stderr}".rstrip())


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout into a folder and return it."""
    with tempfile.TemporaryDirectory() as work:
        # From a copy: setuptools would leave a build folder, whose old files get into the next wheel.
        for name in SOURCES:
            if (TOP / name).is_dir():
                shutil.copytree(TOP / name, Path(work, name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(TOP / name, work)
        # The copy has no git's files.
        (Path(work, "bpbroker") / stamp.FILE).write_text(stamp.stamp(TOP), encoding="ascii")
        pip("wheel", "--no-deps", "--wheel-dir", folder, work)
    return own_wheel(folder)


def own_wheel(folder: Path) -> Path:
    """Return bpbroker's wheel in a folder.

    Raises:
        BuildError: there is none, or more than one.
    """
    found = sorted(folder.glob("bpbroker-*.whl"))
    if len(found) != 1:
        raise BuildError(f"{folder} must have one wheel of bpbroker, but has {len(found)}")
    return found[0]


def gather(folder: Path, target: Target) -> None:
    """Fill a folder with bpbroker's wheel and those of all that it needs; asks pip's index."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(folder)
    pip("download", "--dest", folder, "--constraint", SHIPPED, *target.pip_options(), f"{wheel}[{EXTRAS}]")
    # As build-zipapp takes them: those that Python 3.9 can use.
    oldest = ("--only-binary", ":all:", "--python-version", "3.9", "--implementation", "py", "--abi", "none")
    libraries = ("click>=8.1,<8.2", "colorama", "ifaddr")
    pip("download", "--dest", folder / CLIENT_WHEELS, *oldest, "--platform", "any", *libraries)


def install(wheels: Path, to: Path, target: Target) -> None:
    """Unpack bpbroker and all that it needs from a folder of wheels; asks no index and runs nothing of it.

    Raises:
        BuildError: a wheel is missing, or has machine code of another architecture.
    """
    wheel = own_wheel(wheels)
    offline = ("--no-index", "--find-links", wheels)
    pip("install", *offline, "--no-compile", "--target", to, *target.pip_options(), f"{wheel}[{EXTRAS}]")
    for apart in ("bin", "share"):  # a package puts programs and pages where they belong
        shutil.rmtree(to / apart, ignore_errors=True)
    for path in sorted(to.rglob("*.so")):
        head = path.read_bytes()[:20]
        if head[:4] != b"\x7fELF" or int.from_bytes(head[18:20], "little") != ELF_MACHINES[target.architecture]:
            raise BuildError(f"{path.relative_to(to)} is not for {target.architecture}")


def metadata_of(wheel: Path) -> str:
    """Return the METADATA file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a :class:`Target`."""
    parser.add_argument("--python", default="3.11", choices=("3.11", "3.13"), help="the target's Python (3.11)")
    parser.add_argument("--architecture", default=None, choices=sorted(MACHINES), help="default: that of this machine")


def target_of(arguments: argparse.Namespace) -> Target:
    """Return the target that the options choose."""
    return Target(arguments.python, arguments.architecture or own_architecture())


def main() -> None:
    """Gather wheels, as the command line says."""
    os.umask(0o022)
    parser = argparse.ArgumentParser(prog="build-wheels", description="Gather the wheels that a package is built from.")
    add_target_options(parser)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        gather(arguments.folder, target_of(arguments))
    except BuildError as error:
        sys.exit(f"build-wheels: {error}")
    print(arguments.folder)  # noqa: T201 - a program's result


if __name__ == "__main__":
    main()

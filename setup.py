"""Write commit and day of the build into the wheel; everything else is in pyproject.toml."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
_FILE = HERE / "bpbroker" / "_stamp.txt"


def _stamp() -> str:
    """Return the stamp; an unpacked source distribution has brought its own."""
    if _FILE.exists():
        return _FILE.read_text(encoding="ascii")
    text: str = runpy.run_path(str(HERE / "bpbroker" / "stamp.py"))["stamp"](HERE)
    return text


class StampedBuild(build_py):
    """The copying of modules, and the stamp beside them."""

    def run(self) -> None:
        """Copy, then stamp; an editable install goes on saying what is checked out."""
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, "bpbroker", _FILE.name).write_text(_stamp(), encoding="ascii")


class StampedSource(sdist):
    """The source distribution, which has no git's files, with the stamp."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Make the tree, then stamp it."""
        super().make_release_tree(base_dir, files)
        Path(base_dir, "bpbroker", _FILE.name).write_text(_stamp(), encoding="ascii")


setup(cmdclass={"build_py": StampedBuild, "sdist": StampedSource})

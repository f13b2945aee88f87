"""Which code this is: version, commit and day of the build, for ``--version``.

Building a wheel, or the client in one file, writes ``_stamp.txt`` into the
package: commit and day in one line. A checkout has none; there the commit is
read from git's own files, for which no git has to be installed.
"""

from __future__ import annotations

import os
import pkgutil
import re
import time
from pathlib import Path
from typing import Final

FILE: Final = "_stamp.txt"
_SHOWN: Final = 12
"""Digits of a commit; enough for any project."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_UNKNOWN: Final = "unknown"


def version() -> str:
    """Return the version with what is known of the build, such as ``1.0.0 (commit 1a2b3c4d5e6f, built 2026-11-27)``."""
    from bpbroker import __version__

    return f"{__version__} ({build()})"


def build() -> str:
    """Return what is known of the build, without the version."""
    try:
        stamped = pkgutil.get_data("bpbroker", FILE)
    except OSError:
        stamped = None
    if stamped is not None:
        commit, _, day = stamped.decode("ascii", "replace").strip().partition(" ")
        return f"commit {commit or _UNKNOWN}, built {day or _UNKNOWN}"
    return f"commit {commit_of(Path(__file__).parent.parent) or _UNKNOWN}, not built"


def commit_of(checkout: Path) -> str:
    """Return the commit that is checked out in a folder, shortened; empty where this cannot be told."""
    try:
        found = _head(checkout / ".git")
    except (OSError, UnicodeError):
        return ""
    return found[:_SHOWN] if _COMMIT.fullmatch(found) else ""


def _head(git: Path) -> str:
    if git.is_file():  # of a worktree or a submodule
        git = (git.parent / git.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")).resolve()
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    common = git / "commondir"
    folders = [git, git / common.read_text(encoding="utf-8").strip()] if common.is_file() else [git]
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8").strip()
        packed = folder / "packed-refs"
        for line in packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else ():
            commit, _, named = line.partition(" ")
            if named == name:
                return commit
    return ""


def stamp(checkout: Path) -> str:
    """Return the content of the file, for a build from this folder.

    ``BPBROKER_COMMIT`` names the commit where the folder is a copy without git's
    files; ``SOURCE_DATE_EPOCH`` sets the day, so that builds can be repeated.
    """
    commit = os.environ.get("BPBROKER_COMMIT", "")[:_SHOWN] or commit_of(checkout) or _UNKNOWN
    moment = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
    return f"{commit} {time.strftime('%Y-%m-%d', moment)}\n"


if __name__ == "__main__":
    print(stamp(Path(__file__).parent.parent), end="")  # noqa: T201 - for build scripts

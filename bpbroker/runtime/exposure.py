"""Whose code and whose files a broker trusts: what other users could change, and through it this process.

Root that works in another user's folder does what that user likes: it follows
links, makes and gives away files. Code that another user may write to runs
with the rights of the broker.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import bpbroker
from bpbroker import foreign_folders
from bpbroker.errors import StartError
from bpbroker.extensions import modules


def see_that_it_may_start(own: Path) -> None:
    """Check that a broker run by root does not work on a configuration of another user's.

    Args:
        own: the configuration file; need not exist.

    Raises:
        StartError: it would; the message says how to run it as that user.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return
    folder = next(folder for folder in own.parents if folder.exists())
    for path in (folder, own):
        uid = path.stat().st_uid if path.exists() else 0
        if uid:
            name = _user(uid)
            command = shlex.join(("runuser", "-u", name, "--", "bpbroker", "--config", str(own), "start"))
            raise StartError(
                f"{path} belongs to {name}, so root starts no broker on it: it would follow links that are put there."
                f"\nStart it as that user:\n  {command}\nor give the folder to root."
            )


def _suspects() -> Iterator[Path]:
    """Yield the folders of all modules that this process has loaded, and those of their files that look open."""
    found = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    files_of = {name for name in found if isinstance(name, str)}
    # Text, as a path object for each of hundreds of files takes longer than looking at them.
    yield from map(Path, sorted({os.path.dirname(file) for file in files_of}))  # noqa: PTH120 - see above
    for file in sorted(files_of):
        with suppress(OSError):  # such as what is in an archive
            mode = os.lstat(file).st_mode
            if stat.S_ISLNK(mode) or mode & (stat.S_IWOTH | stat.S_IWGRP):
                yield Path(file)


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def exposed_code(lib: Path, namespaces: Iterable[str], trusted: Iterable[int] | None = None) -> Iterator[str]:
    """Say which code that a broker runs other users could change, a sentence each.

    Args:
        lib: the folder of extension modules.
        namespaces: the extensions that are enabled.
        trusted: numbers of the users who may; root and this process's user by default.
    """
    if sys.platform == "win32":
        return
    users = tuple(trusted) if trusted is not None else (0, os.geteuid())
    told: set[Path] = set()
    named: set[str] = set()
    program = Path(bpbroker.__file__).parent
    for what, path in (
        ("the program", program),
        ("its Python", Path(sys.executable)),
        ("its Python's modules", Path(sys.prefix)),
        *(("its modules", path) for path in _suspects()),
        ("the lib folder", lib),
        *((f"the extension {name}", found) for name in namespaces if (found := modules.find(name, lib)) is not None),
    ):
        try:
            open_to_others = foreign_folders.exposed(path, users) if path.exists() else None
        except OSError:  # this user may not look there; a warning that cannot be given ends nothing
            continue
        # Where another user owns all modules, one of them is said.
        if open_to_others is not None and open_to_others not in told and what not in named:
            told.add(open_to_others)
            named.add(what)
            yield f"Other users can write to {open_to_others}, and so change {what}, which has the broker's rights"

r"""Where the broker's files are: the home folder and what it holds.

Home is ``/usr/local/bpbroker`` (``%ProgramFiles%\bpbroker`` on Windows);
``BPBROKER_HOME`` moves it. It holds ``etc/bpbroker.json``, ``lib/`` (extension
modules), ``backups/`` and, on Windows, ``bin/nssm.exe``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bpbroker import windows

FILE_NAME = "bpbroker.json"


@dataclass(frozen=True, slots=True)
class Home:
    """The home folder."""

    folder: Path
    passed_over: Path | None = None
    """The system's home, when it is there but this user may not write in it."""

    @property
    def notice(self) -> str:
        """A message for the user about this choice; may be empty."""
        if self.passed_over is None:
            return ""
        return (
            f"{self.passed_over} may not be written to by this user, so {self.folder} is used;"
            " --config FILE or BPBROKER_HOME chooses another place"
        )

    @property
    def config_file(self) -> Path:
        """The global configuration file."""
        return self.folder / "etc" / FILE_NAME

    @property
    def lib(self) -> Path:
        """The folder of extension modules."""
        return self.folder / "lib"

    @property
    def backups(self) -> Path:
        """The folder of backups."""
        return self.folder / "backups"


def system_home(environ: Mapping[str, str]) -> Path:
    """Return the system-wide home of this platform, ``BPBROKER_HOME`` first."""
    if environ.get("BPBROKER_HOME"):
        return Path(environ["BPBROKER_HOME"])
    if sys.platform == "win32":
        return Path(environ.get("ProgramFiles", r"C:\Program Files")) / "bpbroker"
    return Path("/usr/local/bpbroker")


def user_home(environ: Mapping[str, str]) -> Path:
    """Return a plain user's own home for the broker (XDG base directories)."""
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "bpbroker"
    data = environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data.startswith("/") else Path.home() / ".local" / "share") / "bpbroker"


def find_home(environ: Mapping[str, str] = os.environ, *, for_file: bool = False) -> Home:
    """Return the home to use.

    A plain user who cannot write in the system's home, or cannot make it, gets
    their own data folder, so that ``bpbroker start`` works for each user.

    Args:
        environ: the environment.
        for_file: whether the configuration file is named by ``--config``: then only its global file and its extension
            modules are read there, and a home that is there will do.
    """
    system = system_home(environ)
    there = os.path.lexists(system)
    if environ.get("BPBROKER_HOME") or (there and (for_file or not _is_shut(system))):
        return Home(system)
    if not there and _may_make(system):
        return Home(system)
    try:
        own = user_home(environ)
    except RuntimeError:  # no HOME and no such user, as in a bare container: --config says where to go
        return Home(system)
    if not there:
        return Home(own)
    if sys.platform == "win32":  # a user's own folder is the user's
        return Home(own, passed_over=system)
    return Home(own, passed_over=system) if os.access(_nearest(own / "etc" / FILE_NAME), os.W_OK) else Home(system)


def _is_shut(system: Path) -> bool:
    """Whether the system's home is there but this plain user can keep no configuration in it."""
    folder = system / "etc"
    if sys.platform == "win32":  # to os.access every folder is writable there
        return not windows.is_administrator() and not windows.may_add_to(folder if folder.exists() else system)
    if os.geteuid() == 0:  # to root it is the right place even on a read-only file system
        return False
    return not os.access(folder if os.access(folder, os.F_OK) else system, os.W_OK)


def _may_make(system: Path) -> bool:
    if sys.platform == "win32":
        return windows.is_administrator()
    return os.access(_nearest(system), os.W_OK)


def _nearest(path: Path) -> Path:
    """Return the nearest folder above ``path`` that exists."""
    return next((folder for folder in path.parents if os.access(folder, os.F_OK)), Path(path.anchor))

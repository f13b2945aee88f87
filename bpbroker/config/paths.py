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
from pathlib import Path, PurePath, PureWindowsPath

from bpbroker import windows

FILE_NAME = "bpbroker.json"


@dataclass(frozen=True, slots=True)
class Home:
    """The home folder."""

    folder: Path

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


def system_home(environ: Mapping[str, str], *, on_windows: bool = sys.platform == "win32") -> PurePath:
    """Return the system-wide home of this platform, ``BPBROKER_HOME`` first."""
    if environ.get("BPBROKER_HOME"):
        return PureWindowsPath(environ["BPBROKER_HOME"]) if on_windows else Path(environ["BPBROKER_HOME"])
    if on_windows:
        return PureWindowsPath(environ.get("ProgramFiles", r"C:\Program Files")) / "bpbroker"
    return Path("/usr/local/bpbroker")


def user_home(environ: Mapping[str, str]) -> Path:
    """Return a plain user's own home for the broker (XDG base directories)."""
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "bpbroker"
    data = environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data.startswith("/") else Path.home() / ".local" / "share") / "bpbroker"


def find_home(environ: Mapping[str, str] = os.environ) -> Home:
    """Return the home to use.

    A plain user for whom the system's home does not exist and cannot be made
    gets their own data folder, so that ``bpbroker start`` works for everybody.
    """
    system = Path(system_home(environ))
    if environ.get("BPBROKER_HOME") or system.exists() or _may_make(system):
        return Home(system)
    try:
        return Home(user_home(environ))
    except RuntimeError:  # no HOME and no such user, as in a bare container: --config says where to go
        return Home(system)


def _may_make(system: Path) -> bool:
    if sys.platform == "win32":  # to os.access every folder is writable there
        return windows.is_administrator()
    return os.access(_nearest(system), os.W_OK)


def _nearest(path: Path) -> Path:
    """Return the nearest folder above ``path`` that exists."""
    return next((folder for folder in path.parents if folder.exists()), Path(path.anchor))

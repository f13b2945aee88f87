"""Plans: what installing or removing a service will do, step by step, before anything is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class Service:
    """The service to install or remove."""

    name: str
    program: tuple[str, ...]
    """How ``bpbroker`` is started, without options."""
    config: PurePath
    home: PurePath
    user: str = ""
    """The user that it runs as; empty is root (LocalSystem on Windows)."""
    needs_home_folders: bool = False
    """Whether the program itself lies in a user's home folder."""

    @property
    def backups(self) -> PurePath:
        """The folder of backups; see :func:`bpbroker.storage.backups.folder_for`."""
        parent = self.config.parent
        return (parent.parent if parent.name == "etc" else parent) / "backups"

    def prepare(self) -> Run:
        """Return the step that makes configuration and certificate where they are missing."""
        argv = (*self.program, "--config", str(self.config), "prepare")
        return Run(argv, "make configuration and certificate, if they are not there")


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """Make a folder, or give the one that is there this mode and owner."""

    path: PurePath
    mode: int
    owner: str = "root"

    def __str__(self) -> str:
        return f"make the folder {self.path} (mode {self.mode:04o}, owner {self.owner})"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Write a file whole; nothing happens when it is as it should be."""

    path: PurePath
    content: str
    mode: int

    def __str__(self) -> str:
        return f"write {self.path} (mode {self.mode:04o})"


@dataclass(frozen=True, slots=True)
class SetAside:
    """Rename a file that we did not make, so that its place is free."""

    path: PurePath
    to: PurePath

    def __str__(self) -> str:
        return f"keep the {self.path} that is there, which is not ours, as {self.to}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a file, or a folder with all that is in it, if it is there."""

    path: PurePath
    only_if_empty: bool = False

    def __str__(self) -> str:
        return f"remove {self.path}" + (" if it is empty" if self.only_if_empty else "")


@dataclass(frozen=True, slots=True)
class Run:
    """Run a program."""

    argv: tuple[str, ...]
    purpose: str
    may_fail: bool = False

    def __str__(self) -> str:
        return f"{self.purpose}: {' '.join(_quoted(word) for word in self.argv)}"


@dataclass(frozen=True, slots=True)
class Adopt:
    """Make the service's user the owner of files."""

    paths: tuple[PurePath, ...]
    owner: str

    def __str__(self) -> str:
        return f"give {', '.join(map(str, self.paths))} to {self.owner}"


Step = MakeFolder | WriteFile | SetAside | Remove | Run | Adopt


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, and notes for the operator when they are done."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


def _quoted(word: str) -> str:
    return f'"{word}"' if not word or any(character in ' \t"*' for character in word) else word

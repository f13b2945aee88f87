"""The present state of this machine, or of another one's file tree, into which a service is installed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bpbroker import files
from bpbroker.errors import ConfigurationError
from bpbroker.service.templates import MARK

_TOOLS = ("systemctl", "update-rc.d", "chkconfig")
_TOOL_FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin", "usr/local/bin")
_LINKS_MAX = 40


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about a Linux system; its paths are those under ``root``."""

    root: Path
    tools: frozenset[str]
    """Which of ``systemctl``, ``update-rc.d`` and ``chkconfig`` it has."""
    systemd: bool
    """Whether systemd runs it (or, under another root, will)."""
    init_folder: Path | None
    users: frozenset[str]

    @property
    def foreign(self) -> bool:
        """Whether this is a tree and not the running system."""
        return self.root != Path("/")

    def path(self, inside: str) -> Path:
        """Return the real location of a path of the machine; links are followed as the machine itself would."""
        return within(self.root, inside)

    def command(self, *argv: str) -> tuple[str, ...]:
        """Return the command line that runs a program of the machine's."""
        return ("chroot", str(self.root), *argv) if self.foreign else argv


def look(root: Path) -> Machine:
    """Find out about the system whose root folder this is."""
    tools = frozenset(
        tool for tool in _TOOLS if any(os.access(within(root, f"{folder}/{tool}"), os.X_OK) for folder in _TOOL_FOLDERS)
    )
    if root == Path("/"):
        systemd = Path("/run/systemd/system").is_dir()
    else:
        systemd = any(within(root, path).exists() for path in ("lib/systemd/systemd", "usr/lib/systemd/systemd"))
    folder = next((path for name in ("etc/init.d", "etc/rc.d/init.d") if (path := within(root, name)).is_dir()), None)
    if folder is None and tools & {"update-rc.d", "chkconfig"}:
        folder = within(root, "etc/init.d")
    return Machine(root, tools, systemd, folder, frozenset(_users(within(root, "etc/passwd"))))


def within(root: Path, inside: str) -> Path:
    """Return ``inside`` as a path under ``root``, following symbolic links as if ``root`` were ``/``.

    An image's ``/etc/init.d`` may be a link to ``/etc/rc.d/init.d``; taken
    as it stands, it would lead out of the image into this system.

    Raises:
        ConfigurationError: links lead in a circle, or another user may have put one there.
    """
    todo = [part for part in reversed(inside.split("/")) if part not in ("", ".")]
    here: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            here = here[:-1]
            continue
        path = root.joinpath(*here, part)
        if path.is_symlink():
            if files.untrusted(path.parent):
                raise ConfigurationError(f"{path} is a link, in a folder that another user may write to; remove it")
            links += 1
            if links > _LINKS_MAX:
                raise ConfigurationError(f"{root / inside}: too many symbolic links")
            target = str(path.readlink())
            here = [] if target.startswith("/") else here
            todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        else:
            here.append(part)
    return root.joinpath(*here)


def is_ours(path: Path) -> bool:
    """Whether install-service wrote this file."""
    try:
        return MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _users(passwd: Path) -> list[str]:
    try:
        lines = passwd.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.split(":", 1)[0] for line in lines if ":" in line]

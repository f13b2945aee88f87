"""The files in ``deploy/``, filled in for one service; each format has its own way to quote."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

import bpbroker
from bpbroker.errors import ConfigurationError

if TYPE_CHECKING:
    from bpbroker.service.steps import Service

MARK = "Written by `bpbroker install-service`"
"""A file with this in it is ours: it may be overwritten or removed."""

PACKAGED = "Of the package bpbroker, which overwrites it when it is upgraded."
"""What stands there instead in the files of a Debian or RPM package."""

_PLACE = re.compile(r"@([A-Z_]+)@")
_RECORD = re.compile(r"^# Configuration: (?P<config>/.*)\n# Runs as: (?P<user>.+)$", re.MULTILINE)


def template(name: str) -> str:
    """Return a file of ``deploy/``: inside the installed package, or beside it in a checkout."""
    installed = resources.files(bpbroker) / "deploy" / name
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    return (Path(bpbroker.__file__).parent.parent / "deploy" / name).read_text(encoding="utf-8")


def fill(text: str, values: dict[str, str]) -> str:
    """Put values into ``@NAME@`` places; every place must have one."""
    return _PLACE.sub(lambda place: values[place[1]], text)


def init_script(service: Service) -> str:
    """Return the System V init script."""
    return fill(
        template("bpbroker.init"),
        {
            "NAME": service.name,
            "CONFIG": shlex.quote(str(service.config)),
            "CONFIG_PATH": str(service.config),
            "HOME": shlex.quote(str(service.home)),
            "USER": shlex.quote(service.user),
            "RUNS_AS": service.user or "root",
            "PROGRAM": shlex.join(service.program),
        },
    )


def unit(service: Service) -> str:
    """Return the systemd unit."""
    # A folder that is not there would keep the unit from starting; without the one of backups the broker can serve.
    folders = (str(service.config.parent), f"-{service.backups}")
    command = [*service.program, "--config", str(service.config)]
    return fill(
        template("bpbroker.service"),
        {
            "NAME": service.name,
            "COMMAND": " ".join(_word(word).replace("$", "$$") for word in command),
            "CONFIG_PATH": str(service.config),
            "HOME_VARIABLE": _word(f"BPBROKER_HOME={service.home}"),
            "USER": service.user or "root",
            "WRITABLE": " ".join(_word(folder) for folder in folders),
            "PROTECT_HOME": "read-only" if service.needs_home_folders else "yes",
        },
    )


@dataclass(frozen=True, slots=True)
class Recorded:
    """The options that a service was installed with, as its own file says."""

    config: PurePath
    user: str
    """Empty is root."""


def recorded(content: str) -> Recorded | None:
    """Read them from an init script or a unit; None when it is not ours, or an earlier version did not write them."""
    found = _RECORD.search(content) if MARK in content else None
    if found is None:
        return None
    return Recorded(PurePosixPath(found["config"]), "" if found["user"] == "root" else found["user"])


def check_plain(path: str) -> None:
    """Refuse what no service file can hold.

    Raises:
        ConfigurationError: the path has a control character in it.
    """
    if any(ord(character) < 32 for character in path):
        raise ConfigurationError(f"The path {path!r} has a control character in it; no service can use it")


def _word(text: str) -> str:
    """Quote one word of a unit file (systemd.syntax(7)); ``%`` would be replaced, and ``$`` in a command line."""
    plain = text.replace("%", "%%")
    if not re.search(r"[\s\"'\\;]", plain):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

"""The files that a service's broker keeps: configuration, journal, certificate, backups, logs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePath

from bpbroker.service.steps import Plan, Remove, Service, Step

Where = Callable[[str], Path]
"""Function of a path of the machine to its real location: another one when the machine is a tree elsewhere."""


def config_patterns(config: PurePath) -> list[str]:
    """Return the names, as shell patterns, of what a broker keeps in the folder of its configuration."""
    # With what `certificate --renew` and a broker in the background leave beside them.
    ends = ("crt", "crt.old", "crt.staged", "key", "key.old", "key.staged", "log", "log.?")
    return [
        config.name,
        *(f"{config.name}.{end}" for end in ("lock", "sock", "journal*", "revisions*", "etcd*", "answers*", "*.tmp")),
        *(f"{config.stem}.{end}" for end in ends),
        *(f"{config.stem}.{end}.*.tmp" for end in ("crt*", "key*")),
    ]


def backups_patterns(config: PurePath) -> list[str]:
    """Return the names, as shell patterns, of what a broker keeps in its folder of backups."""
    return [
        f"{config.stem}-????????T??????.*Z.json",
        f"{config.name}*.*.tmp",
        f"{config.stem}-*.tmp",
        # What a restore or a start put aside, also a key.
        *(f"{config.stem}.*.{why}-????????T??????.*Z" for why in ("damaged", "edited", "older", "other", "replaced")),
    ]


def files_of(service: Service, where: Where) -> list[Path]:
    """Return the files of this configuration that are there, its backups included."""
    config, backups = where(str(service.config)), where(str(service.backups))
    return [
        *(path for pattern in config_patterns(config) for path in _matching(config.parent, pattern)),
        *(path for pattern in backups_patterns(config) for path in _matching(backups, pattern)),
    ]


def logs_of(log_file: PurePath, where: Where) -> list[Path]:
    """Return the service's log file and those that rotation left beside it."""
    return _matching(where(str(log_file.parent)), f"{log_file.name}*")


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Return the paths that are there; none where this user may not look, as in a rehearsal."""
    return sorted(folder.glob(pattern)) if os.access(folder, os.R_OK | os.X_OK) else []


def _folders_of(service: Service, where: Where) -> list[Path]:
    """Return the folders that go when nothing is left in them, inner ones first."""
    config, home = where(str(service.config)), where(str(service.home))
    folders = [where(str(service.backups)), config.parent]
    if config.is_relative_to(home):
        folders += [home / "lib", home]
    return list(dict.fromkeys(folders))


def left_by_purge(service: Service, where: Where) -> dict[Path, tuple[str, ...]]:
    """Return what a purge leaves in this service's folders, names by folder: files of others, extension modules."""
    folders = _folders_of(service, where)
    gone = {*files_of(service, where), *folders, where(str(service.home)) / "lib" / "__pycache__"}
    left = {folder: tuple(path.name for path in _matching(folder, "*") if path not in gone) for folder in folders}
    return {folder: names for folder, names in left.items() if names}


def plan_purge(service: Service, logs: PurePath, where: Where) -> Plan:
    """Return the steps that remove all data; folders only when no other files are left in them."""
    home = where(str(service.home))
    folders = _folders_of(service, where)
    steps: list[Step] = [Remove(path) for path in files_of(service, where)]
    steps += [Remove(where(str(logs))), Remove(home / "lib" / "__pycache__")]
    steps += [Remove(folder, only_if_empty=True) for folder in folders]
    return Plan(tuple(steps), ("Configuration, entries, backups and logs of this broker are gone.",))

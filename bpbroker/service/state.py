"""The files that a service's broker keeps: configuration, journal, certificate, backups, logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath

from bpbroker.service.plan import Plan, Remove, Service, Step

Where = Callable[[str], Path]
"""Gives where a path of the machine is; not the same when the machine is a tree under another root."""


def files_of(service: Service, where: Where) -> list[Path]:
    """Give the files of this configuration that are there, its backups included."""
    config = where(str(service.config))
    # With what `certificate --renew` and a broker in the background leave beside them.
    beside = (f"{config.stem}.{end}" for end in ("crt", "crt.old", "key", "key.old", "log", "log.?"))
    patterns = (config.name, f"{config.name}.lock", f"{config.name}.journal*", *beside)
    backups = where(str(service.backups))
    return [
        *(path for pattern in patterns for path in sorted(config.parent.glob(pattern))),
        *sorted(backups.glob(f"{config.stem}-????????T??????.*Z.json")),
    ]


def plan_purge(service: Service, logs: PurePath, where: Where) -> Plan:
    """Give what removes all data; folders only when nothing of anybody else's is left in them."""
    config, home = where(str(service.config)), where(str(service.home))
    folders = [config.parent, where(str(service.backups))]
    if config.is_relative_to(home):
        folders += [home / "lib", home]
    steps: list[Step] = [Remove(path) for path in files_of(service, where)]
    steps += [Remove(where(str(logs))), Remove(home / "lib" / "__pycache__")]
    steps += [Remove(folder, only_if_empty=True) for folder in folders]
    return Plan(tuple(steps), ("Configuration, entries, backups and logs are gone.",))

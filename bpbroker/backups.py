"""Backups: complete states in files of their own. Naming, listing, rotating, checking, restoring.

A backup has the form of the configuration file and is named after it and the
UTC time at which it was made: ``bpbroker-20260131T235959.123456Z.json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bpbroker import snapshot
from bpbroker.errors import BadRequest, BpbrokerError, ConfigurationError, DamagedFile
from bpbroker.messages import BackupInfo
from bpbroker.stores.embedded import EmbeddedStore, journal_path, read_journal

_TIME: Final = "%Y%m%dT%H%M%S.%fZ"
_STAMP: Final = re.compile(r"-(\d{8}T\d{6}\.\d{6}Z)\.json\Z")


@dataclass(frozen=True, slots=True)
class Checked:
    """A backup that was read back."""

    info: BackupInfo
    entries: int
    problem: str
    """Why it cannot be used; empty when it is good."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What restoring a backup would change, by entry name and section name."""

    entries_added: tuple[str, ...]
    entries_changed: tuple[str, ...]
    entries_removed: tuple[str, ...]
    sections_changed: tuple[str, ...]


def folder_for(config_file: Path) -> Path:
    """Give the folder of a configuration file's backups: ``<home>/backups`` for ``<home>/etc/…``, else beside it."""
    parent = config_file.parent
    return (parent.parent if parent.name == "etc" else parent) / "backups"


def name_for(config_file: Path, made_at: float) -> str:
    """Give the file name of a backup made at this Unix time."""
    return f"{config_file.stem}-{datetime.fromtimestamp(made_at, UTC).strftime(_TIME)}.json"


def make(config_file: Path, settings: Mapping[str, Any], entries: Mapping[str, bytes], made_at: float) -> BackupInfo:
    """Write a backup; makes the folder when it is not there.

    Raises:
        StorageFull, StorageFailed: it could not be written; no half backup is left.
        ConfigurationError: there is something else in the folder's place.
    """
    folder = folder_for(config_file)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"Cannot make the backups folder {folder}: {error.strerror}") from None
    path = folder / name_for(config_file, made_at)
    snapshot.write(path, settings, entries)
    return BackupInfo(str(path), made_at, path.stat().st_size)


def found(config_file: Path) -> list[BackupInfo]:
    """Give the backups of a configuration file, newest first."""
    result = []
    prefix = f"{config_file.stem}-"
    folder = folder_for(config_file)
    for path in folder.iterdir() if folder.is_dir() else ():
        stamp = _STAMP.search(path.name)
        if stamp and path.name[: stamp.start() + 1] == prefix and path.is_file():
            moment = datetime.strptime(stamp[1], _TIME).replace(tzinfo=UTC)
            result.append(BackupInfo(str(path), moment.timestamp(), path.stat().st_size))
    return sorted(result, key=lambda info: info.path, reverse=True)


def rotate(config_file: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` backups."""
    for info in found(config_file)[keep:]:
        Path(info.path).unlink(missing_ok=True)


def check(info: BackupInfo) -> Checked:
    """Read a backup back."""
    try:
        settings, entries = snapshot.read(Path(info.path))
    except BpbrokerError as error:
        return Checked(info, 0, str(error))
    return Checked(info, len(entries), "" if settings else f"{info.path} holds no settings")


def newest_good(config_file: Path) -> BackupInfo | None:
    """Give the newest backup that reads back well."""
    return next((info for info in found(config_file) if not check(info).problem), None)


def advice(config_file: Path) -> str:
    """Give the sentence that goes with a damaged file: the newest good backup and how to restore it."""
    good = newest_good(config_file)
    if good is None:
        return f"Nothing was changed. There is no good backup in {folder_for(config_file)}."
    return (
        f"Nothing was changed. The newest good backup is {good.path}; to go back to it:\n"
        f"  bpbroker --config {config_file} restore {good.path}"
    )


def state_of(config_file: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Give ``(settings, entries)`` that a start on this file would have, its journal included; changes nothing.

    Raises:
        DamagedFile: the file or its journal is damaged.
        ConfigurationError: one of them cannot be read.
    """
    settings, entries = snapshot.read(config_file)
    for name, value in read_journal(journal_path(config_file)).changes.items():
        if value is None:
            entries.pop(name, None)
        else:
            entries[name] = value
    return settings, entries


def difference(config_file: Path, backup: Path) -> Difference:
    """Give what :func:`restore` would change.

    Raises:
        ConfigurationError: the backup cannot be used.
    """
    settings, entries = _good(backup)
    try:
        old_settings, old_entries = state_of(config_file)
    except DamagedFile:
        old_settings, old_entries = {}, {}
    return Difference(
        tuple(sorted(entries.keys() - old_entries.keys())),
        tuple(sorted(name for name in entries.keys() & old_entries.keys() if entries[name] != old_entries[name])),
        tuple(sorted(old_entries.keys() - entries.keys())),
        tuple(sorted(n for n in settings.keys() | old_settings.keys() if settings.get(n) != old_settings.get(n))),
    )


def restore(config_file: Path, backup: Path, now: float) -> list[Path]:
    """Put a backup's state in place of what is there; only while no broker runs on the file.

    What is replaced is kept: as a backup when it can be read, else under its
    own name with ``.damaged-<time>`` behind it. Gives the paths that keep it.

    Raises:
        ConfigurationError: the backup cannot be used; nothing was changed.
    """
    settings, entries = _good(backup)
    kept: list[Path] = []
    journal = journal_path(config_file)
    try:
        old_settings, old_entries = state_of(config_file)
    except DamagedFile:
        stamp = datetime.fromtimestamp(now, UTC).strftime(_TIME)
        damaged = (config_file, journal, journal.with_name(f"{journal.name}-wal"))
        kept += [path.rename(path.with_name(f"{path.name}.damaged-{stamp}")) for path in damaged if path.exists()]
    else:
        if old_settings or old_entries:
            kept.append(Path(make(config_file, old_settings, old_entries, now).path))
        empty_journal(config_file)
    snapshot.write(config_file, settings, entries)
    return kept


def empty_journal(config_file: Path) -> None:
    """Make the journal forget everything; only when the file holds it, or is about to be replaced by what shall."""
    journal = journal_path(config_file)
    if journal.exists():
        store = EmbeddedStore(journal, dict)
        try:
            store.load()
            while store.forget(store.sequence):
                pass
        finally:
            store.close()


def _good(backup: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    if not backup.exists():
        raise ConfigurationError(f"There is no file {backup}; `bpbroker backups` lists what there is")
    try:
        return snapshot.read(backup)
    except (DamagedFile, BadRequest) as error:
        raise ConfigurationError(f"This backup cannot be used: {error}") from None

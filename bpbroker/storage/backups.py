"""Backups: complete states in files of their own. Naming, making, listing, rotating, checking.

A backup has the form of the configuration file, with one section more for
certificate, key and extensions, and is named after it and the UTC time at which
it was made: ``bpbroker-20260131T235959.123456Z.json``.
"""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from bpbroker import files
from bpbroker.config import schema
from bpbroker.errors import BpbrokerError, Unavailable
from bpbroker.messages import BackupInfo
from bpbroker.registry.entry_values import number_of
from bpbroker.storage import config_file
from bpbroker.text import command_line

_TIME_FORM: Final = "%Y%m%dT%H%M%S.%fZ"
_STAMP: Final = re.compile(r"-(\d{8}T\d{6}\.\d{6}Z)\.json\Z", re.ASCII)
_TICK: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Checked:
    """A backup that was read back."""

    info: BackupInfo
    entries: int
    problem: str
    """Why it cannot be used; empty when it is good."""
    has_identity: bool = False
    """Whether it has certificate, key and extensions; those that earlier versions made have not."""


def folder_for(own: Path) -> Path:
    """Return the folder of a configuration file's backups: ``<home>/backups`` for ``<home>/etc/…``, else beside it."""
    parent = own.parent
    return (parent.parent if parent.name == "etc" else parent) / "backups"


def make(own: Path, chunks: Iterable[bytes], renaming: AbstractContextManager[Any] | None = None) -> BackupInfo:
    """Write a backup with this content; makes the folder when it is not there.

    Its name is always later than those of all other backups, also when the clock was set back.

    Args:
        own: the configuration file whose state it is.
        chunks: the content.
        renaming: see :func:`bpbroker.files.write_whole`.

    Raises:
        StorageFull, StorageFailed, Unavailable: it could not be written; no half backup is left.
    """
    folder = folder_for(own)
    try:
        files.make_folder(folder, own)
    except OSError as error:
        raise files.storage_error(f"Cannot make the backups folder {folder}", error) from None
    made = datetime.fromtimestamp(time.time(), UTC)
    newest = next(iter(found(own)), None)
    if newest is not None:
        made = max(made, _time_of(Path(newest.path)) + _TICK)
    path = folder / f"{own.stem}-{made.strftime(_TIME_FORM)}.json"
    files.replace(path, chunks, renaming=renaming)
    return BackupInfo(str(path), made.timestamp(), path.stat().st_size)


def _time_of(path: Path) -> datetime:
    stamp = _STAMP.search(path.name)
    return datetime.fromisoformat(stamp[1] if stamp else "")


def found(own: Path) -> list[BackupInfo]:
    """Return the backups of a configuration file, newest first.

    Raises:
        Unavailable: their folder cannot be read.
    """
    result = []
    folder = folder_for(own)
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        paths = []
    except OSError as error:
        raise Unavailable(f"Cannot read the backups folder {folder}: {error.strerror}") from None
    for path in paths:
        if not _is_backup(path.name, own):
            continue
        try:
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                result.append(BackupInfo(str(path), _time_of(path).timestamp(), status.st_size))
        except (ValueError, FileNotFoundError):  # no such day; or rotated away just now
            continue
    return sorted(result, key=lambda info: info.path, reverse=True)


def sweep(own: Path) -> None:
    """Remove the half-written files that a crash left; the caller holds the configuration file's lock."""
    files.sweep(
        own.parent, lambda name: name in (own.name, f"{own.name}.journal", f"{own.name}.revisions", f"{own.name}.etcd")
    )
    files.sweep(folder_for(own), lambda name: _is_backup(name, own) or name.startswith(f"{own.name}."))


def _is_backup(name: str, own: Path) -> bool:
    stamp = _STAMP.search(name)
    return stamp is not None and name[: stamp.start()] == own.stem


def rotate(own: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` backups.

    Raises:
        StorageFailed: one of them cannot be removed.
    """
    for info in found(own)[keep:]:
        try:
            Path(info.path).unlink(missing_ok=True)
        except OSError as error:
            raise files.storage_error(f"Cannot remove {info.path}", error) from None


def holds(info: BackupInfo, chunks: Iterable[bytes]) -> bool:
    """Whether a backup has exactly this content; compared piece by piece."""
    try:
        with Path(info.path).open("rb") as file:
            return all(file.read(len(chunk)) == chunk for chunk in chunks) and not file.read(1)
    except OSError:
        return False


def keep_aside(
    file: Path,
    why: str,
    folder_of: Path | None = None,
    *,
    follow: Callable[[Iterator[bytes]], Iterable[bytes]] = lambda content: content,
) -> Path | None:
    """Copy a file that is about to be replaced into the backups folder, as ``<name>.<why>-<time>``; None if it is gone.

    Args:
        file: what to copy.
        why: such as ``damaged`` or ``edited``.
        folder_of: the configuration file whose backups folder it is, when it is not ``file`` itself.
        follow: gets the content in pieces and returns the pieces to write.

    Raises:
        StorageFull, StorageFailed: it cannot be copied.
    """
    own = folder_of or file
    folder = folder_for(own)
    copy = folder / f"{file.name}.{why}-{datetime.now(UTC).strftime(_TIME_FORM)}"
    try:
        files.make_folder(folder, own)
        with file.open("rb") as source:
            files.replace(copy, follow(iter(lambda: source.read(1 << 20), b"")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise files.storage_error(f"Cannot keep {file} as {copy}", error) from None
    return copy


def check(info: BackupInfo) -> Checked:
    """Read a backup back and see whether a broker could start with it."""
    try:
        (settings, entries, _), identity = config_file.read_backup(Path(info.path))
    except BpbrokerError as error:
        return Checked(info, 0, str(error))
    problems = list(schema.problems(settings)) if settings else ["it holds nothing"]
    problem = f"{info.path}: {'; '.join(problems)}" if problems else ""
    return Checked(info, number_of(entries), problem, has_identity=identity is not None)


def newest_good(own: Path) -> Checked | None:
    """Return the newest backup that reads back well."""
    return next((checked for checked in map(check, found(own)) if not checked.problem), None)


def advice(own: Path, *, of_backup: bool = False) -> str:
    """Return what to add to the message about a damaged file: the newest good backup and how to restore it.

    Args:
        own: the configuration file.
        of_backup: whether the damaged file is a backup that was to be restored.
    """
    try:
        good = newest_good(own)
    except BpbrokerError as error:
        return f"Nothing was changed. {error}"
    if good is None:
        elsewhere = command_line("bpbroker", "--config", str(own), "restore", "FILE")
        without = "\nWithout one, correct the file, or move it away to begin without what only it has."
        return (
            f"Nothing was changed. There is no good backup in {folder_for(own)}. To go back to one from elsewhere:\n"
            f"  {elsewhere}{'' if of_backup else without}"
        )
    return f"Nothing was changed. {advised(own, good)}"


def advised(own: Path, good: Checked) -> str:
    """Return the sentence that names a good backup and how to restore it."""
    return (
        f"The newest good backup is {good.info.path} ({good.entries} entries); to go back to it:\n"
        f"  {command_line('bpbroker', '--config', str(own), 'restore', good.info.path)}"
    )

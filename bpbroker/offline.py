"""What can be done with a broker's files while no broker runs on them: read all of it, back up, restore, check."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bpbroker import backups, config, durable, schema, snapshot
from bpbroker.errors import BpbrokerError, ConfigurationError, DamagedFile, InUse, Unavailable
from bpbroker.lock import FileLock, holder
from bpbroker.messages import BackupInfo
from bpbroker.stores import etcd
from bpbroker.stores.embedded import forget_all
from bpbroker.stores.journal import Mark, files_of, journal_path, read_journal


def state_of(config_file: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Give ``(settings, entries)`` that a start on this file would have, its journal included; changes nothing.

    Raises:
        DamagedFile: the file or its journal is damaged.
        ConfigurationError: one of them cannot be read.
    """
    journal = read_journal(journal_path(config_file))
    settings, entries = snapshot.read(config_file)
    if journal.changes and not config_file.exists():
        raise DamagedFile(f"{config_file} is gone, but its journal has changes of it")
    for name, value in journal.changes.items():
        if value is None:
            entries.pop(name, None)
        else:
            entries[name] = value
    return settings, entries


def empty_journal(config_file: Path) -> None:
    """Make the journal forget everything, when the file holds it all; the caller has the lock.

    Raises:
        ConfigurationError, Unavailable: it cannot be done.
    """
    forget_all(journal_path(config_file), dict)


def back_up(config_file: Path) -> BackupInfo:
    """Make a backup of a stopped broker's state.

    Raises:
        InUse: a broker runs.
        DamagedFile, ConfigurationError, Unavailable: the state cannot be read.
        StorageFull, StorageFailed: the backup cannot be written.
    """
    missing = ConfigurationError(f"There is no {config_file} to back up")
    if not config_file.parent.exists():
        raise missing
    with FileLock(config_file):
        settings, entries = state_of(config_file)
        if not settings:
            raise missing
        if config.shares_registry(settings):
            entries = etcd.read_all(settings)
        info = backups.make(config_file, snapshot.chunks(settings, entries))
        backups.rotate(config_file, schema.option(settings, "_config", "backup_retain_n"))
        return info


# --- restore ---


@dataclass(frozen=True, slots=True)
class Difference:
    """What restoring a backup changes, by entry name and section name."""

    entries_added: tuple[str, ...]
    entries_changed: tuple[str, ...]
    entries_removed: tuple[str, ...]
    sections_changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did, or would do."""

    backup: Path
    difference: Difference | None
    """None when the replaced state was damaged and cannot be compared."""
    kept: tuple[Path, ...]
    """Where the replaced state is kept: one backup, or copies of the damaged files."""
    unused: int = 0
    """Entries of the backup that no broker uses, because its settings say that the registry is in etcd."""


def restore(config_file: Path, backup: Path, *, dry_run: bool = False) -> Restored:
    """Put a backup's state, settings and entries, in the place of what is there.

    A crash half-way leaves files on which nothing starts until the restore is
    done again; never a mixture. The folder is made when it is not there: on a
    new machine a backup is all that one has.

    Args:
        config_file: what to restore.
        backup: path of a backup, or its bare name in the backups folder.
        dry_run: only say what would change.

    Raises:
        InUse: a broker runs.
        ConfigurationError: the backup cannot be used; nothing was changed.
        StorageFull, StorageFailed: something cannot be written.
    """
    if not config_file.parent.exists():
        _usable(config_file, _find(config_file, backup))  # before a folder is made for it
    with _missing_too(config_file, backup), _held(config_file, dry_run=dry_run):
        path = _find(config_file, backup)
        settings, entries = _usable(config_file, path)
        old: tuple[dict[str, Any], dict[str, bytes]] | None
        try:
            old = state_of(config_file)
        except DamagedFile:
            old = None
        difference = None if old is None else _difference(old, (settings, entries))
        kept: tuple[Path, ...] = ()
        if not dry_run:
            try:
                kept = _keep(config_file, old)
                _put(config_file, settings, entries)
            except OSError as error:
                raise durable.storage_error(f"Cannot write {error.filename or config_file}", error) from None
        return Restored(path, difference, kept, len(entries) if config.shares_registry(settings) else 0)


def _held(config_file: Path, *, dry_run: bool) -> AbstractContextManager[object]:
    """Give the lock; makes its folder, or does without one where nothing is to be written and nobody can run."""
    if not config_file.parent.exists():
        if dry_run:
            return nullcontext()
        try:
            config_file.parent.mkdir(parents=True)
        except OSError as error:
            raise ConfigurationError(f"Cannot make the folder {config_file.parent}: {error.strerror}") from None
    return FileLock(config_file)


@contextmanager
def _missing_too(config_file: Path, backup: Path) -> Iterator[None]:
    """Say to who has to stop a broker first, if so, that there is no such backup either."""
    try:
        yield
    except InUse as error:
        try:
            _find(config_file, backup)
        except ConfigurationError as missing:
            raise InUse(f"{error}\n{missing}") from None
        raise


def _find(config_file: Path, backup: Path) -> Path:
    for path in (backup, backups.folder_for(config_file) / backup.name):
        if path.is_file():
            return path
    listing = shlex.join(("bpbroker", "--config", str(config_file), "backups"))
    raise ConfigurationError(f"There is no backup {str(backup)!r}; to see what there is: {listing}")


def _usable(config_file: Path, backup: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    settings: dict[str, Any] = {}
    entries: dict[str, bytes] = {}
    try:
        settings, entries = snapshot.read(backup)
    except ConfigurationError as error:
        problems = [str(error)]
    else:
        problems = [f"{backup}: {problem}" for problem in schema.problems(settings)]
        if not settings:
            problems.append(f"{backup} holds nothing")
    if problems:
        listed = "\n  ".join(problems)
        raise ConfigurationError(
            f"This backup cannot be used:\n  {listed}\n{backups.advice(config_file)}", tuple(problems)
        )
    return settings, entries


def _difference(
    old: tuple[dict[str, Any], dict[str, bytes]], new: tuple[dict[str, Any], dict[str, bytes]]
) -> Difference:
    (old_settings, old_entries), (settings, entries) = old, new
    return Difference(
        tuple(sorted(entries.keys() - old_entries.keys())),
        tuple(sorted(name for name in entries.keys() & old_entries.keys() if entries[name] != old_entries[name])),
        tuple(sorted(old_entries.keys() - entries.keys())),
        tuple(sorted(n for n in settings.keys() | old_settings.keys() if settings.get(n) != old_settings.get(n))),
    )


def _keep(config_file: Path, old: tuple[dict[str, Any], dict[str, bytes]] | None) -> tuple[Path, ...]:
    """Keep what is about to be replaced: as a backup, or byte by byte when it is damaged."""
    if old is not None:
        return (Path(backups.make(config_file, snapshot.chunks(*old)).path),) if any(old) else ()
    copies = (
        backups.keep_aside(path, "damaged", config_file) for path in (config_file, *files_of(journal_path(config_file)))
    )
    return tuple(copy for copy in copies if copy is not None)


def _put(config_file: Path, settings: dict[str, Any], entries: dict[str, bytes]) -> None:
    journal = journal_path(config_file)
    mark = Mark(journal)
    mark.block()
    snapshot.write(config_file, settings, entries)
    for path in (journal, *(journal.with_name(f"{journal.name}-{what}") for what in ("wal", "shm"))):
        path.unlink(missing_ok=True)
    durable.sync_folder(journal.parent)
    mark.close(remove=True)
    durable.sync_folder(journal.parent)


def put(config_file: Path, settings: dict[str, Any], entries: dict[str, bytes]) -> Path | None:
    """Put another state in the place of what is there, and keep that as a backup; the caller has the lock.

    Raises:
        DamagedFile, ConfigurationError: what is there cannot be read.
        StorageFull, StorageFailed: something cannot be written.
    """
    try:
        kept = _keep(config_file, state_of(config_file))
        _put(config_file, settings, entries)
    except OSError as error:
        raise durable.storage_error(f"Cannot write {error.filename or config_file}", error) from None
    return kept[0] if kept else None


# --- check ---


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: Literal["ok", "warning", "fail"]
    detail: str


def check(config_file: Path) -> tuple[Finding, ...]:
    """Look whether file, journal and backups can be trusted; changes nothing and may run beside a broker."""
    return tuple(_findings(config_file))


def _findings(config_file: Path) -> Iterator[Finding]:
    journal = journal_path(config_file)
    state = None
    try:
        state = read_journal(journal)
    except BpbrokerError as error:
        yield Finding("journal", "fail", str(error))
    if state is not None:
        yield Finding("journal", "ok", f"{journal}: {len(state.changes)} changed entries")
        if state.torn_bytes and holder(config_file) is None:  # else it is a commit under way
            torn = f"{state.torn_bytes} bytes of a commit that was cut off and never acknowledged"
            yield Finding("journal's end", "warning", f"{journal} ends with {torn}; a start drops them")
    good = None
    try:
        good = backups.newest_good(config_file)
    except BpbrokerError as error:
        of_backups = Finding("backups", "warning", str(error))
    else:
        folder = backups.folder_for(config_file)
        of_backups = (
            Finding("backups", "warning", f"there is no good backup in {folder}")
            if good is None
            else Finding("backups", "ok", f"the newest good one is {good.info.path}: {good.entries} entries")
        )
    yield from _of_file(config_file, good, changed=state is not None and bool(state.changes))
    yield of_backups


def _of_file(config_file: Path, good: backups.Checked | None, *, changed: bool) -> Iterator[Finding]:
    try:
        settings, entries = snapshot.read(config_file)
    except BpbrokerError as error:
        yield Finding("file", "fail", str(error))
        return
    if settings:
        yield Finding("file", "ok", f"{config_file}: {len(entries)} entries, {len(settings)} sections")
    elif changed:
        yield Finding("file", "fail", f"{config_file} is gone, but its journal has changes of it")
    elif good is not None:
        lost = f"{config_file} is not there, so a start makes a new one without entries"
        yield Finding("file", "warning", f"{lost}. {backups.advised(config_file, good)}")
    else:
        yield Finding("file", "warning", f"{config_file} is not there yet; the first start makes it")
    problems = list(schema.problems(settings))
    for problem in problems:
        yield Finding("settings", "fail", problem)
    if config.shares_registry(settings) and not problems:
        yield _of_etcd(settings, len(entries))


def _of_etcd(settings: Mapping[str, Any], unused: int) -> Finding:
    try:
        found = len(etcd.read_all(settings))
    except Unavailable as error:  # a start would work, and wait for it
        return Finding("etcd", "warning", f"{error}; look at its members")
    except BpbrokerError as error:
        return Finding("etcd", "fail", str(error))
    if unused:
        detail = f"the registry is there ({found} entries), so the {unused} in the file are not used"
        return Finding("etcd", "warning", f"{detail}; bpbroker migrate --to etcd --merge adds them there")
    return Finding("etcd", "ok", f"the registry is there: {found} entries")

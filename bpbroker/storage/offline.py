"""What can be done with a broker's files while no broker runs on them: read all of it, back up, restore, check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from bpbroker import files, progress
from bpbroker.config import layers, schema
from bpbroker.errors import BpbrokerError, ConfigurationError, DamagedFile, InUse, StartError, Unavailable
from bpbroker.messages import BackupInfo
from bpbroker.registry import named_keys
from bpbroker.registry.entry_values import number_of
from bpbroker.registry.stored import outlives_sessions, split
from bpbroker.storage import backups, config_file
from bpbroker.storage.backup_identity import Identity, PutBack
from bpbroker.storage.config_file import Origin
from bpbroker.storage.embedded.journal import JournalState, Mark, files_of, journal_path, read_journal
from bpbroker.storage.embedded.recovery import match, merged, registry_of
from bpbroker.storage.embedded.store import forget_all
from bpbroker.storage.etcd import store
from bpbroker.storage.lock_file import FileLock, holder
from bpbroker.text import command_line


class State(NamedTuple):
    """What a start on a configuration file would have, its journal included."""

    settings: dict[str, Any]
    entries: dict[str, bytes]
    origin: Origin | None
    """The registry, and the last commit of file and journal together; None before a broker has run on them."""


def state_of(own: Path) -> State:
    """Return what a start on this file would have; changes nothing.

    Raises:
        DamagedFile: the file or its journal is damaged.
        ConfigurationError: one of them cannot be read.
    """
    journal = read_journal(journal_path(own))
    settings, entries, origin = config_file.read_content(own)
    fit = match(own, origin, journal)
    known = origin is not None or journal.registry
    now = Origin(registry_of(origin, journal), fit.commit) if known else None
    return State(settings, merged(entries, fit.changes), now)


def save(own: Path, settings: Mapping[str, Any], entries: Mapping[str, bytes], origin: Origin | None) -> None:
    """Write a stopped broker's file and make its journal forget everything; the caller has the lock.

    Raises:
        StorageFull, StorageFailed: the file cannot be written.
        ConfigurationError, Unavailable: the journal cannot be emptied.
    """
    config_file.write(own, settings, entries, origin=origin)
    forget_all(journal_path(own), origin.registry if origin else "")


class IdentityFiles(Protocol):
    """Certificate, key and extensions of a broker, on the disk."""

    def collect(self, settings: Mapping[str, Any]) -> Identity:
        """Return what is there; it never fails."""

    def put_back(self, identity: Identity, *, dry_run: bool) -> PutBack:
        """Replace the present files by these.

        Raises:
            ConfigurationError: it cannot be used. A dry run says so as well.
            OSError: it failed in the middle.
        """


def back_up(own: Path, identity: IdentityFiles | None = None) -> BackupInfo:
    """Make a backup of a stopped broker's state.

    Args:
        own: the configuration file.
        identity: what to back up beside settings and entries.

    Raises:
        InUse: a broker runs.
        DamagedFile, ConfigurationError, Unavailable: the state cannot be read.
        StorageFull, StorageFailed: the backup cannot be written.
    """
    missing = ConfigurationError(f"There is no {own} to back up")
    if not own.parent.exists():
        raise missing
    with FileLock(own):
        settings, entries, _ = state_of(own)
        if not settings:
            raise missing
        if layers.shares_registry(settings):
            entries = store.read_all(settings)
        info = backups.make(own, _backup_of(settings, entries, identity))
        backups.rotate(own, schema.option(settings, "_config", "backup_retain_n"))
        return info


def _backup_of(
    settings: Mapping[str, Any], entries: Mapping[str, bytes], identity: IdentityFiles | None
) -> Iterator[bytes]:
    collected = None if identity is None else identity.collect(settings)
    content = config_file.chunks(settings, entries, backed_up=collected)
    return progress.following(content, "Writing a backup", config_file.pieces(settings, entries))


# --- restore ---


class NamesThatDiffer(NamedTuple):
    """The names of what restoring a backup adds, changes and removes, of one kind; each sorted."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """What restoring a backup changes."""

    entries: NamesThatDiffer
    keys: NamesThatDiffer
    """Of named access keys."""
    others: NamesThatDiffer
    """Of the registry's own records, such as numbers and entries that were taken."""
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
    identity: PutBack = field(default_factory=PutBack)
    has_identity: bool = False
    """Whether the backup has certificate, key and extensions; those of earlier versions have not."""


def restore(own: Path, backup: Path, *, identity: IdentityFiles | None = None, dry_run: bool = False) -> Restored:
    """Replace the present state by a backup's: settings, entries and identity.

    A crash half-way leaves files on which nothing starts until the restore is
    done again; never a mixture. The folder is made when it is not there: on a
    new machine a backup is all that one has.

    Args:
        own: what to restore.
        backup: path of a backup, or its bare name in the backups folder.
        identity: where the backup's certificate, key and extensions are put; with None they are left as they are.
        dry_run: only say what would change.

    Raises:
        InUse: a broker runs.
        ConfigurationError: the backup cannot be used; nothing was changed.
        StorageFull, StorageFailed: something cannot be written.
    """
    if not own.parent.exists():
        _usable(own, _find(own, backup))  # before a folder is made for it
    with _missing_too(own, backup), _held(own, dry_run=dry_run):
        path = _find(own, backup)
        settings, stored, found = _usable(own, path)
        if found is not None and found.certificate:
            settings = layers.override(settings, _paths_of_pair(own))
        entries = {name: value for name, value in stored.items() if outlives_sessions(split(name, value))}
        old: State | None
        try:
            old = state_of(own)
        except DamagedFile:
            old = None
        difference = None if old is None else _difference(old[:2], (settings, entries))
        kept: tuple[Path, ...] = ()
        put_back = identity.put_back(found, dry_run=True) if identity and found else PutBack()
        if not dry_run:

            def more() -> None:
                if identity and found:
                    identity.put_back(found, dry_run=False)

            try:
                kept = _keep(own, old, identity)
                _put(own, settings, entries, old.origin if old and old.origin else _origin_left(own), more)
            except OSError as error:
                raise files.storage_error(f"Cannot write {error.filename or own}", error) from None
        unused = number_of(entries) if layers.shares_registry(settings) else 0
        return Restored(path, difference, kept, unused, put_back, has_identity=found is not None)


def _paths_of_pair(own: Path) -> dict[str, str]:
    """Return where the pair will be: the backup may be of a machine with another home."""
    cert, key = layers.own_pair(own)
    return {"api.ssl_cert": str(cert), "api.ssl_key": str(key)}


def _held(own: Path, *, dry_run: bool) -> AbstractContextManager[object]:
    """Return the lock, and make its folder; none for a dry run, which writes nothing."""
    if dry_run:
        return nullcontext()  # nothing is written, so it may be beside a running broker
    if not own.parent.exists():
        try:
            files.make_folder(own.parent, mode=0o755)
        except OSError as error:
            raise files.start_error(f"Cannot make the folder {own.parent}: {error.strerror}", error) from None
    return FileLock(own)


@contextmanager
def _missing_too(own: Path, backup: Path) -> Iterator[None]:
    """Add to the error that a broker runs that there is no such backup either, if so."""
    try:
        yield
    except InUse as error:
        try:
            _find(own, backup)
        except ConfigurationError as missing:
            raise InUse(f"{error}\n{missing}") from None
        raise


def _find(own: Path, backup: Path) -> Path:
    """Return the path of a backup; a bare name means the backups folder, whatever the working directory holds."""
    there = backups.folder_for(own) / backup.name
    for path in (there, backup) if str(backup) == backup.name else (backup, there):
        if path.is_file():
            return path
    listing = command_line("bpbroker", "--config", str(own), "backups")
    raise ConfigurationError(f"There is no backup {str(backup)!r}; to list the backups: {listing}")


def _usable(own: Path, backup: Path) -> tuple[dict[str, Any], dict[str, bytes], Identity | None]:
    settings: dict[str, Any] = {}
    entries: dict[str, bytes] = {}
    found: Identity | None = None
    try:
        (settings, entries, _), found = config_file.read_backup(backup)
    except (ConfigurationError, StartError) as error:
        problems = [str(error)]
    else:
        problems = [f"{backup}: {problem}" for problem in schema.problems(settings)]
        if not settings:
            problems.append(f"{backup} holds nothing")
    if problems:
        listed = "\n  ".join(problems)
        raise ConfigurationError(
            f"This backup cannot be used:\n  {listed}\n{backups.advice(own, of_backup=True)}", tuple(problems)
        )
    return settings, entries, found


def _difference(
    old: tuple[dict[str, Any], dict[str, bytes]], new: tuple[dict[str, Any], dict[str, bytes]]
) -> Difference:
    (old_settings, old_entries), (settings, entries) = old, new
    keys = named_keys.PREFIX

    def differing(of: Callable[[str], bool], prefix: str = "") -> NamesThatDiffer:
        before, after = set(filter(of, old_entries)), set(filter(of, entries))
        changed = {name for name in before & after if differs(old_entries[name], entries[name])}
        sets = (after - before, changed, before - after)
        return NamesThatDiffer(*(tuple(sorted(name.removeprefix(prefix) for name in each)) for each in sets))

    return Difference(
        differing(lambda name: not name.startswith("_")),
        differing(lambda name: name.startswith(keys), keys),
        differing(lambda name: name.startswith("_") and not name.startswith(keys)),
        tuple(sorted(n for n in settings.keys() | old_settings.keys() if settings.get(n) != old_settings.get(n))),
    )


def differs(one: bytes, other: bytes) -> bool:
    """Return whether two stored entries are different for clients: revisions and sessions do not count."""
    return split("", one).json != split("", other).json


def _keep(own: Path, old: State | None, identity: IdentityFiles | None = None) -> tuple[Path, ...]:
    """Keep the files that will be replaced: as a backup, or byte by byte if they are damaged or hold no state."""
    if old is not None and (old.settings or old.entries):
        return (Path(backups.make(own, _backup_of(old.settings, old.entries, identity)).path),)
    damaged = (own, *files_of(journal_path(own))) if old is None else ()
    pair = layers.own_pair(own) if identity is not None else ()
    copies = [backups.keep_aside(path, "damaged", own) for path in damaged]
    copies += [backups.keep_aside(path, "replaced", own) for path in pair]
    return tuple(copy for copy in copies if copy is not None)


def _origin_left(own: Path) -> Origin:
    """Return the origin of damaged files, if one of them still has it; else a new registry's."""
    origin, journal = None, JournalState({}, 0)
    with suppress(BpbrokerError):
        origin = config_file.read_content(own).origin
    with suppress(BpbrokerError):
        journal = read_journal(journal_path(own))
    commit = max(origin.commit if origin else 0, journal.sequence)
    return Origin(registry_of(origin, journal), commit)


def _put(
    own: Path,
    settings: dict[str, Any],
    entries: dict[str, bytes],
    old: Origin,
    more: Callable[[], None] = lambda: None,
) -> None:
    """Replace the present state, and do ``more``. After a crash in the middle no broker starts on these files."""
    journal = journal_path(own)
    mark = Mark(journal, old.registry)
    mark.block()
    more()
    # A later commit than all before: a file of before the restore is known to be older.
    config_file.write(own, settings, entries, origin=Origin(old.registry, old.commit + 1))
    for path in (journal, *(journal.with_name(f"{journal.name}-{what}") for what in ("wal", "shm"))):
        files.patiently(partial(path.unlink, missing_ok=True))
    files.sync_folder(journal.parent)
    mark.unblock()
    mark.close(remove=True)
    files.sync_folder(journal.parent)


def put(own: Path, settings: dict[str, Any], entries: dict[str, bytes], above: int = 0) -> Path | None:
    """Replace the present state, and keep it as a backup; the caller has the lock.

    Every later revision is higher than ``above``. After a crash one of the two states is there, whole, and the call may
    be repeated.

    Raises:
        DamagedFile, ConfigurationError: what is there cannot be read.
        StorageFull, StorageFailed: something cannot be written.
    """
    try:
        old = state_of(own)
        kept = _keep(own, old)
        origin = old.origin or _origin_left(own)
        if read_journal(journal_path(own)).changes:
            # The file alone shall count: its replacement is one step then.
            save(own, old.settings, old.entries, origin)
        config_file.write(own, settings, entries, origin=Origin(origin.registry, max(origin.commit, above) + 1))
    except OSError as error:
        raise files.storage_error(f"Cannot write {error.filename or own}", error) from None
    return kept[0] if kept else None


# --- check ---


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check: of the file, the journal, the backups or etcd."""

    what: str
    level: Literal["ok", "warning", "fail"]
    detail: str


def check(own: Path) -> tuple[CheckResult, ...]:
    """Check whether file, journal and backups can be trusted; changes nothing and may run beside a broker."""
    return tuple(_findings(own))


def _findings(own: Path) -> Iterator[CheckResult]:
    journal = journal_path(own)
    state = None
    try:
        state = read_journal(journal)
    except BpbrokerError as error:
        yield CheckResult("journal", "fail", str(error))
    if state is not None:
        yield CheckResult("journal", "ok", f"{journal}: {len(state.changes)} changed entries")
        if state.torn_bytes and holder(own) is None:  # else it is a commit under way
            torn = f"{state.torn_bytes} bytes of a commit that was cut off and never acknowledged"
            yield CheckResult("journal's end", "warning", f"{journal} ends with {torn}; a start drops them")
    good = None
    try:
        with progress.Work("Looking for a good backup"):
            good = backups.newest_good(own)
    except BpbrokerError as error:
        of_backups = CheckResult("backups", "warning", str(error))
    else:
        folder = backups.folder_for(own)
        of_backups = (
            CheckResult("backups", "warning", f"there is no good backup in {folder}")
            if good is None
            else CheckResult("backups", "ok", f"the newest good one is {good.info.path}: {good.entries} entries")
        )
    yield from _of_file(own, good, state)
    yield of_backups


def _of_file(own: Path, good: backups.Checked | None, journal: JournalState | None) -> Iterator[CheckResult]:
    try:
        settings, entries, origin = config_file.read_content(own)
    except BpbrokerError as error:
        yield CheckResult("file", "fail", str(error))
        return
    if settings:
        yield CheckResult("file", "ok", f"{own}: {number_of(entries)} entries, {len(settings)} sections")
    elif journal is not None and journal.changes:
        yield CheckResult("file", "fail", f"{own} is gone, but its journal has changes of it")
    elif good is not None:
        lost = f"{own} is not there, so a start makes a new one without entries"
        yield CheckResult("file", "warning", f"{lost}. {backups.advised(own, good)}")
    else:
        yield CheckResult("file", "warning", f"{own} is not there yet; the first start makes it")
    if settings and journal is not None and not layers.shares_registry(settings):
        yield from _of_both(own, origin, journal)
    problems = list(schema.problems(settings))
    for problem in problems:
        yield CheckResult("settings", "fail", problem)
    if layers.shares_registry(settings) and not problems:
        yield _of_etcd(settings, number_of(entries))


def _of_both(own: Path, origin: Origin | None, journal: JournalState) -> Iterator[CheckResult]:
    """Say that file and journal do not belong together, if so."""
    if holder(own) is not None:
        return  # a broker is at work on both
    try:
        fit = match(own, origin, journal)
    except DamagedFile as error:
        yield CheckResult("file and journal", "fail", str(error))
    else:
        if fit.warning:
            yield CheckResult("file and journal", "warning", fit.warning)


def _of_etcd(settings: Mapping[str, Any], unused: int) -> CheckResult:
    try:
        found = number_of(store.read_all(settings))
    except Unavailable as error:  # a start would work, and wait for it
        return CheckResult("etcd", "warning", f"{error}; look at its members")
    except BpbrokerError as error:
        return CheckResult("etcd", "fail", str(error))
    if unused:
        detail = f"the registry is there ({found} entries), so the {unused} in the file are not used"
        return CheckResult("etcd", "warning", f"{detail}; bpbroker migrate --to etcd --merge adds them there")
    return CheckResult("etcd", "ok", f"the registry is there: {found} entries")

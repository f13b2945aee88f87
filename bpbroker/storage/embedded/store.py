"""The embedded store: a SQLite journal beside the configuration file.

The file holds a complete state, the journal the latest state of each name
that changed since, deletions included. A commit is one SQLite transaction in
WAL mode with ``synchronous=FULL``: it returns when the operating system says
that the log is on stable storage. Its cost does not depend on how many entries
there are.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from bpbroker import files
from bpbroker.durations import STORAGE_SECS, Durations, Histogram
from bpbroker.errors import DamagedFile, StorageFailed, StorageFull, Unavailable
from bpbroker.registry.changes import Committed, Group, Outcome
from bpbroker.registry.stored import joined
from bpbroker.storage import backups
from bpbroker.storage.embedded.journal import (
    Mark,
    cannot,
    changes_of,
    config_path,
    create,
    files_of,
    next_epoch,
    note_origin,
    origin_of,
    owner_checksum,
    read_journal,
    row_checksum,
)
from bpbroker.storage.embedded.revisions import Revisions

logger = logging.getLogger(__name__)

_FORGET_AT_ONCE: Final = 500
"""Rows that one call of forget() looks at: two milliseconds, in which no write can be served."""

T = TypeVar("T")

_BUSY_TIMEOUT_SECS: Final = 5.0
_LOG_LIMIT_BYTES: Final = 16 * 1024 * 1024


class EmbeddedStore:
    """Implements :class:`bpbroker.storage.base.LocalStore`; to be used by the thread that calls :meth:`load`.

    Args:
        journal: the SQLite file, named after its configuration file; made when it is not there.
        base: returns the entries that the configuration file holds.
        registry: the registry's id, noted in the journal; empty where journals cannot be mixed up.
        commit: what file and journal hold together, see :func:`bpbroker.storage.embedded.recovery.match`;
            the next commit is a later one.
        gives_out: whether there will be commits, so that revisions are reserved for them.
    """

    def __init__(
        self,
        journal: Path,
        base: Callable[[], Mapping[str, bytes]],
        registry: str = "",
        commit: int = 0,
        *,
        gives_out: bool = True,
    ) -> None:
        self._journal = journal
        self._base = base
        self._registry = registry
        self._commit = commit
        self._connection: sqlite3.Connection | None = None
        self._mark = Mark(journal, registry)
        self._revisions = Revisions(config_path(journal))
        self._gives_out = gives_out
        self._epoch = 0
        self._sequence = 0
        self._failed = "the store is not open"
        self._untidy = False
        """Whether the log has frames of a transaction that did not fit on the disk."""
        self._forget_from: tuple[int, str] | None = None
        self._syncs = Durations(STORAGE_SECS)

    @property
    def sequence(self) -> int:
        """The highest revision that was given out."""
        return self._sequence

    @property
    def figures(self) -> Mapping[str, Any]:
        """Sizes in bytes: the journal with its log, and what is free on its disk."""
        size = free = 0
        with suppress(OSError):
            size = sum(path.stat().st_size for path in files_of(self._journal) if path.exists())
            free = shutil.disk_usage(self._journal.parent).free
        return {"journal_bytes": size, "disk_free_bytes": free}

    @property
    def syncs(self) -> Histogram:
        """See :class:`bpbroker.storage.base.LocalStore`: what SQLite's COMMIT takes, most of it an fsync."""
        return self._syncs.shown()

    def load(self) -> Mapping[str, bytes]:
        """See :meth:`bpbroker.storage.base.LocalStore.load`. From here on an older store on this journal is fenced off.

        Raises:
            DamagedFile: the journal or the file; no file was changed.
            ConfigurationError: the journal cannot be opened.
        """
        try:
            state = read_journal(self._journal)
            config_file = config_path(self._journal)
            if state.changes and not config_file.exists():
                raise DamagedFile(f"{config_file} is gone, but its journal {self._journal} has changes of it")
        except DamagedFile as error:
            raise DamagedFile(f"{error}\n{backups.advice(config_path(self._journal))}") from None
        if state.torn_bytes:
            logger.warning(
                "%s ends with %d bytes of a commit that was cut off; it was never acknowledged and is dropped",
                self._journal,
                state.torn_bytes,
            )
        try:
            changes = self._open()
        except OSError as error:
            raise files.start_error(
                f"Cannot write {error.filename or self._journal}: {error.strerror}", error
            ) from None
        except sqlite3.Error as error:
            raise cannot("write", self._journal, error) from None
        entries = dict(self._base())  # after the fence: no other process drops anything from the journal any more
        for name, value in changes.items():
            if value is None:
                entries.pop(name, None)
            else:
                entries[name] = value
        return entries

    def _open(self) -> Mapping[str, bytes | None]:
        """Open the journal for writing, fence off the store that had it before, and return what it holds."""
        if not self._journal.exists():
            create(self._journal, self._registry, self._commit)
        # SQLite makes its log and index as open as the folder is, where that is no matter of modes: so it finds them.
        if sys.platform == "win32":
            for end in ("wal", "shm"):
                path = self._journal.with_name(f"{self._journal.name}-{end}")
                os.close(files.open_private(path, os.O_RDWR | os.O_CREAT, tighten=True))
        connection = sqlite3.connect(self._journal, isolation_level=None, timeout=_BUSY_TIMEOUT_SECS)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA journal_size_limit={_LOG_LIMIT_BYTES}")
            # What is deleted or replaced may be a secret: it is overwritten, not only forgotten.
            connection.execute("PRAGMA secure_delete=ON")
            # What a crash left at the log's end must be gone before anything is written over it: a second crash in
            # the middle of that would leave two ends, and those look like damage.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("BEGIN IMMEDIATE")
            changes, last = changes_of(connection, self._journal)
            self._sequence = max(last, self._commit)
            if self._gives_out:
                self._sequence = self._revisions.open(self._sequence)
            self._epoch = next_epoch(connection, self._journal)
            self._write_owner(connection)
            # With changes it is this registry's already, or an earlier version wrote it. What the file holds does not
            # change here: a later commit as the base would make a file look old of which nothing is missing.
            if not changes and origin_of(connection, self._journal)[0] != self._registry:
                note_origin(connection, self._registry, self._commit)
            connection.execute("COMMIT")
            # A new log: what a crash left at the end of the old one must not be mistaken for damage some day.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._mark.open(self._sequence)
        except BaseException:  # interrupted, too, the file is closed
            connection.close()
            raise
        self._connection = connection
        self._failed = ""
        return changes

    def _write_owner(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE owner SET epoch = ?, sequence = ?, checksum = ?",
            (self._epoch, self._sequence, owner_checksum(self._epoch, self._sequence)),
        )

    def commit(self, groups: Sequence[Group]) -> Sequence[Outcome]:
        """See :meth:`bpbroker.storage.base.Store.commit`; never reports a conflict, its registry is the only writer."""
        revision = self._revisions.next(self._sequence)
        last = revision
        rows = []
        for group in groups:
            for change in group.changes:
                sequence = revision + change.place
                last = max(last, sequence)
                value = None if change.after is None else joined(change.after, revision)
                rows.append((change.name, sequence, value, row_checksum(change.name, sequence, value)))
        self._transact(partial(_write, rows))
        self._sequence = last
        self._acknowledged()
        return [Committed(revision, revision)] * len(groups)

    def probe(self) -> None:
        """See :meth:`bpbroker.storage.base.Store.probe`."""
        self._transact(self._write_owner)

    def forget(self, sequence: int) -> bool:
        """See :meth:`bpbroker.storage.base.LocalStore.forget`."""
        if sequence >= self._sequence:
            self._transact(partial(self._forget_all, sequence))
            self._forget_from = None
            return False
        after = self._forget_from[1] if self._forget_from and self._forget_from[0] == sequence else ""
        last = self._transact(partial(self._forget_some, sequence, after))
        self._forget_from = None if last is None else (sequence, last)
        return last is not None

    def _forget_all(self, sequence: int, connection: sqlite3.Connection) -> None:
        self._write_owner(connection)  # the number must not start again at 0 when the rows are gone
        note_origin(connection, self._registry, sequence)
        connection.execute("DELETE FROM journal")

    def _forget_some(self, sequence: int, after: str, connection: sqlite3.Connection) -> str | None:
        """Forget the next rows behind a name; return the last name of these, or None at the end."""
        self._write_owner(connection)
        note_origin(connection, self._registry, sequence)
        found = connection.execute(
            "SELECT name FROM journal WHERE name > ? ORDER BY name LIMIT 1 OFFSET ?", (after, _FORGET_AT_ONCE - 1)
        ).fetchone()
        upto = "AND name <= ?" if found else ""
        connection.execute(
            f"DELETE FROM journal WHERE name > ? AND sequence <= ? {upto}",  # noqa: S608 - of two constants
            (after, sequence, *(found or ())),
        )
        return found[0] if found else None

    def close(self) -> None:
        """Fold the log into the journal, and close both."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        empty = False
        if not self._failed:
            with suppress(sqlite3.Error):
                state = connection.execute("SELECT epoch, EXISTS (SELECT 1 FROM journal) FROM owner").fetchone()
                empty = state == (self._epoch, 0)
        with suppress(sqlite3.Error):
            connection.close()
        self._mark.close(remove=empty)
        if self._gives_out and not self._failed:
            self._revisions.close(self._sequence)
        self._failed = self._failed or "the store is closed"

    def _acknowledged(self) -> None:
        """Write the mark before clients get their answers, and make room again after a full disk."""
        try:
            self._mark.write(self._sequence)
        except OSError as error:
            # Without a mark a loss might go unnoticed, with an old one nothing is wrong: go on.
            logger.warning("%s: its mark cannot be written: %s", self._journal, error.strerror)
        if self._untidy and self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._untidy = False

    def _transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run a change in one transaction that only the newest store on this journal may commit.

        The change must hand no cursor on: an error keeps what was at hand when it was raised, and a connection that
        is closed while a cursor is kept neither folds its log into the journal nor lets go of it.
        """
        connection = self._connection
        if self._failed or connection is None:
            raise StorageFailed(f"Nothing was changed; no write is accepted until a restart: {self._failed}")
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT epoch FROM owner").fetchone() != (self._epoch,):
                connection.execute("ROLLBACK")
                self._failed = "another registry has taken this one's place"
                raise StorageFailed(f"Nothing was changed; no write is accepted here: {self._failed}")
            result = change(connection)
            committing = True
            began = time.monotonic()
            connection.execute("COMMIT")
            # Written out: a write has no call more for being measured.
            syncs, secs = self._syncs, time.monotonic() - began
            syncs.counts[bisect_left(syncs.bounds, secs)] += 1
            syncs.total_secs += secs
        except sqlite3.Error as error:
            raise self._failure(connection, error, committing=committing) from None
        return result

    def _failure(self, connection: sqlite3.Connection, error: sqlite3.Error, *, committing: bool) -> Unavailable:
        """Decide what a failed transaction means for its writes and for all later ones."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        rolled_back = not connection.in_transaction
        if not rolled_back:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
                rolled_back = True
        if rolled_back and (code & 0xFF) == sqlite3.SQLITE_FULL:
            self._untidy = True
            return StorageFull("The disk is full: nothing was changed; writes work again when there is space")
        if rolled_back and (code & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and not committing:
            return Unavailable("The journal is busy: nothing was changed; try again")
        # After a failed fsync the content of the disk is not known, and asking again may
        # say "fine" while the data is lost (https://lwn.net/Articles/752063/). So: no more writes.
        self._failed = f"a commit failed ({error})"
        logger.error("%s: %s; no write is accepted until a restart", self._journal, self._failed)
        failure = StorageFailed(
            ("Whether this was changed is not known" if committing else "Nothing was changed")
            + f"; no write is accepted until a restart: {self._failed}"
        )
        failure.outcome_known = not committing
        return failure


def _write(rows: Sequence[tuple[str, int, bytes | None, int]], connection: sqlite3.Connection) -> None:
    # One statement for several rows would be faster. But SQLite keeps what it replaces in a temporary file then, which
    # may be on a full disk, and which nothing overwrites; and the values of each such statement stay in memory.
    connection.executemany("INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?)", rows)


def forget_all(journal: Path, registry: str) -> None:
    """Empty the journal of a stopped broker whose file holds all of it.

    Raises:
        ConfigurationError, Unavailable: it cannot be done.
    """
    if journal.exists():
        store = EmbeddedStore(journal, dict, registry, gives_out=False)
        try:
            store.load()
            store.forget(store.sequence)
        finally:
            store.close()

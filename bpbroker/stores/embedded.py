"""The embedded store: a SQLite journal beside the configuration file.

The file holds a complete state, the journal the latest state of each name
that changed since, deletions included. A commit is one SQLite transaction in
WAL mode with ``synchronous=FULL``: it returns when the operating system says
that the log is on stable storage. Its cost does not depend on how many entries
there are.

Every row carries a checksum, because SQLite checks the structure of its pages
but not their content, and a journal that was damaged must not become a wrong
entry.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpbroker.errors import ConfigurationError, DamagedFile, StorageFailed, StorageFull, Unavailable
from bpbroker.stores import Change, Committed, Outcome
from bpbroker.stores.wal import examine

logger = logging.getLogger(__name__)

_FORGET_AT_ONCE: Final = 2000
"""Rows that one call of forget() deletes at most: some milliseconds, in which no write can be served."""

_COMMITTED: Final = Committed()

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS journal (name TEXT PRIMARY KEY, sequence INTEGER NOT NULL, value BLOB, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owner (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, sequence INTEGER NOT NULL);
INSERT OR IGNORE INTO owner VALUES (1, 0, 0);
"""  # noqa: E501 - a statement a line reads better


@dataclass(frozen=True, slots=True)
class JournalState:
    """What a journal holds: name to entry, None for a deleted one."""

    changes: Mapping[str, bytes | None]
    sequence: int
    torn_bytes: int = 0
    """Size of an unfinished commit at its end, which a crash left and which was never acknowledged."""


def journal_path(config_file: Path) -> Path:
    """Give the journal of a configuration file."""
    return config_file.with_name(f"{config_file.name}.journal")


def _checksum(name: str, sequence: int, value: bytes | None) -> int:
    start = zlib.crc32(b"%d %d " % (sequence, value is None), zlib.crc32(name.encode()))
    return zlib.crc32(value or b"", start)


def read_journal(journal: Path) -> JournalState:
    """Read and check a journal without changing it; empty when there is none.

    Raises:
        DamagedFile: it holds something that the broker did not write there.
        ConfigurationError: it cannot be read.
    """
    log = journal.with_name(f"{journal.name}-wal")
    try:
        if not journal.exists() or journal.stat().st_size == 0:
            if log.exists() and log.stat().st_size:
                raise DamagedFile(f"{journal} is gone or empty, but {log} holds changes that belong to it")
            return JournalState({}, 0)
        verdict = examine(log.read_bytes()) if log.exists() else examine(b"")
    except OSError as error:
        raise ConfigurationError(f"Cannot read {error.filename or journal}: {error.strerror}") from None
    if verdict.damage:
        raise DamagedFile(f"{log}: {verdict.damage}")
    try:
        # mode=ro: SQLite must not fold the log into the journal when this connection closes.
        with closing(sqlite3.connect(f"{journal.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = bytes
            return _checked(connection, journal, verdict.torn_bytes)
    except sqlite3.Error as error:
        raise DamagedFile(f"{journal} is damaged: {error}") from None


def _checked(connection: sqlite3.Connection, journal: Path, torn_bytes: int) -> JournalState:
    for (line,) in connection.execute("PRAGMA integrity_check(1)"):
        if line != b"ok":
            raise DamagedFile(f"{journal} is damaged: {line.decode(errors='replace')}")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return JournalState({}, 0, torn_bytes)
    if tables != {b"journal", b"owner"}:
        raise DamagedFile(f"{journal} is not a journal of bpbroker")
    owner = connection.execute("SELECT epoch, sequence FROM owner").fetchall()
    if len(owner) != 1 or not all(isinstance(number, int) for number in owner[0]):
        raise DamagedFile(f"{journal} is damaged: its owner row is not what the broker wrote")
    changes: dict[str, bytes | None] = {}
    last = owner[0][1]
    for raw, sequence, value, checksum in connection.execute("SELECT name, sequence, value, checksum FROM journal"):
        try:
            name = raw.decode()
            good = (value is None or isinstance(value, bytes)) and _checksum(name, sequence, value) == checksum
        except (UnicodeDecodeError, AttributeError, TypeError):
            good = False
        if not good:
            raise DamagedFile(f"{journal} is damaged: the row of {raw!r} is not what the broker wrote")
        changes[name] = value
        last = max(last, sequence)
    return JournalState(changes, last, torn_bytes)


class EmbeddedStore:
    """Implements :class:`bpbroker.stores.Store`; to be used by the thread that made it.

    Args:
        journal: the SQLite file; made when it is not there.
        base: gives the entries that the configuration file holds.
    """

    def __init__(self, journal: Path, base: Callable[[], Mapping[str, bytes]]) -> None:
        self._journal = journal
        self._base = base
        self._connection: sqlite3.Connection | None = None
        self._epoch = 0
        self._sequence = 0
        self._failed = ""

    @property
    def sequence(self) -> int:
        """Number of the last commit."""
        return self._sequence

    def load(self) -> Mapping[str, bytes]:
        """See :meth:`bpbroker.stores.Store.load`. From here on an older store on this journal is fenced off."""
        state = read_journal(self._journal)
        if state.torn_bytes:
            logger.warning(
                "%s ends with %d bytes of a commit that a crash cut off; it was never acknowledged and is dropped",
                self._journal,
                state.torn_bytes,
            )
        entries = dict(self._base())
        for name, value in state.changes.items():
            if value is None:
                entries.pop(name, None)
            else:
                entries[name] = value
        self._open()
        self._sequence = max(self._sequence, state.sequence)
        return entries

    def _open(self) -> None:
        try:
            os.close(os.open(self._journal, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self._journal, isolation_level=None, timeout=5)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(_SCHEMA)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE owner SET epoch = epoch + 1")
            self._epoch, self._sequence = connection.execute("SELECT epoch, sequence FROM owner").fetchone()
            connection.execute("COMMIT")
        except OSError as error:
            raise ConfigurationError(f"Cannot write {self._journal}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise ConfigurationError(f"Cannot write {self._journal}: {error}") from None
        self._connection = connection

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """See :meth:`bpbroker.stores.Store.commit`; never reports a conflict, its registry is the only writer."""
        sequence = self._sequence + 1
        rows = [
            (change.name, sequence, change.value, _checksum(change.name, sequence, change.value)) for change in changes
        ]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?)", rows)
        self._sequence = sequence
        return [_COMMITTED] * len(rows)

    def forget(self, sequence: int) -> bool:
        """See :meth:`bpbroker.stores.Store.forget`."""
        with self._transaction() as connection:
            # The number must not start again at 0 when the rows are gone.
            connection.execute("UPDATE owner SET sequence = max(sequence, ?)", (self._sequence,))
            gone = connection.execute(
                "DELETE FROM journal WHERE name IN (SELECT name FROM journal WHERE sequence <= ? LIMIT ?)",
                (sequence, _FORGET_AT_ONCE),
            ).rowcount
        return gone == _FORGET_AT_ONCE

    def close(self) -> None:
        """Fold the log into the journal and let go of it."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        self._failed = self._failed or "the store is closed"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the body in one transaction that only the newest store on this journal may commit."""
        connection = self._connection
        if self._failed or connection is None:
            raise StorageFailed(f"No write is accepted until a restart: {self._failed or 'the store is not open'}")
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT epoch FROM owner").fetchone() != (self._epoch,):
                connection.execute("ROLLBACK")
                self._failed = "another registry has taken this one's place"
                raise StorageFailed(f"No write is accepted here: {self._failed}")
            yield connection
            committing = True
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failure(connection, error, committing=committing) from None

    def _failure(self, connection: sqlite3.Connection, error: sqlite3.Error, *, committing: bool) -> Unavailable:
        """Decide what a failed transaction means for its writes and for all later ones."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        rolled_back = not connection.in_transaction
        if not rolled_back:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
                rolled_back = True
        if rolled_back and code == sqlite3.SQLITE_FULL:
            return StorageFull("The disk is full: nothing was changed; writes work again when there is space")
        if rolled_back and code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and not committing:
            return Unavailable("The journal is busy: nothing was changed; try again")
        # After a failed fsync nobody knows what is on the disk, and asking again may
        # say "fine" while the data is lost (https://lwn.net/Articles/752063/). So: no more writes.
        self._failed = f"a commit failed ({error})"
        logger.error("%s: %s; no write is accepted until a restart", self._journal, self._failed)
        failure = StorageFailed(
            f"No write is accepted until a restart: {self._failed}"
            + ("; whether this change happened is not known" if committing else "; nothing was changed")
        )
        failure.outcome_known = not committing
        return failure

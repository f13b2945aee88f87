"""The journal's files: what they are called, what must stand in them, reading them without changing a byte.

``<config>.journal`` is a SQLite database in WAL mode, ``<config>.journal-wal``
its log. ``<config>.journal-mark`` holds the number of the last acknowledged
commit, and whose commits these are. It is synced when it is made and not again, so after a power cut it may
be behind, as an empty one is, but never ahead: a journal that ends before its
mark has lost something.

Every row carries a checksum, because SQLite checks the structure of its pages
but not their content, and a damaged journal must not become a wrong entry.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bpbroker import files, progress
from bpbroker.errors import ConfigurationError, DamagedFile, StartError
from bpbroker.storage.config_file import later_version
from bpbroker.storage.embedded.wal import LogState, examine

_TABLES: Final = {
    "journal": "CREATE TABLE journal (name TEXT PRIMARY KEY, sequence INTEGER NOT NULL, value BLOB,"
    " checksum INTEGER NOT NULL) WITHOUT ROWID",
    "owner": "CREATE TABLE owner (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL,"
    " sequence INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    "origin": "CREATE TABLE origin (one INTEGER PRIMARY KEY CHECK (one = 1), registry TEXT NOT NULL,"
    " base INTEGER NOT NULL, checksum INTEGER NOT NULL)",
}
_EARLIER_TABLES: Final = {name: sql for name, sql in _TABLES.items() if name != "origin"}
"""What a journal of an earlier version has."""
_FIRST_TABLES: Final = {
    **_EARLIER_TABLES,
    "owner": "CREATE TABLE owner (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL,"
    " sequence INTEGER NOT NULL)",
}
"""What a journal of the first version has: its owner's row has no checksum."""

_PAGE_BYTES: Final = 4096

_NOT_ITS_FAULT: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY,
    }
)  # fmt: skip
"""Errors that say nothing about what is in the file."""


_MAY_PASS: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM}
)
"""Errors after which a later start may work, as :data:`bpbroker.files.MAY_PASS`."""


@dataclass(frozen=True, slots=True)
class JournalState:
    """What a journal holds."""

    changes: Mapping[str, bytes | None]
    """Name to entry, None for a deleted one."""
    sequence: int
    """Number of the last commit."""
    torn_bytes: int = 0
    """Size of an unfinished commit at its end, which a crash left and which was never acknowledged."""
    registry: str = ""
    """Id of the registry whose commits these are; empty in a journal of an earlier version."""
    base: int = 0
    """Commits up to this one were forgotten, because the configuration file holds them."""


FORMAT = 1
"""What this version reads. A later one puts a larger number into ``user_version`` when this one cannot read it."""


def journal_path(config_file: Path) -> Path:
    """Return the journal of a configuration file."""
    return config_file.with_name(f"{config_file.name}.journal")


def config_path(journal: Path) -> Path:
    """Return the configuration file of a journal."""
    return journal.with_name(journal.name.removesuffix(".journal"))


def files_of(journal: Path) -> tuple[Path, ...]:
    """Return the files of a journal: the database, its log, its mark."""
    return journal, _beside(journal, "wal"), _beside(journal, "mark")


def _beside(journal: Path, what: str) -> Path:
    return journal.with_name(f"{journal.name}-{what}")


def row_checksum(name: str, sequence: int, value: bytes | None) -> int:
    """Return the checksum of a change's row."""
    start = zlib.crc32(b"%d %d " % (sequence, value is None), zlib.crc32(name.encode()))
    return zlib.crc32(value or b"", start)


def owner_checksum(epoch: int, sequence: int) -> int:
    """Return the checksum of the owner's row."""
    return zlib.crc32(b"%d %d" % (epoch, sequence))


def origin_checksum(registry: str, base: int) -> int:
    """Return the checksum of the origin's row."""
    return zlib.crc32(b"%d" % base, zlib.crc32(registry.encode()))


def create(journal: Path, registry: str, commit: int = 0) -> None:
    """Make an empty journal, under another name first, so that no half of one ever has its name.

    Args:
        journal: its path.
        registry: id of the registry whose commits it will hold.
        commit: what the configuration file holds already; the next commit has the next number.

    Raises:
        OSError, sqlite3.Error: it cannot be written.
    """
    new = journal.with_name(files.temporary_name(journal.name))
    try:
        _write_empty(new, config_path(journal), registry, commit)
        files.settle(new, journal)
    except BaseException:  # interrupted, too, no half journal stays
        for left in (new, _beside(new, "journal"), _beside(new, "wal"), _beside(new, "shm")):
            with suppress(OSError):
                left.unlink()
        raise


def _write_empty(new: Path, owner_of: Path, registry: str, commit: int) -> None:
    os.close(files.open_private(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, owner_of=owner_of))
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN")
        for statement in _TABLES.values():
            connection.execute(statement)
        connection.execute("INSERT INTO owner VALUES (1, 0, ?, ?)", (commit, owner_checksum(0, commit)))
        connection.execute(
            "INSERT INTO origin VALUES (1, ?, ?, ?)", (registry, commit, origin_checksum(registry, commit))
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # raises what closing would only ignore


def read_journal(journal: Path) -> JournalState:
    """Read and check a journal without changing it; empty when there is none.

    Raises:
        DamagedFile: it holds something that the broker did not write there, or lacks what it did.
        ConfigurationError, StartError: it cannot be read.
    """
    log = _beside(journal, "wal")
    try:
        # The mark comes first: a broker that runs may move it on while we read the rest.
        mark = Mark(journal).read()
        refuse_half(journal, mark)  # also when only some of the old journal's files are gone
        if not journal.exists():
            if log.exists() and log.stat().st_size:
                raise DamagedFile(f"{journal} is gone, but {log} has changes that belong to it")
            state = JournalState({}, 0)
        else:
            verdict = examine(log)
            if verdict.damage:
                raise DamagedFile(f"{log}: {verdict.damage}")
            with progress.Work(f"Reading {journal}"):
                state = _read(journal, verdict)
    except OSError as error:
        raise files.start_error(f"Cannot read {error.filename or journal}: {error.strerror}", error) from None
    if mark is not None:
        _compare(journal, state, mark)
    return state


def refuse_half(journal: Path, mark: Noted | None) -> None:
    """Check that no restore was cut off.

    Raises:
        DamagedFile: one was, so file, journal and identity may be of two states.
    """
    if mark is not None and mark.commit == Mark.RESTORING:
        raise DamagedFile(f"A restore of {config_path(journal)} was cut off; do it again")


def _compare(journal: Path, state: JournalState, mark: Noted) -> None:
    """Refuse a journal that ends before its mark, or whose mark is of another registry.

    Raises:
        DamagedFile: what the mark notes is not in the journal, or is of another registry.
    """
    path = _beside(journal, "mark")
    if mark.registry and state.registry and mark.registry != state.registry:
        raise DamagedFile(
            f"{path} is of another registry ({mark.registry}) than {journal} ({state.registry}): one of them was"
            f" copied here. Put the right one there (to go on with this journal, remove {path})"
        )
    if state.sequence < mark.commit:
        raise DamagedFile(
            f"{journal} is incomplete: it ends with commit {state.sequence}, but commit {mark.commit} was"
            f" acknowledged (to go on without what is missing, remove {path})"
        )


def _read(journal: Path, verdict: LogState) -> JournalState:
    if journal.stat().st_size < _PAGE_BYTES:
        # Not even looked at: SQLite would take it for a new database and remove the log.
        raise DamagedFile(f"{journal} is cut off")
    with journal.open("rb"):
        pass  # SQLite would not say why it cannot be opened
    try:
        # mode=ro: SQLite must not fold the log into the journal when this connection closes.
        with closing(sqlite3.connect(f"{journal.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return _checked(connection, journal, verdict.torn_bytes)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_ITS_FAULT:
            raise cannot("read", journal, error) from None
        raise DamagedFile(f"{journal} is damaged: {error}") from None


def cannot(do: str, journal: Path, error: sqlite3.Error) -> ConfigurationError | StartError:
    """Return the error for a journal that SQLite cannot read or write; one that may pass is tried again."""
    passes = getattr(error, "sqlite_errorcode", 0) & 0xFF in _MAY_PASS
    return (StartError if passes else ConfigurationError)(f"Cannot {do} {journal}: {error}")


def _checked(connection: sqlite3.Connection, journal: Path, torn_bytes: int) -> JournalState:
    for (line,) in connection.execute("PRAGMA integrity_check(1)"):
        if line != "ok":
            raise DamagedFile(f"{journal} is damaged: {' '.join(str(line).split())}")
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    if number > FORMAT:
        raise later_version(journal, number)
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    tables = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
    if mode != "wal" or tables not in (_TABLES, _EARLIER_TABLES, _FIRST_TABLES):
        raise DamagedFile(f"{journal} is damaged, or is no journal of bpbroker")
    changes, last = changes_of(connection, journal)
    return JournalState(changes, last, torn_bytes, *origin_of(connection, journal))


def origin_of(connection: sqlite3.Connection, journal: Path) -> tuple[str, int]:
    """Return the registry's id and the last forgotten commit of an open journal; of an earlier version's, ``("", 0)``.

    Raises:
        DamagedFile: the checksum does not fit.
    """
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'origin'").fetchone():
        return "", 0
    rows = connection.execute("SELECT registry, base, checksum FROM origin").fetchall()
    if len(rows) != 1 or not _fits(origin_checksum, rows[0]):
        raise DamagedFile(f"{journal} is damaged: the row of its registry is not what the broker wrote")
    return rows[0][0], rows[0][1]


def note_origin(connection: sqlite3.Connection, registry: str, base: int) -> None:
    """Write whose commits a journal holds, and which it has forgotten, in the transaction under way."""
    connection.execute(_TABLES["origin"].replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
    connection.execute(
        "INSERT OR REPLACE INTO origin VALUES (1, ?, ?, ?)", (registry, base, origin_checksum(registry, base))
    )


def changes_of(connection: sqlite3.Connection, journal: Path) -> tuple[dict[str, bytes | None], int]:
    """Return what an open journal holds, and the number of its last commit.

    Raises:
        DamagedFile: a row's checksum does not fit.
    """
    last = _owner_of(connection, journal)[1]
    changes: dict[str, bytes | None] = {}
    for row in connection.execute("SELECT name, sequence, value, checksum FROM journal"):
        if not _fits(row_checksum, row):
            raise DamagedFile(f"{journal} is damaged: the row of {row[0]!r} is not what the broker wrote")
        changes[row[0]] = row[2]
        last = max(last, row[1])
    return changes, last


def _owner_of(connection: sqlite3.Connection, journal: Path) -> tuple[int, int]:
    """Return the epoch and the last commit that the owner's row notes; the first version's has no checksum.

    Raises:
        DamagedFile: it is not what the broker wrote.
    """
    rows = connection.execute("SELECT * FROM owner").fetchall()
    if len(rows) == 1:
        row = rows[0][1:]
        if len(row) == 2:
            row += (owner_checksum(*row),) if all(isinstance(value, int) for value in row) else (None,)
        if _fits(owner_checksum, row):
            return row[0], row[1]
    raise DamagedFile(f"{journal} is damaged: the row of its owner is not what the broker wrote")


def next_epoch(connection: sqlite3.Connection, journal: Path) -> int:
    """Return the number of the owner that takes over an open journal, in the transaction under way.

    The first version's table of owners gets this version's form.

    Raises:
        DamagedFile: the owner's row is not what the broker wrote.
    """
    epoch, sequence = _owner_of(connection, journal)
    (form,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'owner'").fetchone()
    if form == _FIRST_TABLES["owner"]:
        connection.execute("DROP TABLE owner")
        connection.execute(_TABLES["owner"])
        connection.execute("INSERT INTO owner VALUES (1, ?, ?, ?)", (epoch, sequence, owner_checksum(epoch, sequence)))
    return epoch + 1


def _fits(checksum: Callable[..., int], row: tuple[Any, ...]) -> bool:
    """Whether a row's last column is the checksum of the others; damage may have changed their types, too."""
    try:
        return bool(checksum(*row[:-1]) == row[-1])
    except (AttributeError, TypeError):
        return False


@dataclass(frozen=True, slots=True)
class Noted:
    """The content of a mark."""

    commit: int
    """Number of the last acknowledged commit."""
    registry: str
    """Whose commit this is; empty in a mark of an earlier version."""


class Mark:
    """The number of the last acknowledged commit, in a file of its own.

    Args:
        journal: the journal beside which it lies.
        registry: id of the registry whose commits it counts, 32 hexadecimal digits; empty when it is not known.
    """

    RESTORING: Final = 2**64 - 1
    """Stands there while a restore replaces file and journal: no journal reaches it, so nothing starts on a half."""

    _FORM: Final = struct.Struct(">Q16sI")
    _EARLIER_FORM: Final = struct.Struct(">QI")

    def __init__(self, journal: Path, registry: str = "") -> None:
        self._journal = journal
        self._path = _beside(journal, "mark")
        self._registry = bytes.fromhex(registry)
        self._descriptor: int | None = None

    def read(self) -> Noted | None:
        """Return its content; None when there is none yet, or when a power cut left it empty, short or full of zeros.

        Raises:
            DamagedFile: it is not what the broker wrote.
            OSError: it cannot be read.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        if len(content) < self._EARLIER_FORM.size or not content.strip(b"\0"):
            return None
        if len(content) == self._EARLIER_FORM.size:
            commit, checksum = self._EARLIER_FORM.unpack(content)
            if checksum == zlib.crc32(content[:-4]):
                return Noted(commit, "")
        elif len(content) == self._FORM.size:
            commit, registry, checksum = self._FORM.unpack(content)
            if checksum == zlib.crc32(content[:-4]):
                return Noted(commit, registry.hex() if registry.strip(b"\0") else "")
        raise DamagedFile(f"{self._path} is damaged (to go on without it, remove it)")

    def open(self, sequence: int) -> None:
        """Make the file, or open the one that is there, durably.

        Raises:
            OSError: it cannot be written.
        """
        owner_of = config_path(self._journal)
        self._descriptor = files.open_private(self._path, os.O_RDWR | os.O_CREAT, owner_of=owner_of)
        if os.fstat(self._descriptor).st_size != self._FORM.size:
            os.ftruncate(self._descriptor, 0)  # of an earlier version: a power cut must not leave half of each
        self.write(sequence)
        os.fsync(self._descriptor)
        files.sync_folder(self._path.parent)

    def write(self, sequence: int) -> None:
        """Write a later commit's number: two microseconds, nothing is synced.

        Raises:
            OSError: it cannot be written.
        """
        if self._descriptor is not None:
            content = sequence.to_bytes(8, "big") + self._registry.ljust(16, b"\0")
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, content + zlib.crc32(content).to_bytes(4, "big"))

    def block(self) -> None:
        """Let no broker start until :meth:`close` removes the mark, also after a crash.

        Raises:
            OSError: it cannot be written.
        """
        self.open(self.RESTORING)

    def unblock(self) -> None:
        """Let a broker start again: the mark says less than any journal holds, also where it cannot be removed.

        Raises:
            OSError: it cannot be written.
        """
        if self._descriptor is not None:
            self.write(0)
            os.fsync(self._descriptor)

    def close(self, *, remove: bool) -> None:
        """Close the file; ``remove`` it when the journal stays empty, so that nothing can be missing any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if remove:
            with suppress(OSError):
                self._path.unlink()

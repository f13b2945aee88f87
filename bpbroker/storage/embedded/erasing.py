"""Erasing: overwrites deleted rows in all files of a journal, while the registry goes on writing to it.

SQLite overwrites the rows that it deletes (``secure_delete``). But copies stay behind when it moves rows between pages,
and its log has every page as it was. So the journal is packed again, the log begins again, and the old bytes behind
its new frames are overwritten.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from bpbroker import files
from bpbroker.errors import Unavailable
from bpbroker.storage.embedded.journal import files_of
from bpbroker.storage.embedded.wal import end_of

_PACKED_BYTES: Final = 32 * 1024 * 1024
"""A larger journal is not packed: the registry could not write for too long."""
_BUSY_SECS: Final = 5.0


def erase(journal: Path) -> None:
    """Overwrite what is deleted. The registry may write meanwhile; it waits at most until 32 MiB are packed.

    Raises:
        Unavailable: it cannot be done now, or only a part of it.
    """
    log = next(path for path in files_of(journal) if path.name.endswith("-wal"))
    try:
        packed = journal.stat().st_size <= _PACKED_BYTES
        with closing(sqlite3.connect(journal, isolation_level=None, timeout=_BUSY_SECS)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA secure_delete=ON")
            if packed:
                connection.execute("PRAGMA temp_store=MEMORY")  # not in a file elsewhere, which nothing overwrites
                connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # most of the work, while others may write
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            if busy:
                raise Unavailable(f"{journal} is being read or written all the time")
            _write_something(connection)  # with it the log begins anew
            _overwrite_rest(connection, log)
    except sqlite3.Error as error:
        raise Unavailable(f"{journal}: {error}") from None
    except OSError as error:
        raise files.storage_error(f"Cannot overwrite {log}", error) from None
    if not packed:
        raise Unavailable(f"{journal} is too large to be packed")


def _write_something(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE owner SET epoch = epoch + 1")  # SQLite writes nothing where nothing changes
    connection.execute("UPDATE owner SET epoch = epoch - 1")
    connection.execute("COMMIT")


def _overwrite_rest(connection: sqlite3.Connection, log: Path) -> None:
    """Overwrite the frames of the older log; a crash leaves frames that do not count, as before."""
    connection.execute("BEGIN IMMEDIATE")  # no frame is added meanwhile
    try:
        descriptor = os.open(log, os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0))
        try:
            files.overwrite(descriptor, end_of(log))
        finally:
            os.close(descriptor)
    finally:
        connection.execute("ROLLBACK")

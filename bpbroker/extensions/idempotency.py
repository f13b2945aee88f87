"""Answers of extension calls that came with an ``Idempotency-Key``, kept for a day so that each such call runs once.

A key is noted durably before its call runs and gets its answer durably before
the client does. So a repeat finds the answer, or that the call is under way,
or that the broker, or its part for it, ended in the middle: then what the call did
cannot be known, and it is not run again.

What a keyed call costs does not depend on how many keys are kept. How old a
key is does not depend on the machine's calendar, which may jump by years: the
file has a clock of its own, see :class:`Now`.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpbroker import files
from bpbroker.errors import BadRequest, Overloaded, RequestError, StorageFull, Unavailable, from_status
from bpbroker.messages import Call, CallResult

logger = logging.getLogger(__name__)

KEPT_SECS: Final = 24 * 3600.0
"""A key is kept for at least a day; the time in which the machine is off does not count in full."""
_NOTE_EVERY_SECS: Final = 3600.0
"""How often the file's clock is noted without any call: time that was not noted is lost when the machine restarts."""
FORGOTTEN_AT_ONCE: Final = 500
"""How many answers older than a day are removed at one time, so that it does not take long."""
KEYS_MAX: Final = 100_000
"""Most keys of one namespace in a day; further ones are refused, because the call of a key that was dropped early
could run twice."""
_PART_OF_ONE_CLIENT: Final = 2
"""One address gets this part of a namespace's keys at most …"""
_RESERVED: Final = 1000
"""… and, when they are all taken, still this part, so that no number of others can leave it without."""
BYTES_MAX: Final = 256 * 1024 * 1024
"""Size of the file beyond which the oldest answers are thrown away, but never their keys."""
_SMALL_BYTES: Final = 1024
"""Answers up to this size stay: as many as there may be keys fit into the file."""
_WARN_FROM: Final = 0.8

_KEY: Final = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")
_VERSION: Final = 2
_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS answers (
    namespace TEXT NOT NULL, key TEXT NOT NULL, request BLOB NOT NULL, begun REAL NOT NULL,
    ok INTEGER, status INTEGER, message TEXT, content_type TEXT, body BLOB,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX IF NOT EXISTS age ON answers (begun);
CREATE TABLE IF NOT EXISTS total (keys INTEGER NOT NULL);
DELETE FROM total;
INSERT INTO total SELECT count(*) FROM answers;
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON answers BEGIN UPDATE total SET keys = keys + 1; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON answers BEGIN UPDATE total SET keys = keys - 1; END;
CREATE TABLE IF NOT EXISTS clock (boot TEXT NOT NULL, uptime REAL NOT NULL, wall REAL NOT NULL, reading REAL NOT NULL);
PRAGMA user_version = 1;
COMMIT;
"""
_SCHEMA_OF_QUOTAS: Final = """
BEGIN IMMEDIATE;
ALTER TABLE answers ADD COLUMN client TEXT NOT NULL DEFAULT '';
CREATE TABLE quotas (
    namespace TEXT NOT NULL, client TEXT NOT NULL, keys INTEGER NOT NULL, PRIMARY KEY (namespace, client)
) WITHOUT ROWID;
CREATE TABLE spaces (namespace TEXT PRIMARY KEY, keys INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO quotas SELECT namespace, client, count(*) FROM answers GROUP BY namespace, client;
INSERT INTO spaces SELECT namespace, count(*) FROM answers GROUP BY namespace;
CREATE TRIGGER counted AFTER INSERT ON answers BEGIN
    INSERT INTO quotas VALUES (NEW.namespace, NEW.client, 1) ON CONFLICT DO UPDATE SET keys = keys + 1;
    INSERT INTO spaces VALUES (NEW.namespace, 1) ON CONFLICT DO UPDATE SET keys = keys + 1;
END;
CREATE TRIGGER discounted AFTER DELETE ON answers BEGIN
    UPDATE quotas SET keys = keys - 1 WHERE namespace = OLD.namespace AND client = OLD.client;
    DELETE FROM quotas WHERE namespace = OLD.namespace AND client = OLD.client AND keys <= 0;
    UPDATE spaces SET keys = keys - 1 WHERE namespace = OLD.namespace;
END;
PRAGMA user_version = 2;
COMMIT;
"""
"""How many keys each namespace, and each client of one, has. Keys of before have no client."""
"""The table ``total`` has the number of keys: counting them would cost a look at each. ``begun`` is by the file's
clock; files of earlier versions have Unix time there, so that is what a new clock begins with."""

KeptResult = CallResult | RequestError


@dataclass(frozen=True, slots=True)
class Now:
    """One look at the machine's clocks.

    The file's own clock runs with the machine's uptime, which cannot be set.
    When the machine was started anew, it goes on by the smaller one of the new
    uptime and what the calendar says: so neither a calendar that jumps nor a
    file that comes from another machine lets a key be forgotten too early.
    """

    boot: str
    """Which start of the machine this is; empty where the system does not tell."""
    uptime: float
    """Seconds since then, time asleep included where the system counts it."""
    wall: float
    """Unix time."""

    @classmethod
    def look(cls) -> Now:
        """Read the clocks."""
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        uptime = time.monotonic() if boottime is None else time.clock_gettime(boottime)
        return cls(_boot(), uptime, time.time())

    def reading(self, connection: sqlite3.Connection) -> float:
        """Return the file's time in seconds."""
        row = connection.execute("SELECT boot, uptime, wall, reading FROM clock").fetchone()
        if row is None:
            (newest,) = connection.execute("SELECT max(begun) FROM answers").fetchone()
            return max(self.wall, newest or 0.0)
        boot, uptime, wall, reading = row
        same = boot == self.boot and self.uptime >= uptime
        passed = self.uptime - uptime if same else min(self.uptime, self.wall - wall)
        return float(reading + max(0.0, passed))

    def is_to_be_noted(self, connection: sqlite3.Connection, reading: float) -> bool:
        """Return whether the file's clock was noted before the machine's last start, or long ago, or never."""
        row = connection.execute("SELECT boot, reading FROM clock").fetchone()
        return row is None or row[0] != self.boot or reading - row[1] > _NOTE_EVERY_SECS

    def note(self, connection: sqlite3.Connection, reading: float) -> None:
        """Note what the file's clock shows now; inside a transaction."""
        connection.execute("DELETE FROM clock")
        connection.execute("INSERT INTO clock VALUES (?, ?, ?, ?)", (self.boot, self.uptime, self.wall, reading))


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Keyed:
    """One key with the request that it stands for."""

    namespace: str
    key: str
    request: bytes
    """Digest of the request and its source: only an equal repetition gets the answer."""
    client: str = ""
    """The client that it counts for: its address, or its IPv6 network."""

    @classmethod
    def of(cls, namespace: str, call: Call) -> Keyed | None:
        """Return a call's key, None if it has none.

        Raises:
            BadRequest: it cannot be a key.
        """
        key = call.idempotency_key
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise BadRequest("The Idempotency-Key must be 1 to 255 visible ASCII characters")
        # A method may answer each caller differently, so what one got is not for another.
        who = (call.source, call.caller) if call.caller else (call.source,)
        asked = json.dumps([namespace, call.method, sorted(call.qs.items()), *who])
        return cls(namespace, key, hashlib.sha256(asked.encode()).digest(), _client(call.source))

    def check_repeat(self, request: bytes) -> None:
        """Check that a repeated call has the same request.

        Raises:
            BadRequest: the request is another one.
        """
        if request != self.request:
            raise BadRequest("This Idempotency-Key was used with another request; nothing was done")


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the file is."""

    keys: int
    bytes: int

    @property
    def warning(self) -> str:
        """A warning for the operator; empty while there is room."""
        if self.keys < _WARN_FROM * KEYS_MAX:
            return ""
        return f"{_WARN_FROM:.0%} of the {KEYS_MAX} calls with an Idempotency-Key that one day may have were made"


class Answers:
    """The file of answers; used by one thread. Several may be open on the same file.

    Args:
        path: the SQLite file, made when needed; None keeps the answers in memory only.
        look: looks at the machine's clocks.
        registry: the id of the registry that the file belongs to; empty if it is not known.
    """

    def __init__(self, path: Path | None, look: Callable[[], Now] = Now.look, registry: str = "") -> None:
        self._path = path
        self._registry = registry
        self._look = look
        self._connection: sqlite3.Connection | None = None

    def find(self, keyed: Keyed) -> KeptResult | None:
        """Return the answer that a key's call got, None if there was no such call in the last day.

        Raises:
            BadRequest: the key stands for another request.
            Unavailable: the file of answers cannot be read, so it is not known whether there was one.
        """
        with self._file() as connection:
            row = connection.execute(
                "SELECT request, ok, status, message, content_type, body FROM answers"
                " WHERE namespace = ? AND key = ? AND begun > ?",
                (keyed.namespace, keyed.key, self._look().reading(connection) - KEPT_SECS),
            ).fetchone()
        if row is None:
            return None
        request, ok, status, message, content_type, body = row
        keyed.check_repeat(request)
        if status is None:
            error = RequestError(
                "The call with this Idempotency-Key was cut off when the broker, or its part for it, ended;"
                " what it did is not known."
                " It is not run again: check what it did, then use a new key"
            )
            error.outcome_known = False
            return error
        if ok and body is None:
            return RequestError(
                f"The call with this Idempotency-Key ran and ended with {status} {message};"
                " its answer made room for newer ones. It is not run again"
            )
        if ok:
            return CallResult(status, message, content_type, body)
        return from_status(status, message)

    def begin(self, keyed: Keyed) -> None:
        """Note durably that a key's call is about to run.

        Raises:
            Overloaded, StorageFull, Unavailable: it could not be noted, so it must not run.
        """
        with self._file() as connection, _transaction(connection):
            clocks = self._look()
            now = clocks.reading(connection)
            clocks.note(connection, now)
            _forget(connection, now)
            connection.execute(
                "DELETE FROM answers WHERE namespace = ? AND key = ? AND begun <= ?",
                (keyed.namespace, keyed.key, now - KEPT_SECS),
            )
            _make_room(connection)
            count, mine = _quotas(connection, keyed)
            if not _has_room(count, mine, _used_bytes(connection) >= BYTES_MAX):
                (oldest,) = connection.execute(
                    "SELECT min(begun) FROM answers WHERE namespace = ?", (keyed.namespace,)
                ).fetchone()
                oldest = now if oldest is None else oldest
                hours, minutes = divmod(max(0, int(oldest + KEPT_SECS - now)) // 60 + 1, 60)
                raise Overloaded(
                    f"{count} calls of {keyed.namespace} with an Idempotency-Key in one day, {mine} of them from here,"
                    " are the most that is kept; nothing was done;"
                    f" the oldest is forgotten in {hours} h {minutes} min."
                    " If running this call twice does no harm, send it without a key"
                )
            connection.execute(
                "INSERT INTO answers (namespace, key, request, begun, client) VALUES (?, ?, ?, ?, ?)",
                (keyed.namespace, keyed.key, keyed.request, now, keyed.client),
            )

    def finish(self, keyed: Keyed, outcome: KeptResult) -> None:
        """Keep durably what a key's call was answered.

        Raises:
            StorageFull, Unavailable: it could not be kept; a repeat will hear that the outcome is not known.
        """
        if isinstance(outcome, CallResult):
            fields = (1, outcome.status, outcome.message, outcome.content_type, outcome.body)
        else:
            fields = (0, outcome.status, str(outcome), "", b"")
        with self._file() as connection, _transaction(connection):
            connection.execute(
                "UPDATE answers SET ok = ?, status = ?, message = ?, content_type = ?, body = ?"
                " WHERE namespace = ? AND key = ?",
                (*fields, keyed.namespace, keyed.key),
            )

    def tidy(self) -> Usage:
        """Remove some of the answers older than a day, and return how full the file is; do not create it.

        Raises:
            StorageFull, Unavailable: the file cannot be used.
        """
        if self._connection is None and (self._path is None or not self._path.exists()):
            return Usage(0, 0)
        with self._file() as connection:
            clocks = self._look()
            now = clocks.reading(connection)
            over = connection.execute("SELECT 1 FROM answers WHERE begun <= ? LIMIT 1", (now - KEPT_SECS,)).fetchone()
            if over is not None or (_count(connection) and clocks.is_to_be_noted(connection, now)):
                with _transaction(connection):
                    now = clocks.reading(connection)  # another thread may have noted it meanwhile
                    clocks.note(connection, now)
                    _forget(connection, now)
            return Usage(_count(connection), _used_bytes(connection))

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    @contextmanager
    def _file(self) -> Iterator[sqlite3.Connection]:
        """Yield the open file; what goes wrong inside becomes an error of ours."""
        try:
            if self._connection is None:
                self._connection = _open(self._path, self._registry)
            yield self._connection
        except sqlite3.IntegrityError:
            raise Unavailable("The call with this Idempotency-Key is under way already") from None
        except (sqlite3.Error, OSError) as error:
            self.close()
            logger.error("%s cannot be used: %s", self._path, error)  # noqa: TRY400 - the operator needs no traceback
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
                raise StorageFull("The disk is full, so this key cannot be kept; nothing was done") from None
            raise Unavailable(
                "Calls with an Idempotency-Key cannot be served at the moment, their file cannot be used"
            ) from None


def path_of(own: Path) -> Path:
    """Return the file of answers that belongs to a configuration file."""
    return own.with_name(f"{own.name}.answers")


def owner_of(path: Path) -> str:
    """Return the id of the registry that a file of answers belongs to.

    Empty if there is no file, if it says nothing, or if it cannot be read, which :class:`Answers` reports. All that
    the file's log holds is in the file itself afterwards, so that it can be copied; nothing else may have it open.
    """
    try:
        os.close(files.open_private(path, os.O_RDWR))
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        try:
            row = connection.execute("SELECT registry FROM owner").fetchone()
        finally:
            connection.close()
    except (sqlite3.Error, OSError):
        return ""
    return str(row[0]) if row else ""


def disown(path: Path) -> None:
    """Let the registry that opens a file of answers next be the one that it belongs to."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("DELETE FROM owner")
    finally:
        connection.close()


def _note_owner(connection: sqlite3.Connection, registry: str) -> None:
    """Note whose answers these are, once.

    Raises:
        sqlite3.DatabaseError: they are another registry's.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS owner (registry TEXT NOT NULL)")
    row = connection.execute("SELECT registry FROM owner").fetchone()
    if row is None:
        connection.execute("INSERT INTO owner SELECT ? WHERE NOT EXISTS (SELECT 1 FROM owner)", (registry,))
    elif row[0] != registry:
        raise sqlite3.DatabaseError(f"it belongs to the registry {row[0]}, not to {registry}")


def _open(path: Path | None, registry: str) -> sqlite3.Connection:
    if path is None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
    else:
        os.close(files.open_private(path, os.O_RDWR | os.O_CREAT))  # answers may hold keys
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version < 1:
            connection.executescript(_SCHEMA)
        if version < _VERSION:
            with suppress(sqlite3.OperationalError):  # another thread was faster
                connection.executescript(_SCHEMA_OF_QUOTAS)
            if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                raise sqlite3.DatabaseError("its tables cannot be brought up to date")
        if registry:
            _note_owner(connection, registry)
    except BaseException:  # interrupted, too, it is closed
        connection.close()
        raise
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:  # interrupted, too, nothing of it counts
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _forget(connection: sqlite3.Connection, now: float) -> None:
    """Remove some of what is past its day."""
    connection.execute(
        "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers WHERE begun <= ? LIMIT ?)",
        (now - KEPT_SECS, FORGOTTEN_AT_ONCE),
    )


def _make_room(connection: sqlite3.Connection) -> None:
    """In a full file, throw the oldest answers away until a quarter is free; their keys stay."""
    used = _used_bytes(connection)
    if used < BYTES_MAX:
        return
    wanted = used - BYTES_MAX * 3 // 4
    rows: list[tuple[int]] = []
    # Of the namespace that has the most of them: none makes the answers of another one go.
    for rowid, size in connection.execute(
        "SELECT rowid, length(body) FROM answers WHERE length(body) > ?1 AND namespace = (SELECT namespace FROM answers"
        " WHERE length(body) > ?1 GROUP BY namespace ORDER BY sum(length(body)) DESC LIMIT 1) ORDER BY begun",
        (_SMALL_BYTES,),
    ):
        rows.append((rowid,))
        wanted -= size
        if wanted <= 0:
            break
    connection.executemany("UPDATE answers SET body = NULL WHERE rowid = ?", rows)
    logger.warning("The %d oldest answers to calls with an Idempotency-Key made room for new ones", len(rows))


def _client(source: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network of an IPv6 one, which one host may have."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
    return str(address)


def _quotas(connection: sqlite3.Connection, keyed: Keyed) -> tuple[int, int]:
    """Return how many keys the namespace has, and its client there."""
    of_namespace = connection.execute("SELECT keys FROM spaces WHERE namespace = ?", (keyed.namespace,)).fetchone()
    of_client = connection.execute(
        "SELECT keys FROM quotas WHERE namespace = ? AND client = ?", (keyed.namespace, keyed.client)
    ).fetchone()
    return (of_namespace or (0,))[0], (of_client or (0,))[0]


def _has_room(count: int, mine: int, full: bool) -> bool:
    """Return whether another key is taken.

    Args:
        count: how many its namespace has.
        mine: how many of them are its client's.
        full: whether the file is; then each namespace still gets some, and only some.
    """
    few = KEYS_MAX // _RESERVED
    if mine >= KEYS_MAX // _PART_OF_ONE_CLIENT or (full and count >= few * 10):
        return False
    return count < KEYS_MAX or (mine < few and count < 2 * KEYS_MAX)


def _count(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT keys FROM total").fetchone()
    return int(count)


def _used_bytes(connection: sqlite3.Connection) -> int:
    values = [
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    ]
    return int((values[0] - values[1]) * values[2])

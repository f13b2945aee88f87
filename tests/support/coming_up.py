"""A start in this very process, up to the first snapshot, and what it found: for tests that need hundreds of them."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from bpbroker.config.paths import Home
from bpbroker.errors import BpbrokerError
from bpbroker.runtime.plan import Plan, RunOptions
from bpbroker.runtime.prepare import prepare
from bpbroker.server import host_certificate
from bpbroker.storage import backups, config_file, offline
from bpbroker.storage.embedded.journal import journal_path
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.sources import Sources


@dataclass(frozen=True)
class Found:
    """What a start found on a disk."""

    entries: Mapping[str, str]
    sections: frozenset[str] = frozenset()
    fingerprint: str = ""
    modules: tuple[str, ...] = ()
    """Content of the extension modules."""
    package: tuple[str, ...] = ()
    """Content of the modules of the package ``pkg``."""
    backups: tuple[str, ...] = ()
    answered: frozenset[str] = frozenset()
    """Idempotency keys whose calls have an answer."""
    warnings: frozenset[str] = frozenset()
    """What a person is told at the start, without the values in it."""
    problem: str = ""


def come_up(home: Path) -> Found:
    """Start on what is there as ``bpbroker start`` does, and look at it.

    Args:
        home: the home folder; at the same path as when it was written, the configuration names files in it.
    """
    own = home / "etc" / "bpbroker.json"
    lib = home / "lib"
    heard = _Heard()
    logging.getLogger("bpbroker").addHandler(heard)
    try:
        return _come_up(home, own, lib, heard)
    finally:
        logging.getLogger("bpbroker").removeHandler(heard)


def _come_up(home: Path, own: Path, lib: Path, heard: _Heard) -> Found:
    overrides = {"api.listen_port": 0, "api.listen_ip": "127.0.0.1"}
    try:
        with ExitStack() as undo:
            prepared = prepare(Plan(RunOptions(), Home(home), Sources(own, None, overrides)), undo)
            origin = prepared.loaded.origin
            assert origin is not None
            store = EmbeddedStore(journal_path(own), lambda: prepared.loaded.entries, origin.registry, origin.commit)
            try:
                entries = store.load()
                config_file.write(own, prepared.loaded.saved, entries, origin=replace(origin, commit=store.sequence))
                store.forget(store.sequence)
            finally:
                store.close()
            fingerprint = host_certificate.fingerprint(prepared.cert)
    except BpbrokerError as error:
        return Found({}, problem=f"exit {error.exit_code}: {error}")
    settings, again, _ = offline.state_of(own)
    answered = _answered(own.with_name(f"{own.name}.answers"))
    halves = [str(path) for path in home.rglob("*") if ".tmp" in path.name or path.name.endswith(".staged")]
    made = [backups.check(info) for info in backups.found(own)]
    problems = [each.problem for each in made if each.problem]
    problems += [f"left behind: {halves}"] if halves else []
    problems += ["the snapshot differs from the journal"] if again != entries else []
    problems += [] if answered is not None else ["the kept answers are damaged"]
    return Found(
        {name: json.loads(value)["v"] for name, value in entries.items()},
        frozenset(settings),
        fingerprint,
        tuple(path.read_text() for path in lib.glob("*.py")),
        tuple(path.read_text() for path in lib.glob("pkg/*.py")),
        tuple(each.info.path for each in made),
        answered or frozenset(),
        frozenset(heard.said),
        "; ".join(problems),
    )


def _answered(path: Path) -> frozenset[str] | None:
    """Return the keys that have an answer; None if the file is damaged."""
    if not path.exists():
        return frozenset()
    try:
        with closing(sqlite3.connect(path)) as connection:
            if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                return None
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone():
                return frozenset()
            rows = connection.execute("SELECT key FROM answers WHERE status IS NOT NULL").fetchall()
    except sqlite3.DatabaseError:
        return None
    return frozenset(key for (key,) in rows)


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.said.add(str(record.msg) if record.args and record.msg != "%s" else record.getMessage())

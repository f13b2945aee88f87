"""A start in this very process, up to the first snapshot, and what it found: for tests that need hundreds of them.

Entries of tests are ``{"v": VALUE}``; those whose names begin with ``of/`` are of nodes that coordinate, and
:func:`state_of` says what they come to, together with the registry's own records.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bpbroker.config.paths import Home
from bpbroker.errors import BpbrokerError
from bpbroker.record import Record
from bpbroker.registry import entry_values, locks, memory, numbers, sessions, taking
from bpbroker.registry.stored import split
from bpbroker.runtime.plan import Plan, RunOptions
from bpbroker.runtime.prepare import prepare
from bpbroker.server import host_certificate
from bpbroker.storage import backups, config_file, offline
from bpbroker.storage.embedded.journal import journal_path
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.sources import Sources

OF_NODES: Final = "of/"
_SECRET: Final = re.compile(rb"SECRET-[\w-]+")


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
    records: Mapping[str, Record] = field(default_factory=dict)
    """Entries of nodes that coordinate, and the registry's own records."""
    revision: int = 0
    """The next one will be higher."""
    secrets: frozenset[str] = frozenset()
    """What stands in some file when the first snapshot is written."""


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
                revision, secrets = store.sequence, secrets_in(_contents(home))
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
        plain(entries),
        frozenset(settings),
        fingerprint,
        tuple(path.read_text() for path in lib.glob("*.py")),
        tuple(path.read_text() for path in lib.glob("pkg/*.py")),
        tuple(each.info.path for each in made),
        answered or frozenset(),
        frozenset(heard.said),
        "; ".join(problems),
        records_of(entries, revision),
        revision,
        secrets,
    )


def plain(entries: Mapping[str, bytes]) -> dict[str, str]:
    """Return the values of entries that are of no node that coordinates."""
    return {name: json.loads(value)["v"] for name, value in entries.items() if not name.startswith(("_", OF_NODES))}


def records_of(entries: Mapping[str, bytes], revision: int) -> dict[str, Record]:
    """Return the entries of nodes that coordinate, and the registry's own records."""
    found = {name: value for name, value in entries.items() if name.startswith(("_", OF_NODES))}
    return {name: split(name, value, revision) for name, value in found.items()}


def _contents(home: Path) -> Iterator[bytes]:
    for path in home.rglob("*"):
        if path.is_file():
            yield path.read_bytes()


def secrets_in(contents: Iterator[bytes]) -> frozenset[str]:
    """Return the secrets in some files' contents."""
    return frozenset(each.decode() for content in contents for each in _SECRET.findall(content))


def state_of(records: Mapping[str, Record], client: str) -> dict[str, Any]:
    """Return what a node's records come to, as a state of :mod:`tests.support.coordination`; of a lock all tokens."""
    found: dict[str, Any] = {}
    for name, record in records.items():
        if f"{client}-" in name or f"{OF_NODES}{client}/" in name:
            value = entry_values.without_stamp(json.loads(record.json))
            key, meaning = _of_own(record, value) if name.startswith("_") else _of_entry(record, value)
            if key and meaning:
                found[key] = meaning
    return found


def _of_own(record: Record, value: dict[str, Any]) -> tuple[str, Any]:
    kind, _, name = record.name.partition("/")
    match f"{kind}/":
        case sessions.PREFIX:
            return f"session/{name}", True
        case locks.PREFIX:
            return f"lock/{name}", tuple((place.session, place.token) for place in locks.parse(record).places)
        case taking.PREFIX:
            return f"taken/{name}", (value["receiver"], value["entry"]["v"])
        case memory.BATCHES:
            return f"batch/{name}", True
        case numbers.RESTING:
            return f"rests/{name}", tuple(sorted(map(int, value)))
        case "_counter/" if not name.endswith("/"):
            return f"counted/{name}", value["number"]
    return "", None  # beside an entry that is looked at, or for a while


def _of_entry(record: Record, value: dict[str, Any]) -> tuple[str, Any]:
    if record.name.endswith("/pool"):
        return f"pool/{record.name}", tuple(sorted(value.items()))
    if record.name.endswith("/count"):
        return f"counter/{record.name}", value["value"]
    return f"entry/{record.name}", (value["v"], record.session)


def is_state(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether a state of :func:`state_of` is an expected one; a token that is not known may be any new one."""
    if found.keys() != {key for key in expected if not key.startswith("last/")}:
        return False
    return all(
        _fits(value, expected[key]) if key.startswith("lock/") else value == expected[key]
        for key, value in found.items()
    )


def _fits(places: tuple[tuple[str, int], ...], expected: tuple[tuple[str, int | None, int], ...]) -> bool:
    """Return whether a lock's places are the expected ones; a token that is not known is above all before it."""
    return [session for session, _ in places] == [session for session, _, _ in expected] and all(
        token == known or (known is None and token > above)
        for (_, token), (_, known, above) in zip(places, expected, strict=True)
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

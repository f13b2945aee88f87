"""What the pages read: questions to the actors, each with a time limit, and values that the broker keeps.

Nothing is changed here. A page's thread waits for the reply; the actor does only the work for one part of a list.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, Final

from bpbroker import messages
from bpbroker.errors import NotFound, TimedOut
from bpbroker.frontend.pages.viewer import Viewer, must_see
from bpbroker.record import Record
from bpbroker.registry import entry_values, locks, sessions
from bpbroker.registry.browsing import Browse, Browsed, Happened, Recent
from bpbroker.registry.requests import Event, Lost
from bpbroker.registry.rights import REGISTRY, Need

PAGE: Final = 50
"""Lines of one page of a list."""
_ASK_SECS: Final = 10.0
_PIECE: Final = 1000
"""How many records are read at one time where all have to be read."""
_LOOKED_AT_MAX: Final = 300_000
_POOL_SECS: Final = 5.0
"""For how long the pools that were found are kept."""
_NUMBERS_ONLY: Final = re.compile(rb'\{(?:"(?:[^"\\]|\\.)*": -?\d+(?:, )?)+\}')
_STAMP: Final = re.compile(rb'(?:, )?"last_write_ip": "[^"]*", "last_write_ts": \d+\}\Z')
_STAMP_MAX: Final = 300
_COUNTERS: Final = "_counters/"


@dataclass(frozen=True, slots=True)
class Part:
    """One page of a list."""

    rows: tuple[Any, ...]
    count: int
    """Lines of the whole list."""
    page: int
    """The page's number, from 1."""
    age_secs: float = 0.0
    """How old the page may be, in seconds: with a shared registry a broker may be behind."""

    @property
    def pages(self) -> int:
        """How many pages the list has; an empty one has one."""
        return max(1, -(-self.count // PAGE))

    @property
    def first(self) -> int:
        """The number of its first line, from 1; 0 if it is empty."""
        return min((self.page - 1) * PAGE + 1, self.count)

    @property
    def last(self) -> int:
        """The number of its last line."""
        return min(self.page * PAGE, self.count)


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry, or a record that is shown like one."""

    name: str
    value: Mapping[str, Any]
    revision: int = 0
    session: str = ""

    @property
    def own(self) -> Mapping[str, Any]:
        """Its value without the stamp."""
        return entry_values.without_stamp(self.value)

    @property
    def source(self) -> str:
        """The address that wrote it."""
        return str(self.value.get("last_write_ip", ""))

    @property
    def when(self) -> float | None:
        """Unix time at which it was written."""
        found = self.value.get("last_write_ts")
        return float(found) if isinstance(found, (int, float)) else None


class Reading:
    """Reads for pages.

    Args:
        addresses: the broker's actors by name; looked up at each use.
    """

    def __init__(self, addresses: Mapping[str, messages.Address]) -> None:
        self._addresses = addresses
        self._numbers: tuple[float, tuple[str, ...], Any] = (0.0, (), None)

    def _ask(self, name: str, message: Any) -> Any:
        try:
            return self._addresses[name].ask(message, _ASK_SECS).result(_ASK_SECS)
        except FutureTimeout:
            raise TimedOut(f"The {name} did not answer in {_ASK_SECS:g} s; try again") from None
        except KeyError:
            raise NotFound(f"There is no {name} at the moment") from None

    def _browse(self, prefixes: tuple[str, ...], page: int, limit: int = PAGE) -> Browsed:
        found: Browsed = self._ask("registry", Browse(prefixes, (page - 1) * limit, limit))
        return found

    def _part(self, prefixes: tuple[str, ...], page: int) -> tuple[Browsed, int]:
        """Return a page, and its number; the last one if there are fewer by now."""
        found = self._browse(prefixes, page)
        pages = max(1, -(-found.count // PAGE))
        return (found, page) if page <= pages else (self._browse(prefixes, pages), pages)

    # --- the broker ---

    def health(self) -> messages.HealthReport:
        """Return the broker's health."""
        report: messages.HealthReport = self._ask("healthcheck", messages.Health())
        return report

    def backups(self) -> tuple[messages.BackupInfo, ...]:
        """Return the backups, newest first."""
        found: tuple[messages.BackupInfo, ...] = self._ask("backup", messages.ListBackups())
        return found

    # --- entries ---

    def entries(self, viewer: Viewer, wanted: str, page: int) -> Part:
        """Return a page of the entries with a prefix that may be seen."""
        prefixes = viewer.prefixes("List", wanted)
        if not prefixes or wanted.startswith("_"):
            return Part((), 0, 1)
        found, page = self._part(prefixes, page)
        rows = tuple(_shown_briefly(record) for record in found.records)
        return Part(rows, found.count, page, found.age_secs)

    def entry(self, viewer: Viewer, name: str) -> tuple[Record, Shown]:
        """Return one entry.

        Raises:
            NotFound: it is not there.
            Forbidden: it may not be seen.
        """
        must_see(viewer, Need(REGISTRY, "Get", name))
        found = self._browse((name,), 1, 1).records if not name.startswith("_") and name else ()
        if not found or found[0].name != name:
            raise NotFound("There is no such entry")
        return found[0], _shown(found[0])

    def history(self, name: str) -> tuple[Event, ...]:
        """Return the kept history of an entry, newest first."""
        happened: Happened = self._ask("registry", Recent())
        return tuple(event for event in reversed(happened.events) if event.name == name)[:PAGE]

    def happened(self, viewer: Viewer) -> tuple[tuple[Event, ...], str]:
        """Return the last changes that the viewer may see, newest first, and the cursor after them."""
        happened: Happened = self._ask("registry", Recent())
        found: list[Event] = []
        for event in reversed(happened.events):
            if len(found) == PAGE:
                break
            if viewer.sees("Watch", event.name):
                found.append(event)
        return tuple(found), happened.cursor

    # --- nodes ---

    def nodes(self, viewer: Viewer, page: int) -> Part:
        """Return a page of the sessions: all, or those with entries or locks that may be seen."""
        if REGISTRY in viewer.whole:
            found, page = self._part((sessions.PREFIX,), page)
            rows = [_session(found, record) for record in found.records]
            return Part(tuple(rows), found.count, page, found.age_secs)
        mine = []
        for found in self._pieces((sessions.PREFIX,)):
            for record in found.records:
                row = _session(found, record, lambda name: _may_see(viewer, name))
                if row["count"]:
                    mine.append(row)
        return _paged(mine, page)

    def lost(self, viewer: Viewer, page: int) -> Part:
        """Return a page of the entries that ended with their session lately."""
        found: tuple[Record, ...] = self._ask("registry", Lost())
        rows = [
            {"name": record.name, **json.loads(record.json)} for record in found if viewer.sees("List", record.name)
        ]
        return _paged(sorted(rows, key=lambda row: -row.get("when", 0)), page)

    # --- locks and numbers ---

    def locks(self, viewer: Viewer, wanted: str, page: int) -> Part:
        """Return a page of the locks, with holders and waiting sessions."""
        prefixes = tuple(locks.PREFIX + prefix for prefix in viewer.prefixes("Holder", wanted))
        if not prefixes:
            return Part((), 0, 1)
        found, page = self._part(prefixes, page)
        rows = tuple((_without(record, locks.PREFIX), locks.parse(record)) for record in found.records)
        return Part(rows, found.count, page, found.age_secs)

    def numbers(self, viewer: Viewer, wanted: str, page: int) -> tuple[Part, Part]:
        """Return a page of the pools and one of the counters.

        A pool is an entry whose fields are all whole numbers, so all entries with the prefix are read, a piece at a
        time. The result is kept for a few seconds.
        """
        prefixes = viewer.prefixes("List", wanted)
        made, known, found = self._numbers
        if known != prefixes or time.monotonic() - made > _POOL_SECS:
            found = self._look_for_numbers(prefixes)
            self._numbers = time.monotonic(), prefixes, found
        pools, counters = found
        return _paged(pools, page), _paged(counters, page)

    def _look_for_numbers(self, prefixes: tuple[str, ...]) -> tuple[list[Shown], list[Shown]]:
        if not prefixes:
            return [], []
        counting = {
            _without(record, _COUNTERS)
            for piece in self._pieces(tuple(_COUNTERS + prefix for prefix in prefixes))
            for record in piece.records
        }
        pools, counters = [], []
        for piece in self._pieces(prefixes):
            for record in piece.records:
                if record.name in counting:
                    counters.append(_shown(record))
                elif _NUMBERS_ONLY.fullmatch(_split(record.json)[0]):
                    pools.append(_shown(record))
        return pools, counters

    def _pieces(self, prefixes: tuple[str, ...]) -> Iterator[Browsed]:
        """Yield all records with some prefixes in pieces; each piece shows a moment of its own."""
        page = 1
        while (page - 1) * _PIECE < _LOOKED_AT_MAX:
            found = self._browse(prefixes, page, _PIECE)
            yield found
            if page * _PIECE >= found.count:
                return
            page += 1


def paged(rows: list[Any], page: int) -> Part:
    """Return one page of a complete list."""
    return _paged(rows, page)


def _paged(rows: list[Any], page: int) -> Part:
    page = min(page, max(1, -(-len(rows) // PAGE)))
    return Part(tuple(rows[(page - 1) * PAGE : page * PAGE]), len(rows), page)


def _without(record: Record, prefix: str) -> str:
    return record.name.removeprefix(prefix)


def _shown(record: Record) -> Shown:
    return Shown(record.name, json.loads(record.json), record.revision, record.session)


def _split(stored: bytes) -> tuple[bytes, bytes]:
    """Return an entry's own part and its stamp, both as JSON objects, without parsing it."""
    stamp = _STAMP.search(stored, max(0, len(stored) - _STAMP_MAX))
    if stamp is None:
        return stored, b"{}"
    return stored[: stamp.start()] + b"}", b"{" + stamp[0].removeprefix(b", ")


def own_of(stored: bytes) -> bytes:
    """Return an entry's own JSON, without the stamp."""
    return _split(stored)[0]


def _shown_briefly(record: Record) -> tuple[Shown, bytes]:
    """Return an entry for a list: its stamp and its own JSON. A large one is not parsed."""
    own, stamp = _split(record.json)
    return Shown(record.name, json.loads(stamp), record.revision, record.session), own


def _session(found: Browsed, record: Record, may_see: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """Return a session as it is shown; with ``may_see``, only those of its entries and locks that may be seen."""
    session = _without(record, sessions.PREFIX)
    count, names = found.belongings.get(session, (0, ()))
    if may_see is not None:
        names = tuple(filter(may_see, names))
        count = len(names)
    queued = [name for name in names if name.startswith(locks.PREFIX)]
    return {
        "session": session,
        **json.loads(record.json),
        "count": count,
        "entries": [name for name in names if not name.startswith("_")],
        "locks": [locks.lock_of(name) for name in queued if (session, name) not in found.waiting],
        "waits": [locks.lock_of(name) for name in queued if (session, name) in found.waiting],
    }


def _may_see(viewer: Viewer, name: str) -> bool:
    if name.startswith(locks.PREFIX):
        return viewer.sees("Holder", locks.lock_of(name))
    return viewer.sees("Get", name)


def stamp_of(event: Event) -> tuple[str, float | None]:
    """Return the address and the Unix time with which an entry was written; empty and None for other events."""
    if event.record is None:
        return "", None
    shown, _ = _shown_briefly(event.record)
    return shown.source, shown.when

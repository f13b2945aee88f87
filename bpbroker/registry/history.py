"""The last changes, for watches: events in the order of their revisions, as many as fit. No thread, no lock."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import islice
from operator import attrgetter
from typing import Final

from bpbroker.errors import Gone
from bpbroker.record import Record
from bpbroker.registry.requests import Event, Watch, Watched
from bpbroker.registry.sessions import LOST
from bpbroker.registry.taking import PREFIX as TAKEN

HISTORY_BYTES: Final = 8 * 1024 * 1024
_TAKEN_BACK: Final = ""
"""Type of an event that no watch gets any more."""
_DIGITS_MAX: Final = 20
_EVENT_BYTES: Final = 200
"""About how many bytes an event takes beside its entry."""


def events_of(changes: Sequence[tuple[str, Record | None, int]]) -> list[Event]:
    """Return the events of one commit's changes, in the order of their revisions.

    Other records of the same commit say why an entry was removed.
    """
    noted: set[str] | None = None
    events = []
    for name, after, revision in changes:
        if name.startswith("_"):
            continue
        kind = "put"
        if after is None:
            if noted is None:
                noted = {own for own, there, _ in changes if there is not None and own.startswith("_")}
            kind = "expire" if LOST + name in noted else "take" if TAKEN + name in noted else "delete"
        events.append(Event(kind, name, revision, after))
    if len(events) > 1:
        events.sort(key=attrgetter("revision"))
    return events


class History:
    """The last events of a registry.

    A cursor is ``<registry id>:<revision>``: the client that has it knows everything up to this revision.
    """

    def __init__(self) -> None:
        self.registry_id = ""
        self.limit_bytes = HISTORY_BYTES
        self.revision = 0
        """Everything up to this revision is in the history, or came before it began."""
        self.shared = False
        """Whether other brokers may have sent clients later events than this one knows."""
        self._floor = 0
        """Events up to this revision are forgotten."""
        self._events: list[Event] = []
        self._revisions: list[int] = []
        self._places: dict[str, list[int]] = {}
        """Name to the places of its events that have a value, counted from the first event of all."""
        self._placed = 0
        """Events before this place are in ``_places``."""
        self._dropped = 0
        self._bytes = 0

    def begin(self, registry_id: str, revision: int) -> None:
        """Begin again: nothing before this revision is known."""
        self.registry_id = registry_id
        self.revision = self._floor = revision
        self._events, self._revisions, self._places = [], [], {}
        self._placed = self._dropped = self._bytes = 0

    def add(self, events: Iterable[Event], upto: int) -> None:
        """Add the events of the next commit, and note that there are no others up to a revision."""
        known, revisions, added_bytes = self._events, self._revisions, 0
        for event in events:
            if event.type == "take":
                self.forget_values(event.name)
            known.append(event)
            revisions.append(event.revision)
            added_bytes += _size(event)
            if event.revision > upto:
                upto = event.revision
        self._bytes += added_bytes
        self.revision = max(self.revision, upto)
        if self._bytes > self.limit_bytes:
            self._drop()

    def _drop(self) -> None:
        """Forget the oldest events until a sixteenth of the room is free: rarely, and not too many at once."""
        count = 0
        while self._bytes > self.limit_bytes * 15 // 16 and count < len(self._events):
            self._bytes -= _size(self._events[count])
            count += 1
        # A revision is forgotten as a whole.
        while 0 < count < len(self._events) and self._revisions[count] == self._revisions[count - 1]:
            self._bytes -= _size(self._events[count])
            count += 1
        if count:
            self._floor = self._revisions[count - 1]
            self._dropped += count
            # Once for each name: one that changes all the time has most of the events.
            for name in {event.name for event in self._events[:count] if event.name in self._places}:
                left = self._places[name][bisect_left(self._places[name], self._dropped) :]
                if left:
                    self._places[name] = left
                else:
                    del self._places[name]
            del self._events[:count], self._revisions[:count]

    def forget_values(self, name: str) -> None:
        """Forget the earlier values of an entry that was taken: its earlier changes are no events any more."""
        # Only this needs the places of a name, so only where things are taken do writes pay for them.
        start = max(0, self._placed - self._dropped)
        for place, event in enumerate(islice(self._events, start, None), self._dropped + start):
            if event.record is not None:
                self._places.setdefault(event.name, []).append(place)
        self._placed = self._dropped + len(self._events)
        for place in self._places.pop(name, ()):
            event = self._events[place - self._dropped]
            self._bytes -= _size(event)
            event = self._events[place - self._dropped] = event._replace(type=_TAKEN_BACK, record=None)
            self._bytes += _size(event)

    @property
    def events(self) -> tuple[Event, ...]:
        """All events that are kept, in the order of their revisions."""
        return tuple(event for event in self._events if event.type != _TAKEN_BACK)

    @property
    def cursor(self) -> str:
        """The present cursor."""
        return f"{self.registry_id}:{self.revision}"

    def read(self, watch: Watch) -> Watched:
        """Return the events that a watch asks for, perhaps none.

        Raises:
            Gone: its cursor is forgotten, or of another registry.
        """
        if watch.since is None:
            return Watched((), self.cursor)
        registry_id, _, number = watch.since.rpartition(":")
        if registry_id != self.registry_id:
            raise self._gone("is of another registry")
        if not (number.isascii() and number.isdigit() and len(number) < _DIGITS_MAX) or int(number) < self._floor:
            raise self._gone("is forgotten")
        if int(number) > self.revision:
            if self.shared:
                return Watched((), watch.since)
            raise self.not_reached()
        found: list[Event] = []
        for position in range(bisect_right(self._revisions, int(number)), len(self._events)):
            event = self._events[position]
            if len(found) >= watch.limit and event.revision != self._revisions[position - 1]:
                return Watched(tuple(found), f"{self.registry_id}:{self._revisions[position - 1]}")
            if event.type == _TAKEN_BACK:
                continue
            if event.name == watch.name if watch.name is not None else event.name.startswith(watch.prefix):
                found.append(event)
        return Watched(tuple(found), self.cursor)

    def ahead(self, watch: Watch) -> int:
        """Return the revision of a watch's cursor if it is not reached here, but may be elsewhere; else 0."""
        if not self.shared or watch.since is None:
            return 0
        registry_id, _, number = watch.since.rpartition(":")
        is_number = number.isascii() and number.isdigit() and len(number) < _DIGITS_MAX
        if registry_id != self.registry_id or not is_number or int(number) <= self.revision:
            return 0
        return int(number)

    def not_reached(self) -> Gone:
        """Return the error that no change has reached a cursor."""
        return self._gone("is of a history that is not there any more")

    def _gone(self, why: str) -> Gone:
        error = Gone(f"The cursor {why}: read the entries anew, then go on from the cursor in data")
        error.data = {"cursor": self.cursor}
        return error


def _size(event: Event) -> int:
    return _EVENT_BYTES + len(event.name) + (len(event.record.json) if event.record is not None else 0)

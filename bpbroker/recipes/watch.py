"""A watch: every change of some entries, in order."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bpbroker.errors import CursorExpired, Gone, NotTrusted, WaitTimeout
from bpbroker.retry import pauses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, Self  # novermin: for the type checker alone

    from bpbroker.recipes.coordination import Coordination, Entry

_POLL_SECS: Final = 60.0


class Event:
    """One change.

    Args:
        kind: ``put``, ``delete``, ``expire``, ``take``; ``reset`` where changes are missing.
        name: of the entry.
        revision: of the change.
        entry: as the change left it; None if the change removed it.
        cursor: to continue after all events of this revision.
    """

    __slots__ = ("cursor", "entry", "name", "revision", "type")

    def __init__(self, kind: str, name: str, revision: int, entry: Entry | None, cursor: str = "") -> None:
        self.type = kind
        self.name = name
        self.revision = revision
        self.entry = entry
        self.cursor = cursor

    def __repr__(self) -> str:
        return f"Event({self.type!r}, {self.name!r}, {self.revision})"

    def json(self) -> dict[str, Any]:
        """Return it in the broker's form."""
        own = {"type": self.type, "name": self.name, "revision": self.revision}
        return own if self.entry is None else {**own, "entry": dict(self.entry)}


class Watch:
    """Yields events as they happen, until :meth:`close`. It waits for a broker that is away.

    Args:
        registry: of a client, or of an extension's call; a client's watch has a connection of its own.
        prefix: of the names.
        name: of one entry, instead.
        since: a cursor; without it, from the first :meth:`poll` on.
    """

    def __init__(self, registry: Coordination, prefix: str = "", *, name: str = "", since: str = "") -> None:
        self.cursor = since
        """The cursor after the last revision of which all events were yielded."""
        self._registry = registry.sibling()
        self._away: tuple[type[Exception], ...] = (*registry.calls.away, WaitTimeout)
        self._what = {"name": name} if name else {"prefix": prefix}
        self._closed = False

    def start(self) -> str:
        """Return the cursor; without one, ask the broker for its present one."""
        if not self.cursor:
            self.cursor = str(self._registry.calls.registry("Watch", self._what, repeatable=True).data["cursor"])
        return self.cursor

    def skip(self, revision: int) -> None:
        """Continue after a revision up to which all is known; never back, so that no event comes twice.

        Args:
            revision: such as that of a list, which is its newest entry's: later deletions still come as events.
        """
        registry, _, known = self.cursor.rpartition(":")
        if known.isdigit() and int(known) < revision:
            self.cursor = f"{registry}:{revision}"

    def poll(self, wait_secs: float) -> list[Event]:
        """Return the next events; an empty list if none came within ``wait_secs``.

        With events, the caller sets :attr:`cursor` to that of the last one, once they are handled.

        Raises:
            CursorExpired: some events are forgotten. Read the entries again, then continue with its ``cursor``.
        """
        events, cursor = self._next(wait_secs)
        if not events:
            self.cursor = cursor
        return events

    def until(self, end: float) -> Iterator[Event]:
        """Yield events until a moment of :func:`time.monotonic`.

        Raises:
            CursorExpired: some events are forgotten.
            NotTrusted: another broker answers.
        """
        pause = pauses()
        while not self._closed:
            left = end - time.monotonic()
            if left <= 0:
                return
            try:
                events, cursor = self._next(min(left, _POLL_SECS))
            except NotTrusted:
                raise
            except self._away:
                time.sleep(max(0.0, min(next(pause), end - time.monotonic())))
                continue
            pause = pauses()
            if not events:
                self.cursor = cursor
            for at, event in enumerate(events):
                yield event
                # A revision's events belong together: the cursor stands behind all of them or before.
                if at + 1 == len(events) or events[at + 1].revision != event.revision:
                    self.cursor = event.cursor

    def __iter__(self) -> Iterator[Event]:
        return self.until(time.monotonic() + self._registry.calls.patience_secs)

    def close(self) -> None:
        """Close the connection; a loop over the watch ends."""
        self._closed = True
        self._registry.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self, wait_secs: float) -> tuple[list[Event], str]:
        """Return the next events, and the cursor behind them."""
        self.start()
        sent = {**self._what, "since": self.cursor, "wait": round(wait_secs, 3)}
        calls = self._registry.calls
        try:
            data = calls.registry("Watch", sent, repeatable=True, wait_secs=wait_secs).data
        except CursorExpired:
            raise
        except Gone as error:
            raise CursorExpired(str(error), str((error.data or {}).get("cursor", ""))) from None
        registry = self.cursor.rpartition(":")[0]
        events = []
        for each in data.get("events", ()):
            kind, name, revision = str(each["type"]), str(each.get("name", "")), int(each["revision"])
            entry = calls.entry(each["entry"], "", revision) if "entry" in each else None
            events.append(Event(kind, name, revision, entry, f"{registry}:{revision}"))
        return events, str(data["cursor"])


class MovingWatch(Watch):
    """A watch whose :meth:`poll` moves the cursor: its caller keeps that for a later call."""

    def poll(self, wait_secs: float = 0.0) -> list[Event]:
        """Return the next events, an empty list if none came within ``wait_secs``, and move the cursor after them.

        Raises:
            CursorExpired: some events are forgotten. Read the entries again, then continue with its ``cursor``.
        """
        events, self.cursor = self._next(wait_secs)
        return events

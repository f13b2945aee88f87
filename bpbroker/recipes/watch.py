"""A watch: every change of some entries, in order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from bpbroker.errors import CannotConnect, CursorExpired, Gone, NotTrusted, TimedOut, Unavailable, WaitTimeout
from bpbroker.retry import pauses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, Self  # novermin: for the type checker alone

    from bpbroker.client.api import Client

_POLL_SECS: Final = 60.0


class Event:
    """One change.

    Args:
        kind: ``put``, ``delete``, ``expire``, ``take``; ``reset`` where changes are missing.
        name: of the entry.
        revision: of the change.
        entry: what it is now; None if it is gone.
        cursor: from where to go on behind this one's whole revision.
    """

    __slots__ = ("cursor", "entry", "name", "revision", "type")

    def __init__(self, kind: str, name: str, revision: int, entry: Mapping[str, Any] | None, cursor: str = "") -> None:
        self.type = kind
        self.name = name
        self.revision = revision
        self.entry = entry
        self.cursor = cursor

    def __repr__(self) -> str:
        return f"Event({self.type!r}, {self.name!r}, {self.revision})"

    def json(self) -> dict[str, Any]:
        """Return it as the broker says it."""
        own = {"type": self.type, "name": self.name, "revision": self.revision}
        return own if self.entry is None else {**own, "entry": dict(self.entry)}


class Watch:
    """Yields events as they happen; ends with :meth:`close`. A broker that is away is waited for.

    Args:
        client: of the broker; a watch has a connection of its own.
        prefix: of the names.
        name: of one entry, instead.
        since: a cursor; without it, from the first :meth:`poll` on.
    """

    def __init__(self, client: Client, prefix: str = "", *, name: str = "", since: str = "") -> None:
        self.cursor = since
        """Behind the last revision of which all events were yielded."""
        self._client = client.sibling()
        self._what = {"name": name} if name else {"prefix": prefix}
        self._closed = False

    def start(self) -> str:
        """Find out the present cursor, if there is none, and return it."""
        if not self.cursor:
            self.cursor = str(self._client.calls.registry("Watch", self._what, repeatable=True).data["cursor"])
        return self.cursor

    def poll(self, wait_secs: float) -> list[Event]:
        """Return the next events; none if there were none in time. The cursor is the caller's to move.

        Raises:
            CursorExpired: some are forgotten; its ``cursor`` is from where to go on after a new list.
        """
        self.start()
        sent = {**self._what, "since": self.cursor, "wait": round(wait_secs, 3)}
        try:
            data = self._client.calls.registry("Watch", sent, repeatable=True, wait_secs=wait_secs).data
        except Gone as error:
            raise CursorExpired(str(error), str((error.data or {}).get("cursor", ""))) from None
        registry = self.cursor.rpartition(":")[0]
        events = [
            Event(
                str(each["type"]), str(each.get("name", "")), int(each["revision"]), each.get("entry"),
                f"{registry}:{each['revision']}",
            )
            for each in data.get("events", ())
        ]  # fmt: skip
        if not events:
            self.cursor = str(data["cursor"])
        return events

    def until(self, end: float) -> Iterator[Event]:
        """Yield events until a moment of :func:`time.monotonic`.

        Raises:
            CursorExpired: some are forgotten.
            NotTrusted: the broker is another.
        """
        pause = pauses()
        while not self._closed:
            left = end - time.monotonic()
            if left <= 0:
                return
            try:
                events = self.poll(min(left, _POLL_SECS))
            except NotTrusted:
                raise
            except (CannotConnect, Unavailable, TimedOut, WaitTimeout):
                time.sleep(max(0.0, min(next(pause), end - time.monotonic())))
                continue
            pause = pauses()
            for at, event in enumerate(events):
                yield event
                # A revision's events belong together: the cursor stands behind all of them or before.
                if at + 1 == len(events) or events[at + 1].revision != event.revision:
                    self.cursor = event.cursor

    def __iter__(self) -> Iterator[Event]:
        return self.until(float("inf"))

    def close(self) -> None:
        """Close the connection; a loop over the watch ends."""
        self._closed = True
        self._client.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

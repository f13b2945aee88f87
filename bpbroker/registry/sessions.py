"""Sessions: records with which entries and places in locks end. Pure functions, and the times of living sessions."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from bpbroker.errors import BadRequest, NotFound, Overloaded
from bpbroker.registry.requests import Done, Expired, Open

if TYPE_CHECKING:
    from bpbroker.record import Record
    from bpbroker.registry.view import Limits, View

PREFIX: Final = "_session/"
LOST: Final = "_lost/"
CLOSED: Final = "_closed/"
"""Sessions of a shared store that were closed lately: entries left of one were given up, not lost."""
TTL_MIN_SECS: Final = 2.0
TTL_MAX_SECS: Final = 86_400.0
COUNT: Final = "_registry.max_sessions"

_ID: Final = re.compile(r"[A-Za-z0-9._:@+-]{1,128}\Z")


def check_id(session: object) -> str:
    """Return a session's id, checked.

    Raises:
        BadRequest: the value cannot be an id.
    """
    if not isinstance(session, str) or not _ID.match(session):
        raise BadRequest("A session's id must be 1 to 128 of the characters A-Z a-z 0-9 . _ : @ + -")
    return session


def over(session: str) -> NotFound:
    """Return the error that there is no such session."""
    return NotFound(f"There is no session '{session}': it is over, or was never opened")


def must_live(view: View, session: str) -> None:
    """Check that a session lives, also when the write happens.

    Raises:
        NotFound: it is over.
    """
    if not lives(view, session):
        raise over(session)


def lives(view: View, session: str) -> bool:
    """Return whether a session lives; the write happens only if that is still so."""
    return view.get(PREFIX + session) is not None


def open_session(write: Open, view: View, limits: Limits) -> Done:
    """Begin a session, or return the existing one with its own ttl.

    Raises:
        Overloaded: there are as many sessions as the limits allow.
    """
    found = view.get(PREFIX + write.session)
    if found is not None:
        return Done({"session": write.session, "ttl": json.loads(found.json)["ttl"]}, found.revision)
    if view.sessions() >= limits.sessions:
        raise Overloaded(f"There are {limits.sessions} sessions already ({COUNT}); nothing was changed")
    view.put(PREFIX + write.session, stored(write, view.now))
    return Done({"session": write.session, "ttl": write.ttl_secs}, view.index)


def stored(write: Open, now: float, nonce: str = "") -> bytes:
    """Return the stored form of a session that is opened at this Unix time.

    Args:
        write: how it is opened.
        now: Unix time in seconds.
        nonce: tells it apart from other sessions of its name, on a shared store; empty: none.
    """
    value = {"ttl": write.ttl_secs, "opened": int(now), "source": write.source}
    more = {"key": write.key, "nonce": nonce}
    return json.dumps(value | {key: text for key, text in more.items() if text}).encode()


def nonce_of(record: Record) -> str:
    """Return what tells a session apart from others of its name; empty: nothing does."""
    return str(json.loads(record.json).get("nonce", ""))


def expired(session: str, opened: Record | None, end: Done) -> Expired:
    """Return the news for the log about a session that ended by itself.

    Args:
        session: its id.
        opened: its record; None if that is not known any more.
        end: the reply of its end.
    """
    known = {} if opened is None else json.loads(opened.json)
    return Expired(session, known.get("source", ""), known.get("key", ""), end.ended, end.revision)


class Times:
    """The end of each session's time, in monotonic time. A broker that starts gives each its full ttl."""

    _FACTOR: Final = 1.25
    """A session ends between one and two times its ttl after it was renewed last."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        """Session to the time of its last renewal by :meth:`hear`, in any thread. Checked before a session ends."""
        self._ttl: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        """Session to its time in the heap; other times in the heap are of earlier sessions with its name."""
        self._shortest = float("inf")
        self.ending: set[str] = set()
        """Sessions whose time is over and that have not ended yet. A session is removed again if its end could not be
        stored."""

    def __len__(self) -> int:
        return len(self._ends)

    def begin(self, session: str, ttl_secs: float, now: float) -> None:
        """Note a session at monotonic time ``now``; an existing one is renewed."""
        self._ttl[session] = ttl_secs
        self._shortest = min(self._shortest, ttl_secs)
        self._renew(session, now)

    @property
    def tick_secs(self) -> float:
        """How often to look at the clock; infinite if there is no session.

        A process that was stopped notices only then that it heard no renewals. The time that it may miss, twice this,
        is within the quarter of a ttl that sessions live longer.
        """
        return max(self._shortest / 8, 0.25)

    def renew(self, session: str, now: float) -> float | None:
        """Renew a session. Return its ttl in seconds; None if it is over."""
        if session not in self._ttl:
            return None
        self._renew(session, now)
        return self._ttl[session]

    def hear(self, session: str, clock: Callable[[], float]) -> float | None:
        """Renew a session in any thread, unless its time is over. Return its ttl in seconds; None if it may be over.

        The renewal is only noted; :meth:`over` reads the notes before it ends a session, so a note before the
        session's end counts. A thread may be suspended at any point, so the clock is read again after the note. A note
        that came too late could make a later renewal seem early: therefore it also checks whether the session is
        ending.
        """
        end, ttl = self._end(session), self._ttl.get(session)
        if end is None or ttl is None:
            return None
        now = clock()
        if now >= end:
            return None
        self._heard[session] = now
        return ttl if clock() < end and session not in self.ending else None

    def _end(self, session: str) -> float | None:
        """Return the end of a session's time; None if there is no such session."""
        end, heard = self._ends.get(session), self._heard.get(session)
        if end is None or heard is None:
            return end
        return max(end, heard + self._ttl.get(session, 0.0) * self._FACTOR)

    def _renew(self, session: str, now: float) -> None:
        first = session not in self._ends
        end = self._ends[session] = now + self._ttl[session] * self._FACTOR
        if first:  # a later end is noticed when the earlier one is reached
            self._push(session, end)

    def _push(self, session: str, due: float) -> None:
        self._due[session] = due
        heapq.heappush(self._heap, (due, session))

    def end(self, session: str) -> None:
        """Forget a session."""
        self._ends.pop(session, None)
        self._ttl.pop(session, None)
        self._heard.pop(session, None)
        self._due.pop(session, None)
        self.ending.discard(session)
        if not self._ttl:
            self._shortest = float("inf")

    def delay(self, secs: float) -> None:
        """Give all sessions more time: for so long no renewal could be heard."""
        for session in self._ends:
            self._ends[session] = (self._end(session) or 0.0) + secs

    def tidy(self) -> None:
        """Forget notes of sessions that ended at the moment of a renewal."""
        for session in list(self._heard):
            if session not in self._ttl:
                self._heard.pop(session, None)

    def over(self, now: float) -> Iterator[str]:
        """Yield the sessions whose time is over; each is yielded again a little later until it has ended."""
        while self._heap and self._heap[0][0] <= now:
            due, session = heapq.heappop(self._heap)
            if self._due.get(session) != due:
                continue
            if session not in self.ending:
                self.ending.add(session)  # before the notes are read: a later renewal sees this
                self._ends[session] = self._end(session) or 0.0
                if self._ends[session] > now:
                    self.ending.discard(session)
            if self._ends[session] <= now:
                self._push(session, now + 1.0)
                yield session
            else:
                self._push(session, self._ends[session])

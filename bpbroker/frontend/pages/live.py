"""Changes as they happen, for all open pages together.

One watch of the registry serves all of them, so twenty pages cost the registry no more than one. A page asks for the
changes after its cursor, and its request is parked, without a thread, until there are some. For a cursor that is older
than the changes kept here, the registry is asked for its history, so a page that was asleep catches up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from bpbroker.errors import Gone, RequestError
from bpbroker.frontend.pages.reading import stamp_of
from bpbroker.messages import Address, fail, settle
from bpbroker.registry.requests import Event, Watch, Watched

logger = logging.getLogger(__name__)

WAIT_SECS: Final = 25.0
"""How long a page's request waits for a change."""
GATHER_SECS: Final = 0.25
"""Changes are collected for so long and sent together: people have to read them, and a busy registry must not be asked
all the time."""
KEPT_MAX: Final = 1000
TOLD_MAX: Final = 100
"""Largest number of changes in one reply. If there are more, it has the newest, and how many are left out."""
_KNOWN_MAX: Final = 200
"""For how many kinds of viewers the news of the moment is kept."""
_AT_ONCE: Final = 5000
_ASLEEP_SECS: Final = 60.0
"""The watch ends when no page has asked for this time."""
_AGAIN_SECS: Final = 1.0


class Told(NamedTuple):
    """A change as pages get it."""

    type: str
    name: str
    revision: int
    source: str
    when: float

    @classmethod
    def of(cls, event: Event) -> Told:
        """Return the change without the entry, which may be large."""
        source, when = stamp_of(event)
        return cls(event.type, event.name, event.revision, source, time.time() if when is None else when)


@dataclass(frozen=True, slots=True)
class News:
    """The news for a page."""

    events: tuple[Told, ...]
    cursor: str
    left_out: int = 0
    """How many changes are left out of the events, because there were too many."""
    missed: bool = False
    """Whether an unknown number of changes is missing: the page has to be loaded again."""


class _Waiting(NamedTuple):
    after: int
    sees: Callable[[str], bool]
    alike: object
    reply: Future[News]


class Feed:
    """The newest changes, and the requests that wait for the next ones.

    Args:
        registry: returns the registry's address.
    """

    def __init__(self, registry: Callable[[], Address]) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._kept: deque[Told] = deque(maxlen=KEPT_MAX)
        self._registry_id = ""
        self._floor = self._upto = 0
        """All changes after the first revision and up to the second are kept here."""
        self._waiting: dict[Future[News], _Waiting] = {}
        self._known: dict[object, News] = {}
        """The news since the last changes came, by what its viewers may see."""
        self._asked_at = 0.0
        self._runs = False

    def ask(self, cursor: str, sees: Callable[[str], bool], alike: object = None) -> Future[News]:
        """Return a future that is done when there are changes, after a cursor, to names that a viewer may see.

        Any thread may call this; it never waits.

        Args:
            cursor: from the news before, or as a watch has it.
            sees: whether the viewer may see a name.
            alike: equal for all viewers who may see the same: they get the same news.
        """
        reply: Future[News] = Future()
        registry_id, _, number = cursor.rpartition(":")
        after = int(number) if number.isascii() and number.isdigit() and len(number) < 20 else -1
        with self._lock:
            self._asked_at = time.monotonic()
            # A cursor may be ahead of the changes that are known here: it waits, too.
            if self._runs and registry_id == self._registry_id and self._floor <= after:
                news = self._told(_Waiting(after, sees, alike, reply))
                if news.events:
                    settle(reply, news)
                else:
                    self._wait(_Waiting(after, sees, alike, reply))
                return reply
            if not self._runs and not self._kept and not self._waiting:
                self._begin(cursor, after)
                self._wait(_Waiting(after, sees, alike, reply))
                return reply
        self._ask_registry(cursor, sees, reply)
        return reply

    def present(self) -> str:
        """Return the cursor after all changes that are kept."""
        return f"{self._registry_id}:{self._upto}"

    def _begin(self, cursor: str, after: int) -> None:
        self._registry_id = cursor.rpartition(":")[0]
        self._floor = self._upto = after
        self._runs = True
        threading.Thread(target=self._run, args=(cursor,), name="live-pages", daemon=True).start()

    def _wait(self, waiting: _Waiting) -> None:
        self._waiting[waiting.reply] = waiting
        waiting.reply.add_done_callback(lambda reply: self._waiting.pop(reply, None))

    def _news(self, after: int, sees: Callable[[str], bool]) -> News:
        """Return the kept changes after a revision."""
        found: list[Told] = []
        for told in reversed(self._kept):
            if told.revision <= after:
                break
            if sees(told.name):
                found.append(told)
        left_out = max(0, len(found) - TOLD_MAX)
        return News(tuple(reversed(found[:TOLD_MAX])), self.present(), left_out)

    # --- a cursor that is older than the changes kept ---

    def _ask_registry(self, cursor: str, sees: Callable[[str], bool], reply: Future[News]) -> None:
        def taken(done: Future[Watched]) -> None:
            error = done.exception()
            if isinstance(error, Gone):
                settle(reply, News((), _cursor_in(error), missed=True))
            elif error is not None:
                fail(reply, error)
            else:
                watched = done.result()
                settle(reply, _caught_up(watched, sees))

        try:
            self._registry().ask(Watch(since=cursor, limit=_AT_ONCE), WAIT_SECS).add_done_callback(taken)
        except RequestError as error:
            fail(reply, error)

    # --- the watch ---

    def _run(self, cursor: str) -> None:
        """Follow the registry for as long as pages ask."""
        while True:
            with self._lock:
                if time.monotonic() - self._asked_at > _ASLEEP_SECS and not self._waiting:
                    self._runs = False
                    self._kept.clear()
                    return
            try:
                watched = self._registry().ask(Watch(since=cursor, wait_secs=10.0, limit=_AT_ONCE), 30.0).result(20.0)
            except Gone as error:
                cursor = _cursor_in(error)
                self._lost(cursor)
                time.sleep(_AGAIN_SECS)
            except Exception as error:  # noqa: BLE001 - the registry is away, or is being replaced
                self._refuse(error)
                time.sleep(_AGAIN_SECS)
            else:
                cursor = watched.cursor
                self._take(watched)
                if watched.events:
                    time.sleep(GATHER_SECS)

    def _take(self, watched: Watched) -> None:
        told = [Told.of(event) for event in watched.events[-KEPT_MAX:]]
        with self._lock:
            if len(self._kept) + len(told) > KEPT_MAX:
                at = len(self._kept) + len(told) - KEPT_MAX
                gone = [*self._kept, *told][at - 1]
                self._floor = gone.revision
            self._kept.extend(told)
            self._upto = int(watched.cursor.rpartition(":")[2])
            if len(watched.events) > len(told):
                self._floor = max(self._floor, watched.events[-KEPT_MAX - 1].revision)
            self._known.clear()
            ready: list[tuple[Future[News], News]] = []
            for reply, waiting in list(self._waiting.items()):
                news = self._told(waiting)
                if news.events:
                    ready.append((reply, news))
                else:  # none of these changes is for this request: next time only newer ones are checked
                    self._waiting[reply] = waiting._replace(after=max(waiting.after, self._upto))
                    if reply.done():  # it was given up meanwhile
                        self._waiting.pop(reply, None)
        for reply, news in ready:
            settle(reply, news)

    def _told(self, waiting: _Waiting) -> News:
        """Return the news for one waiting request; requests that are alike get the same news, made once."""
        if waiting.after >= self._upto:  # a client may ask for any cursor: nothing is kept for it
            return News((), self.present())
        like = waiting.after, waiting.alike
        found = None if waiting.alike is None else self._known.get(like)
        if found is None:
            news = self._news(waiting.after, waiting.sees)
            missed = waiting.after < self._floor
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            found = self._known[like] = News(news.events, news.cursor, news.left_out, missed)
        return found

    def _lost(self, cursor: str) -> None:
        """Begin again at a cursor: the changes before it are forgotten."""
        with self._lock:
            self._kept.clear()
            self._known.clear()
            registry_id, _, number = cursor.rpartition(":")
            self._registry_id = registry_id
            self._floor = self._upto = int(number or 0)
            waiting = list(self._waiting)
        for reply in waiting:
            settle(reply, News((), cursor, missed=True))

    def _refuse(self, error: BaseException) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for reply in waiting:
            fail(reply, error)


def _cursor_in(error: Gone) -> str:
    """Return the cursor from which to go on."""
    return str((error.data or {}).get("cursor", ""))


def _caught_up(watched: Watched, sees: Callable[[str], bool]) -> News:
    """Return the news for a page that was asleep: the newest changes, and how many are left out."""
    found = [event for event in watched.events if sees(event.name)]
    return News(tuple(map(Told.of, found[-TOLD_MAX:])), watched.cursor, max(0, len(found) - TOLD_MAX))


def shown(news: News) -> Mapping[str, Any]:
    """Return it as JSON values."""
    return {
        "cursor": news.cursor,
        "left_out": news.left_out,
        "missed": news.missed,
        "events": [event._asdict() for event in news.events],
    }

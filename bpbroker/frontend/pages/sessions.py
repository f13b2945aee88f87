"""The sessions of people who have signed in: in memory, bounded, ended after twelve hours.

CherryPy's own session in memory is never bounded, is made for every visitor
and lives for as long as it is used. A session here is made only by signing in.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from typing import Any, Final

import cherrypy
from cherrypy.lib.sessions import Session

from bpbroker.frontend.pages.viewer import Credential
from bpbroker.frontend.pages.visit import VISIT, Visit
from bpbroker.server.request import network_of

SESSION_SECS: Final = 12 * 3600
SESSIONS_MAX: Final = 1000
PER_CLIENT_MAX: Final = 50
"""Largest number of sessions of one key at one address, so that a client cannot sign out people with another key or at
another address. All people without a key count as one key."""
CREDENTIAL: Final = "credential"
"""The name under which a session holds its one value."""


class Sessions:
    """All sessions of one broker, oldest first. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Credential, float, str]] = {}
        """Session id to the sign-in, the monotonic time at which the session ends, and the client."""

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, session: str) -> Credential | None:
        """Return the sign-in of a session; None if there is no such session, or its time is over."""
        found = self._kept.get(session)
        return found[0] if found is not None and time.monotonic() < found[1] else None

    def left_secs(self, session: str) -> float:
        """Return how long a session will last; 0 if there is none."""
        found = self._kept.get(session)
        return 0.0 if found is None else max(0.0, found[1] - time.monotonic())

    def begin(self, session: str, credential: Credential, client: str = "") -> None:
        """Begin a session, unless it exists.

        If the same key has :data:`PER_CLIENT_MAX` sessions at this client, the oldest of these ends. If there are
        :data:`SESSIONS_MAX` in all, the key and client with the most sessions lose their oldest one.
        """
        now = time.monotonic()
        with self._lock:
            kept = self._kept
            if session in kept:
                return
            for each in [each for each, (_, ends, _) in kept.items() if ends <= now]:
                del kept[each]
            owner = credential, client
            alike = [each for each, (known, _, whose) in kept.items() if (known, whose) == owner]
            for each in alike[: max(0, len(alike) + 1 - PER_CLIENT_MAX)]:
                del kept[each]
            while len(kept) >= SESSIONS_MAX:
                most = Counter((known, whose) for known, _, whose in kept.values()).most_common(1)[0][0]
                del kept[next(each for each, (known, _, whose) in kept.items() if (known, whose) == most)]
            kept[session] = credential, now + SESSION_SECS, client

    def end(self, session: str) -> None:
        """End a session."""
        with self._lock:
            self._kept.pop(session, None)


class PageSession(Session):  # type: ignore[misc]  # CherryPy has no annotations
    """CherryPy's session of one request, kept in :class:`Sessions`. An empty one is not kept."""

    store: Sessions
    """Given by the tool's configuration."""

    def __len__(self) -> int:
        return len(self.store)

    def _exists(self) -> bool:
        return self.store.find(self.id) is not None

    def _load(self) -> tuple[dict[str, Any], datetime] | None:
        credential = self.store.find(self.id)
        if credential is None:
            return None
        return {CREDENTIAL: credential}, self.now() + timedelta(seconds=SESSION_SECS)

    def _save(self, _expiration_time: datetime) -> None:
        credential = self._data.get(CREDENTIAL)
        if credential is None:
            self.store.end(self.id)
        else:
            visit: Visit = cherrypy.request.wsgi_environ[VISIT]
            self.store.begin(self.id, credential, network_of(visit.source))

    def _delete(self) -> None:
        self.store.end(self.id)

    def acquire_lock(self) -> None:
        """Do nothing: the value of a session never changes, it is only replaced."""
        self.locked = True

    def release_lock(self) -> None:
        """Do nothing, as above."""
        self.locked = False

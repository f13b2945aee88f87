"""A lock, or a semaphore: a place in a queue, and a token that grows with every grant.

A lock without its token is a hint: a holder that was stopped for long wakes up
and goes on. Writes that name the lock are refused then.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping

from bpbroker.errors import (
    AlreadyExists,
    BpbrokerError,
    LockTimeout,
    Misused,
    NotFound,
    NotTrusted,
    SessionLost,
    WaitTimeout,
)
from bpbroker.recipes.session import session_of
from bpbroker.retry import pauses, sleep_before

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, Self  # novermin: for the type checker alone

    from bpbroker.recipes.coordination import Coordination
    from bpbroker.recipes.session import Session

WAIT_MAX_SECS: Final = 600.0
"""The longest that a broker waits in one call."""


class Lock:
    """A lock of one name, by a session of its own for each time that it is held.

    Args:
        registry: of a client, or of an extension's call.
        name: of the lock.
        ttl_secs: of the session.
        wait_secs: how long ``with`` and :meth:`acquire` wait; None: without end, or as long as an extension's
            call may take.
        data: about the holder, for others: JSON.
        limit: how many may hold it at once.
        told: called, in another thread, when a held lock is lost.
    """

    def __init__(
        self,
        registry: Coordination,
        name: str,
        *,
        ttl_secs: float = 30.0,
        wait_secs: float | None = None,
        data: Any = None,
        limit: int = 1,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.token = 0
        """Grows with every grant; 0 while it is not held."""
        self.session: Session | None = None
        self.told = told
        self._registry = registry
        self._errors = registry.calls.errors
        self._away: tuple[type[Exception], ...] = (*registry.calls.away, WaitTimeout)
        self._ttl = ttl_secs
        self._wait = wait_secs
        self._data = data
        self._limit = limit

    @property
    def lost(self) -> threading.Event:
        """Event that is set when the held lock may be lost.

        Raises:
            Misused: the lock was not acquired.
        """
        if self.session is None:
            raise Misused(f"The lock '{self.name}' was not acquired")
        return self.session.lost

    @property
    def fence(self) -> str:
        """``NAME:TOKEN``: a write that names it is refused when the lock is no longer held."""
        return f"{self.name}:{self.token}"

    def locked(self) -> bool:
        """Return whether this object holds it, as far as is known here."""
        return bool(self.token) and self.session is not None and not self.session.lost.is_set()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; arguments as of :meth:`threading.Lock.acquire`. Return whether it was got in time.

        Raises:
            RequestError, CannotConnect: it is not known, or refused.
        """
        if timeout != -1 and (not blocking or timeout < 0):
            raise ValueError("timeout is a number of seconds, and only when blocking")
        secs = self._secs() if timeout == -1 else timeout
        try:
            self.take(secs if blocking else 0.0)
        except LockTimeout:
            return False
        return True

    def take(self, wait_secs: float) -> int:
        """Take the lock, waiting for at most ``wait_secs``, and return its token.

        Raises:
            LockTimeout: others hold it; ``holders`` has them.
            Misused: this object holds it already.
            RequestError, CannotConnect: it is not known, or refused.
        """
        if self.token:
            raise Misused(f"The lock '{self.name}' is held by this object already")
        end = time.monotonic() + wait_secs
        pause = pauses()
        while True:
            session = session_of(self._registry, self._ttl, told=self.told)
            got = False
            try:
                session.open()
                self.token = self._queue(session, end)
                self.session = session
                got = True
            except NotFound:  # the session died while it waited, such as on a suspended machine
                if not sleep_before(end, next(pause)):
                    raise
            except self._registry.calls.away as error:
                # A call after the end of the time could only fail for that, and hide this error.
                if not _worth_waiting(error, end, wait_secs) or not sleep_before(end, next(pause)):
                    raise
            finally:
                if not got:
                    _close(session)
            if got:
                return self.token

    def release(self) -> None:
        """Give the lock back.

        Raises:
            Misused: it is not held.
        """
        if not self.token or self.session is None:
            raise Misused(f"The lock '{self.name}' is not held")
        self.token = 0
        self.session.close()

    def check(self) -> None:
        """Check that the lock is held, as far as is known here.

        Raises:
            LockLost: it is not held any more.
        """
        if self.session is not None:
            try:
                self.session.check()
            except SessionLost as error:
                raise self._errors.LockLost(f"The lock '{self.name}' is lost: {self.session.reason}") from error

    def holder(self) -> Mapping[str, Any] | None:
        """Return the newest holder (``session``, ``token``, ``data``, ``since``); None if there is none."""
        found = self._registry.holder(self.name)["holders"]
        return found[-1] if found else None

    def contenders(self) -> list[Mapping[str, Any]]:
        """Return all that hold it and all that wait for it, in their order."""
        found = self._registry.holder(self.name)
        return [*found["holders"], *found["waiting"]]

    def held(self) -> _Held:
        """Return a ``with`` for a lock that was acquired: it is given back at the end."""
        return _Held(self)

    def __enter__(self) -> Self:
        self.take(self._secs())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost = self.session is not None and self.session.lost.is_set()
        try:
            if self.token:
                self.release()
        except BpbrokerError:
            if error is None and not lost:
                raise
        if lost and error is None:
            self.check()

    def _secs(self) -> float:
        return self._registry.calls.patience_secs if self._wait is None else self._wait

    def _queue(self, session: Session, end: float) -> int:
        """Wait in the queue; the place is kept as long as the session lives."""
        sent: dict[str, Any] = {"name": self.name, "session": session.id, "limit": self._limit}
        if self._data is not None:
            sent["data"] = self._data if isinstance(self._data, str) else json.dumps(self._data)
        pause = pauses()
        while True:
            wait = max(0.0, min(end - time.monotonic(), WAIT_MAX_SECS))
            began = time.monotonic()
            try:
                answer = self._registry.calls.registry(
                    "Lock", {**sent, "wait": round(wait, 3)}, repeatable=True, wait_secs=wait
                )
                return int(answer.data["token"])
            except AlreadyExists as error:
                # Where nothing is tried again the registry's word is the last: it has waited as long as was asked for.
                if time.monotonic() >= end or (not self._registry.calls.away and wait < WAIT_MAX_SECS):
                    raise self._not_got(error) from None
            except self._away:
                if session.lost.is_set() or time.monotonic() >= end:
                    raise
            if time.monotonic() - began < wait / 2:
                time.sleep(min(next(pause), max(0.0, end - time.monotonic())))

    def _not_got(self, error: AlreadyExists) -> LockTimeout:
        holders = (error.data or {}).get("holders")
        known = holders if isinstance(holders, list) else []
        late = self._errors.LockTimeout(str(error) or f"The lock '{self.name}' is held", known)
        late.data = error.data
        return late


class _Held:
    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def __enter__(self) -> Lock:
        return self._lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)


def _worth_waiting(error: Exception, end: float, wait_secs: float) -> bool:
    return wait_secs > 0 and time.monotonic() < end and not isinstance(error, NotTrusted)


def _close(session: Session) -> None:
    try:
        session.close()
    except BpbrokerError:
        pass  # it ends with its ttl

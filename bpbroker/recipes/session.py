"""A session: what belongs to it goes when its owner does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from bpbroker.errors import BpbrokerError, CannotConnect, ClientError, Misused, NotFound, RequestError, WaitTimeout
from bpbroker.recipes.clock import boottime
from bpbroker.retry import pauses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Final, Self  # novermin: for the type checker alone

    from bpbroker.recipes.coordination import Coordination

TTL_MIN_SECS: Final = 2.0
STOP_SECS: Final = 10.0
"""How long before its end a session counts as lost, if its ttl allows: the time to end what must not go on."""
_TRY_SECS: Final = 10.0
_SLICE_SECS: Final = 1.0
"""No wait is longer: waits do not count the time that a machine sleeps."""
_JOIN_SECS: Final = 1.0


def new_id() -> str:
    """Return a session id that no other has."""
    return os.urandom(16).hex()


class Session:
    """A session: opened by ``with`` or :meth:`open`, ended by :meth:`close`, or by its time without a renewal.

    Args:
        registry: of a client, or of an extension's call.
        ttl_secs: it ends between one and two times this after its last renewal.
        told: called, perhaps in another thread, when the session is lost.
    """

    def __init__(
        self,
        registry: Coordination,
        ttl_secs: float = 60.0,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.id = new_id()
        self.ttl_secs = ttl_secs
        self.lost = threading.Event()
        """Set when the session is over, or may be before it could be stopped."""
        self.told = told
        self.reason = ""
        """Why it was lost."""
        self.ended = False
        """Whether the broker said that it is over."""
        self._registry = registry
        self._sent = boottime()

    @property
    def ends_at(self) -> float:
        """The earliest moment, on :func:`boottime`'s clock, at which the broker may end it."""
        return self._sent + self.ttl_secs

    @property
    def stop_at(self) -> float:
        """The moment from which it counts as lost without a renewal."""
        return self.ends_at - min(STOP_SECS, self.ttl_secs / 3)

    def open(self) -> None:
        """Begin the session.

        Raises:
            RequestError, CannotConnect: the broker refused, or is not there.
        """
        sent = boottime()
        answer = self._registry.calls.registry("Open", {"session": self.id, "ttl": self.ttl_secs}, repeatable=True)
        ttl = answer.data.get("ttl")
        if isinstance(ttl, (int, float)):
            self.ttl_secs = float(ttl)
        self._sent = sent

    def renew(self) -> None:
        """Give the session its time again.

        Raises:
            NotFound: it is over.
        """
        try:
            self._renew(self._registry)
        except NotFound as error:
            self.ended = True
            self._lose(str(error))
            raise

    def close(self) -> None:
        """End the session: its entries and its places in locks go at once. A session that is over is closed.

        Raises:
            RequestError, CannotConnect: the broker refused, or is not there; the session ends with its ttl.
        """
        for last in (False, True):
            try:
                # Not longer than one try: what is left ends with its ttl.
                self._registry.calls.registry("Close", {"session": self.id}, repeatable=True, wait_secs=0.0)
            except NotFound:
                break
            except (CannotConnect, WaitTimeout):
                if last:
                    raise
            else:
                break

    def check(self) -> None:
        """Check that the session lives, as far as is known here.

        Raises:
            SessionLost: the session is over.
        """
        if self.lost.is_set():
            raise self._registry.calls.errors.SessionLost(f"The session {self.id} is lost: {self.reason}")

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost = self.lost.is_set()
        try:
            self.close()
        except BpbrokerError:
            if error is None and not lost:
                raise
        if lost and error is None:
            self.check()

    def _renew(self, registry: Coordination) -> None:
        sent = boottime()  # what counts is when it was sent: the broker may have got it at once
        registry.calls.registry("Renew", {"session": self.id}, repeatable=False)
        self._sent = sent

    def _lose(self, why: str) -> None:
        if not self.lost.is_set():
            self.reason = why
            self.lost.set()
            self.told()


class RenewedSession(Session):
    """A session that a thread of this process renews, by a connection of its own, until :meth:`close`."""

    def __init__(
        self,
        registry: Coordination,
        ttl_secs: float = 60.0,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(registry, ttl_secs, told)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin the session and its renewals; raises as :meth:`Session.open` does."""
        if self._thread is not None:
            raise Misused(f"The session {self.id} is open already")
        super().open()
        self._thread = threading.Thread(target=self._keep, name=f"renew-{self.id[:8]}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the session and its renewals, if it is open; raises as :meth:`Session.close` does."""
        if self._thread is None or self._closing.is_set():
            return
        self._closing.set()
        super().close()
        self._thread.join(_JOIN_SECS)

    def check(self) -> None:
        """Check that the session lives, and was renewed in time; raises as :meth:`Session.check` does."""
        if not self.lost.is_set() and boottime() >= self.stop_at:
            self._lose("it was not renewed in time")
        super().check()

    def _keep(self) -> None:
        with self._registry.sibling(min(_TRY_SECS, self.ttl_secs / 3)) as registry:
            pause = pauses()
            due = self._sent + self.ttl_secs / 3
            trouble = "it was not renewed in time"
            while not self._closing.wait(max(0.0, min(due, self.stop_at, boottime() + _SLICE_SECS) - boottime())):
                now = boottime()
                if now >= self.stop_at:
                    self._lose(trouble)
                    return
                if now < due:
                    continue
                try:
                    self._renew(registry)
                except NotFound as error:
                    if not self._closing.is_set():
                        self.ended = True
                        self._lose(str(error))
                    return
                except (RequestError, ClientError) as error:
                    trouble = f"it could not be renewed: {error}"
                    due = boottime() + min(next(pause), self.ttl_secs / 10)
                else:
                    due = self._sent + self.ttl_secs / 3
                    pause = pauses()


def session_of(registry: Coordination, ttl_secs: float, told: Callable[[], None] = lambda: None) -> Session:
    """Create a session, not yet open, that is renewed where the calls allow that; arguments as of :class:`Session`."""
    kind = RenewedSession if registry.calls.renews else Session
    return kind(registry, ttl_secs, told)

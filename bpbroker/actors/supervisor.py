"""The supervisor: finds out whether an actor is dead or stuck, and puts a new one in its place.

It has no thread and gets no message. The healthcheck uses it for all actors but
itself; its guard, in the main thread, uses it for the healthcheck.

Slow is not stuck. An actor that has not come to its ping yet but works through
what came before is left alone, however long that takes; so is one whose worker
makes steps. Only an actor that makes no progress is taken for stuck.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import pykka

from bpbroker.actors.base import ActorAddress
from bpbroker.actors.restart_pauses import RESTARTS_MAX, Restarts
from bpbroker.errors import BpbrokerError
from bpbroker.messages import Address, Ping

logger = logging.getLogger(__name__)

LATE_SECS: Final = 1.0
"""Health shows an actor as late after this time without a reply and without progress, and a whole period."""
STUCK_SECS: Final = 10.0
"""After this time, and a whole period, the actor is replaced; not earlier, because to replace one that is only slow
costs more than its slowness."""
_PING_SECS: Final = 3600.0
"""Time limit of a ping. It is long, because an actor that is only slow becomes well again by a late reply."""

Restart = Callable[[str], pykka.ActorRef[Any]]
"""Makes a new actor of that name; raises an error if it cannot."""


@dataclass(frozen=True, slots=True)
class Restarted:
    """From a thread to the healthcheck: the outcome of making a new actor."""

    name: str
    ref: pykka.ActorRef[Any] | None
    problem: str = ""


def is_dead(address: Address) -> bool:
    """Return whether the actor behind an address has ended; what is no actor is never dead."""
    return isinstance(address, ActorAddress) and not address.alive


@dataclass(slots=True)
class Supervised:
    """What is known of one actor, or of another part that replies to pings: its ping, its progress, its restarts."""

    ping: Future[Any] | None = None
    pinged_at: float = 0.0
    """Monotonic."""
    progress: object = None
    """See :attr:`ActorAddress.progress`, as of the last check."""
    moved_at: float = 0.0
    """Monotonic time at which it was found to have changed."""
    restarts: Restarts = field(default_factory=Restarts)
    restarting: bool = False
    problem: str = ""
    """Why the last try to start it again failed."""

    def send_ping(self, address: Address, now: float) -> Future[Any]:
        """Send it a ping; return its reply.

        Raises:
            Overloaded, Unavailable: it accepts no ping.
        """
        self.ping = ping = address.ask(Ping(), _PING_SECS)
        self.pinged_at = now
        return ping

    def silent_secs(self, address: Address, now: float) -> float:
        """Return the seconds until ``now``, monotonic, without a reply and without progress; 0 without a ping."""
        progress = getattr(address, "progress", None)
        if progress != self.progress:
            self.progress, self.moved_at = progress, now
        return 0.0 if self.ping is None else now - max(self.pinged_at, self.moved_at)

    def trouble(self, address: Address, now: float, every_secs: float) -> str:
        """Say why it has to be replaced sooner or later; empty when it has not.

        Args:
            address: the actor's.
            now: monotonic time.
            every_secs: the time from one ping to the next.
        """
        silent_secs = self.silent_secs(address, now)
        if is_dead(address):
            trouble = "it has died"
        elif silent_secs >= max(LATE_SECS, 0.9 * every_secs):
            trouble = "it does not answer"
        else:
            return ""
        if self.problem:
            trouble += f" and could not be started again: {self.problem}"
        if self.restarts.pause_secs(now) > 0 and self.restarts.too_many:
            trouble += f"; it was replaced {RESTARTS_MAX} times and rests for a while"
        return trouble

    def is_stuck(self, address: Address, now: float, stuck_secs: float) -> bool:
        """Return whether a ping has been unanswered, without any progress, for ``stuck_secs``."""
        return self.silent_secs(address, now) >= stuck_secs > 0


class Supervisor:
    """Has fresh actors made, each in a thread of its own; used by the healthcheck's thread.

    Args:
        restart: see :data:`Restart`.
        tell: is told :class:`Restarted`, from another thread.
    """

    def __init__(self, restart: Restart, tell: Callable[[Restarted], None]) -> None:
        self._restart = restart
        self._tell = tell

    def replace(self, name: str, actor: Supervised, why: str, now: float) -> float:
        """Replace an actor, unless that was done too often lately: then return the seconds until it may be."""
        pause = actor.restarts.pause_secs(now)
        if pause > 0:
            return pause
        actor.restarts.note(now)
        actor.restarting = True
        logger.warning("The %s is being replaced: %s", name, why)
        threading.Thread(target=self._make, args=(name,), name=f"restart {name}", daemon=True).start()
        return 0.0

    def _make(self, name: str) -> None:
        """Make a fresh actor; runs in a thread of its own, for the registry has to read its journal first."""
        try:
            ref = self._restart(name)
        except Exception as error:
            logger.exception("The %s could not be started again", name)
            said = str(error) if isinstance(error, BpbrokerError) else type(error).__name__
            self._tell(Restarted(name, None, said))
        else:
            self._tell(Restarted(name, ref))

    @staticmethod
    def put(address: ActorAddress, actor: Supervised, made: Restarted) -> bool:
        """Put the actor that was made behind its address; return False if none could be made."""
        actor.restarting = False
        actor.ping = None
        actor.problem = made.problem
        if made.ref is None:
            return False
        address.replace(made.ref)
        logger.warning("The %s was replaced", made.name)
        return True

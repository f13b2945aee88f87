"""The guard supervises the healthcheck only; the healthcheck supervises all other actors.

It pings the healthcheck and puts a new one in its place when it is dead or
stuck. The main thread calls it between two events.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import pykka

from bpbroker.actors.base import ActorAddress
from bpbroker.actors.supervisor import Supervised
from bpbroker.errors import BpbrokerError

logger = logging.getLogger(__name__)

STUCK_SECS: Final = 10.0
"""The healthcheck never waits: so long without a reply and without progress, it is stuck."""


class HealthcheckGuard:
    """Pings one actor, the healthcheck; puts a new one in its place when it is dead or stuck.

    Args:
        address: the actor's.
        restart: makes a new one; must be quick.
    """

    def __init__(self, address: ActorAddress, restart: Callable[[], pykka.ActorRef[Any]]) -> None:
        self._address = address
        self._restart = restart
        self._actor = Supervised()
        self._next = 0.0

    def look(self, now: float, every_secs: float) -> float:
        """Check the actor, at most once in ``every_secs``; return the seconds until the next check.

        ``now`` is the monotonic time.
        """
        if now >= self._next:
            self._look(now)
            self._next = now + every_secs
        return self._next - now

    def _look(self, now: float) -> None:
        actor = self._actor
        if actor.ping is not None and actor.ping.done():
            actor.ping = None
        stuck = actor.is_stuck(self._address, now, STUCK_SECS)
        if not self._address.alive:
            self._replace(now, "it has died")
        elif actor.ping is None:
            try:
                actor.send_ping(self._address, now)
            except BpbrokerError:
                pass  # it died a moment ago, or its inbox is full: the next check finds out
        elif stuck:
            self._replace(now, "it does not answer")

    def _replace(self, now: float, why: str) -> None:
        if self._actor.restarts.pause_secs(now) > 0:
            return
        self._actor.restarts.note(now)
        logger.warning("The %s is being replaced: %s", self._address.name, why)
        try:
            ref = self._restart()
        except Exception:
            logger.exception("The %s could not be started again", self._address.name)
            return
        self._address.replace(ref)
        self._actor.ping = None
        logger.warning("The %s was replaced", self._address.name)

"""The healthcheck actor: owns what is known of every part's health, and puts fresh actors in the place of bad ones.

It never waits. Pings are all on their way at once, a fresh actor is made in a
thread of its own, and what is known is there to be read at any moment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Final

import pykka

from bpbroker import schema
from bpbroker.actors.base import Actor, ActorAddress, Wake
from bpbroker.errors import BpbrokerError
from bpbroker.messages import Address, Health, HealthReport, PartHealth, Ping, Pong, Settings, SettingsChanged

logger = logging.getLogger(__name__)

LATE_SECS: Final = 1.0
"""A ping unanswered for this long, and for a whole period, is told in health."""
STUCK_SECS: Final = 10.0
"""After this long, and a whole period, the actor is replaced: replacing a slow one costs more than its slowness."""

RESTARTS_MAX: Final = 5
RESTARTS_WINDOW_SECS: Final = 600.0
"""At most so many restarts of one part in so many seconds; after that it stays down until the window has moved on."""
BACKOFF_SECS: Final = 1.0
"""Pause between the first restart in the window and the second; doubles with each."""

Probe = Callable[[], Pong]
Restart = Callable[[str], pykka.ActorRef[Any]]


@dataclass(frozen=True, slots=True)
class _Restarted:
    """A thread to the actor: how making a fresh actor went."""

    name: str
    ref: pykka.ActorRef[Any] | None
    problem: str = ""


@dataclass(slots=True)
class _Part:
    """What is known of one part."""

    name: str
    ok: bool = True
    since: float = field(default_factory=time.time)
    detail: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    last_error: str = ""
    last_error_at: float = 0.0
    ping: Future[Any] | None = None
    pinged_at: float = 0.0
    """Monotonic."""
    restarts: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS_MAX))
    """Monotonic times of the last ones."""
    restarted: int = 0
    restarting: bool = False

    def learn(self, *, ok: bool, detail: str, figures: Mapping[str, Any] | None = None) -> None:
        """Note how the part is now, and log a change."""
        if ok != self.ok:
            self.ok, self.since = ok, time.time()
            if ok:
                logger.info("The %s is well again", self.name)
        if not ok and detail != self.detail:
            logger.error("The %s is not well: %s", self.name, detail)
            self.last_error, self.last_error_at = detail, time.time()
        self.detail = detail
        if figures is not None:
            self.figures = figures

    def shown(self) -> PartHealth:
        """Give it as everybody may see it."""
        figures = dict(self.figures)
        if self.last_error and "last_error" not in figures:
            figures.update(last_error=self.last_error, last_error_at=self.last_error_at)
        return PartHealth(self.name, self.ok, self.since, self.detail, self.restarted, figures)

    def pause_secs(self, now: float) -> float:
        """Give how long to wait before the next restart; 0 when it may be now."""
        while self.restarts and now - self.restarts[0] > RESTARTS_WINDOW_SECS:
            self.restarts.popleft()
        if not self.restarts:
            return 0.0
        if len(self.restarts) == RESTARTS_MAX:
            return RESTARTS_WINDOW_SECS - (now - self.restarts[0])
        return float(BACKOFF_SECS * 2 ** (len(self.restarts) - 1) - (now - self.restarts[-1]))


class Healthcheck(Actor):
    """Pings every part each ``_global.healthcheck_freq_sec``.

    Args:
        addresses: all parts by name; looked at anew in each round. Those that
            are no :class:`ActorAddress` are pinged but cannot be replaced.
        restart: makes a fresh actor of that name, in a thread of its own; raises when it cannot.
        settings: the settings in force.
        probes: parts without an address, by name; each says at once how it is. Looked at anew in each round.
        stuck_secs: see :data:`STUCK_SECS`.
    """

    def __init__(
        self,
        addresses: Mapping[str, Address],
        restart: Restart,
        settings: Settings,
        probes: Mapping[str, Probe] | None = None,
        stuck_secs: float = STUCK_SECS,
    ) -> None:
        super().__init__()
        self._addresses = addresses
        self._restart = restart
        self._probes: Mapping[str, Probe] = probes if probes is not None else {}
        self._stuck_secs = stuck_secs
        self._parts: dict[str, _Part] = {}
        self._next_round = 0.0
        self._every_secs: float = schema.option(settings, "_global", "healthcheck_freq_sec")
        self.handlers = {
            Health: lambda _: self._report(),
            SettingsChanged: self._settings_changed,
            Wake: lambda _: self._wake(),
            _Restarted: self._replaced,
        }

    def started(self) -> None:
        """Send the first pings."""
        self._round()

    def _settings_changed(self, message: SettingsChanged) -> None:
        self._every_secs = schema.option(message.settings, "_global", "healthcheck_freq_sec")
        self._round()

    def _report(self) -> HealthReport:
        """Give what is known, with the answers that have come since the last round."""
        now = time.monotonic()
        for part in self._parts.values():
            self._hear(part)
            address = self._addresses.get(part.name)
            trouble = "" if address is None or part.restarting else self._trouble(part, address, now)
            if trouble:
                part.learn(ok=False, detail=trouble)
        self._probe()
        parts = tuple(part.shown() for part in self._parts.values())
        # A broken extension is told, but the broker itself serves as before.
        return HealthReport(all(part.ok or part.name.startswith("extension ") for part in parts), parts)

    # --- rounds ---

    def _wake(self) -> None:
        if time.monotonic() >= self._next_round:
            self._round()
        else:
            self.wake_at(self._next_round)

    def _round(self) -> None:
        """Hear the answers to earlier pings, mend what is dead or stuck, ping again."""
        now = time.monotonic()
        self._next_round = now + self._every_secs
        self.wake_at(self._next_round)
        addresses = {name: address for name, address in self._addresses.items() if name != "healthcheck"}
        for name in [name for name in self._parts if name not in addresses and name not in self._probes]:
            del self._parts[name]
        for name, address in addresses.items():
            part = self._parts.setdefault(name, _Part(name))
            self._hear(part)
            if part.restarting:
                continue
            trouble = self._trouble(part, address, now)
            if trouble:
                part.learn(ok=False, detail=trouble)
            if trouble and isinstance(address, ActorAddress) and (not address.alive or self._is_stuck(part, now)):
                self._replace(part, now)
            elif part.ping is None:
                self._send_ping(part, address, now)
        self._probe()

    def _hear(self, part: _Part) -> None:
        """Take the answer to a ping if it is there."""
        ping = part.ping
        if ping is None or not ping.done():
            return
        part.ping = None
        try:
            answer = ping.result(0)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever a part answers, it has answered
            said = str(error) if isinstance(error, BpbrokerError) else type(error).__name__
            part.learn(ok=False, detail=f"it answered a ping with an error: {said}")
        else:
            pong = answer if isinstance(answer, Pong) else Pong()
            part.learn(ok=pong.ok, detail=pong.detail, figures=pong.figures)

    def _trouble(self, part: _Part, address: Address, now: float) -> str:
        if isinstance(address, ActorAddress) and not address.alive:
            return "it has died"
        waited = now - part.pinged_at
        if part.ping is not None and waited >= max(LATE_SECS, 0.9 * self._every_secs):
            return f"it has not answered for {int(waited)} s"
        return ""

    def _is_stuck(self, part: _Part, now: float) -> bool:
        return part.ping is not None and now - part.pinged_at >= max(self._stuck_secs, 0.9 * self._every_secs)

    def _send_ping(self, part: _Part, address: Address, now: float) -> None:
        try:
            # It is to be answered however late: an actor that is only slow becomes well again by it.
            part.ping = address.ask(Ping(), 3600.0)
            part.pinged_at = now
        except BpbrokerError as error:
            part.learn(ok=False, detail=str(error))

    def _probe(self) -> None:
        for name, probe in list(self._probes.items()):
            try:
                pong = probe()
            except Exception as error:  # noqa: BLE001 - a probe that fails is a part that is not well
                pong = Pong(ok=False, detail=f"it cannot be looked at: {type(error).__name__}")
            self._parts.setdefault(name, _Part(name)).learn(ok=pong.ok, detail=pong.detail, figures=pong.figures)

    # --- replacing ---

    def _replace(self, part: _Part, now: float) -> None:
        """Have a fresh actor made, unless that was done too often lately."""
        pause = part.pause_secs(now)
        if pause > 0:
            if len(part.restarts) == RESTARTS_MAX:
                part.learn(
                    ok=False, detail=f"{part.detail}; it was replaced {RESTARTS_MAX} times and rests for a while"
                )
            self.wake_at(now + pause)
            return
        part.restarts.append(now)
        part.restarted += 1
        part.restarting = True
        logger.warning("The %s is being replaced: %s", part.name, part.detail)
        threading.Thread(target=self._make, args=(part.name,), name=f"restart {part.name}", daemon=True).start()

    def _make(self, name: str) -> None:
        """Make a fresh actor; runs in a thread of its own, for the registry has to read its journal first."""
        try:
            ref = self._restart(name)
        except Exception as error:
            logger.exception("The %s could not be started again", name)
            said = str(error) if isinstance(error, BpbrokerError) else type(error).__name__
            self.tell_self(_Restarted(name, None, said))
        else:
            self.tell_self(_Restarted(name, ref))

    def _replaced(self, message: _Restarted) -> None:
        part = self._parts.get(message.name)
        address = self._addresses.get(message.name)
        if part is None or not isinstance(address, ActorAddress):
            if message.ref is not None:
                message.ref.stop(block=False)
            return
        part.restarting = False
        part.ping = None
        if message.ref is None:
            part.learn(ok=False, detail=f"it could not be started again: {message.problem}")
            return
        address.replace(message.ref)
        logger.warning("The %s was replaced", part.name)
        self._send_ping(part, address, time.monotonic())

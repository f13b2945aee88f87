"""The healthcheck actor: owns what is known of every part's health, and puts fresh actors in the place of bad ones.

It never waits for a ping: each round looks at the answers to the pings of the
round before and sends new ones, so that it can always say at once what it
knows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import pykka

from bpbroker import schema
from bpbroker.actors.base import Actor, ActorAddress, Wake
from bpbroker.errors import BpbrokerError
from bpbroker.messages import Address, Health, HealthReport, PartHealth, Ping, Pong, Settings, SettingsChanged

logger = logging.getLogger(__name__)

RESTARTS_MAX: Final = 8
"""Restarts of one part without a calm hour in between; after that it stays down and health says so."""
CALM_SECS: Final = 3600.0

Probe = Callable[[], Pong]


@dataclass(slots=True)
class _Part:
    """What is known of one part."""

    name: str
    ok: bool = True
    since: float = field(default_factory=time.time)
    detail: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    ping: Future[Pong] | None = None
    restarts: int = 0
    restarted_at: float = 0.0
    """Monotonic."""
    restart_after: float = 0.0

    def learn(self, *, ok: bool, detail: str = "", figures: Mapping[str, Any] | None = None) -> None:
        """Note how the part is now, and log a change."""
        if ok != self.ok:
            self.ok, self.since = ok, time.time()
            if ok:
                logger.info("The %s is well again", self.name)
            else:
                logger.error("The %s is not well: %s", self.name, detail)
        self.detail = detail
        if figures is not None:
            self.figures = figures

    def shown(self) -> PartHealth:
        """Give it as others may see it."""
        return PartHealth(self.name, self.ok, self.since, self.detail, self.restarts, self.figures)


class Healthcheck(Actor):
    """Pings every part each ``_global.healthcheck_freq_sec``.

    Args:
        addresses: all actors by name; looked at anew in each round.
        restart: makes a fresh actor of that name; raises when it cannot.
        settings: the settings in force.
        probes: parts that are no actors, by name; each says at once how it is.
    """

    def __init__(
        self,
        addresses: Mapping[str, Address],
        restart: Callable[[str], pykka.ActorRef[Any]],
        settings: Settings,
        probes: Mapping[str, Probe],
    ) -> None:
        super().__init__()
        self._addresses = addresses
        self._restart = restart
        self._probes = probes
        self._parts: dict[str, _Part] = {}
        self._apply_settings(settings)
        self.handlers = {
            Health: lambda _: self._report(),
            SettingsChanged: lambda message: self._apply_settings(message.settings),
            Wake: lambda _: self._round(),
        }

    def started(self) -> None:
        """Send the first pings."""
        self._round()

    def _apply_settings(self, settings: Settings) -> None:
        self._every_secs: float = schema.option(settings, "_global", "healthcheck_freq_sec")

    def _report(self) -> HealthReport:
        self._probe()
        parts = tuple(part.shown() for part in self._parts.values())
        # A broken extension is told, but the broker itself serves as before.
        return HealthReport(all(part.ok or part.name.startswith("extension ") for part in parts), parts)

    def _round(self) -> None:
        """Look at the answers to the last round's pings, mend, ping again."""
        self.wake_at(time.monotonic() + self._every_secs)
        actors = {name: found for name, found in self._addresses.items() if isinstance(found, ActorAddress)}
        for name in [name for name in self._parts if name not in actors and name not in self._probes]:
            del self._parts[name]
        for name, address in actors.items():
            if address.alive and name == "healthcheck":
                continue
            part = self._parts.setdefault(name, _Part(name))
            trouble = self._hear(part, address)
            if trouble:
                part.learn(ok=False, detail=trouble)
                self._replace(part, address)
            self._send_ping(part, address)
        self._probe()

    def _hear(self, part: _Part, address: ActorAddress) -> str:
        """Take the answer to the last ping; give why the actor has to be replaced, or nothing."""
        if not address.alive:
            return "it has died"
        ping, part.ping = part.ping, None
        if ping is None:
            return ""
        if not ping.done():
            return f"it has not answered for {self._every_secs:g} s"
        error = ping.exception(0)
        if error is not None:
            return "" if isinstance(error, BpbrokerError) else f"it failed: {type(error).__name__}"
        pong = ping.result(0)
        part.learn(ok=pong.ok, detail=pong.detail, figures=pong.figures)
        return ""

    def _send_ping(self, part: _Part, address: ActorAddress) -> None:
        try:
            part.ping = address.ask(Ping(), self._every_secs * 2)
        except BpbrokerError as error:
            part.ping = None
            part.learn(ok=False, detail=str(error))

    def _replace(self, part: _Part, address: ActorAddress) -> None:
        """Put a fresh actor behind the name, with a limit and a growing pause."""
        now = time.monotonic()
        if now - part.restarted_at > CALM_SECS:
            part.restarts, part.restart_after = 0, 0.0
        if part.restarts >= RESTARTS_MAX:
            part.learn(ok=False, detail=f"it was replaced {part.restarts} times and failed again; restart the broker")
            return
        if now < part.restart_after:
            return
        part.restarts += 1
        part.restarted_at = now
        part.restart_after = now + self._every_secs * 2**part.restarts / 2
        try:
            fresh = self._restart(part.name)
        except Exception as error:  # noqa: BLE001 - whatever stops it, the next round tries again
            logger.error("The %s could not be replaced: %s", part.name, error)  # noqa: TRY400 - said in health too
            return
        address.replace(fresh)
        part.learn(ok=True, detail="")
        logger.warning("The %s was replaced (restart %d)", part.name, part.restarts)

    def _probe(self) -> None:
        for name, probe in self._probes.items():
            pong = probe()
            self._parts.setdefault(name, _Part(name)).learn(ok=pong.ok, detail=pong.detail, figures=pong.figures)

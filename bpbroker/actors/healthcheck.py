"""The healthcheck actor: owns the health of all parts, and has dead or stuck actors replaced.

It never waits. It sends all pings at once, and a new actor is made in a thread of its own. A request for the health
gets the replies to new pings; if some are missing a moment later, it gets the last known health of these parts.

:mod:`bpbroker.actors.supervisor` tells which actor is dead or stuck, and replaces it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bpbroker.actors.base import DEFERRED, Actor, ActorAddress
from bpbroker.actors.inbox import INBOX_MAX, Wake
from bpbroker.actors.supervisor import STUCK_SECS, Restart, Restarted, Supervised, Supervisor, is_dead
from bpbroker.config import schema
from bpbroker.errors import BpbrokerError, Unavailable
from bpbroker.messages import (
    Address,
    Health,
    HealthReport,
    Measure,
    Measured,
    PartHealth,
    Pong,
    Settings,
    SettingsChanged,
    fail,
    settle,
)

logger = logging.getLogger(__name__)

FRESH_SECS: Final = 0.25
"""How long a reply with the health waits for pings."""

_FOLDERS: Final = re.compile(r"""(?:(?<![^\s'"(=])/|\b[A-Za-z]:[\\/])(?:[^:;"'\n]*[\\/])?""")
"""Matches an absolute path without its last part."""

Probe = Callable[[], Pong]


@dataclass(frozen=True, slots=True)
class _Heard:
    """From the actor to itself: a ping has its reply."""

    name: str


@dataclass(slots=True)
class _Part:
    """The known health of one part."""

    name: str
    ok: bool = True
    since: float = field(default_factory=time.time)
    detail: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    last_error: str = ""
    last_error_at: float = 0.0
    actor: Supervised = field(default_factory=Supervised)
    silent: bool = False
    """Whether it is dead or does not reply: then the broker is not well, whichever part it is."""

    def take(self, pong: Pong) -> None:
        """Note the reply of the part."""
        self.figures, self.counts = pong.figures, pong.counts
        self.learn(ok=pong.ok, detail=pong.detail)

    def learn(self, *, ok: bool, detail: str) -> None:
        """Set the health of the part, and log a change."""
        if ok != self.ok:
            self.ok, self.since = ok, time.time()
            if ok:
                logger.info("The %s is well again", self.name)
        if not ok and detail != self.detail:
            logger.error("The %s is not well: %s", self.name, detail)
            self.last_error, self.last_error_at = detail, time.time()
        self.detail = detail

    def shown(self) -> PartHealth:
        """Return it as it is shown without a key."""
        figures = dict(self.figures)
        if self.last_error and "last_error" not in figures:
            figures.update(last_error=self.last_error, last_error_at=self.last_error_at)
        return PartHealth(self.name, self.ok, self.since, self.detail, self.actor.restarts.count, figures)


def _without_folders(report: HealthReport) -> HealthReport:
    """Return a report with only the last part of each path in its texts."""
    parts = tuple(replace(part, detail=_bare(part.detail), figures=_bare(part.figures)) for part in report.parts)
    return HealthReport(report.ok, parts)


def _bare(value: Any) -> Any:
    """Return a value with only the last part of each path in its texts."""
    if isinstance(value, Mapping):
        return {key: _bare(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_bare(item) for item in value)
    return _FOLDERS.sub("…/", value) if isinstance(value, str) else value


class Healthcheck(Actor):
    """Pings every part each ``_global.healthcheck_freq_sec``.

    Args:
        addresses: all parts by name; looked at anew in each round. Those that
            are no :class:`ActorAddress` are pinged but cannot be replaced.
        restart: see :data:`bpbroker.actors.supervisor.Restart`; called in a thread of its own.
        settings: the settings in force.
        probes: parts without an address, by name; each says at once how it is. Looked at anew in each round.
        stuck_secs: see :data:`bpbroker.actors.supervisor.STUCK_SECS`.
        said: called with one line about what is not well, each time that it changes; empty: all is well.
    """

    def __init__(
        self,
        addresses: Mapping[str, Address],
        restart: Restart,
        settings: Settings,
        probes: Mapping[str, Probe] | None = None,
        stuck_secs: float = STUCK_SECS,
        said: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._said = said
        self._trouble_said: str | None = None
        """None at first: an earlier healthcheck may have said another line."""
        self._addresses = addresses
        self._supervisor = Supervisor(restart, self.tell_self)
        self._probes: Mapping[str, Probe] = probes if probes is not None else {}
        self._stuck_secs = stuck_secs
        self._parts: dict[str, _Part] = {}
        self._next_round = 0.0
        self._asking: list[tuple[Future[Any], Health | Measure]] = []
        """Requests for the health that wait for the pings on their way."""
        self._asked_until = 0.0
        self._every_secs: float = schema.option(settings, "_global", "healthcheck_freq_sec")
        self.handlers = {
            Health: self._health,
            Measure: self._health,
            SettingsChanged: self._settings_changed,
            Wake: lambda _: self._wake(),
            _Heard: self._heard,
            Restarted: self._replaced,
        }

    def started(self) -> None:
        """Send the first pings."""
        self._round()

    def stopped(self) -> None:
        """Refuse all waiting requests."""
        for reply, _ in self._asking:
            fail(reply, Unavailable("The broker is stopping"))

    def _settings_changed(self, message: SettingsChanged) -> None:
        self._every_secs = schema.option(message.settings, "_global", "healthcheck_freq_sec")
        self._round()

    # --- requests ---

    def _health(self, message: Health | Measure) -> Any:
        if self.reply is None:
            return None
        if not self._asking:
            now = time.monotonic()
            self._asked_until = now + FRESH_SECS
            for name, part in self._parts.items():
                address = self._addresses.get(name)
                if (
                    address is not None
                    and part.actor.ping is None
                    and not part.actor.restarting
                    and not is_dead(address)
                ):
                    self._send_ping(part, address, now)
            self.wake_at(self._asked_until)
        self._asking.append((self.reply, message))
        self._tell_if_known()
        return DEFERRED

    def _heard(self, message: _Heard) -> None:
        part = self._parts.get(message.name)
        if part is not None:
            self._hear(part)
            self._say_trouble()
        self._tell_if_known()

    def _tell_if_known(self) -> None:
        """Reply to the requests for the health when all pings have replies, or after a moment."""
        late = time.monotonic() >= self._asked_until
        if self._asking and (late or all(part.actor.ping is None for part in self._parts.values())):
            report = self._report()
            public = _without_folders(report)
            for reply, message in self._asking:
                if isinstance(message, Measure):
                    settle(reply, Measured(public, self._counts()))
                else:
                    settle(reply, report if message.folders else public)
            self._asking.clear()

    def _counts(self) -> dict[str, dict[str, Any]]:
        """Return the counts of each part, and the figures of its actor that are seen from outside."""
        now = time.monotonic()
        found = {}
        for name, part in self._parts.items():
            found[name] = dict(part.counts)
            address = self._addresses.get(name)
            if isinstance(address, ActorAddress):
                found[name].update(_seen_outside(address, now), silent_secs=part.actor.silent_secs(address, now))
        own = self._addresses.get("healthcheck")
        if isinstance(own, ActorAddress):
            found["healthcheck"] = {**_seen_outside(own, now), "silent_secs": 0.0}
        return found

    def _report(self) -> HealthReport:
        now = time.monotonic()
        for part in self._parts.values():
            address = self._addresses.get(part.name)
            trouble = (
                "" if address is None or part.actor.restarting else part.actor.trouble(address, now, self._every_secs)
            )
            if trouble:
                part.silent = True
                part.learn(ok=False, detail=trouble)
        self._probe()
        self._say_trouble()
        parts = tuple(part.shown() for part in self._parts.values())
        # A module that cannot be used, a log that cannot be written, an expired certificate: these are shown, but the
        # broker goes on serving.
        well = all(part.ok or (_is_apart(part.name) and not part.silent) for part in self._parts.values())
        return HealthReport(well, parts)

    # --- rounds ---

    def _wake(self) -> None:
        self._tell_if_known()
        if time.monotonic() >= self._next_round:
            self._round()
        else:
            self.wake_at(self._next_round)

    def _round(self) -> None:
        """Take the replies to earlier pings, have dead or stuck actors replaced, ping again."""
        now = time.monotonic()
        self._next_round = now + self._every_secs
        stuck_secs = max(self._stuck_secs, 0.9 * self._every_secs)
        self.wake_at(self._next_round)
        addresses = {name: address for name, address in self._addresses.items() if name != "healthcheck"}
        for name in [name for name in self._parts if name not in addresses and name not in self._probes]:
            del self._parts[name]
        for name, address in addresses.items():
            part = self._parts.setdefault(name, _Part(name))
            self._hear(part)
            if part.actor.restarting:
                continue
            trouble = part.actor.trouble(address, now, self._every_secs)
            if trouble:
                part.silent = True
                part.learn(ok=False, detail=trouble)
            if (
                trouble
                and isinstance(address, ActorAddress)
                and (not address.alive or part.actor.is_stuck(address, now, stuck_secs))
            ):
                self._replace(part, now)
            elif part.actor.ping is None:
                self._send_ping(part, address, now)
        self._probe()
        self._say_trouble()

    def _say_trouble(self) -> None:
        trouble = "; ".join(f"{part.name}: {part.detail}" for part in self._parts.values() if not part.ok)
        if trouble != self._trouble_said:
            self._trouble_said = trouble
            self._said(trouble)

    def _hear(self, part: _Part) -> None:
        """Take the reply to a ping if it is there."""
        ping = part.actor.ping
        if ping is None or not ping.done():
            return
        part.actor.ping = None
        part.silent = False
        try:
            answer = ping.result(0)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever a part answers, it has answered
            said = str(error) if isinstance(error, BpbrokerError) else type(error).__name__
            part.learn(ok=False, detail=f"it answered a ping with an error: {said}")
        else:
            part.take(answer if isinstance(answer, Pong) else Pong())

    def _send_ping(self, part: _Part, address: Address, now: float) -> None:
        try:
            ping = part.actor.send_ping(address, now)
        except BpbrokerError as error:
            part.learn(ok=False, detail=str(error))
        else:
            heard = _Heard(part.name)
            ping.add_done_callback(lambda _: self.tell_self(heard))

    def _probe(self) -> None:
        for name, probe in list(self._probes.items()):
            try:
                pong = probe()
            except Exception as error:  # noqa: BLE001 - a probe that fails is a part that is not well
                pong = Pong(ok=False, detail=f"it cannot be looked at: {type(error).__name__}")
            self._parts.setdefault(name, _Part(name)).take(pong)

    def _replace(self, part: _Part, now: float) -> None:
        pause = self._supervisor.replace(part.name, part.actor, part.detail, now)
        if pause > 0:
            self.wake_at(now + pause)

    def _replaced(self, message: Restarted) -> None:
        part = self._parts.get(message.name)
        address = self._addresses.get(message.name)
        if part is None or not isinstance(address, ActorAddress):
            if message.ref is not None:
                message.ref.stop(block=False)
        elif self._supervisor.put(address, part.actor, message):
            self._send_ping(part, address, time.monotonic())


def _seen_outside(address: ActorAddress, now: float) -> dict[str, Any]:
    """Return the figures of an actor that are known without asking it."""
    return {
        "inbox": address.inbox,
        "inbox_max": INBOX_MAX,
        "age_secs": now - address.since,
        "restarts": address.restarts,
    }


def _is_apart(name: str) -> bool:
    return name in ("log", "certificate") or name.startswith("extension ")

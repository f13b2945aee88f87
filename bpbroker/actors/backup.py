"""The backup actor: owns the schedule and the backups folder.

It replies at any time. A worker makes the backups, one at a time; another worker lists the folder and does not wait
for them. Both work under a claim: when another actor has replaced this one, they can neither put a backup into the
folder nor remove one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bpbroker import files
from bpbroker.actors.base import DEFERRED, Actor, ask_patiently
from bpbroker.actors.inbox import Wake
from bpbroker.actors.ownership import Owned
from bpbroker.config import schema
from bpbroker.errors import BpbrokerError, Unavailable
from bpbroker.messages import (
    Address,
    BackupInfo,
    BackupNow,
    Document,
    GetDocument,
    ListBackups,
    Pong,
    Settings,
    SettingsChanged,
    fail,
    settle,
)
from bpbroker.storage import backups, config_file
from bpbroker.storage.backup_identity import Identity

logger = logging.getLogger(__name__)

_RETRY_SECS = 5.0
"""Pause after a failed backup; doubled with each further failure."""


@dataclass(frozen=True, slots=True)
class _Looked:
    """From the worker to the actor: the folder was read."""

    newest: BackupInfo | None


class _Held(NamedTuple):
    """What the newest backup holds. The entries themselves would be a second copy of the registry's memory."""

    settings: Settings
    sequence: int
    """Number of the last change of an entry."""
    identity: str
    """The identity's digest."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """From the worker to the actor: a backup was made, or was not needed, or failed."""

    asked: bool
    """Whether it was asked for, and not only due."""
    made: BackupInfo | None = None
    holds: _Held | None = None
    error: Exception | None = None


class Backup(Actor):
    """Makes a backup every ``_config.backup_freq_secs`` if something changed, and keeps the newest few.

    Args:
        own: the file whose state is backed up.
        folder: the right to the backups folder; claimed here.
        config_store: asked for the state.
        settings: the settings in force.
        identity: returns what is backed up beside settings and entries, such as the certificate; called with the saved
        settings.
    """

    def __init__(
        self,
        own: Path,
        folder: Owned[None],
        config_store: Address,
        settings: Settings,
        identity: Callable[[Settings], Identity] = lambda _: Identity(),
    ) -> None:
        super().__init__()
        self._own = own
        self._claim = folder.claim()
        self._config_store = config_store
        self._identity = identity
        self._last: _Held | None = None
        self._last_made: float | None = None
        """Monotonic time of the newest backup: its age must not jump with the clock."""
        self._current_at: float | None = None
        """Monotonic time at which the newest backup was last known to hold the current state."""
        self._failures = 0
        """How many due backups failed."""
        self._problem = ""
        self._failed = 0
        """Failures in a row."""
        self._apply_settings(settings)
        self._due = float("inf")
        """Monotonic, so that a clock that jumps neither skips backups nor makes a storm of them."""
        self._asked: list[Future[Any]] = []
        """Requests for a backup that has not been begun."""
        self._served: tuple[Future[Any], ...] = ()
        """Requests for the backup that is being made."""
        self._busy = True
        """Whether the worker makes a backup, or has not read the folder yet."""
        self._worker = self.add_worker("backup's worker")
        self._lister = self.add_worker("backup's lister")
        self.handlers = {
            BackupNow: self._backup_now,
            ListBackups: self._list,
            SettingsChanged: self._settings_changed,
            Wake: lambda _: self._go_on(),
            _Looked: self._looked,
            _Ended: self._ended,
        }

    def started(self) -> None:
        """Let the worker read the folder: a broker that is often restarted makes its backups, too."""
        self._worker.do("looking for the newest backup", self._look)

    def stopped(self) -> None:
        """Refuse all waiting requests."""
        self._refuse("The broker is stopping")

    def abandoned(self) -> None:
        """Drop the claim, and refuse the waiting requests."""
        self._claim.give_up()
        self._refuse("The broker's part for this is being replaced")

    def _refuse(self, why: str) -> None:
        for reply in list(self._asked):
            fail(reply, Unavailable(f"{why}; nothing was done"))
        for reply in self._served:
            unknown = Unavailable(f"{why}; whether the backup was made is not known")
            unknown.outcome_known = False
            fail(reply, unknown)

    def status(self) -> Pong:
        """Return the age of the newest backup in seconds, and why the last one failed if it did."""
        now = time.monotonic()
        age = None if self._last_made is None else max(0, round(now - self._last_made))
        current = None if self._current_at is None else now - self._current_at
        counts = {"current_age_secs": current, "every_secs": self._every_secs, "failures": self._failures}
        return Pong(not self._problem, self._problem, {"newest_backup_age_secs": age}, counts)

    # --- when ---

    def _apply_settings(self, settings: Settings) -> None:
        self._every_secs: float = schema.option(settings, "_config", "backup_freq_secs")
        self._keep: int = schema.option(settings, "_config", "backup_retain_n")

    def _settings_changed(self, message: SettingsChanged) -> None:
        before = self._every_secs
        self._apply_settings(message.settings)
        if self._every_secs != before:
            self._sleep(self._every_secs)

    def _sleep(self, secs: float) -> None:
        self._due = time.monotonic() + secs
        self.wake_at(self._due)

    def _backup_now(self, _: BackupNow) -> Any:
        """Queue a backup behind the running one. Requests that come before it begins share it."""
        if self.reply is not None:
            self._asked.append(self.reply)
            self._go_on()
        return DEFERRED

    def _list(self, _: ListBackups) -> Any:
        self._lister.do("listing the backups", lambda: tuple(backups.found(self._own)), self.reply)
        return DEFERRED

    def _go_on(self) -> None:
        """Start the next backup, if one is wanted and none is running."""
        due = time.monotonic() >= self._due
        if self._busy:
            pass
        elif self._asked or due:
            if due:
                self._sleep(self._every_secs)
            self._served, self._asked = tuple(self._asked), []
            served, last, keep, self._busy = self._served, self._last, self._keep, True
            self._worker.do("making a backup", lambda: self._work(served, last, keep))
        if not due:
            self.wake_at(self._due)

    def _looked(self, message: _Looked) -> None:
        age = float("inf")
        if message.newest is not None:
            age = max(0.0, time.time() - message.newest.made_at)
            self._last_made = self._current_at = time.monotonic() - age
        self._sleep(max(0.0, self._every_secs - age))
        self._busy = False
        self._go_on()

    def _ended(self, message: _Ended) -> None:
        self._busy = False
        if message.error is None:
            self._last = message.holds
            self._current_at = time.monotonic()
            self._problem = ""
            self._failed = 0
            if message.made is not None:
                self._last_made = time.monotonic()
        elif not message.asked:
            self._failed += 1
            self._failures += 1
            self._sleep(min(self._every_secs, _RETRY_SECS * 2 ** min(self._failed - 1, 20)))
            self._problem = f"The last backup failed: {message.error}"
            logger.error("%s", self._problem)
        self._go_on()

    # --- by the worker's thread ---

    def _look(self) -> None:
        newest = None
        try:
            newest = next(iter(backups.found(self._own)), None)
        except BpbrokerError as error:
            logger.warning("%s", error)  # making one will say so, too
        self.tell_self(_Looked(newest))

    def _work(self, asked: tuple[Future[Any], ...], last: _Held | None, keep: int) -> None:
        """Make a backup; without a request, only if something changed since the last one."""
        try:
            document: Document = ask_patiently(self._config_store, GetDocument(), moved=self._worker.step)
            identity = self._identity(document.settings)
            for reason in identity.left_out:
                logger.warning("Backups do not have %s", reason)
            now = _Held(document.settings, document.sequence, identity.digest)
            changed = asked or (now != last if last is not None else self._is_new(document, identity))
            made = self._make(document, identity) if changed else None
            with self._claim.exclusively():
                backups.rotate(self._own, keep)
        except Exception as error:
            if not isinstance(error, BpbrokerError):
                logger.exception("Error while making a backup")
            self.tell_self(_Ended(bool(asked), error=error))
            for reply in asked:
                fail(reply, error)
        else:
            self.tell_self(_Ended(bool(asked), made, now))
            for reply in asked:
                settle(reply, made)

    def _is_new(self, document: Document, identity: Identity) -> bool:
        newest = next(iter(backups.found(self._own)), None)
        return newest is None or not backups.holds(newest, self._content(document, identity))

    def _make(self, document: Document, identity: Identity) -> BackupInfo:
        return backups.make(self._own, self._content(document, identity), self._claim.exclusively())

    def _content(self, document: Document, identity: Identity) -> Iterator[bytes]:
        settings, entries = document.settings, document.entries
        content = files.gently(config_file.chunks(settings, entries, backed_up=identity))
        return self._worker.follow(content, config_file.pieces(settings, entries))

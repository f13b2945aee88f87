"""The backup actor: owns the schedule and the backups folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from bpbroker import files
from bpbroker.actors.base import Actor, wait_for
from bpbroker.actors.inbox import Wake
from bpbroker.config import schema
from bpbroker.errors import BpbrokerError
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
)
from bpbroker.storage import backups, config_file

logger = logging.getLogger(__name__)

_RETRY_SECS = 5.0
"""After a backup that failed the next one is tried so soon; twice as long after each further one."""
DOCUMENT_TIMEOUT_SECS = 60.0


class Backup(Actor):
    """Makes a backup every ``_config.backup_freq_secs`` if something changed, and keeps the newest few.

    Args:
        own: the file whose state is backed up.
        config_store: asked for the state.
        settings: the settings in force.
    """

    def __init__(self, own: Path, config_store: Address, settings: Settings) -> None:
        super().__init__()
        self._own = own
        self._config_store = config_store
        self._last: Document | None = None
        """What the newest backup holds, without the entries themselves."""
        self._last_made: float | None = None
        self._problem = ""
        self._failed = 0
        """How often in a row."""
        self._apply_settings(settings)
        self._due = 0.0
        """Monotonic, so that a clock that jumps neither skips backups nor makes a storm of them."""
        self.handlers = {
            BackupNow: lambda _: self._make(self._document()),
            ListBackups: lambda _: tuple(backups.found(own)),
            SettingsChanged: self._settings_changed,
            Wake: lambda _: self._wake(),
        }

    def started(self) -> None:
        """Set the alarm for the first backup: a broker that is often restarted makes its backups, too."""
        newest = next(iter(backups.found(self._own)), None)
        age = float("inf")
        if newest is not None:
            self._last_made = newest.made_at
            age = max(0.0, time.time() - newest.made_at)
        self._sleep(max(0.0, self._every_secs - age))

    def status(self) -> Pong:
        """Give the age of the newest backup in seconds, and why the last one failed if it did."""
        age = None if self._last_made is None else max(0, round(time.time() - self._last_made))
        return Pong(ok=not self._problem, detail=self._problem, figures={"newest_backup_age_secs": age})

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

    def _wake(self) -> None:
        if time.monotonic() < self._due:  # an alarm of a schedule that was changed
            self.wake_at(self._due)
            return
        self._sleep(self._every_secs)
        try:
            document = self._document()
            if self._changed(document):
                self._make(document)
            else:
                self._done(document)
        except BpbrokerError as error:
            self._failed += 1
            self._sleep(min(self._every_secs, _RETRY_SECS * 2 ** min(self._failed - 1, 20)))
            self._problem = f"The last backup failed: {error}"
            logger.error("%s", self._problem)  # noqa: TRY400 - its reason is in the message, a traceback helps nobody

    def _changed(self, document: Document) -> bool:
        if self._last is not None:
            return document.sequence != self._last.sequence or document.settings != self._last.settings
        newest = next(iter(backups.found(self._own)), None)
        return newest is None or not backups.holds(newest, self._content(document))

    def _document(self) -> Document:
        reply = self._config_store.ask(GetDocument(), DOCUMENT_TIMEOUT_SECS)
        document: Document = wait_for(reply, DOCUMENT_TIMEOUT_SECS)
        return document

    @staticmethod
    def _content(document: Document) -> Iterator[bytes]:
        return files.gently(config_file.chunks(document.settings, document.entries))

    def _make(self, document: Document) -> BackupInfo:
        info = backups.make(self._own, self._content(document))
        self._last_made = info.made_at
        self._done(document)
        return info

    def _done(self, document: Document) -> None:
        # The entries themselves would be a second copy of the registry's memory.
        self._last = Document(document.settings, {}, document.sequence)
        backups.rotate(self._own, self._keep)
        self._problem = ""
        self._failed = 0

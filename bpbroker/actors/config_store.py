"""The config store actor: owns the settings and the configuration file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bpbroker.actors.base import DEFERRED, Actor, wait_for
from bpbroker.config import layers, schema
from bpbroker.errors import ConfigurationError, StorageFailed, Unavailable
from bpbroker.messages import (
    Address,
    Applied,
    ApplyConfiguration,
    Document,
    GetDocument,
    GetSettings,
    Pong,
    ReloadSettings,
    Save,
    Settings,
    Snapshot,
    SnapshotSaved,
    SnapshotTaken,
    settle,
)
from bpbroker.storage import backups, config_file
from bpbroker.storage.sources import Loaded, Sources

logger = logging.getLogger(__name__)

SNAPSHOT_TIMEOUT_SECS = 30.0

COMMITS_MAX = 1000
"""After this many commits the file is saved at the next backup, so that the journal of a long run stays short."""


class ConfigStore(Actor):
    """Owns the settings; the entries that it writes beside them are the registry's.

    Args:
        sources: the files and this run's overrides.
        loaded: what was read from them.
        registry: asked for a snapshot at every save.
        publish: called, in this actor's thread, whenever the settings change; who takes this actor's place is
            given what was published last.
    """

    def __init__(self, sources: Sources, loaded: Loaded, registry: Address, publish: Callable[[Loaded], None]) -> None:
        super().__init__()
        self._sources = sources
        self._saved: Mapping[str, Any] = loaded.saved
        self._effective: Settings = loaded.effective
        self._registry = registry
        self._kept = loaded.entries if layers.shares_registry(loaded.effective) else None
        """Entries that stay in the file as they are while the registry is somewhere else."""
        self._publish = publish
        self._origin = loaded.origin
        self._problem = ""
        self._sequence = -1
        """Number of the last commit that is in the file; none of this run's yet."""
        self._seen = _stamp(sources.own)
        self.handlers = {
            GetSettings: lambda _: self._effective,
            ApplyConfiguration: self._apply,
            ReloadSettings: self._reload,
            Save: lambda _: self._save(),
            GetDocument: self._get_document,
        }

    def status(self) -> Pong:
        """Give why the file could not be written the last time, if it could not."""
        return Pong(ok=not self._problem, detail=self._problem)

    def _document(self) -> Document:
        reply = self._registry.ask(Snapshot(), SNAPSHOT_TIMEOUT_SECS)
        taken: SnapshotTaken = wait_for(reply, SNAPSHOT_TIMEOUT_SECS)
        return Document(self._saved, taken.entries, taken.sequence)

    def _get_document(self, _: GetDocument) -> Any:
        """Give the state; a backup asks for it. Save it, too, when the journal has grown long meanwhile."""
        document = self._document()
        if self.reply is not None:
            settle(self.reply, document)
        grown = document.sequence - self._sequence >= COMMITS_MAX
        if self._kept is None and grown and _stamp(self._sources.own) == self._seen:
            try:
                self._write(document, gently=True)
            except Unavailable as error:
                logger.warning("The journal stays as long as it is: %s", error)
        return DEFERRED

    def _save(self) -> None:
        """Write the file, with all entries that live beside it."""
        if _stamp(self._sources.own) != self._seen:
            self._keep_edited()
        if self._kept is None:
            self._write(self._document())
        else:
            self._write_file(Document(self._saved, self._kept, 0))

    def _write(self, document: Document, *, gently: bool = False) -> None:
        """Write the file and let the journal forget what is in it."""
        self._write_file(document, gently=gently)
        self._sequence = document.sequence
        forgotten = self._registry.ask(SnapshotSaved(document.sequence), SNAPSHOT_TIMEOUT_SECS)
        try:
            wait_for(forgotten, SNAPSHOT_TIMEOUT_SECS)
        except Unavailable as error:  # the file is complete; a start replays the journal over it, harmlessly
            logger.warning("The journal could not be emptied: %s", error)

    def _write_file(self, document: Document, *, gently: bool = False) -> None:
        own = self._sources.own
        try:
            config_file.write(own, document.settings, document.entries, origin=self._origin_at(document), gently=gently)
        except Unavailable as error:
            self._problem = str(error)
            raise
        self._problem = ""
        self._seen = _stamp(own)

    def _origin_at(self, document: Document) -> config_file.Origin | None:
        """Return whose state the document is; entries of an earlier run stay what they were."""
        origin = self._origin
        return origin if origin is None or self._kept is not None else replace(origin, commit=document.sequence)

    def _keep_edited(self) -> None:
        """Keep what somebody wrote into the file while the broker ran: it is about to be overwritten."""
        own = self._sources.own
        try:
            kept = backups.keep_aside(own, "edited")
        except Unavailable as error:
            logger.warning("%s was changed while the broker ran; it is overwritten: %s", own, error)
        else:
            if kept is not None:
                logger.warning("%s was changed while the broker ran; it is overwritten, and kept as %s", own, kept)

    def _apply(self, message: ApplyConfiguration) -> Applied:
        """Add what is new, save, publish; nothing changes if any of that cannot be.

        Entries cannot be added this way while the broker runs: they have an owner, the registry.
        """
        settings, entries = layers.split(message.document)
        if entries:
            raise ConfigurationError(
                "Entries are registered with bpclient while the broker runs: " + ", ".join(entries)
            )
        problems = tuple(schema.problems(settings))
        if problems:
            raise ConfigurationError("The configuration cannot be used:\n  " + "\n  ".join(problems), problems)
        merged, added, kept = layers.add(self._saved, settings)
        if added:
            before = self._saved
            self._saved = layers.freeze(merged)
            try:
                self._save()
            except Unavailable as error:
                self._saved = before
                raise StorageFailed(f"Nothing was changed: {error}") from None
            self._take(layers.freeze(layers.override(merged, self._sources.overrides)))
        return Applied(added, kept)

    def _reload(self, _: ReloadSettings) -> Settings:
        """Read the files again; the entries in them are older than the registry's and are not looked at."""
        loaded = self._sources.load()
        for warning in loaded.warnings:
            logger.warning("%s", warning)
        kept = {
            f"api.{key}": self._saved["api"][key]
            for key, default in (("ssl_cert", layers.DEFAULT_CERT), ("ssl_key", layers.DEFAULT_KEY))
            if loaded.saved["api"][key] == default
        }
        # What the first start made is not lost when a file is put there that never had it.
        secret = schema.option(self._saved, "_discovery", "secret")
        if secret and not schema.option(loaded.saved, "_discovery", "secret"):
            kept["_discovery.secret"] = secret
        self._saved = layers.freeze(layers.override(loaded.saved, kept))
        self._seen = _stamp(self._sources.own)
        self._take(layers.freeze(layers.override(self._saved, self._sources.overrides)))
        return self._effective

    def _take(self, effective: Settings) -> None:
        self._effective = effective
        self._publish(Loaded(self._saved, effective, {}, (), self._origin))


def _stamp(file: Path) -> tuple[int, ...]:
    """Give what changes when somebody writes to a file; empty when it is not there."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino

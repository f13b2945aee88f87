"""The config store actor: owns the settings and the configuration file.

It replies at any time. Its worker does all work on the file, one piece after the other, so there is one writer. Only
the worker's thread changes the actor's values; the actor's own thread reads them, and each value is immutable. Both
work under a claim: when another actor has replaced this one, its worker can neither publish settings, nor rename a
file, nor make the journal forget.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpbroker import files
from bpbroker.actors.base import DEFERRED, Actor, ask_patiently
from bpbroker.actors.ownership import Owned, Replaced
from bpbroker.config import layers, schema
from bpbroker.errors import ConfigurationError, StorageFailed, Unavailable
from bpbroker.messages import (
    Address,
    Applied,
    ApplyConfiguration,
    Document,
    DropAccessKey,
    DropNamespace,
    Erase,
    GetDocument,
    Pong,
    ReloadSettings,
    RenewSecret,
    Save,
    Settings,
    Snapshot,
    SnapshotSaved,
    SnapshotTaken,
    fail,
    settle,
)
from bpbroker.registry import named_keys
from bpbroker.registry.entry_values import shown_names
from bpbroker.storage import backups, config_file
from bpbroker.storage.embedded.erasing import erase
from bpbroker.storage.embedded.journal import journal_path
from bpbroker.storage.sources import Loaded, Sources

logger = logging.getLogger(__name__)

COMMITS_MAX = 1000
"""After so many commits the next backup also saves the file, so that the journal stays short in a long run."""

_WRITING = "writing the configuration file"


@dataclass(frozen=True, slots=True)
class _Grown:
    """From the actor to itself: the number of commits so far."""

    commits: int


class ConfigStore(Actor):
    """Owns the settings. It also writes the entries into the file, but the registry owns them.

    Args:
        sources: the files and this run's overrides.
        owned: the settings that were published last; claimed here. Its entries stay in the file unchanged while the
            registry is somewhere else.
        registry: asked for a snapshot at every save.
    """

    def __init__(self, sources: Sources, owned: Owned[Loaded], registry: Address) -> None:
        super().__init__()
        self._claim = owned.claim()
        loaded = self._claim.value
        self._sources = sources
        self._saved: Mapping[str, Any] = loaded.saved
        self._lower: Mapping[str, Any] = loaded.lower
        """Settings of the global file: they are in force and never saved into the own file."""
        self._effective: Settings = loaded.effective
        self._registry = registry
        self._kept = loaded.entries if layers.shares_registry(loaded.effective) else None
        """Entries that stay in the file unchanged while the registry is somewhere else."""
        self._origin = loaded.origin
        self._problem = ""
        self._sequence = -1
        """Number of the last commit that is in the file; at first none of this run's."""
        self._commits = 0
        """Number of commits at the last write of the file."""
        self._in_file: Mapping[str, Any] | None = None
        """The settings that this actor wrote last."""
        self._seen = _stamp(sources.own)
        self._shortening = False
        self._destroyed: deque[str] = deque()
        """Entries that were taken and destroyed, and may still be in a file."""
        self._not_erased = ""
        """Why these entries could not be erased."""
        self._worker = self.add_worker("config store's worker")
        self.handlers = {
            ApplyConfiguration: lambda message: self._later("adding settings", lambda: self._apply(message)),
            DropAccessKey: lambda message: self._later("taking a key out", lambda: self._drop(message)),
            RenewSecret: lambda message: self._later("changing a secret", lambda: self._renew(message)),
            DropNamespace: lambda message: self._later("taking a section out", lambda: self._disable(message)),
            ReloadSettings: lambda _: self._later("reading the configuration", self._reload),
            Save: lambda _: self._later(_WRITING, lambda: self._save(self._saved)),
            GetDocument: self._get_document,
            _Grown: self._grown,
            Erase: self._take_destroyed,
        }

    def status(self) -> Pong:
        """Return why the last write of the file failed; empty if it did not."""
        return Pong(ok=not self._problem, detail=self._problem or self._not_erased)

    def abandoned(self) -> None:
        """Drop the claim: further work of the worker has no effect."""
        self._claim.give_up()

    def _later(self, what: str, work: Callable[[], Any]) -> Any:
        self._worker.do(what, work, self.reply)
        return DEFERRED

    # --- for a backup: by the actor's thread ---

    def _get_document(self, _: GetDocument) -> Any:
        """Reply with the state when the registry has sent its entries."""
        reply = self.reply
        if reply is not None:
            asked = self._registry.ask(Snapshot(), float("inf"))
            asked.add_done_callback(lambda done: self._snapshot_taken(done, reply))
        return DEFERRED

    def _snapshot_taken(self, asked: Future[Any], reply: Future[Any]) -> None:
        """Settle a document; in the registry's thread."""
        try:
            taken: SnapshotTaken = asked.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker must hear of it
            fail(reply, error)
        else:
            self.tell_self(_Grown(taken.commits))
            settle(reply, Document(self._saved, taken.entries, taken.sequence))

    def _grown(self, message: _Grown) -> None:
        """Save the file when the journal has grown long."""
        if self._kept is None and message.commits - self._commits >= COMMITS_MAX and not self._shortening:
            self._shortening = True
            self._worker.do(_WRITING, self._shorten)

    def _take_destroyed(self, message: Erase) -> None:
        self._destroyed.extend(message.names)
        self._worker.do("erasing what was taken", self._erase)

    # --- by the worker's thread ---

    def _erase(self) -> None:
        """Overwrite entries that were destroyed in the file and in the journal; log which backups have them."""
        names = tuple(dict.fromkeys(self._destroyed.popleft() for _ in range(len(self._destroyed))))
        if not names:
            return
        own = self._sources.own
        try:
            if self._kept is None and config_file.mentions(own, names):
                with files.overwriting(own):
                    self._save(self._saved, gently=True)
            erase(journal_path(own))
        except Unavailable as error:
            self._destroyed.extend(names)  # tried again with the next ones
            self._not_erased = f"What was taken as {shown_names(names)} may still be in a file of this broker: {error}"
            logger.warning("%s", self._not_erased)
            return
        self._not_erased = ""
        older = [Path(info.path).name for info in backups.found(own) if config_file.mentions(Path(info.path), names)]
        if older:
            logger.warning(
                "Backups may still have what was taken as %s; remove those that should not: %s",
                shown_names(names),
                shown_names(older),
            )

    def _shorten(self) -> None:
        self._shortening = False
        if _stamp(self._sources.own) == self._seen:  # an edit by hand stays until the file has to be written
            try:
                self._write(self._saved, gently=True)
            except Unavailable as error:
                logger.warning("The journal stays as long as it is: %s", error)

    def _save(self, settings: Mapping[str, Any], *, gently: bool = False) -> None:
        """Write the file, with all entries of the registry."""
        if _stamp(self._sources.own) != self._seen:
            self._keep_edited()
        if self._kept is None:
            self._write(settings, gently=gently)
        else:
            self._write_file(Document(settings, self._kept, 0), gently=gently)

    def _write(self, settings: Mapping[str, Any], *, gently: bool) -> None:
        """Write the file and let the journal forget the entries in it."""
        taken: SnapshotTaken = ask_patiently(self._registry, Snapshot(), moved=self._worker.step)
        document = Document(settings, taken.entries, taken.sequence)
        if not self._is_in_file(document):
            self._write_file(document, gently=gently)
            self._sequence = document.sequence
        self._commits = taken.commits
        try:
            self._claim.check()
        except Replaced:
            raise self._too_late() from None
        try:
            ask_patiently(self._registry, SnapshotSaved(document.sequence), moved=self._worker.step)
        except Unavailable as error:  # the file is complete; a start replays the journal over it, harmlessly
            logger.warning("The journal could not be emptied: %s", error)

    @staticmethod
    def _too_late() -> Replaced:
        """Return the error of an actor that was replaced after the file had been written."""
        replaced = Replaced("The broker's part for this has been replaced; whether it was done is not known")
        replaced.outcome_known = False
        return replaced

    def _is_in_file(self, document: Document) -> bool:
        """Return whether the file holds exactly this state, written by this actor and unchanged since."""
        return (
            document.sequence == self._sequence
            and document.settings is self._in_file
            and _stamp(self._sources.own) == self._seen
        )

    def _write_file(self, document: Document, *, gently: bool) -> None:
        own = self._sources.own

        def follow(content: Iterator[bytes], pieces: int) -> Iterable[bytes]:
            return self._worker.follow(files.gently(content) if gently else content, pieces)

        try:
            config_file.write(
                own,
                document.settings,
                document.entries,
                origin=self._origin_at(document),
                follow=follow,
                renaming=self._claim.exclusively(),
            )
        except Unavailable as error:
            self._problem = str(error)
            raise
        self._problem = ""
        self._in_file = document.settings
        self._seen = _stamp(own)

    def _origin_at(self, document: Document) -> config_file.Origin | None:
        """Return the origin of the document's state; for entries of an earlier run, the earlier origin."""
        origin = self._origin
        return origin if origin is None or self._kept is not None else replace(origin, commit=document.sequence)

    def _keep_edited(self) -> None:
        """Keep a copy of a file that was edited while the broker ran: it is about to be overwritten."""
        own = self._sources.own
        try:
            kept = backups.keep_aside(own, "edited", follow=self._worker.follow)
        except Unavailable as error:
            logger.warning("%s was changed while the broker ran; it is overwritten: %s", own, error)
        else:
            if kept is not None:
                logger.warning("%s was changed while the broker ran; it is overwritten, and kept as %s", own, kept)

    def _apply(self, message: ApplyConfiguration) -> Applied:
        """Add new settings, save, publish; nothing changes if one of these steps fails.

        Entries cannot be added this way while the broker runs: they have an owner, the registry.
        """
        settings, entries = layers.split(message.document)
        if entries:
            keys = any(name.startswith(named_keys.PREFIX) for name in entries)
            how = "Access keys are added with bpbroker key" if keys else "Entries are registered with bpclient"
            raise ConfigurationError(f"{how} while the broker runs: {shown_names(tuple(entries))}")
        problems = tuple(schema.problems(settings))
        if problems:
            raise ConfigurationError("The configuration cannot be used:\n  " + "\n  ".join(problems), problems)
        merged, added, kept = layers.add(self._saved, settings)
        if added:
            saved = layers.freeze(merged)
            try:
                self._save(saved, gently=True)
            except Unavailable as error:
                if not error.outcome_known:
                    raise
                raise StorageFailed(f"Nothing was changed: {error}") from None
            self._take(saved, self._lower)
        return Applied(added, kept)

    def _drop(self, message: DropAccessKey) -> None:
        """Remove a section's access key."""
        if "_access_key" in self._lower.get(message.section, {}):
            raise ConfigurationError(
                f"{message.section}._access_key is in {self._sources.below}, too, which this broker only reads;"
                " nothing was taken out"
            )
        keys = layers.access_keys(self._saved, message.section)
        if not {named_keys.digest_of(key).hex() for key in keys} <= set(message.digests):
            raise ConfigurationError(f"{message.section}._access_key is another one by now; nothing was taken out")
        settings = layers.thaw(self._saved)
        if settings.get(message.section, {}).pop("_access_key", None) is not None:
            saved = layers.freeze(settings)
            self._save(saved, gently=True)
            self._take(saved, self._lower)

    def _renew(self, message: RenewSecret) -> None:
        """Replace the discovery secret in the file."""
        saved = layers.freeze(layers.override(self._saved, {"_discovery.secret": message.secret}))
        problems = tuple(schema.problems({"_discovery": saved["_discovery"]}))
        if problems:
            raise ConfigurationError(f"Nothing was changed: {problems[0]}", problems)
        if schema.option(self._sources.in_force(self._lower, saved), "_discovery", "secret") != message.secret:
            raise ConfigurationError("_discovery.secret is given for this run of the broker; nothing was changed")
        self._save(saved, gently=True)
        self._take(saved, self._lower)

    def _disable(self, message: DropNamespace) -> tuple[str, ...]:
        """Remove an extension's sections."""
        gone = layers.namespaces_of(self._saved, message.namespace)
        if gone:
            saved = layers.freeze(layers.without_sections(self._saved, gone))
            self._save(saved, gently=True)
            self._take(saved, self._lower)
        return gone

    def _reload(self) -> Settings:
        """Read the files again, without their entries, which are older than the registry's."""
        seen = _stamp(self._sources.own)
        loaded = self._sources.load()
        for warning in loaded.warnings:
            logger.warning("%s", warning)
        # Values that the start made are kept if they are missing in a new file.
        before = layers.layered(layers.DEFAULTS, self._lower, self._saved)
        now = layers.layered(layers.DEFAULTS, loaded.lower, loaded.saved)
        kept = [
            ("api", key)
            for key, default in (("ssl_cert", layers.DEFAULT_CERT), ("ssl_key", layers.DEFAULT_KEY))
            if now["api"][key] == default
        ]
        if schema.option(before, "_discovery", "secret") and not schema.option(now, "_discovery", "secret"):
            kept.append(("_discovery", "secret"))
        ours, theirs = (_picked(part, kept) for part in (self._saved, self._lower))
        saved = layers.layered(layers.without(loaded.saved, theirs), ours)
        self._take(layers.freeze(saved), layers.freeze(layers.layered(loaded.lower, theirs)))
        self._seen = seen
        return self._effective

    def _take(self, saved: Mapping[str, Any], lower: Mapping[str, Any]) -> None:
        """Use and publish these settings of the own and of the global file from now on."""
        effective = layers.freeze(self._sources.in_force(lower, saved))
        try:
            self._claim.publish(Loaded(saved, effective, self._kept or {}, (), self._origin, lower))
        except Replaced:
            raise self._too_late() from None
        self._saved, self._lower, self._effective = saved, lower, effective


def _picked(settings: Mapping[str, Any], wanted: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Return those of the wanted keys, each with its section, that the settings have."""
    found: dict[str, dict[str, Any]] = {}
    for section, key in wanted:
        if key in settings.get(section, {}):
            found.setdefault(section, {})[key] = settings[section][key]
    return found


def _stamp(file: Path) -> tuple[int, ...]:
    """Return values that change when a file is written; empty when it does not exist."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino

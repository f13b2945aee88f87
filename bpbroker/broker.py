"""The composition root: what ``bpbroker start`` does, in order, and undoes in reverse.

Everything that can be wrong is found before anything runs (see
:mod:`bpbroker.runtime.prepare`). Then the actors start from the bottom up, then the
frontend; the main thread takes events and at the end stops it all.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import cherrypy
from cherrypy.process.servers import ServerAdapter

from bpbroker import __version__, messages, progress
from bpbroker.actors.backup import Backup
from bpbroker.actors.base import ActorAddress, ask_patiently, launch
from bpbroker.actors.config_store import ConfigStore
from bpbroker.actors.discovery import Discovery
from bpbroker.actors.extension import Extension
from bpbroker.actors.healthcheck import Healthcheck
from bpbroker.actors.healthcheck_guard import HealthcheckGuard
from bpbroker.actors.ownership import Owned
from bpbroker.actors.worker import Beside
from bpbroker.config import layers, schema
from bpbroker.errors import AlreadyExists, BadRequest, BpbrokerError, ConfigurationError, RequestError, StartError
from bpbroker.extensions import idempotency
from bpbroker.extensions.cgroups import Groups
from bpbroker.frontend import access_log
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.application import Application
from bpbroker.frontend.extension_calls import understand
from bpbroker.frontend.pages import Pages
from bpbroker.frontend.request_context import changed_by_extension, expired, rejected
from bpbroker.registry import named_keys
from bpbroker.registry.discovery_secret import DiscoverySecret
from bpbroker.runtime import sdnotify
from bpbroker.runtime.actors import Parts, registry_factory
from bpbroker.runtime.daemon import AtWork, Ready, in_background
from bpbroker.runtime.exposure import exposed_code, see_that_it_may_start
from bpbroker.runtime.identity_files import IdentityFiles
from bpbroker.runtime.logs import log_trouble, reopen_logs, set_access_log, setup_logging
from bpbroker.runtime.mainloop import MainLoop
from bpbroker.runtime.plan import Plan, RunOptions
from bpbroker.runtime.prepare import prepare
from bpbroker.runtime.watchdog import Watchdog
from bpbroker.server import host_certificate
from bpbroker.server.budget import Budget
from bpbroker.server.certificate_watch import CertificateWatch
from bpbroker.server.host_certificate import Certificate
from bpbroker.server.listener import BrokerServer
from bpbroker.storage.lock_file import machine_secs, process_note

logger = logging.getLogger("bpbroker")

LAST_COMMIT_SECS = 30.0
"""How long the registry may take to end: it commits what is staged, and folds its log, a few syncs of a slow disk."""
SAID_EVERY_SECS = 10.0
"""How often the log shows the progress of reading and writing the file, at start and stop."""
LOOP_SILENT_SECS = 5.0
"""After how long without a round the server's loop counts as stuck; it has four rounds a second."""
_COLLECT_AFTER = 10_000
"""Objects made before Python looks for cycles among them. With its own 700, that was a tenth of a request's CPU."""
MAIN_STUCK_SECS = 300.0
"""All that the main thread does ends within its timeouts, such as a minute for each extension that it starts."""


def run(options: RunOptions, tell: Callable[[str], None]) -> int:
    """Run a broker until it is told to stop; return its exit code.

    With ``options.daemon`` the caller's process waits until the broker in the
    background is ready, and calls ``tell`` with a line that
    names its process id, port and log.

    Raises:
        BpbrokerError: it cannot start; nothing is left running or half made.
    """
    plan = Plan.of(options)
    see_that_it_may_start(plan.sources.own)
    if not options.daemon:
        setup_logging(options.log)
        return Broker(plan).run()

    if plan.home.notice:
        tell(f"warning: {plan.home.notice}")
    if options.config is not None and not plan.sources.own.exists():
        tell(f"warning: {plan.sources.own} is not there: a new one is made, without entries")
    log_file = (options.log.file or plan.sources.own.with_suffix(".log")).absolute()

    def serve(ready: Ready, at_work: AtWork) -> int:
        setup_logging(replace(options.log, file=log_file))
        return Broker(plan, ready, at_work).run()

    tell(f"bpbroker runs in the background: {in_background(serve, log_file)}, log {log_file}")
    return 0


class Broker:
    """One running broker. The main thread builds it, waits for events, and takes it down."""

    def __init__(self, plan: Plan, ready: Ready = lambda _: None, at_work: AtWork = lambda _: None) -> None:
        self._plan = plan
        self._ready = ready
        self._tell_starter = at_work
        self._reading = ""
        """What the start is at before there are actors."""
        self._said = time.monotonic()
        self._own = plan.sources.own
        self._undo = ExitStack()
        self._loop = MainLoop()
        self._started = int(time.time())
        self._uptime_from = machine_secs()
        self._parts = Parts(self._loop)
        self._addresses = self._parts.addresses
        self._server: BrokerServer | None = None
        self._trouble = ""
        self._application: Application | None = None
        self._named_keys = NamedKeys()
        self._unshared: dict[str, bytes] = {}
        """Named keys of the file that a shared registry has not been given yet, by their stored names."""
        self._note: dict[str, Any] = {}
        self._stopping = False
        self._patience = sdnotify.Patience(self._at_work, self._progress)
        self._unsaved = ""
        """Why the last write of the file did not happen."""

    def run(self) -> int:
        """Start, serve until told to stop, stop. Gives the exit code."""
        with self._undo:
            self._loop.watch_signals(self._undo)
            self._undo.enter_context(self._patience)
            for step in (self._prepare, self._start_actors, self._start_frontend, self._say_ready):
                if not self._loop.stop_asked:
                    step()
            if self._loop.stop_asked:
                logger.info("Told to stop before it was ready")
            else:
                self._serve()
            sdnotify.notify(sdnotify.STOPPING, sdnotify.status(f"Stopping: writes {self._own}"))
        if self._unsaved:
            logger.error("Stopped; the configuration file was not written: %s", self._unsaved)
            return 1
        logger.info("Stopped")
        return 0

    def _serve(self) -> None:
        """Take events until one says stop."""
        watchdog = Watchdog(self._is_alive, limit_secs=sdnotify.watchdog_secs())
        self._undo.callback(watchdog.stop)
        watchdog.start()
        self._patience.wanted = False
        self._loop.serve(self._take, self._tend)
        self._patience.wanted = True

    def _is_alive(self) -> bool:
        """Return whether a restart by systemd would do more harm than good."""
        silent_secs = 0.0 if self._server is None else self._server.loop.silent_secs()
        return silent_secs < LOOP_SILENT_SECS and self._loop.busy_secs() < MAIN_STUCK_SECS

    def _prepare(self) -> None:
        with self._heard():
            prepared = prepare(self._plan, self._undo)
        loaded = self._loaded = prepared.loaded
        self._settings: messages.Settings = loaded.effective
        set_access_log(schema.option(loaded.effective, "api", "access_log"))
        self._cert, self._context = prepared.cert, prepared.context
        self._served = host_certificate.read_certificate(prepared.cert)
        # Its entries are the registry's from here on: held here, too, they would never be freed.
        without = loaded if layers.shares_registry(loaded.effective) else replace(loaded, entries={})
        self._prepared = replace(prepared, loaded=without)
        self._owned = Owned(without, lambda loaded: self._loop.tell(messages.SettingsChanged(loaded.effective)))

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Follow the progress of long work, in any thread."""
        before = progress.show_on(progress.Telling(self._hear_progress))
        try:
            yield
        finally:
            progress.show_on(before)

    def _hear_progress(self, text: str) -> None:
        """Hear how far reading the files is, at a start."""
        self._reading = text[:1].lower() + text[1:]
        self._tell_starter(self._reading)
        if time.monotonic() - self._said >= SAID_EVERY_SECS:
            self._said = time.monotonic()
            logger.info("Still %s", self._reading)

    # --- actors, bottom up ---

    def _erase(self, names: tuple[str, ...]) -> None:
        """Let the config store erase entries that were taken; called in the registry's thread."""
        config_store = self._addresses.get("config store")
        if config_store is not None:
            config_store.tell(messages.Erase(names))

    def _start_actors(self) -> None:
        own, settings = self._own, self._settings
        self._groups = Groups.enter()
        if self._groups is not None:
            self._undo.callback(self._groups.leave)
        secret = DiscoverySecret(schema.option(settings, "_discovery", "secret") or "")
        shared = secret if layers.shares_registry(settings) else None
        made = registry_factory(
            own, lambda: self._settings, self._loaded, self._named_keys, secret, self._erase, expired
        )
        self._hear_progress("Taking the entries into memory")
        with self._heard():
            self._parts.start("registry", made)
        self._reading = ""
        self._loaded = self._prepared.loaded
        self._undo.callback(self._stop_actors)
        registry = self._addresses["registry"]
        self._parts.start("config store", lambda: launch(ConfigStore, self._plan.sources, self._owned, registry))
        self._save()
        if self._loop.stop_asked:  # the file may have taken long
            return
        store, folder, identity = self._addresses["config store"], Owned(None), IdentityFiles(own, self._plan.home)
        self._parts.start("backup", lambda: launch(Backup, own, folder, store, self._settings, identity.collect))
        self._parts.start(
            "discovery",
            lambda: launch(
                Discovery,
                self._prepared.udp,
                registry,
                self._settings,
                self._served.fingerprint,
                self._wrong_key,
                shared,
            ),
        )
        for namespace in layers.namespaces(settings):
            self._start_extension(namespace)
        self._certificate = Beside("reading the certificate", CertificateWatch(lambda: self._cert))
        probes = {"frontend": self._probe_frontend, "certificate": self._certificate, "log": _probe_log}
        healthcheck = self._parts.start(
            "healthcheck",
            lambda: launch(
                Healthcheck, self._addresses, self._parts.restart, self._settings, probes, said=self._trouble_changed
            ),
        )
        self._guard = HealthcheckGuard(healthcheck, lambda: self._parts.restart("healthcheck"))

    def _wrong_key(self, source: str) -> None:
        """Hear of a wrong key that came over UDP: it counts as one that came over HTTPS."""
        if self._application is not None:
            self._application.count_unproven_wrong_key(source)

    def _tend(self) -> float:
        """Check the healthcheck, which checks all others, and share keys that are not shared yet."""
        if self._unshared:
            self._share_keys()
        return self._guard.look(time.monotonic(), schema.option(self._settings, "_global", "healthcheck_freq_sec"))

    def _start_extension(self, namespace: str) -> None:
        registry = self._addresses["registry"]
        answers = idempotency.path_of(self._own)
        origin = self._prepared.loaded.origin
        shared = layers.shares_registry(self._settings)
        registry_id = "" if shared or origin is None else origin.registry
        self._parts.start(
            f"extension {namespace}",
            lambda: launch(
                Extension,
                namespace,
                self._plan.home.lib,
                self._settings,
                registry,
                understand,
                answers,
                registry_id,
                changed_by_extension,
                self._groups,
            ),
        )

    def _stop_actors(self) -> None:
        """Write everything down, then stop the actors from the top down."""
        self._stopping = True
        self._parts.close("registry", "config store")
        for name in ("healthcheck", "discovery", "backup", *(n for n in self._addresses if n.startswith("extension "))):
            self._parts.stop(name)
        try:
            if "config store" in self._addresses:
                self._save()
        except Exception as error:
            if not isinstance(error, BpbrokerError):
                logger.exception("Error while writing the configuration file")
            self._unsaved = f"{error}; nothing acknowledged is lost, the journal has it and the next start takes it up"
        self._parts.stop("config store")
        self._parts.stop("registry", LAST_COMMIT_SECS)

    def _save(self) -> None:
        """Write the configuration file with all entries, however long that takes; the journal is empty afterwards.

        Raises:
            Unavailable: it could not be written.
            TimedOut: no part of it was written for a minute.
        """
        store = self._addresses["config store"]
        said = time.monotonic()

        def moved() -> None:
            nonlocal said
            work = store.at_work if isinstance(store, ActorAddress) else None
            if work is None:
                return
            if self._stopping:
                self._note_work(work.text)
            else:
                self._tell_starter(work.text)
            if time.monotonic() - said >= SAID_EVERY_SECS:
                said = time.monotonic()
                logger.info("Still %s", work.text)

        ask_patiently(store, messages.Save(), moved=moved)

    # --- frontend ---

    def _probe_frontend(self) -> messages.Pong:
        """Say how the server's loop is."""
        server = self._server
        if server is None or not server.ready:
            return messages.Pong()  # no client can connect yet
        silent = server.loop.silent_secs()
        slow = silent > LOOP_SILENT_SECS
        detail = f"its loop has not gone round for {silent:.0f} s" if slow else ""
        return messages.Pong(not slow, detail, server.loop.figures(), server.loop.counts())

    def _start_frontend(self) -> None:
        memory = Budget()
        pages = Pages(
            self._addresses, self._named_keys, schema.option(self._settings, "api", "workers"), self._prepared.port
        )
        self._application = Application(
            self._settings, self._addresses, self._prepared.token, _names(self._served), memory, self._named_keys, pages
        )
        access_log.count_with(self._application.request_counts.take)
        self._undo.callback(access_log.count_with, None)
        self._server = BrokerServer(
            self._prepared.tcp,
            self._application,
            self._settings,
            self._context,
            rejected,
            self._application.admit,
            memory,
            () if self._prepared.local is None else (self._prepared.local,),
        )
        cherrypy.config.update({"engine.autoreload.on": False, "log.screen": False})
        cherrypy.log.error_log.setLevel(logging.WARNING)  # the bus tells of each of its states
        cherrypy.server.unsubscribe()
        self._undo.callback(access_log.flush)
        adapter = ServerAdapter(cherrypy.engine, self._server)
        adapter.subscribe()
        self._server.prepare()  # the bus looks whether it is ready only ten times a second
        cherrypy.engine.start()
        self._undo.callback(cherrypy.engine.exit)

    def _say_ready(self) -> None:
        self._describe()
        for section in ("services", *layers.namespaces(self._settings)):
            meant = "_access_key" in self._settings.get(section, {})
            if not layers.access_keys(self._settings, section) and (meant or section not in self._named_keys.closed):
                advice = "" if meant else f"; to close it: bpbroker key add NAME --allow '{section}.*'"
                logger.warning("%s is open to everybody: it has no _access_key%s", section, advice)
        for sentence in schema.weak_keys(self._settings):
            logger.warning("%s", sentence)
        pong: messages.Pong = ask_patiently(self._addresses["registry"], messages.Ping())
        if layers.shares_registry(self._settings):
            entries = self._prepared.loaded.entries
            self._unshared = {name: entries[name] for name in entries if name.startswith(named_keys.PREFIX)}
            self._share_keys()
        extensions = ", ".join(layers.namespaces(self._settings)) or "none"
        logger.info("%s entries; extensions: %s", pong.figures["entries"] if pong.ok else "no", extensions)
        if not pong.ok:
            logger.warning("Not ready yet: %s", pong.detail)
        listen = self._settings["api"]["listen_ip"] or "all interfaces"
        logger.info(
            "bpbroker %s is %s: listening on %s, port %d (TCP and UDP); certificate SHA-256 %s; configuration %s",
            __version__, "ready" if pong.ok else "up, but not ready yet",
            listen, self._prepared.port, self._served.fingerprint, self._own,
        )  # fmt: skip
        sdnotify.notify(sdnotify.READY, self._status())
        self._ready(f"process {os.getpid()}, port {self._prepared.port}")
        for sentence in exposed_code(self._plan.home.lib, layers.namespaces(self._settings)):
            logger.warning("%s", sentence)
        _spare_collector()

    def _share_keys(self) -> None:
        """Give the shared registry the named keys of this file that it does not have; again until it has answered."""
        for name, value in list(self._unshared.items()):
            with suppress(RequestError):  # it has too much to do: once more in a moment
                change = messages.ChangeKey(name, "add", json.loads(value))
                reply = self._addresses["registry"].ask(change, LAST_COMMIT_SECS)
                reply.add_done_callback(partial(self._key_shared, name))

    def _key_shared(self, name: str, reply: Future[Any]) -> None:
        """Hear what became of a key; any thread may call it."""
        # One that is there already, or was revoked, is refused; that is as it should be.
        if reply.exception() is None or isinstance(reply.exception(), (AlreadyExists, BadRequest)):
            self._unshared.pop(name, None)

    def _status(self) -> str:
        """Return the state that shows in ``systemctl status`` how the broker is."""
        if self._trouble:
            return sdnotify.status(f"Not well: {self._trouble}")
        extensions = ", ".join(layers.namespaces(self._settings)) or "none"
        return sdnotify.status(f"Serves on port {self._prepared.port} (TCP and UDP); extensions: {extensions}")

    def _trouble_changed(self, trouble: str) -> None:
        """Note what is not well; empty when all is well. Called in the healthcheck's thread."""
        self._trouble = trouble
        if self._server is not None:
            sdnotify.notify(self._status())

    def _at_work(self) -> str:
        """Return what a long start or stop is at."""
        phase = "Stopping" if self._stopping or self._loop.stop_asked else "Starting"
        work = [work.text for address in self._actors() if (work := address.at_work) is not None]
        work += [self._reading] if self._reading else []
        return f"{phase}: {', '.join(work)}" if work else phase

    def _progress(self) -> object:
        """Return what changes while a start or stop goes on: steps of the actors, and half seconds of computing."""
        return int(2 * time.process_time()), [address.progress for address in self._actors()]

    def _actors(self) -> list[ActorAddress]:
        return [address for address in list(self._addresses.values()) if isinstance(address, ActorAddress)]

    def _describe(self) -> None:
        """Leave a note in the lock file for the local ``bpbroker`` command."""
        self._note = {
            **process_note(),
            "port": self._prepared.port,
            "address": self._prepared.local_address,
            "listen_ip": self._prepared.listen_ip,
            "token": self._prepared.token,
            "fingerprint": self._served.fingerprint,
            "started": self._started,
            "uptime_from": self._uptime_from,
            "version": __version__,
        }
        self._prepared.lock.describe(**self._note)

    def _note_work(self, what: str) -> None:
        """Note what a stop is at, for ``bpbroker stop``. A note that cannot be written must not end the stop."""
        with suppress(OSError):
            self._prepared.lock.describe(**self._note, at_work=what)

    # --- events ---

    def _take(self, event: Any) -> Any:
        if isinstance(event, messages.ApplyConfiguration):
            return self._add(event)
        if isinstance(event, (messages.DropAccessKey, messages.RenewSecret)):
            return self._change_secret(event)
        if isinstance(event, messages.DropNamespace):
            return self._disable(event)
        if isinstance(event, messages.Reload):
            return self._reload()
        if isinstance(event, messages.SettingsChanged):
            self._log_access(event.settings)
            self._apply(event.settings)
        return None

    def _then(self, message: Any, go_on: Callable[[Future[Any]], Any]) -> Future[Any]:
        """Ask the config store, which may take long; see :meth:`MainLoop.after`."""
        return self._loop.after(self._addresses["config store"].ask(message, float("inf")), go_on)

    def _add(self, message: messages.ApplyConfiguration) -> Future[Any]:
        """Add settings; when this returns, clients can call the extensions that the settings enable."""

        def added(asked: Future[Any]) -> messages.Applied:
            applied: messages.Applied = asked.result()
            self._apply(self._owned.value.effective)
            return applied

        return self._then(message, added)

    def _change_secret(self, message: messages.DropAccessKey | messages.RenewSecret) -> Future[Any]:
        """Remove a section's key, or change the discovery secret; when this returns, the old one does not count."""

        def changed(asked: Future[Any]) -> None:
            asked.result()
            self._apply(self._owned.value.effective)

        return self._then(message, changed)

    def _disable(self, message: messages.DropNamespace) -> Future[Any]:
        """Remove an extension's sections; when this returns, no client can call it any more."""

        def disabled(asked: Future[Any]) -> tuple[str, ...]:
            gone: tuple[str, ...] = asked.result()
            self._apply(self._owned.value.effective)
            return gone

        return self._then(message, disabled)

    # --- reload ---

    def _reload(self) -> Future[Any]:
        """Read configuration, certificate and extension modules again, and open the log files again.

        The outcome is a ConfigurationError when the configuration cannot be used, and nothing changed; or when the
        certificate cannot, and the one before stays in use. It comes when all extensions have tried their modules.
        """
        sdnotify.notify(sdnotify.reloading(), sdnotify.status("Reloads"))
        try:
            of_log = reopen_logs()
            return self._then(messages.ReloadSettings(), lambda asked: self._reloaded(asked, of_log))
        except BaseException:  # whatever it is, systemd has been told of a reload and must hear its end
            sdnotify.notify(sdnotify.READY, self._status())
            raise

    def _reloaded(self, asked: Future[Any], of_log: str) -> Future[Any]:
        problems = [f"{of_log}; it goes on in the one before"] if of_log else []
        for problem in problems:
            logger.error("Not reloaded: %s", problem)
        try:
            settings: messages.Settings = asked.result()
            problems += self._log_access(settings)
            of_certificate = self._reload_certificate(settings)
            extensions = self._apply(settings, again=True)
            if of_certificate is not None:
                raise of_certificate
        except BaseException:  # whatever it is, systemd has been told of a reload and must hear its end
            sdnotify.notify(sdnotify.READY, self._status())
            raise
        outcome: Future[Any] = Future()
        waiting = dict(extensions)

        def told(name: str, done: Future[Any]) -> None:
            """Hear how an extension has taken its module up; in the main thread."""
            error = done.exception()
            said = str(error) if error is not None else done.result()
            if said:
                problems.append(f"{name}: {said}")
            waiting.pop(name)
            if not waiting:
                finish()

        def finish() -> None:
            logger.info("Reloaded %s", self._own)
            sdnotify.notify(sdnotify.READY, self._status())
            messages.settle(outcome, messages.Reloaded(tuple(sorted(problems))))

        for name, reply in extensions:
            self._loop.after(reply, partial(told, name))
        if not extensions:
            finish()
        return outcome

    @staticmethod
    def _log_access(settings: messages.Settings) -> tuple[str, ...]:
        """Log requests where the settings say; where that cannot be go on as before, and return why."""
        try:
            set_access_log(schema.option(settings, "api", "access_log"))
        except BpbrokerError as error:
            problem = f"{error}; requests are logged as before"
        else:
            return ()
        logger.error("Not reloaded: %s", problem)
        return (problem,)

    def _reload_certificate(self, settings: messages.Settings) -> ConfigurationError | None:
        """Serve with the certificate that is there now; if it cannot be used, keep the earlier one and return why."""
        cert, key = layers.named_pair(settings)
        try:
            if (cert, key) == layers.own_pair(self._own):
                host_certificate.heal_pair(cert, key)
            context, served = host_certificate.check_pair(cert, key), host_certificate.read_certificate(cert)
        except (ConfigurationError, StartError) as error:
            return ConfigurationError(f"The certificate was not reloaded, the one before stays in use: {error}")
        self._cert, self._context, self._served = cert, context, served
        if self._application is not None:
            self._application.names_changed(_names(served))
        self._certificate.look()
        self._describe()
        self._addresses["discovery"].tell(messages.CertificateChanged(served.fingerprint))
        logger.info("The certificate in use is %s, SHA-256 %s", cert, served.fingerprint)
        return None

    def _apply(self, settings: messages.Settings, *, again: bool = False) -> list[tuple[str, Future[Any]]]:
        """Send the settings in force to all parts; start and stop extensions.

        With ``again`` extensions check their modules again even if no setting changed.

        Returns:
            By each extension's name its reply; see :class:`bpbroker.messages.SettingsChanged`.
        """
        if settings == self._settings and not again:
            return []
        fixed = schema.at_next_start(self._settings, settings)
        if fixed:
            logger.warning("A change takes effect at the next start of the broker: %s", ", ".join(fixed))
        self._settings = settings
        sdnotify.notify(self._status())
        if self._application is not None:
            self._application.settings_changed(settings)
        if self._server is not None:
            self._server.reload(self._context, settings)
        wanted = {f"extension {namespace}": namespace for namespace in layers.namespaces(settings)}
        for name in [name for name in self._addresses if name.startswith("extension ") and name not in wanted]:
            self._parts.remove(name)
        for name, namespace in wanted.items():
            if name not in self._addresses:
                self._start_extension(namespace)
        replies = []
        for name, address in list(self._addresses.items()):
            if name in wanted and again:
                with suppress(BpbrokerError):  # a dead one is replaced by one that begins with these settings
                    replies.append((name, address.ask(messages.SettingsChanged(settings), float("inf"))))
            elif name not in ("broker", "config store"):  # who tells this, and who published it
                address.tell(messages.SettingsChanged(settings))
        return replies


def _probe_log() -> messages.Pong:
    """Say how the log is."""
    trouble = log_trouble()
    return messages.Pong(not trouble, trouble)


def _names(certificate: Certificate) -> tuple[str, ...]:
    """Return the names of this host: its own, without asking the network, and those in its certificate."""
    return (socket.gethostname(), *certificate.names)


def _spare_collector() -> None:
    """Exclude all objects of the start, and each entry that was read, from later searches for cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
    gc.enable()

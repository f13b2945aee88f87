"""The composition root: what ``bpbroker start`` does, in order, and undoes in reverse.

Everything that can be wrong is found before anything runs (see
:mod:`bpbroker.runtime.prepare`). Then the actors start from the bottom up, then the
frontend; the main thread takes events and at the end stops it all.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import cherrypy
from cherrypy.process.servers import ServerAdapter

from bpbroker import __version__, messages
from bpbroker.actors.backup import Backup
from bpbroker.actors.base import launch, wait_for
from bpbroker.actors.config_store import ConfigStore
from bpbroker.actors.discovery import Discovery
from bpbroker.actors.extension import Extension
from bpbroker.actors.healthcheck import Healthcheck
from bpbroker.actors.supervisor import Supervisor
from bpbroker.config import layers, schema
from bpbroker.errors import BpbrokerError, ConfigurationError
from bpbroker.frontend import access_log
from bpbroker.frontend.application import Application, rejected
from bpbroker.runtime import sdnotify
from bpbroker.runtime.actors import Parts, registry_factory
from bpbroker.runtime.daemon import Ready, in_background
from bpbroker.runtime.logs import reopen_logs, setup_logging
from bpbroker.runtime.mainloop import MainLoop
from bpbroker.runtime.plan import Plan, RunOptions
from bpbroker.runtime.prepare import prepare
from bpbroker.runtime.watchdog import Watchdog
from bpbroker.server import tls
from bpbroker.server.certificate_watch import CertificateWatch
from bpbroker.server.listener import BrokerServer
from bpbroker.storage.sources import Loaded

logger = logging.getLogger("bpbroker")

ASK_TIMEOUT_SECS = 10.0
SAVE_TIMEOUT_SECS = 45.0
"""Adding settings writes the file with all entries; less than who asks for it waits."""
LOOP_SILENT_SECS = 5.0
"""The server's loop goes round four times a second; after this long it is taken for stuck."""
MAIN_STUCK_SECS = 300.0
"""All that the main thread does ends within its timeouts, such as a minute for each extension that it starts."""


def run(options: RunOptions, tell: Callable[[str], None]) -> int:
    """Run a broker until it is told to stop; give its exit code.

    With ``options.daemon`` the caller's process waits until the broker in the
    background is ready, and has ``tell`` say which one that is.

    Raises:
        BpbrokerError: it cannot start; nothing is left running or half made.
    """
    plan = Plan.of(options)
    if not options.daemon:
        setup_logging(options.log)
        return Broker(plan).run()

    log_file = (options.log.file or plan.sources.own.with_suffix(".log")).absolute()

    def serve(ready: Ready) -> int:
        setup_logging(replace(options.log, file=log_file))
        return Broker(plan, ready).run()

    tell(f"bpbroker runs in the background: {in_background(serve, log_file)}, log {log_file}")
    return 0


class Broker:
    """One running broker. The main thread builds it, waits for events, and takes it down."""

    def __init__(self, plan: Plan, ready: Ready = lambda _: None) -> None:
        self._plan = plan
        self._ready = ready
        self._own = plan.sources.own
        self._undo = ExitStack()
        self._loop = MainLoop()
        self._started = int(time.time())
        self._parts = Parts(self._loop)
        self._addresses = self._parts.addresses
        self._server: BrokerServer | None = None
        self._trouble = ""
        self._application: Application | None = None

    def run(self) -> int:
        """Start, serve until told to stop, stop. Gives the exit code."""
        with self._undo:
            self._loop.watch_signals(self._undo)
            self._prepared = prepared = prepare(self._plan, self._undo)
            self._loaded = prepared.loaded
            self._settings: messages.Settings = prepared.loaded.effective
            self._cert, self._context = prepared.cert, prepared.context
            self._start_actors()
            server = self._start_frontend()
            watchdog = Watchdog(lambda: self._is_alive(server), limit_secs=sdnotify.watchdog_secs())
            self._undo.callback(watchdog.stop)
            self._say_ready()
            watchdog.start()
            self._loop.serve(self._take, self._tend)
            sdnotify.notify(sdnotify.STOPPING, sdnotify.status(f"Stopping: writes {self._own}"))
        logger.info("Stopped")
        return 0

    def _is_alive(self, server: BrokerServer) -> bool:
        """Whether a restart by systemd would do more harm than good."""
        return server.loop.silent_secs() < LOOP_SILENT_SECS and self._loop.busy_secs() < MAIN_STUCK_SECS

    # --- actors, bottom up ---

    def _start_actors(self) -> None:
        own, settings = self._own, self._settings
        self._parts.start("registry", registry_factory(own, lambda: self._settings, self._prepared.loaded))
        self._undo.callback(self._stop_actors)
        registry = self._addresses["registry"]
        self._parts.start(
            "config store",
            lambda: launch(ConfigStore, self._plan.sources, self._loaded, registry, self._settings_published),
        )
        self._save()
        store = self._addresses["config store"]
        self._parts.start("backup", lambda: launch(Backup, own, store, self._settings))
        self._parts.start(
            "discovery",
            lambda: launch(
                Discovery, self._prepared.udp, registry, self._settings, tls.fingerprint(self._cert), self._wrong_key
            ),
        )
        for namespace in layers.namespaces(settings):
            self._start_extension(namespace)
        probes = {"frontend": self._probe_frontend, "certificate": CertificateWatch(lambda: self._cert)}
        healthcheck = self._parts.start(
            "healthcheck",
            lambda: launch(
                Healthcheck, self._addresses, self._parts.restart, self._settings, probes, said=self._trouble_changed
            ),
        )
        self._guard = Supervisor(healthcheck, lambda: self._parts.restart("healthcheck"))

    def _wrong_key(self, source: str) -> None:
        """Hear of a wrong key that came over UDP: it counts as one that came over HTTPS."""
        if self._application is not None:
            self._application.count_unproven_wrong_key(source)

    def _tend(self) -> float:
        """Look after the healthcheck, which looks after all others."""
        return self._guard.look(time.monotonic(), schema.option(self._settings, "_global", "healthcheck_freq_sec"))

    def _start_extension(self, namespace: str) -> None:
        registry = self._addresses["registry"]
        answers = self._own.with_name(f"{self._own.name}.answers")
        self._parts.start(
            f"extension {namespace}",
            lambda: launch(Extension, namespace, self._plan.home.lib, self._settings, registry, answers),
        )

    def _stop_actors(self) -> None:
        """Write everything down, then stop the actors from the top down."""
        for name in ("healthcheck", "discovery", "backup", *(n for n in self._addresses if n.startswith("extension "))):
            self._parts.stop(name)
        try:
            if "config store" in self._addresses:
                self._save()
        except BpbrokerError as error:
            logger.error("The configuration file was not written: %s; nothing is lost, the journal has it", error)  # noqa: TRY400 - for the operator
        self._parts.stop("config store")
        self._parts.stop("registry")

    def _save(self) -> None:
        """Write the configuration file with all entries; the journal is empty afterwards."""
        wait_for(self._addresses["config store"].ask(messages.Save(), ASK_TIMEOUT_SECS), ASK_TIMEOUT_SECS)

    # --- frontend ---

    def _probe_frontend(self) -> messages.Pong:
        """Say how the server's loop is."""
        server = self._server
        if server is None or not server.ready:
            return messages.Pong()  # nobody can ask yet
        silent = server.loop.silent_secs()
        slow = silent > LOOP_SILENT_SECS
        detail = f"its loop has not gone round for {silent:.0f} s" if slow else ""
        return messages.Pong(not slow, detail, server.loop.figures())

    def _start_frontend(self) -> BrokerServer:
        self._application = Application(self._settings, self._addresses, self._prepared.token)
        self._server = BrokerServer(self._prepared.tcp, self._application, self._settings, self._context, rejected)
        cherrypy.config.update({"engine.autoreload.on": False, "log.screen": False})
        cherrypy.log.error_log.setLevel(logging.WARNING)  # the bus tells of each of its states
        cherrypy.server.unsubscribe()
        self._undo.callback(access_log.flush)
        adapter = ServerAdapter(cherrypy.engine, self._server)
        adapter.subscribe()
        cherrypy.engine.start()
        self._undo.callback(cherrypy.engine.exit)
        return self._server

    def _say_ready(self) -> None:
        self._describe()
        for section in ("services", *layers.namespaces(self._settings)):
            if not layers.access_keys(self._settings, section):
                logger.warning("%s is open to everybody: it has no _access_key", section)
        pong = wait_for(self._addresses["registry"].ask(messages.Ping(), ASK_TIMEOUT_SECS), ASK_TIMEOUT_SECS)
        extensions = ", ".join(layers.namespaces(self._settings)) or "none"
        logger.info("%s entries; extensions: %s", pong.figures["entries"] if pong.ok else "no", extensions)
        if not pong.ok:
            logger.warning("Not ready yet: %s", pong.detail)
        listen = self._settings["api"]["listen_ip"] or "all interfaces"
        logger.info(
            "bpbroker %s is %s: listening on %s, port %d (TCP and UDP); certificate SHA-256 %s; configuration %s",
            __version__, "ready" if pong.ok else "up, but not ready yet",
            listen, self._prepared.port, tls.fingerprint(self._cert), self._own,
        )  # fmt: skip
        sdnotify.notify(sdnotify.READY, self._status())
        self._ready(f"process {os.getpid()}, port {self._prepared.port}")

    def _status(self) -> str:
        """Return the state that shows in ``systemctl status`` how the broker is."""
        if self._trouble:
            return sdnotify.status(f"Not well: {self._trouble}")
        extensions = ", ".join(layers.namespaces(self._settings)) or "none"
        return sdnotify.status(f"Serves on port {self._prepared.port} (TCP and UDP); extensions: {extensions}")

    def _trouble_changed(self, trouble: str) -> None:
        """Hear from the healthcheck, in its thread, what is not well; empty when all is."""
        self._trouble = trouble
        if self._server is not None:
            sdnotify.notify(self._status())

    def _describe(self) -> None:
        """Leave a note in the lock file for the local ``bpbroker`` command."""
        self._prepared.lock.describe(
            pid=os.getpid(), port=self._prepared.port, address=self._prepared.local_address, token=self._prepared.token,
            fingerprint=tls.fingerprint(self._cert), started=self._started, version=__version__,
        )  # fmt: skip

    # --- events ---

    def _take(self, event: Any) -> Any:
        if isinstance(event, messages.ApplyConfiguration):
            return self._add(event)
        if isinstance(event, messages.Reload):
            self._reload()
        elif isinstance(event, messages.SettingsChanged):
            self._apply(event.settings)
        return None

    def _add(self, message: messages.ApplyConfiguration) -> messages.Applied:
        """Have settings added; when this is over clients can call the extensions that are enabled by it."""
        reply = self._addresses["config store"].ask(message, SAVE_TIMEOUT_SECS)
        applied: messages.Applied = wait_for(reply, SAVE_TIMEOUT_SECS)
        self._apply(self._loaded.effective)
        return applied

    # --- reload ---

    def _reload(self) -> None:
        """Take configuration, certificate and extension modules up anew.

        Raises:
            ConfigurationError: the configuration cannot be used, and nothing changed; or the
                certificate cannot, and the one before stays in use.
        """
        sdnotify.notify(sdnotify.reloading(), sdnotify.status("Reloads"))
        try:
            reopen_logs()
            reply = self._addresses["config store"].ask(messages.ReloadSettings(), ASK_TIMEOUT_SECS)
            settings: messages.Settings = wait_for(reply, ASK_TIMEOUT_SECS)
            problem = self._reload_certificate(settings)
            self._apply(settings, again=True)
            if problem is not None:
                raise problem
            logger.info("Reloaded %s", self._own)
        finally:
            sdnotify.notify(sdnotify.READY, self._status())

    def _reload_certificate(self, settings: messages.Settings) -> ConfigurationError | None:
        """Serve with the certificate that is there now; if it cannot be used keep the one before, and give why."""
        cert, key = layers.named_pair(settings)
        try:
            if (cert, key) == layers.own_pair(self._own):
                tls.heal_pair(cert, key)
            tls.check_pair(cert, key)
            context = tls.context(cert, key)
        except ConfigurationError as error:
            return ConfigurationError(f"The certificate was not reloaded, the one before stays in use: {error}")
        self._cert, self._context = cert, context
        self._describe()
        self._addresses["discovery"].tell(messages.CertificateChanged(tls.fingerprint(cert)))
        logger.info("The certificate in use is %s, SHA-256 %s", cert, tls.fingerprint(cert))
        return None

    def _settings_published(self, loaded: Loaded) -> None:
        """Hear from the config store, in its thread; the main thread does the work."""
        self._loaded = loaded
        self._loop.tell(messages.SettingsChanged(loaded.effective))

    def _apply(self, settings: messages.Settings, *, again: bool = False) -> None:
        """Let everybody know the settings in force; start and stop extensions.

        With ``again`` extensions look at their modules anew even if no setting changed.
        """
        if settings == self._settings and not again:
            return
        fixed = [
            f"api.{key}" for key in ("listen_ip", "listen_port") if settings["api"][key] != self._settings["api"][key]
        ]
        if settings.get("_registry") != self._settings.get("_registry"):
            fixed.append("_registry")
        if fixed:
            logger.warning("%s takes effect at the next start", " and ".join(fixed))
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
        for name, address in list(self._addresses.items()):
            if name not in ("broker", "config store"):  # who tells this, and who published it
                address.tell(messages.SettingsChanged(settings))

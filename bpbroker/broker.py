"""The composition root: what ``bpbroker start`` does, in order, and undoes in reverse.

Everything that can be wrong is found before anything runs: configuration,
lock, certificate, journal, both ports. Then the actors start from the bottom
up, then the frontend; the main thread waits for signals and stops it all.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import cherrypy
import pykka
from cherrypy.process.servers import ServerAdapter

from bpbroker import __version__, config, messages, sdnotify, snapshot, tls
from bpbroker.actors.backup import Backup
from bpbroker.actors.base import ActorAddress, launch, wait_for
from bpbroker.actors.config_store import ConfigStore
from bpbroker.actors.discovery import Discovery, bind_udp
from bpbroker.actors.extension import Extension
from bpbroker.actors.healthcheck import Healthcheck
from bpbroker.actors.registry import Registry
from bpbroker.daemon import in_background
from bpbroker.errors import BpbrokerError, ConfigurationError, InUse
from bpbroker.frontend import Application
from bpbroker.lock import FileLock
from bpbroker.logs import LogOptions, reopen_logs, setup_logging
from bpbroker.paths import Home, find_home
from bpbroker.pidfile import remove_pid, write_pid
from bpbroker.server import BrokerServer, bind_tcp, raise_descriptor_limit
from bpbroker.sources import Loaded, Sources
from bpbroker.stores.embedded import EmbeddedStore

logger = logging.getLogger("bpbroker")

START_TIMEOUT_SECS = 60.0
ASK_TIMEOUT_SECS = 10.0
SAME_SIGNAL_SECS = 0.5
"""A wrapper such as sudo or timeout passes on the Ctrl-C that the terminal sends anyway: that is no second one."""
LOOP_SILENT_SECS = 5.0
"""The server's loop goes round four times a second; after this long it is taken for stuck."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``bpbroker start`` was told."""

    config: Path | None = None
    listen_ip: str | None = None
    listen_port: int | None = None
    ssl_cert: Path | None = None
    ssl_key: Path | None = None
    daemon: bool = False
    pid_file: Path | None = None
    log: LogOptions = field(default_factory=LogOptions)

    def overrides(self) -> dict[str, Any]:
        """Give this run's settings, by path; they are never written back."""
        given = {
            "api.listen_ip": self.listen_ip,
            "api.listen_port": self.listen_port,
            "api.ssl_cert": str(self.ssl_cert) if self.ssl_cert else None,
            "api.ssl_key": str(self.ssl_key) if self.ssl_key else None,
        }
        return {path: value for path, value in given.items() if value is not None}


def run(options: RunOptions) -> int:
    """Run a broker until it is told to stop; give its exit code.

    With ``options.daemon`` the caller's process waits until the broker in the
    background is ready.

    Raises:
        BpbrokerError: it cannot start; nothing is left running or half made.
    """
    plan = Plan.of(options)
    if not options.daemon:
        setup_logging(options.log)
        return Broker(plan).run()

    log_file = (options.log.file or plan.sources.own.with_suffix(".log")).absolute()

    def serve(ready: Callable[[], None]) -> int:
        setup_logging(replace(options.log, file=log_file))
        return Broker(plan, ready).run()

    return in_background(serve, log_file)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which files one run uses; all paths are absolute."""

    options: RunOptions
    home: Home
    sources: Sources

    @classmethod
    def of(cls, options: RunOptions) -> Plan:
        """Find home and files."""
        home = find_home()
        own = options.config.absolute() if options.config else home.config_file
        below = home.config_file if own != home.config_file and home.config_file.exists() else None
        return cls(options, home, Sources(own, below, options.overrides()))


class Broker:
    """One running broker. The main thread builds it, waits for events, and takes it down."""

    def __init__(self, plan: Plan, ready: Callable[[], None] = lambda: None) -> None:
        self._plan = plan
        self._ready = ready
        self._own = plan.sources.own
        self._undo = ExitStack()
        self._events: queue.SimpleQueue[tuple[Any, Future[Any] | None]] = queue.SimpleQueue()
        self._addresses: dict[str, messages.Address] = {}
        self._factories: dict[str, Callable[[], pykka.ActorRef[Any]]] = {}
        self._stop_asked: float | None = None

    def run(self) -> int:
        """Start, serve until told to stop, stop. Gives the exit code."""
        with self._undo:
            self._watch_signals()
            self._prepare()
            self._start_actors()
            self._start_frontend()
            self._say_ready()
            self._serve()
            sdnotify.notify(sdnotify.STOPPING)
            logger.info("Stopped")
        return 0

    # --- before anything runs: everything that can be wrong ---

    def _prepare(self) -> None:
        own = self._own
        make_folders(own, self._plan.home)
        self._lock = FileLock(own)
        self._lock.acquire()
        self._undo.callback(self._lock.release)
        pid_file = self._plan.options.pid_file
        if pid_file:
            write_pid(pid_file)
            self._undo.callback(remove_pid, pid_file)
        loaded = self._plan.sources.load()
        for warning in loaded.warnings:
            logger.warning("%s", warning)
        self._loaded = self._with_certificate(loaded)
        self._settings: messages.Settings = self._loaded.effective
        api = self._settings["api"]
        self._cert, self._key = Path(api["ssl_cert"]), Path(api["ssl_key"])
        tls.check_pair(self._cert, self._key)
        context = tls.context(self._cert, self._key)
        raise_descriptor_limit()
        self._tcp, self._udp = self._bind(api["listen_ip"], api["listen_port"])
        self._port = self._tcp.getsockname()[1]
        self._token = secrets.token_urlsafe(32)
        self._context = context

    def _with_certificate(self, loaded: Loaded) -> Loaded:
        """Make this host's own pair at the first start, and point the settings there."""
        api = loaded.effective["api"]
        if (api["ssl_cert"], api["ssl_key"]) != (config.DEFAULT_CERT, config.DEFAULT_KEY):
            return loaded
        cert, key = self._own.with_suffix(".crt"), self._own.with_suffix(".key")
        tls.ensure_pair(cert, key)
        pair = {"api.ssl_cert": str(cert), "api.ssl_key": str(key)}
        return Loaded(
            saved=config.freeze(config.override(loaded.saved, pair)),
            effective=config.freeze(config.override(loaded.effective, pair)),
            entries=loaded.entries,
            warnings=loaded.warnings,
        )

    def _bind(self, ip: str, port: int) -> tuple[socket.socket, list[socket.socket]]:
        """Bind TCP and UDP to the same port; with port 0, to one that is free for both."""
        for attempt in range(20):
            tcp = bind_tcp(ip, port)
            try:
                udp = bind_udp(ip, tcp.getsockname()[1])
            except InUse:
                tcp.close()
                if port != 0 or attempt == 19:
                    raise
                continue
            self._undo.callback(tcp.close)
            for sock in udp:
                self._undo.callback(sock.close)
            return tcp, udp
        raise AssertionError("the last attempt returns or raises")

    # --- actors, bottom up ---

    def _start_actors(self) -> None:
        own, settings = self._own, self._settings
        journal = own.with_name(f"{own.name}.journal")
        first = [self._loaded.entries]

        def base() -> Any:
            # The file was read a moment ago; a registry that takes a dead one's place reads it again.
            return first.pop() if first else snapshot.read(own)[1]

        self._start("registry", lambda: launch(Registry, lambda: EmbeddedStore(journal, base), self._settings))
        registry = self._addresses["registry"]
        self._start(
            "config store",
            lambda: launch(ConfigStore, self._plan.sources, self._loaded, registry, self._settings_published),
        )
        self._save()
        store = self._addresses["config store"]
        self._start("backup", lambda: launch(Backup, own, store, self._settings))
        self._start(
            "discovery", lambda: launch(Discovery, self._udp, registry, self._settings, tls.fingerprint(self._cert))
        )
        for namespace in config.namespaces(settings):
            self._start_extension(namespace)
        self._undo.callback(self._stop_actors)
        probes = {"frontend": self._probe_frontend}
        self._start("healthcheck", lambda: launch(Healthcheck, self._addresses, self._restart, self._settings, probes))

    def _start(self, name: str, factory: Callable[[], pykka.ActorRef[Any]]) -> None:
        """Start an actor, see that it answers, and keep how to make another one."""
        address = ActorAddress(name, factory())
        self._factories[name] = factory
        wait_for(address.ask(messages.Ping(), START_TIMEOUT_SECS), START_TIMEOUT_SECS)
        self._addresses[name] = address

    def _restart(self, name: str) -> pykka.ActorRef[Any]:
        """Make a fresh actor for the healthcheck to put in a dead one's place."""
        return self._factories[name]()

    def _start_extension(self, namespace: str) -> None:
        registry = self._addresses["registry"]
        self._start(
            f"extension {namespace}",
            lambda: launch(Extension, namespace, self._plan.home.lib, self._settings, registry),
        )

    def _stop_actors(self) -> None:
        """Write everything down, then stop the actors from the top down."""
        for name in ("healthcheck", "discovery", "backup", *(n for n in self._addresses if n.startswith("extension "))):
            self._stop(name)
        try:
            self._save()
        except BpbrokerError as error:
            logger.error("The configuration file was not written: %s; nothing is lost, the journal has it", error)  # noqa: TRY400 - for the operator
        self._stop("config store")
        self._stop("registry")

    def _stop(self, name: str) -> None:
        address = self._addresses.get(name)
        if isinstance(address, ActorAddress) and not address.stop(2.0):
            logger.warning("The %s did not stop in time", name)

    def _save(self) -> None:
        """Write the configuration file with all entries; the journal is empty afterwards."""
        wait_for(self._addresses["config store"].ask(messages.Save(), ASK_TIMEOUT_SECS), ASK_TIMEOUT_SECS)

    # --- frontend ---

    def _probe_frontend(self) -> messages.Pong:
        """Say how the server's loop is."""
        server = getattr(self, "_server", None)
        if server is None or not server.ready:
            return messages.Pong()  # nobody can ask yet
        silent = server.selecting.silent_secs()
        slow = silent > LOOP_SILENT_SECS
        detail = f"its loop has not gone round for {silent:.0f} s" if slow else ""
        return messages.Pong(not slow, detail, server.selecting.figures())

    def _start_frontend(self) -> None:
        self._addresses["broker"] = _MainLoop(self._events)
        self._application = Application(self._settings, self._addresses, self._token)
        self._server = BrokerServer(self._tcp, self._application, self._settings, self._context)
        cherrypy.config.update({"engine.autoreload.on": False, "log.screen": False})
        cherrypy.log.error_log.setLevel(logging.WARNING)  # the bus tells of each of its states
        cherrypy.server.unsubscribe()
        cherrypy.tree.graft(self._application, "")
        adapter = ServerAdapter(cherrypy.engine, self._server)
        adapter.subscribe()
        cherrypy.engine.start()
        self._undo.callback(cherrypy.engine.exit)

    def _say_ready(self) -> None:
        self._describe()
        for section in ("services", *config.namespaces(self._settings)):
            if not config.access_keys(self._settings, section):
                logger.warning("%s is open to everybody: it has no _access_key", section)
        pong = wait_for(self._addresses["registry"].ask(messages.Ping(), ASK_TIMEOUT_SECS), ASK_TIMEOUT_SECS)
        extensions = ", ".join(config.namespaces(self._settings)) or "none"
        logger.info("%s entries; extensions: %s", pong.figures["entries"], extensions)
        listen = self._settings["api"]["listen_ip"] or "all interfaces"
        logger.info(
            "bpbroker %s is ready: listening on %s, port %d (TCP and UDP); certificate SHA-256 %s; configuration %s",
            __version__, listen, self._port, tls.fingerprint(self._cert), self._own,
        )  # fmt: skip
        sdnotify.notify(sdnotify.READY)
        self._ready()

    def _describe(self) -> None:
        """Leave a note in the lock file for the local ``bpbroker`` command."""
        self._lock.describe(
            pid=os.getpid(), port=self._port, address=self._local_address(), token=self._token,
            fingerprint=tls.fingerprint(self._cert), started=int(time.time()), version=__version__,
        )  # fmt: skip

    def _local_address(self) -> str:
        """Give the address at which a command on this machine reaches the broker."""
        ip: str = self._tcp.getsockname()[0]
        return {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(ip, ip)  # noqa: S104 - compared, not bound

    # --- the main thread's loop ---

    def _watch_signals(self) -> None:
        """Let signals become events; a second one while stopping ends the process at once."""

        def stop(number: int, _frame: FrameType | None) -> None:
            if self._stop_asked is None:
                self._stop_asked = time.monotonic()
                self._events.put((messages.Stop(), None))
            elif time.monotonic() > self._stop_asked + SAME_SIGNAL_SECS:
                # Nothing acknowledged is lost: the journal has it.
                os._exit(128 + number)

        self._handle(signal.SIGINT, stop)
        self._handle(signal.SIGTERM, stop)
        if hasattr(signal, "SIGHUP"):
            self._handle(signal.SIGHUP, lambda *_: self._events.put((messages.Reload(), None)))

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        before = signal.signal(number, handler)
        self._undo.callback(signal.signal, number, before)

    def _serve(self) -> None:
        """Take events until one says stop; keep systemd's watchdog fed."""
        watchdog = sdnotify.watchdog_secs()
        # Windows does not interrupt a wait for Ctrl-C.
        pause = min(watchdog / 2 if watchdog else 3600.0, 0.5 if sys.platform == "win32" else 3600.0)
        while True:
            try:
                event, reply = self._events.get(timeout=pause)
            except queue.Empty:
                if watchdog:
                    sdnotify.notify(sdnotify.WATCHDOG)
                continue
            if isinstance(event, messages.Stop):
                if reply is not None:
                    messages.settle(reply, None)
                return
            try:
                self._take(event)
            except BpbrokerError as error:
                logger.error("%s", error)  # noqa: TRY400 - meant for the operator, who needs no traceback
                if reply is not None:
                    messages.fail(reply, error)
            except Exception as error:
                logger.exception("Error in the main loop")
                if reply is not None:
                    messages.fail(reply, error)
            else:
                if reply is not None:
                    messages.settle(reply, None)

    def _take(self, event: Any) -> None:
        if isinstance(event, messages.Reload):
            self._reload()
        elif isinstance(event, messages.SettingsChanged):
            self._apply(event.settings)

    # --- reload ---

    def _reload(self) -> None:
        """Take configuration, certificate and extension modules up anew, or leave everything as it was."""
        sdnotify.notify(sdnotify.reloading())
        try:
            reopen_logs()
            reply = self._addresses["config store"].ask(messages.ReloadSettings(), ASK_TIMEOUT_SECS)
            settings: messages.Settings = wait_for(reply, ASK_TIMEOUT_SECS)
            self._reload_certificate(settings)
            self._apply(settings, again=True)
            logger.info("Reloaded %s", self._own)
        finally:
            sdnotify.notify(sdnotify.READY)

    def _reload_certificate(self, settings: messages.Settings) -> None:
        cert, key = Path(settings["api"]["ssl_cert"]), Path(settings["api"]["ssl_key"])
        try:
            tls.check_pair(cert, key)
            context = tls.context(cert, key)
        except ConfigurationError as error:
            logger.error("The certificate was not reloaded, the one before stays in use: %s", error)  # noqa: TRY400 - as above
            return
        self._cert, self._key, self._context = cert, key, context
        self._server.reload(context, settings)
        self._describe()
        self._addresses["discovery"].tell(messages.CertificateChanged(tls.fingerprint(cert)))
        logger.info("The certificate in use is %s, SHA-256 %s", cert, tls.fingerprint(cert))

    def _settings_published(self, settings: messages.Settings) -> None:
        """Hear from the config store, in its thread; the main thread does the work."""
        self._events.put((messages.SettingsChanged(settings), None))

    def _apply(self, settings: messages.Settings, *, again: bool = False) -> None:
        """Let everybody know the settings in force; start and stop extensions.

        With ``again`` extensions look at their modules anew even if no setting changed.
        """
        if settings == self._settings and not again:
            return
        fixed = [key for key in ("listen_ip", "listen_port") if settings["api"][key] != self._settings["api"][key]]
        if fixed:
            logger.warning("api.%s takes effect at the next start", " and api.".join(fixed))
        self._settings = settings
        self._application.settings_changed(settings)
        self._server.reload(self._context, settings)
        wanted = {f"extension {namespace}": namespace for namespace in config.namespaces(settings)}
        for name in [name for name in self._addresses if name.startswith("extension ") and name not in wanted]:
            address = self._addresses.pop(name)
            self._factories.pop(name)
            if isinstance(address, ActorAddress):
                address.stop(2.0)
        for name, namespace in wanted.items():
            if name not in self._addresses:
                self._start_extension(namespace)
        for address in list(self._addresses.values()):
            address.tell(messages.SettingsChanged(settings))


class _MainLoop:
    """The address "broker": puts what it is sent among the main thread's events."""

    name = "broker"

    def __init__(self, events: queue.SimpleQueue[tuple[Any, Future[Any] | None]]) -> None:
        self._events = events

    def tell(self, message: Any) -> None:
        """See :meth:`bpbroker.messages.Address.tell`."""
        if isinstance(message, (messages.Reload, messages.Stop)):
            self._events.put((message, None))

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:  # noqa: ARG002 - the main thread is never behind
        """See :meth:`bpbroker.messages.Address.ask`."""
        reply: Future[Any] = Future()
        self._events.put((message, reply))
        return reply


def make_folders(own: Path, home: Home) -> None:
    """Make the folders that a start needs.

    Raises:
        ConfigurationError: with the path that cannot be made.
    """
    folders = [own.parent, home.lib] if own == home.config_file else [own.parent]
    for folder in folders:
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"Cannot make the folder {folder}: {error.strerror}. "
                "Choose another place with --config FILE or BPBROKER_HOME"
            ) from None

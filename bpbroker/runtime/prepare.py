"""Before anything of the broker runs: everything that can be wrong is found here, and nothing is left half made."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpbroker import files
from bpbroker.config import layers, schema
from bpbroker.config.paths import Home
from bpbroker.discovery.interfaces import interfaces
from bpbroker.discovery.udp import bind_udp
from bpbroker.errors import ConfigurationError, DamagedFile, InUse
from bpbroker.extensions import idempotency, installing
from bpbroker.runtime.pidfile import remove_pid, write_pid
from bpbroker.runtime.plan import Plan
from bpbroker.server import host_certificate
from bpbroker.server.listener import bind_tcp, raise_descriptor_limit
from bpbroker.storage import backups, control_socket
from bpbroker.storage.config_file import Origin
from bpbroker.storage.embedded.journal import Mark, files_of, journal_path, read_journal, refuse_half
from bpbroker.storage.embedded.recovery import match, registry_of
from bpbroker.storage.lock_file import FileLock
from bpbroker.storage.sources import Loaded
from bpbroker.text import command_line

logger = logging.getLogger("bpbroker")

_BIND_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a broker starts with."""

    lock: FileLock
    loaded: Loaded
    cert: Path
    key: Path
    context: Any
    """The server's TLS context."""
    tcp: socket.socket
    udp: list[socket.socket]
    local: socket.socket | None
    """The Unix socket for commands on this machine."""
    token: str
    """What the local ``bpbroker`` command has to know to control this broker."""

    @property
    def port(self) -> int:
        """TCP and UDP port."""
        port: int = self.tcp.getsockname()[1]
        return port

    @property
    def listen_ip(self) -> str:
        """Where TCP is served, as ``api.listen_ip`` says it; ``0.0.0.0`` where there is no IPv6."""
        ip: str = self.tcp.getsockname()[0]
        if ip == "::" and not self.tcp.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            return ""
        return ip if ip in ("::", "0.0.0.0") else self.local_address  # noqa: S104 - compared, not bound

    @property
    def local_address(self) -> str:
        """Address at which a command on this machine reaches the broker."""
        name = self.tcp.getsockname()
        ip: str = name[0]
        if len(name) == 4 and name[3] and "%" not in ip:  # link-local: only valid with its interface
            return f"{ip}%{socket.if_indextoname(name[3])}"
        if ip not in ("::", "0.0.0.0"):  # noqa: S104 - compared, not bound
            return ip
        loopback = [item.address for item in interfaces() if item.loopback]
        return "::1" if ip == "::" and loopback == ["::1"] else "127.0.0.1"


def prepare(plan: Plan, undo: ExitStack) -> Prepared:
    """Take the lock, read the configuration, see to the certificate, bind both ports.

    Args:
        plan: which files.
        undo: gets what has to be done when the broker ends, however it ends.

    Raises:
        ConfigurationError, StartError: it cannot start.
    """
    own = plan.sources.own
    if plan.home.notice:
        logger.warning("%s", plan.home.notice)
    make_folders(own, plan.home)
    lock = FileLock(own)
    lock.acquire()
    undo.callback(lock.release)
    sweep_halves(own, plan.home.lib)
    pid_file = plan.options.pid_file
    if pid_file:
        write_pid(pid_file)
        undo.callback(remove_pid, pid_file)
    loaded = plan.sources.load()
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    if layers.shares_registry(loaded.effective):
        not_half_restored(own)
    else:
        loaded = replace(loaded, origin=matched(own, loaded.origin))
    loaded = with_discovery_secret(with_certificate(loaded, own))
    api = loaded.effective["api"]
    cert, key = layers.named_pair(loaded.effective)
    if (cert, key) == layers.own_pair(own):
        host_certificate.heal_pair(cert, key)
    try:
        context = host_certificate.check_pair(cert, key)
    except ConfigurationError as error:
        if (cert, key) != layers.own_pair(own):
            raise ConfigurationError(
                f"{error}\nPut the right files there, or take ssl_cert and ssl_key out of {own} to have a pair made"
            ) from None
        # Its own: gone, as after a restore on a new machine, or damaged.
        renew = command_line("bpbroker", "--config", str(own), "certificate", "--renew")
        raise ConfigurationError(f"{error}\nTo make a new pair, which clients must be told of:\n  {renew}") from None
    raise_descriptor_limit()
    tcp, udp = _bind(api["listen_ip"], api["listen_port"])
    for sock in (tcp, *udp):
        undo.callback(sock.close)
    return Prepared(lock, loaded, cert, key, context, tcp, udp, _bind_local(own, undo), secrets.token_urlsafe(32))


def sweep_halves(own: Path, lib: Path) -> None:
    """Clear up after a crash: remove halves, give an extension its name back that was about to be replaced."""
    backups.sweep(own)
    pair = [f"{own.stem}.{kind}{more}" for kind in ("crt", "key") for more in ("", ".old", ".staged")]
    files.sweep(own.parent, pair.__contains__)
    files.sweep(lib, lambda _: True)
    try:
        installing.heal(lib)
    except OSError as error:
        logger.warning("Cannot mend %s: %s", error.filename or lib, error.strerror)


def matched(own: Path, origin: Origin | None) -> Origin:
    """Check that file and journal belong together; return the registry, and the last commit that they hold together.

    Raises:
        DamagedFile: they do not; no file was changed.
        ConfigurationError, Unavailable: a file that does not count cannot be kept aside.
    """
    try:
        journal = read_journal(journal_path(own))
        fit = match(own, origin, journal)
    except DamagedFile as error:
        raise DamagedFile(f"{error}\n{backups.advice(own)}") from None
    if fit.warning:
        logger.warning("%s", fit.warning)
    if fit.edited:
        logger.warning("The edited file is kept as %s", backups.keep_aside(own, "edited"))
    if journal.changes and not fit.changes:
        for path in reversed(files_of(journal_path(own))):  # mark and log first: a journal without them is whole
            kept = backups.keep_aside(path, "older", own)
            files.remove(path)
            if kept is not None:
                logger.warning("%s is kept as %s", path, kept)
    registry = registry_of(origin, journal)
    known = registry in (journal.registry, origin.registry if origin else "")
    match_answers(own, registry, known=known)
    return Origin(registry, fit.commit)


def not_half_restored(own: Path) -> None:
    """Check that no restore of a broker on etcd was cut off; nothing else of its journal is checked.

    Raises:
        DamagedFile: a restore was cut off.
    """
    try:
        mark = Mark(journal_path(own)).read()
    except (DamagedFile, OSError):  # it is of a journal that is not in use
        return
    try:
        refuse_half(journal_path(own), mark)
    except DamagedFile as error:
        raise DamagedFile(f"{error}\n{backups.advice(own)}") from None


def match_answers(own: Path, registry: str, *, known: bool) -> None:
    """Put a file of answers aside that belongs to another registry: a repeated call must not get its answer.

    Args:
        own: the configuration file.
        registry: the id of the registry.
        known: whether file or journal had this id. If not, the file was written anew by its operator, and the
            answers beside it go on counting.

    Raises:
        ConfigurationError, Unavailable: it cannot be put aside.
    """
    path = idempotency.path_of(own)
    owner = idempotency.owner_of(path)
    if owner in ("", registry):
        return
    if not known:
        idempotency.disown(path)
        return
    kept = backups.keep_aside(path, "other", own)
    files.remove(path)
    logger.warning(
        "%s holds answers of the registry %s, this is %s: it is not used, and kept as %s", path, owner, registry, kept
    )


def with_certificate(loaded: Loaded, own: Path) -> Loaded:
    """Make this host's own pair at the first start, and point the settings there."""
    if not layers.has_shipped_pair(loaded.effective):
        return loaded
    named = loaded.effective["api"]["ssl_cert"]
    if named != layers.DEFAULT_CERT:
        logger.warning("%s is not used any more: everybody has the key of the pair that 0.22 shipped", named)
    cert, key = layers.own_pair(own)
    host_certificate.ensure_pair(cert, key)
    return _with(loaded, {"api.ssl_cert": str(cert), "api.ssl_key": str(key)})


def with_discovery_secret(loaded: Loaded) -> Loaded:
    """Make the discovery secret at the first start; a shared registry has its own, for all its brokers."""
    if schema.option(loaded.effective, "_discovery", "secret") or layers.shares_registry(loaded.effective):
        return loaded
    return _with(loaded, {"_discovery.secret": secrets.token_hex(32)})


def _with(loaded: Loaded, values: Mapping[str, Any]) -> Loaded:
    """Return a configuration with these settings, by path, in force and to be saved."""
    return replace(
        loaded,
        saved=layers.freeze(layers.override(loaded.saved, values)),
        effective=layers.freeze(layers.override(loaded.effective, values)),
    )


def _bind_local(own: Path, undo: ExitStack) -> socket.socket | None:
    """Make the socket for commands on this machine; where that cannot be, such as on a network drive, TCP has to do."""
    try:
        sock = control_socket.bind(own)
    except OSError as error:
        path = control_socket.socket_path(own)
        logger.info("Cannot make the socket %s: %s; commands use TCP", path, error.strerror)
        return None
    if sock is not None:
        undo.callback(sock.close)
        undo.callback(control_socket.remove, own)
    return sock


def _bind(ip: str, port: int) -> tuple[socket.socket, list[socket.socket]]:
    """Bind TCP and UDP to the same port; with port 0, to one that is free for both."""
    for attempt in range(_BIND_ATTEMPTS):
        tcp = bind_tcp(ip, port)
        try:
            return tcp, bind_udp(ip, tcp.getsockname()[1])
        except BaseException as error:  # interrupted, too, the port is given back
            tcp.close()
            if port != 0 or attempt == _BIND_ATTEMPTS - 1 or not isinstance(error, InUse):
                raise
    raise AssertionError("the last attempt returns or raises")


def make_folders(own: Path, home: Home) -> None:
    """Make the folders that a start needs.

    Raises:
        ConfigurationError, StartError: with the path that cannot be made.
    """
    folders = [own.parent, home.lib] if own == home.config_file else [own.parent]
    for folder in folders:
        try:
            files.make_folder(folder, mode=0o755)
        except OSError as error:
            where = "" if error.errno in files.MAY_PASS else "Choose another place with --config FILE or BPBROKER_HOME"
            raise files.start_error(
                f"Cannot make the folder {folder}: {error.strerror}. {where}".rstrip(), error
            ) from None

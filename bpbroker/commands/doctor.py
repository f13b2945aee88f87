"""``bpbroker doctor``: everything that a tired operator needs to know at night, each with what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bpbroker import files
from bpbroker.client.address import BrokerAddress
from bpbroker.client.doctor import FAIL, OK, WARNING, Finding, examine, networks
from bpbroker.client.pins import KnownBrokers
from bpbroker.client.transport import Trust
from bpbroker.commands.keys import ends_at, keys_in, state, unguarded
from bpbroker.commands.local import LocalBroker, running
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.commands.tables import echo_json, format_option, shown_size
from bpbroker.config import layers, schema
from bpbroker.discovery.jointoken import canonical_fingerprint
from bpbroker.errors import BpbrokerError, ClientError, ConfigurationError, InUse, RequestError, StartError
from bpbroker.extensions.modules import Status, catalogue
from bpbroker.registry import named_keys
from bpbroker.runtime.exposure import exposed_code
from bpbroker.server import host_certificate, tls
from bpbroker.storage import backups, offline
from bpbroker.storage.embedded.journal import files_of, journal_path
from bpbroker.storage.lock_file import lock_path
from bpbroker.storage.sources import Loaded

_MEND_ETCD = "see that most members of _registry.endpoints run, and that this host reaches them"
_MEND_ADDRESS = "set api.listen_ip to an address of this host, or to nothing for all of them"
_AS_OWNER = "run this as root or the service's user"
_DISK_WARN_BYTES = 256 * 1024 * 1024
_DISK_FAIL_BYTES = 16 * 1024 * 1024
_UNUSED_DAYS = 90
_ENDS_SOON_SECS = 14 * 86400.0


@command("doctor", short_help="Look for what is wrong, and what to do")
@format_option
@pass_scope
def doctor(scope: Scope, *, form: str) -> None:
    """Check configuration, files, disk, network, certificate, extensions and the running broker.

    Each line says ok, warning or fail, and what to do. Exit code 0 when nothing failed, else 1.
    """
    findings = []
    for finding in diagnose(scope):
        findings.append(finding)
        if form == "table":
            click.echo(f"{finding.level:<8} {finding.what}: {finding.detail}")
            if finding.advice:
                click.echo(f"{'':<8} -> {finding.advice}")
    if form == "json":
        echo_json([finding._asdict() for finding in findings])
    sys.exit(1 if any(finding.level == FAIL for finding in findings) else 0)


def diagnose(scope: Scope) -> Iterator[Finding]:
    """Yield what is found, one thing after the other."""
    folder = scope.own.parent
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):  # noqa: PTH112 - is_dir raises in a closed one
        yield Finding("folder", FAIL, f"{folder} cannot be read by this user", _AS_OWNER)
        yield networks()
        return
    try:
        loaded: Loaded | None = scope.sources().load()
    except (ConfigurationError, StartError) as error:
        loaded = None
        advice = "correct the file, or go back to a backup with `bpbroker restore`"
        if isinstance(error, StartError):  # the file may be well
            advice = "look at the disk, and try again"
        yield Finding("configuration", FAIL, str(error), advice)
    else:
        yield Finding("configuration", OK, f"{scope.own} can be used")
    for warning in loaded.warnings if loaded else ():
        yield Finding("configuration", WARNING, warning, "correct it if it is not meant so")
    yield from _files(scope)
    yield from _open_files(scope.own)
    yield from _disk(scope.own)
    yield networks()
    try:
        broker = running(scope)
    except (ConfigurationError, StartError) as error:
        broker = None
        yield Finding("broker", WARNING, str(error), _AS_OWNER)
    else:
        if broker is None:
            start = f"start it: {scope.command_line('start')}, or the service"
            yield Finding("broker", WARNING, "it does not run", start)
    if loaded is not None:
        yield from _access(loaded, broker)
        yield from _extensions(scope, loaded)
        yield from _code(scope, loaded)
        yield from _pair(scope, loaded, broker)
    if broker is not None:
        yield from _broker(broker, loaded)
    elif loaded is not None:
        yield from _ports(loaded)


def _files(scope: Scope) -> Iterator[Finding]:
    for found in offline.check(scope.own):
        advice = f"see {scope.command_line('backups')} and restore" if found.level == FAIL else ""
        if found.what == "etcd" and found.level != OK:
            advice = _MEND_ETCD
        if found.what != "settings":  # the configuration's finding has them
            yield Finding(found.what, found.level, found.detail, advice)


def _open_files(own: Path) -> Iterator[Finding]:
    """Check whether other users can read what only the broker's user may: entries, keys, the control token."""
    for path in (own, *files_of(journal_path(own)), lock_path(own), backups.folder_for(own)):
        with suppress(OSError):  # it is not there
            if files.open_to_others(path):
                detail = f"{path} can be read by others than its owner"
                yield Finding("access to files", WARNING, detail, host_certificate.how_to_close(path))


def _disk(own: Path) -> Iterator[Finding]:
    folder = next(folder for folder in own.parents if folder.exists())
    if not os.access(folder, os.W_OK):
        if _is_read_only(folder):
            remount = "mount it for writing, or choose another folder with --config FILE"
            yield Finding("folder", FAIL, f"{folder} is on a filesystem that is mounted read-only", remount)
        else:
            yield Finding("folder", FAIL, f"{folder} cannot be written by this user", _AS_OWNER)
    free = shutil.disk_usage(folder).free
    level = FAIL if free < _DISK_FAIL_BYTES else WARNING if free < _DISK_WARN_BYTES else OK
    advice = "" if level == OK else "make room; without it the broker refuses writes"
    yield Finding("disk", level, f"{shown_size(free)} free in {folder}", advice)


def _is_read_only(folder: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _access(loaded: Loaded, broker: LocalBroker | None) -> Iterator[Finding]:
    stored = keys_in(loaded) if broker is None else _named_keys(broker)
    open_to_all = unguarded(loaded.effective, stored)
    yield from _of_keys(stored, time.time())
    for sentence in schema.weak_keys(loaded.effective):
        yield Finding("keys", WARNING, sentence, "give its section another _access_key")
    if open_to_all:
        yield Finding(
            "keys",
            WARNING,
            f"open to everybody: {', '.join(open_to_all)}",
            "give them an _access_key, or add a key with rights there: bpbroker key add",
        )
    else:
        but = "" if layers.access_keys(loaded.effective, "ping") else " but ping"
        yield Finding("keys", OK, f"every namespace{but} needs an access key")


def _needs_key(loaded: Loaded, broker: LocalBroker) -> bool:
    """Whether named keys alone open the registry: their secrets are known to their holders only."""
    return "services" not in unguarded(loaded.effective, _named_keys(broker))


def _named_keys(broker: LocalBroker) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = broker.ask("Keys", timeout_secs=10.0)
    except (ClientError, RequestError, StartError):  # the finding about the broker says why
        return []
    return found


def _of_keys(stored: list[dict[str, Any]], now: float) -> Iterator[Finding]:
    """Say which named keys are unused for long, or about to end."""
    for each in stored:
        what, count = f"key {each['name']}", state(each)
        revoke = f"revoke it if it is not needed: bpbroker key revoke {each['name']}"
        seen = datetime.fromisoformat(each.get("last_used") or each.get("made") or "1970-01-01T00:00:00+00:00")
        unused_days = int((now - seen.timestamp()) // 86400)
        left = ends_at(each) - now
        weak = each.get("weak", "")
        if "sha256" in each and named_keys.is_common(named_keys.of(each["name"], _only_stored(each))):
            weak = "its secret is a common word"
        if weak and count == "in force":
            yield Finding(what, WARNING, weak, f"bpbroker key rotate {each['name']}")
        if count == "in force" and unused_days >= _UNUSED_DAYS and (each.get("last_used") or each.get("made")):
            yield Finding(what, WARNING, f"unused for {unused_days} days", revoke)
        if count == "in force" and left < _ENDS_SOON_SECS:
            lasting = not (
                each.get("made") and left > 0 and ends_at(each) - _seconds(each["made"]) < 2 * _ENDS_SOON_SECS
            )
            if lasting:  # a token for a few hours is meant so
                yield Finding(what, WARNING, f"it ends at {each['until']}", "add another one in time: bpbroker key add")


def _only_stored(each: dict[str, Any]) -> dict[str, Any]:
    return {member: value for member, value in each.items() if member != "name"}


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _extensions(scope: Scope, loaded: Loaded) -> Iterator[Finding]:
    for record in catalogue(loaded.effective, scope.home.lib):
        what = f"extension {record.namespace}"
        if not record.enabled:
            yield Finding(what, OK, "installed, not enabled")
        elif record.status is Status.USABLE:
            yield Finding(what, OK, f"methods: {', '.join(record.methods) or 'none'}")
        else:
            advice = "install it with install-extension, or take its section out of the configuration"
            yield Finding(what, FAIL, record.problem, advice)


def _code(scope: Scope, loaded: Loaded) -> Iterator[Finding]:
    """Check whether other users could change code that the broker runs."""
    found = list(exposed_code(scope.home.lib, layers.namespaces(loaded.effective)))
    for sentence in found:
        yield Finding("code", WARNING, sentence, "take the right to write away from others (chmod go-w, chown root)")
    if not found:
        yield Finding("code", OK, "no other user can change the program or an extension")


def _pair(scope: Scope, loaded: Loaded, broker: LocalBroker | None) -> Iterator[Finding]:
    """Check the files of certificate and key, which the next start or reload reads."""
    what = "certificate file"
    cert, key = layers.named_pair(loaded.effective)
    renew = f"{scope.command_line('certificate')} --renew, or put the right files there"
    if layers.has_shipped_pair(loaded.effective):
        cert, key = layers.own_pair(scope.own)
        if not cert.exists() and not key.exists():
            yield Finding(what, OK, "there is none yet; the first start makes it")
            return
    try:
        tls.context(cert, key)
        found = host_certificate.read_certificate(cert)
    except (ConfigurationError, StartError) as error:
        yield Finding(what, FAIL, str(error), renew)
        return
    now = datetime.now(UTC)
    left, problem, lacks = found.days_left(now), found.problem(now), found.lacks()
    detail = f"{cert}, SHA-256 {found.fingerprint}, {left} days left"
    in_use = broker.note.get("fingerprint", found.fingerprint) if broker is not None else found.fingerprint
    if lacks and (cert, key) == layers.own_pair(scope.own):
        missing = f"{cert} lacks of this host's names and addresses: {', '.join(lacks)}"
        yield Finding("certificate's names", WARNING, missing, f"if clients check names: {renew}")
    if left < 0 or now < found.not_before:
        yield Finding(what, FAIL, f"{cert} {problem}", f"see that the clock is right; {renew}")
    elif problem:
        yield Finding(what, WARNING, detail, renew)
    elif in_use != found.fingerprint:
        reload = f"have it taken up: {scope.command_line('reload')}"
        yield Finding(what, WARNING, f"{detail}; the running broker has another one", reload)
    elif host_certificate.is_open(key):
        yield Finding(what, WARNING, f"{key} can be read by others than its owner", host_certificate.how_to_close(key))
    else:
        yield Finding(what, OK, detail)


def _ports(loaded: Loaded) -> Iterator[Finding]:
    """Check whether both ports could be had by a start."""
    from bpbroker.discovery.udp import bind_udp
    from bpbroker.server.listener import bind_tcp

    ip, port = loaded.effective["api"]["listen_ip"], loaded.effective["api"]["listen_port"]
    for protocol in ("TCP", "UDP"):
        try:
            sockets = [bind_tcp(ip, port)] if protocol == "TCP" else bind_udp(ip, port)
        except (BpbrokerError, OSError) as error:
            advice = "stop what uses it, or set api.listen_port" if isinstance(error, InUse) else _MEND_ADDRESS
            yield Finding(f"{protocol} port", FAIL, str(error), advice)
            continue
        for sock in sockets:
            sock.close()
        yield Finding(f"{protocol} port", OK, f"{port} is free")


def _broker(broker: LocalBroker, loaded: Loaded | None) -> Iterator[Finding]:
    note = broker.note
    if "fingerprint" not in note:
        yield Finding("broker", WARNING, "it is just starting", "try again in a moment")
        return
    yield Finding("broker", OK, f"version {note['version']} runs as process {broker.pid}")
    keys = layers.access_keys(loaded.effective, "services") if loaded is not None else ()
    trust = Trust([canonical_fingerprint(note["fingerprint"])])
    target = BrokerAddress(note["address"], note["port"])
    for finding in examine(target, trust, KnownBrokers(os.devnull), key=keys[0] if keys else ""):
        if (
            finding.what == "access"
            and finding.level == FAIL
            and loaded is not None
            and not keys
            and _needs_key(loaded, broker)
        ):
            yield Finding(
                "access", OK, "the registry needs an access key, a named one (bpbroker key list); none was tried"
            )
        else:
            yield finding
    try:
        report = broker.ask("Status", timeout_secs=10.0)
    except (ClientError, RequestError) as error:
        yield Finding("parts", FAIL, str(error), "see its log; restart it if it does not recover")
        return
    ill = [part for part in report["parts"] if part["state"] != OK]
    for part in ill:
        yield Finding(f"part {part['name']}", part["state"], part["detail"] or "not well", "see the broker's log")
    if not ill:
        yield Finding("parts", OK, f"all {len(report['parts'])} are well")

"""``bpbroker configure`` and ``validate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from bpbroker import files
from bpbroker.commands.scope import FILE, Scope, command, pass_scope
from bpbroker.config import layers, schema
from bpbroker.errors import BadRequest, ConfigurationError, InUse, StartError
from bpbroker.extensions import modules
from bpbroker.registry import entry_values, named_keys
from bpbroker.server import tls
from bpbroker.storage import config_file, offline
from bpbroker.storage.lock_file import FileLock, holder

EMPTY: Final[Mapping[str, bytes]] = {}
_DOCUMENT_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Merged:
    """A configuration file's next content, and what differs from the one it has; paths such as ``api.listen_port``."""

    settings: Mapping[str, Any]
    entries: Mapping[str, bytes]
    added: tuple[str, ...]
    kept: tuple[str, ...]
    origin: config_file.Origin | None


@command("configure", short_help="Apply additional configuration to bpbroker service")
@click.option(
    "--config-file",
    "extra_file",
    type=FILE,
    metavar="FILE",
    help="Configuration to add, JSON; standard input without it or with -.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be added.")
@pass_scope
def configure(scope: Scope, *, extra_file: Path | None, dry_run: bool) -> None:
    """Add configuration to the global configuration file, or to the one given with --config.

    Only missing values are added, at every depth. Existing values never change, so
    it can be run again and again. It refuses while the broker runs, except with
    --dry-run.
    """
    extra = _document(extra_file)
    own = scope.own
    for warning in schema.warnings(extra[0], lambda name: modules.find(name, scope.home.lib) is not None):
        click.echo(f"warning: {warning}", err=True)
    if dry_run:
        _report(merge(own, *extra), own, dry_run=True)
        return
    _report(add_offline(scope, *extra), own, dry_run=False)


def add_offline(scope: Scope, extra: Mapping[str, Any], extra_entries: Mapping[str, bytes] = EMPTY) -> Merged:
    """Add settings and entries to the configuration file of a stopped broker.

    Raises:
        InUse: a broker runs.
        ConfigurationError: something cannot be used, or not written.
    """
    own = scope.own
    scope.act_as_owner()
    try:
        files.make_folder(own.parent, mode=0o755)
    except OSError as error:
        raise files.start_error(f"Cannot make the folder {own.parent}: {error.strerror}", error) from None
    try:
        with FileLock(own):
            merged = merge(own, extra, extra_entries)
            if merged.added:
                offline.save(own, merged.settings, merged.entries, merged.origin)
            else:
                files.sync_folder(own.parent)  # the one that added it may have been killed before this
    except InUse:
        raise _in_use(scope, holder(own) or {}) from None
    return merged


def disable_offline(scope: Scope, namespace: str) -> tuple[str, ...]:
    """Take an extension's sections out of the configuration file of a stopped broker; return those that were there.

    Raises:
        InUse: a broker runs.
        ConfigurationError: the file cannot be used, or not written.
    """
    own = scope.own
    scope.act_as_owner()
    if not own.exists():
        return ()
    try:
        with FileLock(own):
            settings, entries, origin = offline.state_of(own)
            gone = layers.namespaces_of(settings, namespace)
            if gone:
                offline.save(own, layers.without_sections(settings, gone), entries, origin)
            else:
                files.sync_folder(own.parent)  # the one that took it out may have been killed before this
    except InUse:
        raise _in_use(scope, holder(own) or {}) from None
    return gone


def merge(own: Path, extra: Mapping[str, Any], extra_entries: Mapping[str, bytes]) -> Merged:
    """Add settings and entries to what the file and its journal hold; changes no file.

    Raises:
        ConfigurationError: something in them, or in the result, cannot be used.
    """
    settings, entries, origin = offline.state_of(own)
    _check(extra, extra_entries, "The configuration to add")
    merged, added, kept = layers.add(settings, extra)
    if layers.shares_registry(merged) and any(not name.startswith(named_keys.PREFIX) for name in extra_entries):
        raise ConfigurationError(
            "The registry is in etcd, so entries are not added to the file: use bpclient service register"
        )
    for name, value in extra_entries.items():
        before = {name: json.loads(entries[name])} if name in entries else {}
        after, more_added, more_kept = layers.add(before, {name: json.loads(value)})
        entries[name] = entry_values.encode(after[name])
        added += tuple(_shown_path(path) for path in more_added)
        kept += tuple(_shown_path(path) for path in more_kept)
    _check(merged, {}, str(own))
    return Merged(merged, entries, added, kept, origin)


def _shown_path(path: str) -> str:
    if path.startswith(named_keys.PREFIX):
        return f"{named_keys.SECTION}.{path.removeprefix(named_keys.PREFIX)}"
    return f"{layers.REGISTRY_SECTION}.{path}"


def _check(settings: Mapping[str, Any], entries: Iterable[str], what: str) -> None:
    problems = list(schema.problems(settings))
    for name in entries:
        if name.startswith(named_keys.PREFIX):  # what is wrong with one was found among the settings
            continue
        try:
            entry_values.check_name(name)
            entry_values.check_new_name(name)
        except BadRequest as error:
            problems.append(f"services.{name}: {error}")
    if problems:
        listed = "\n  ".join(problems)
        raise ConfigurationError(f"{what} cannot be used; nothing was changed:\n  {listed}", tuple(problems))


def _document(file: Path | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    if file is None or file == Path("-"):
        if sys.stdin.isatty():
            click.echo("Reading the configuration from standard input; end it with Ctrl-D.", err=True)
        content, name = sys.stdin.buffer.read(_DOCUMENT_MAX_BYTES + 1), "Standard input"
    else:
        try:
            with file.open("rb") as stream:
                content, name = stream.read(_DOCUMENT_MAX_BYTES + 1), str(file)
        except OSError as error:
            raise files.start_error(f"Cannot read {file}: {error.strerror}", error) from None
    if len(content) > _DOCUMENT_MAX_BYTES:
        raise ConfigurationError(f"{name} is larger than {_DOCUMENT_MAX_BYTES // 1024 // 1024} MiB")
    return config_file.parse(content, name)


def _in_use(scope: Scope, note: Mapping[str, Any]) -> InUse:
    who = f"the broker with process id {note['pid']}" if "pid" in note else "another process"
    return InUse(
        f"{scope.own} is in use by {who}, which would overwrite changes. Nothing was changed.\n"
        f"Stop it first ({scope.command_line('stop')}), configure, and start it again."
    )


def _report(merged: Merged, own: Path, *, dry_run: bool) -> None:
    for path in merged.added:
        click.echo(f"{'would add' if dry_run else 'added'} {path}")
    for path in merged.kept:
        click.echo(f"kept {path}: it has another value already")
    if not merged.added:
        click.echo(f"Nothing to add to {own}.", err=True)


@command("validate", short_help="Check the configuration without starting anything")
@pass_scope
def validate(scope: Scope) -> None:
    """Check the configuration, journal and certificate that a start would use, and say all that is wrong at once.

    Exit code 0 when it can be used, 78 when it cannot.
    """
    loaded = scope.sources().load()
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    refused = [f"{each.what}: {each.detail}" for each in offline.check(scope.own) if each.level == "fail"]
    pair = layers.named_pair(loaded.effective)
    if not layers.has_shipped_pair(loaded.effective) or layers.own_pair(scope.own)[0].exists():
        try:
            tls.context(*(layers.own_pair(scope.own) if layers.has_shipped_pair(loaded.effective) else pair))
        except (ConfigurationError, StartError) as error:
            refused.append(str(error))
    if refused:
        raise ConfigurationError("A start would refuse:\n  " + "\n  ".join(refused), tuple(refused))
    click.echo(f"{scope.own}: the configuration can be used.", err=True)

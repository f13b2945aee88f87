"""``bpbroker install-service``, ``uninstall-service`` and what they need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath

import click

from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.config import layers
from bpbroker.config.paths import Home, system_home
from bpbroker.errors import BpbrokerError, ConfigurationError, InUse, StartError, UsageError
from bpbroker.runtime.exposure import exposed_code
from bpbroker.service import linux, machine, windows
from bpbroker.service.data import Where, files_of, left_by_purge, plan_purge
from bpbroker.service.execute import execute, others_files
from bpbroker.service.steps import Plan, Service
from bpbroker.service.templates import Recorded
from bpbroker.storage import config_file
from bpbroker.storage.lock_file import FileLock, holder, lock_path
from bpbroker.text import command_line

DEFAULT_NAME = "bpbroker"
NAMES_SHOWN = 8
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")

_name_option = click.option(
    "--name", default=DEFAULT_NAME, show_default=True, metavar="NAME",
    help="Name of the service; another one for a second broker with another --config.",
)  # fmt: skip
_root_option = click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("/"), metavar="DIR",
    help="Work on the system under this folder, such as an image, instead of the running one.",
)  # fmt: skip
_dry_run_option = click.option("--dry-run", is_flag=True, help="Only print what would be done.")


@command("install-service", short_help="Install service, to start at boot")
@click.option("--user", default="", metavar="NAME", help="Run the service as this user instead of root.")
@click.option("--firewall", is_flag=True, help="Open the port in Windows' firewall.")
@click.option("--by-package", is_flag=True, hidden=True, help="Make only folders and owners: a package has the rest.")
@_name_option
@_root_option
@_dry_run_option
@pass_scope
def install_service(
    scope: Scope, *, user: str, firewall: bool, by_package: bool, name: str, root: Path, dry_run: bool
) -> None:
    """Install bpbroker as a service that starts at boot.

    Linux: an init script, where systemd runs also a unit. Windows: a service
    run by nssm. Safe to run again. Does not start the service.
    """
    service = _service(scope, name, user)
    if sys.platform == "win32":
        nssm = windows.nssm_path(service.home)
        known = _nssm_knows(nssm, name)
        if known is not None:
            service = _as_installed(scope, service, windows.recorded(known), user)
        plan = windows.plan_install(nssm, service, installed=known is not None, port=_port(scope), firewall=firewall)
    else:
        if firewall:
            raise UsageError("--firewall is for Windows: here the port is opened with the system's own firewall tool")
        _only_root(root, dry_run=dry_run)
        for sentence in exposed_code(Path(str(service.home)) / "lib", (), (0,)) if root == Path("/") else ():
            click.echo(f"warning: {sentence}", err=True)
        found = machine.look(root)
        service = _as_installed(scope, service, linux.installed(found, name), user)
        plan = linux.plan_install(found, service, by_package=by_package)
        _see_that_its_files_may_move(found, service)
    _carry_out(plan, root, dry_run=dry_run)


@command("uninstall-service", short_help="Remove service")
@click.option("--purge", is_flag=True, help="Remove configuration, entries, backups and logs too.")
@_name_option
@_root_option
@_dry_run_option
@pass_scope
def uninstall_service(scope: Scope, *, purge: bool, name: str, root: Path, dry_run: bool) -> None:
    """Stop the service and remove what install-service made; data is kept."""
    service = _service(scope, name, "")
    known: Recorded | None = None
    where: Where
    if sys.platform == "win32":
        nssm = windows.nssm_path(service.home)
        parameters = _nssm_knows(nssm, name)
        known = None if parameters is None else windows.recorded(parameters)
        plan = windows.plan_uninstall(nssm, service, installed=parameters is not None)
        where, logs = Path, windows.log_file(service).parent
    else:
        found = machine.look(root)
        known = linux.installed(found, name)
        plan = linux.plan_uninstall(found, service)
        where, logs = found.path, linux.log_file(service).parent
    if purge:
        _see_whose_data(scope, service, known)
    service = _as_installed(scope, service, known, "")
    _carry_out(plan, root, dry_run=dry_run)
    if purge:
        note = holder(where(str(service.config)))
        if note is not None and not dry_run:
            raise InUse(f"A broker still runs on {service.config} (process {note.get('pid', '?')}); its data is kept")
        elsewhere = _kept_elsewhere(where(str(service.config)))
        _carry_out(plan_purge(service, logs, where), root, dry_run=dry_run)
        left = left_by_purge(service, where)
        for what in (*elsewhere, *(f"{folder} with {_some(names)}" for folder, names in left.items())):
            click.echo(f"{'would keep' if dry_run else 'kept'} {what}", err=True)
    elif not dry_run:
        kept = [str(path) for path in (service.config, service.backups, logs) if os.access(where(str(path)), os.F_OK)]
        if kept:
            click.echo(f"Data is kept: {', '.join(kept)}", err=True)


@command("prepare", hidden=True)
@pass_scope
def prepare(scope: Scope) -> None:
    """Make the configuration with all defaults, its discovery secret, and a certificate, where they are missing."""
    from bpbroker.runtime.prepare import with_certificate, with_discovery_secret

    own = scope.own
    scope.act_as_owner()
    if holder(own) is not None:
        return  # a broker runs on it, so both are there
    with FileLock(own):
        loaded = scope.sources().load()
        ready = with_discovery_secret(with_certificate(loaded, own))
        if ready is not loaded or not own.exists():
            config_file.write(own, ready.saved, ready.entries, origin=ready.origin)


def _service(scope: Scope, name: str, user: str) -> Service:
    if not _NAME.match(name):
        raise UsageError(f"{name!r} cannot be a service's name: letters, digits, - and _, a letter first")
    if user and not _NAME.match(user):
        raise UsageError(f"{user!r} cannot be a user's name")
    home = Home(system_home(os.environ))  # never a plain user's own: services are the system's
    program = _program()
    folders = [Path(word).resolve() for word in program if word.startswith("/")] + [Path(sys.prefix)]
    return Service(
        name=name,
        program=program,
        config=scope.config.absolute() if scope.config else home.config_file,
        home=home.folder,
        user="" if user == "root" else user,
        needs_home_folders=any(folder.is_relative_to(home) for folder in folders for home in ("/home", "/root")),
    )


def _as_installed(scope: Scope, service: Service, known: Recorded | None, user: str) -> Service:
    """Return the service; options that the command line does not have are those of the installed one.

    Running install-service again, as after an upgrade, must not give a service
    that ran as a user of its own to root, nor may a purge take the data of
    another broker.
    """
    if known is None:
        return service
    config = service.config if scope.config is not None else known.config
    return replace(service, config=config, user=service.user if user else known.user)


def _kept_elsewhere(config: Path) -> list[str]:
    """Return what the configuration names and a purge does not remove: a registry in etcd, a certificate of others."""
    try:
        settings = layers.layered(layers.DEFAULTS, config_file.read(config)[0])
    except BpbrokerError:
        return []  # it goes all the same
    kept = []
    if layers.shares_registry(settings):
        kept.append("the entries in etcd, which other brokers may use")
    pair = layers.named_pair(settings)
    if not layers.has_shipped_pair(settings):
        kept += [str(path) for path in pair if path.parent != config.parent]
    return kept


def _some(names: tuple[str, ...]) -> str:
    """Return the first names of a folder, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _see_whose_data(scope: Scope, service: Service, known: Recorded | None) -> None:
    """Refuse to purge what may be another broker's.

    Raises:
        UsageError: --config names another file than the service's, or is needed.
    """
    if scope.config is not None and known is not None and known.config != service.config:
        raise UsageError(
            f"The service {service.name} runs on {known.config}, not on {service.config}; nothing was done"
        )
    if scope.config is None and known is None and service.name != DEFAULT_NAME:
        raise UsageError(f"Whose data is to go? No service {service.name} is installed here: give --config FILE")


def _see_that_its_files_may_move(found: machine.Machine, service: Service) -> None:
    """Refuse to give files to another user while a broker works on them.

    Raises:
        InUse: one runs on files that do not belong to the service's user.
    """
    config = found.path(str(service.config))
    if not os.access(lock_path(config), os.R_OK | os.W_OK):
        return  # it has never run, or this is a plain user's rehearsal
    user = service.user or "root"
    others = others_files(files_of(service, found.path), user, found.root)
    note = holder(config) if others else None
    if note is not None:
        raise InUse(
            f"A broker runs on {service.config} (process {note.get('pid', '?')}),"
            f" and files of its do not belong to {user}, such as {others[0]}.\n"
            f"Stop it first, then run this again: {command_line('bpbroker', '--config', str(service.config), 'stop')}"
        )


def _only_root(root: Path, *, dry_run: bool) -> None:
    if not dry_run and sys.platform != "win32" and os.geteuid() != 0 and root == Path("/"):
        raise StartError("Only root can install or remove a service; nothing was done. Try with sudo, or --dry-run.")


def _program() -> tuple[str, ...]:
    """Return the words that start this very installation: its script, or its interpreter.

    -P keeps the working directory out of the module path.
    """
    script = shutil.which(sys.argv[0])
    if script and Path(script).name in ("bpbroker", "bpbroker.exe"):
        return (str(Path(script).absolute()),)
    return (sys.executable, "-P", "-m", "bpbroker")


def _port(scope: Scope) -> int:
    """Return the port in the configuration, or the default where it cannot be read: `prepare` will say so."""
    with suppress(ConfigurationError):
        port: int = scope.sources().load().effective["api"]["listen_port"]
        return port
    return 20443


def _nssm_knows(nssm: PurePath, name: str) -> str | None:
    """Return the arguments of the service of this name; None when there is none.

    Raises:
        StartError: nssm is not where it must be.
    """
    # To a file: a service manager that this starts would hold a pipe open, and its end would never come.
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(  # noqa: S603 - ours
                [str(nssm), "get", name, "AppParameters"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=60,
                check=False,
            )
        except FileNotFoundError:
            raise windows.missing(nssm) from None
        out.seek(0)
        said = out.read()
    # nssm writes UTF-16 without a mark.
    return said.decode("utf-16-le" if b"\0" in said else "utf-8", "replace").strip() if done.returncode == 0 else None


def _carry_out(plan: Plan, root: Path, *, dry_run: bool) -> None:
    if not dry_run:
        if plan.steps:
            _only_root(root, dry_run=dry_run)
        execute(plan, root, lambda done: click.echo(f"done: {done}"))
    else:
        for step in plan.steps:
            click.echo(f"would {step}")
    for note in plan.notes if not dry_run else ():
        click.echo(note, err=True)

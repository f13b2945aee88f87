"""``bpbroker install-extension`` and what else concerns extension modules."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import click

from bpbroker.commands.configuration import add_offline, disable_offline
from bpbroker.commands.local import BULK_SECS, running
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.commands.tables import echo_json, echo_table, format_option
from bpbroker.config import layers
from bpbroker.errors import (
    BpbrokerError,
    CannotConnect,
    ConfigurationError,
    NotFound,
    StartError,
    UsageError,
    WaitTimeout,
)
from bpbroker.extensions.modules import ExtensionRecord, Status, catalogue, name_problem


@command("install-extension", short_help="Install custom extension")
@click.option(
    "--script", required=True, metavar="FILE_OR_DIRECTORY", type=click.Path(path_type=Path),
    help="The Python module, or package folder, to install.",
)  # fmt: skip
@click.option("--enable", is_flag=True, help="Add the section that lets clients call it.")
@click.option("--force", is_flag=True, help="Install it even if it cannot be imported or has no method.")
@pass_scope
def install_extension(scope: Scope, *, script: Path, enable: bool, force: bool) -> None:
    """Copy an extension module into the lib folder, where the broker finds it.

    It is imported first, in a process of its own: one that cannot be, or that
    has no method, is refused. Clients can call it once the configuration has a
    section of its name.
    """
    from bpbroker.extensions.installing import install

    scope.act_as_owner(scope.home.lib)
    installed = install(
        script,
        scope.home.lib,
        None if force else lambda folder, records: _see_that_it_works(scope, script, folder, records),
        force=force,
    )
    click.echo(f"installed {installed.path}" if installed.changed else f"{installed.path} is the same already")
    if installed.kept:
        click.echo(f"The version that was there is kept as {installed.kept}", err=True)
    for record in installed.modules:
        click.echo(f"{record.namespace}: {', '.join(record.methods) or 'no methods'}")
    if enable:
        _enable(scope, [record.namespace for record in installed.modules])
    else:
        _tell_how_to_enable(scope, [record.namespace for record in installed.modules])
    if installed.changed and running(scope) is not None:
        click.echo(f"The running broker uses a changed module after: {scope.command_line('reload')}", err=True)


def _see_that_it_works(scope: Scope, script: Path, folder: Path, records: list[ExtensionRecord]) -> None:
    """Refuse modules that cannot be imported, or have no method.

    Args:
        scope: of the command.
        script: the module or package to install.
        folder: where a copy of it is.
        records: its modules.

    Raises:
        UsageError: one cannot be used.
    """
    from bpbroker.extensions.trial import import_extension

    try:
        settings = scope.sources().load().effective
    except BpbrokerError:
        settings = layers.freeze(layers.DEFAULTS)  # what is wrong with it is not this command's to say
    lib = scope.home.lib
    offered = False
    for record in records:
        try:
            methods = import_extension(record.namespace, folder, settings, beside=None if folder == lib else lib)
        except OSError as error:  # such as root's own Python, as the user that the folder belongs to
            click.echo(f"warning: {record.namespace} was not tried: no process can be started: {error}", err=True)
            methods = record.methods
        except UsageError as error:
            raise UsageError(f"{record.namespace} cannot be imported: {error}; {_NOTHING_INSTALLED}") from None
        offered = offered or bool(methods)
    if not offered:
        raise UsageError(
            f"{script.absolute().name} has no method for clients: no function of its own whose name begins with "
            f"another character than _; {_NOTHING_INSTALLED}"
        )


_NOTHING_INSTALLED: Final = "nothing was installed. To install it all the same, add --force"


def _enable(scope: Scope, namespaces: list[str]) -> None:
    document: dict[str, Any] = {namespace: {} for namespace in namespaces}
    broker = running(scope)
    if broker is not None:
        added = broker.ask("ApplyConfiguration", document, BULK_SECS)["added"]
    else:
        added = add_offline(scope, document).added
    for namespace in namespaces:
        click.echo(f"enabled {namespace}" if namespace in added else f"{namespace} was enabled already")
        if namespace in added:
            click.echo(
                f"warning: {namespace} is open to everybody: it has no _access_key. To guard it, give its section one "
                f"in {scope.own}" + (f", then: {scope.command_line('reload')}" if broker is not None else ""),
                err=True,
            )


def _tell_how_to_enable(scope: Scope, namespaces: list[str]) -> None:
    try:
        enabled = set(layers.namespaces(scope.sources().load().effective))
    except BpbrokerError:
        enabled = set()  # what is wrong with the configuration is not this command's to say
    for namespace in namespaces:
        if namespace in enabled:
            click.echo(f"{namespace} was enabled already")
    sections = ", ".join(f'"{namespace}": {{}}' for namespace in namespaces if namespace not in enabled)
    if sections:
        click.echo(
            f"To let clients call it, the configuration needs: {{{sections}}} (or install with --enable)", err=True
        )


@command("uninstall-extension", short_help="Remove an extension")
@click.argument("name")
@click.option("--disable", is_flag=True, help="Take its section, with all that is in it, out of the configuration too.")
@pass_scope
def uninstall_extension(scope: Scope, *, name: str, disable: bool) -> None:
    """Remove the extension module or package NAME from the lib folder.

    Its section in the configuration stays, unless --disable is given.
    """
    from bpbroker.extensions.installing import uninstall

    scope.act_as_owner(scope.home.lib)
    # First: a broker that runs has no section without a module then.
    disabled = _disable(scope, name) if disable else ()
    for section in disabled:
        click.echo(f"disabled {section}")
    try:
        gone = uninstall(name, scope.home.lib)
    except NotFound:
        if not disabled:
            raise
        gone = ()  # it was uninstalled before, without its section
    for path in gone:
        click.echo(f"removed {path}")
    if not disabled and running(scope) is not None:
        click.echo(f"The running broker stops using it after: {scope.command_line('reload')}", err=True)


def _disable(scope: Scope, name: str) -> tuple[str, ...]:
    """Take the sections of an extension, or of a package's modules, out of the configuration; return which.

    Raises:
        UsageError: it is a module of a package, or no extension.
        ConfigurationError: the global file has such a section, which is not this broker's; nothing was changed.
    """
    problem = name_problem(name)
    if problem:
        raise UsageError(problem)
    if "." in name:
        raise UsageError(f"{name} is part of a package; uninstall {name.partition('.')[0]}")
    sources = scope.sources()
    theirs = layers.namespaces_of(sources.load().lower, name)
    if theirs:
        raise ConfigurationError(
            f"{', '.join(theirs)} is enabled in {sources.below}, which other brokers may use too; take it out there. "
            "Nothing was changed"
        )
    broker = running(scope)
    if broker is None:
        return disable_offline(scope, name)
    return tuple(broker.ask("DropNamespace", {"namespace": name}, BULK_SECS))


@command("extensions", short_help="List the extensions")
@format_option
@pass_scope
def extensions(scope: Scope, *, form: str) -> None:
    """List the extension modules and the sections that enable them: methods, problems, and calls so far."""
    settings = scope.sources().load().effective
    parts = _parts(scope)
    records = catalogue(settings, scope.home.lib)
    if form == "json":
        echo_json(
            [
                {
                    "namespace": record.namespace,
                    "enabled": record.enabled,
                    "status": record.status.value,
                    "path": str(record.path) if record.path else None,
                    "methods": record.methods,
                    "problem": record.problem,
                    "running": parts.get(record.namespace),
                }
                for record in records
            ]
        )
    elif not records:
        click.echo(f"There are no extensions in {scope.home.lib}, and none is enabled.", err=True)
    else:
        echo_table(
            ("NAMESPACE", "ENABLED", "STATE", "CALLS", "METHODS"),
            [_row(record, parts.get(record.namespace, {})) for record in records],
        )


def _row(record: ExtensionRecord, part: Mapping[str, Any]) -> tuple[object, ...]:
    methods = ", ".join(record.methods)
    figures = part.get("figures", {})
    last = figures.get("last_error", "")
    told = (record.problem, part.get("detail", ""), f"last error: {last}" if last and part.get("ok") else "")
    problems = "; ".join(dict.fromkeys(text for text in told if text))
    state = "fail" if record.status is not Status.USABLE else part.get("state", "ok")
    said = "; ".join(text for text in (methods, problems) if text)
    return record.namespace, "yes" if record.enabled else "no", state, figures.get("calls", "-"), said


def _parts(scope: Scope) -> dict[str, dict[str, Any]]:
    """Return the running broker's report on each of its extensions; empty when no broker answers."""
    broker = running(scope)
    if broker is None:
        return {}
    try:
        report = broker.ask("Status", timeout_secs=10.0)
    except (CannotConnect, WaitTimeout) as error:
        click.echo(f"warning: the running broker does not say how they are: {error}", err=True)
        return {}
    prefix = "extension "
    return {part["name"].removeprefix(prefix): part for part in report["parts"] if part["name"].startswith(prefix)}


def _content(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Read what ``@file`` or ``-``, standard input, stands for; any other text is itself, as with bpclient."""
    if value is None or (value != "-" and not value.startswith("@")):
        return value
    try:
        with click.open_file(value.removeprefix("@"), "rb") as file:
            return str(file.read(), "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value!r} cannot be read: {error}") from None


@command("run-extension", short_help="Try a method of an extension, without a broker")
@click.argument("method", metavar="NAMESPACE.METHOD")
@click.option(
    "--data",
    callback=_content,
    metavar="TEXT",
    help="The request's data; @FILE reads a file, - standard input, as with bpclient.",
)
@click.option(
    "--param", "parameters", multiple=True, metavar="NAME=VALUE", help="A further parameter; can be repeated."
)
@click.option(
    "--from", "source", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address of the client."
)
@click.option(
    "--lib", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="Where the module is; default is the lib folder.",
)  # fmt: skip
@pass_scope
def run_extension(
    scope: Scope, *, method: str, data: str | None, parameters: tuple[str, ...], source: str, lib: Path | None
) -> None:
    """Run one method as the broker would, in a process of its own, and print the answer's body.

    For authors: no broker is needed, and the registry that the module sees is
    made up. Exit code 0 when the method answered with status 200.
    """
    from bpbroker.extensions import trial
    from bpbroker.frontend.extension_calls import understand
    from bpbroker.runtime.logs import LogOptions, setup_logging

    try:
        source = str(ip_address(source))
    except ValueError:
        raise UsageError(f"--from {source!r} is no IP address") from None
    qs: dict[str, str] = {} if data is None else {"data": data}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not equals or not name:
            raise UsageError(f"--param {parameter!r} is not of the form NAME=VALUE")
        qs[name] = value
    setup_logging(LogOptions(level="debug" if scope.debug else "info"))
    settings = scope.sources().load().effective
    folder = (lib or scope.home.lib).absolute()
    result = trial.run_extension(method, qs, source=source, lib=folder, settings=settings, understand=understand)
    click.echo(f"status {result.status} {result.message}, {result.content_type}", err=True)
    sys.stdout.flush()
    sys.stdout.buffer.write(result.body)
    sys.stdout.buffer.flush()
    if result.status != HTTPStatus.OK:
        raise StartError(f"{method} refused: {result.status} {result.message}")

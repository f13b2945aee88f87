"""``bpbroker install-extension`` and what else concerns extension modules."""

from __future__ import annotations

from pathlib import Path

import click

from bpbroker.commands.scope import Scope, command, pass_scope


@command("install-extension", short_help="Install custom extension")
@click.option(
    "--script", required=True, metavar="FILE_OR_DIRECTORY", type=click.Path(path_type=Path),
    help="The Python module, or package folder, to install.",
)  # fmt: skip
@pass_scope
def install_extension(scope: Scope, *, script: Path) -> None:
    """Copy an extension module into the lib folder, where the broker finds it.

    Clients can call it once the configuration has a section of its name.
    """
    from bpbroker import extensions

    installed = extensions.install(script, scope.home.lib)
    click.echo(str(installed))

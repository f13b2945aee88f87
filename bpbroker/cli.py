"""The ``bpbroker`` command line: its commands, and what becomes of an error."""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

import click

from bpbroker import __version__
from bpbroker.commands import configuration, extension, install, start
from bpbroker.commands.scope import Scope, shared_options
from bpbroker.errors import BpbrokerError

_EXIT_CODES = (1, 2, 78)
"""What ``bpbroker`` ends with beside 0; the finer codes on the errors are those of ``bpclient``."""

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Commands": (
        start.start,
        install.install_service,
        install.uninstall_service,
        extension.install_extension,
        configuration.configure,
    ),
    "Checks": (configuration.validate,),
}


class _Group(click.Group):
    """The group, with its commands listed under headings and in our order."""

    def list_commands(self, context: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [command.name or "" for commands in SECTIONS.values() for command in commands]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.list_commands(context))
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{item.name:<{width}}", item.get_short_help_str(70)) for item in commands])


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="COMMAND ...",
    params=list(shared_options(environment=True)),
)
@click.version_option(__version__, prog_name="bpbroker", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run and look after a bpbroker service: a durable registry, discovery, and calls into your own modules."""
    context.ensure_object(Scope)
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


for _commands in SECTIONS.values():
    for _command in _commands:
        cli.add_command(_command)
cli.add_command(install.prepare)


def main() -> NoReturn:
    """Run the command line of this process and end it."""
    scope = Scope()
    try:
        cli.main(prog_name="bpbroker", obj=scope)
    except BpbrokerError as error:
        if scope.debug:
            traceback.print_exc()
        _end(f"bpbroker: {error}", error.exit_code if error.exit_code in _EXIT_CODES else 1)
    except Exception as error:  # noqa: BLE001 - the last frame: a user sees a sentence, not a traceback
        if scope.debug:
            traceback.print_exc()
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        what = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        _end(f"bpbroker: {where}{what}" + ("" if scope.debug else " (--debug shows more)"), 1)
    raise AssertionError("click ends the process")


def _end(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

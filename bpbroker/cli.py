"""The ``bpbroker`` command line: its commands, and what becomes of an error."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, NoReturn

import click

from bpbroker import process, progress, stamp
from bpbroker.commands.scope import Scope, shared_options
from bpbroker.errors import BpbrokerError

_EXIT_CODES = (1, 2, 78)
"""What ``bpbroker`` ends with beside 0; the finer codes on the errors are those of ``bpclient``."""

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Commands": {
        "start": "start",
        "install-service": "install",
        "uninstall-service": "install",
        "install-extension": "extension",
        "configure": "configuration",
    },
    "The running broker": {"status": "status", "top": "top", "reload": "reload", "stop": "stop"},
    "State": {
        "backup": "backups",
        "backups": "backups",
        "restore": "backups",
        "check": "check",
        "migrate": "migrate",
        "validate": "configuration",
        "doctor": "doctor",
    },
    "Extensions": {"extensions": "extension", "uninstall-extension": "extension", "run-extension": "extension"},
    "Trust": {"certificate": "trust", "token": "trust", "join-command": "trust", "key": "keys"},
}
"""Heading to commands to the module of :mod:`bpbroker.commands` that has it; only what is called is loaded."""

_HIDDEN: Final = {"prepare": "install", "manual": "manual"}
_MODULES: Final = {name: module for group in (*SECTIONS.values(), _HIDDEN) for name, module in group.items()}


class _Group(click.Group):
    """The group, with its commands listed under headings and in our order."""

    def list_commands(self, context: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [name for commands in SECTIONS.values() for name in commands]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            close = difflib.get_close_matches(name, self.list_commands(context), 1)
            if close and not context.resilient_parsing:
                context.fail(f"No such command '{name}'. Did you mean {close[0]}?")
            return None
        module = import_module(f"bpbroker.commands.{_MODULES[name]}")
        found: click.Command = getattr(module, name.replace("-", "_"))
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(context)))
        for heading, names in SECTIONS.items():
            found = [(name, self.get_command(context, name)) for name in names]
            with formatter.section(heading):
                formatter.write_dl([(f"{name:<{width}}", item.get_short_help_str(70)) for name, item in found if item])


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="COMMAND ...",
    params=list(shared_options(environment=True)),
)
@click.version_option(stamp.version(), prog_name="bpbroker", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run and look after a bpbroker service: a durable registry, discovery, and calls into your own modules."""
    context.ensure_object(Scope)
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line, that of this process if none is given, and end the process with its exit code."""
    if arguments is None:
        process.settle()
        process.fill_streams()
        process.write_utf8()
        process.keep_out_of_cores()
        progress.show_on_terminal()
    scope, output = Scope(), sys.stdout
    try:
        code = cli.main(arguments, prog_name="bpbroker", obj=scope, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except SystemExit:
        if sys.stdout is not output:  # click has put another in its place, for its reader has gone; it ends with 1
            process.drop_output()
            sys.exit(process.NO_READER)
        raise
    except click.exceptions.Abort:
        _end("bpbroker: Aborted", 1)
    except click.ClickException as error:
        _end(f"{_usage(error)}bpbroker: {error.format_message()}", error.exit_code)
    except BpbrokerError as error:
        if scope.debug:
            traceback.print_exc()
        _end(f"bpbroker: {error}", error.exit_code if error.exit_code in _EXIT_CODES else 1)
    except Exception as error:  # noqa: BLE001 - the last frame: a user sees a sentence, not a traceback
        if isinstance(error, OSError) and process.reader_is_gone(error):
            process.drop_output()
            sys.exit(process.NO_READER)
        if isinstance(error, OSError) and _is_of_output(error):
            process.drop_output()
            _end(f"bpbroker: The result cannot be written to standard output: {error.strerror or error}", 1)
        if scope.debug:
            traceback.print_exc()
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        what = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        _end(f"bpbroker: {where}{what}" + ("" if scope.debug else " (--debug shows more)"), 1)
    raise AssertionError("click ends the process")


def _is_of_output(error: OSError) -> bool:
    """Return whether an error came from writing the result: it names no file, as one of the broker's own might not."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return error.filename is None and (where.name == "echo" or "sys.stdout" in (where.line or ""))


def _usage(error: click.ClickException) -> str:
    """Return how the command is called and where its help is, when the command line was wrong."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return ""
    return f"{context.get_usage()}\nTry '{context.command_path} {context.help_option_names[0]}' for help.\n\n"


def _end(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

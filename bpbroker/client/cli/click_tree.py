"""The command line as commands of click: for help, completion, and the errors of a malformed line.

It is the only module of the client that loads click, and it is loaded only for these.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import click
from click.core import ParameterSource

from bpbroker import stamp
from bpbroker.client.cli.command_table import COMMANDS, GROUPS
from bpbroker.client.cli.parser import split_command, with_command
from bpbroker.client.cli.shared_options import EVERYWHERE, Command, Invocation, Option
from bpbroker.errors import UsageError

_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_ABOUT: Final = "Talk to a bpbroker: find it, register services and look them up, call its extensions."

_EPILOG: Final = """\b
Exit codes: 0 done, 1 other, 2 usage, 3 not found, 4 exists or precondition failed,
5 access refused, 6 cannot connect or wrong certificate, 7 several brokers answered,
111 lock or session lost, 124 timed out.
Options of bpclient may also stand after the commands."""


_MORE: Final = "Options of every command, such as --timeout and --format: bpclient --help."


def parse(words: Sequence[str]) -> Invocation:
    """Parse a command line.

    Raises:
        UsageError: it is malformed; the message says why.
        SystemExit: help or the version was printed.
    """
    given: dict[str, Any] = {}
    own, behind = split_command(words)
    if behind == ():
        raise UsageError("There is no command behind --")
    try:
        # Not main(): it answers an interrupt with an empty line.
        with bpclient().make_context("bpclient", own, obj=given) as context:
            call: Invocation = context.command.invoke(context)
    except click.exceptions.Exit as done:
        raise SystemExit(done.exit_code) from None
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        raise SystemExit(UsageError.exit_code) from None
    except click.ClickException as error:
        raise UsageError(f"{error.format_message().rstrip('.')} (see bpclient --help)") from None
    return with_command(call, behind)


def complete(words: Sequence[str]) -> None:
    """Print completions for a shell; does not return."""
    bpclient().main(list(words), prog_name="bpclient")


def bpclient() -> click.Group:
    """Make commands of click from ours."""
    root = _Group(
        "bpclient",
        help=_ABOUT,
        epilog=_EPILOG,
        context_settings=_SETTINGS,
        params=[_version_option(), *(_remembered(option, hidden=False) for option in EVERYWHERE)],
    )
    groups: dict[tuple[str, ...], click.Group] = {(): root}
    # The help of the outermost command alone shows them.
    hidden: list[click.Parameter] = [_remembered(option, hidden=True) for option in EVERYWHERE]
    for words, about in GROUPS.items():
        groups[words] = _Group(words[-1], help=about, params=hidden)
        groups[words[:-1]].add_command(groups[words])
    for path, command in COMMANDS.items():
        own: list[click.Parameter] = [_option(option) for option in command.options]
        own += [
            click.Argument([_word(option)], required=False, metavar=f"[{option.metavar or option.key.upper()}]")
            for option in command.options
            if option.positional
        ]
        below = any(other[:-1] == path for other in COMMANDS)
        kind: type[click.Command] = _Both if below else _Runs if command.runs else click.Command
        made = kind(
            path[-1], help=command.action.__doc__, epilog=_MORE, params=[*own, *hidden], callback=_callback(command)
        )
        if isinstance(made, click.Group):
            groups[path] = made
        groups[path[:-1]].add_command(made)
    return root


class _Runs(click.Command):
    """A command that runs one of the user's."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return what the usage line shows."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND ...]"]


class _Both(click.Group):
    """A command with subcommands."""

    def __init__(self, name: str, **how: Any) -> None:
        super().__init__(name, invoke_without_command=True, **how)
        self.needed = [each for each in self.params if each.required]
        for each in self.needed:
            each.required = False  # those below it do without
            if isinstance(each, click.Option):
                each.help = f"{each.help}  [required]"

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return what the usage line shows."""
        return [*click.Command.collect_usage_pieces(self, ctx), "[-- COMMAND ...]"]

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the command itself, or its subcommand.

        Raises:
            click.UsageError: an option of its own is missing, or stands before the word of a subcommand.
        """
        own = [each for each in self.params if each.expose_value and each.name in ctx.params]
        given = [each for each in own if ctx.get_parameter_source(str(each.name)) is ParameterSource.COMMANDLINE]
        below = bool([*getattr(ctx, "_protected_args", ()), *ctx.args])
        if below and given:
            raise click.UsageError(f"Write {given[0].opts[0]} after the command that it is for", ctx)
        missing = next((each for each in self.needed if each not in given), None)
        if not below and missing is not None:
            raise click.MissingParameter(ctx=ctx, param=missing)
        return super().invoke(ctx)


class _Group(click.Group):
    """A group that suggests commands for an unknown word."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; an unknown one is refused with similar ones."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            alike = get_close_matches(args[0], self.list_commands(ctx), 3, 0.5)
            hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
            raise click.UsageError(f"No such command '{args[0][:80]}'{hint}")
        return super().resolve_command(ctx, args)


def _callback(command: Command) -> Any:
    def understood(**own: Any) -> Invocation:
        for option in command.options:
            if option.positional:
                word = own.pop(_word(option))
                if word is not None and own[option.key] is not None:
                    name = option.names[0]
                    raise click.UsageError(f"{word!r} and {name} {own[option.key]!r} mean the same; give one of them")
                own[option.key] = own[option.key] if word is None else word
                if own[option.key] is None and option.required:
                    raise click.UsageError(f"Missing option '{option.names[0]}', or the word without it")
        given: dict[str, Any] = click.get_current_context().find_root().obj
        return Invocation(command, own, given)

    return understood


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Keep an option of every command; the last level on which it is given counts."""
    if value is not None and value is not False and value != ():
        context.find_root().obj[option.name] = value


def _remembered(option: Option, *, hidden: bool) -> click.Option:
    return _option(option, expose_value=False, callback=_remember, hidden=hidden)


def _word(option: Option) -> str:
    """Return click's name for an option's positional value; the help shows it in capitals."""
    return f"{option.key}_"


def _option(option: Option, **more: Any) -> click.Option:
    # A name without dashes is what click calls the value.
    how: dict[str, Any] = {"help": option.about, "required": option.required and not option.positional, **more}
    if option.flag:
        how["is_flag"] = True
    else:
        how["metavar"] = option.metavar
    if option.multiple:
        how["multiple"] = True
    elif option.default is not None and not option.flag:
        how["default"] = option.default
    if option.choices:
        how["type"] = click.Choice(option.choices)
    elif option.bounds:
        how["type"] = click.IntRange(*option.bounds)
    return click.Option([*option.names, option.key], **how)


def _version_option() -> click.Parameter:
    """Make ``--version``; click has a decorator only."""

    @click.version_option(stamp.version(), prog_name="bpclient", message="%(prog)s %(version)s")
    @click.command()
    def carrier() -> None:
        pass

    return carrier.params[0]

"""What every command of ``bpbroker`` shares: ``--config`` and ``--debug``, before or after the command's name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from bpbroker.config.paths import Home, find_home
from bpbroker.runtime.plan import sources_of
from bpbroker.storage.sources import Sources
from bpbroker.text import command_line


class _File(click.Path):
    """A path of a file; an empty one, as an unset variable of a script gives it, is no path."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty", parameter, context)
        return super().convert(value, parameter, context)


FILE = _File(dir_okay=False, path_type=Path)
"""A file that need not exist."""


_LOADED_BEFORE: Final = ("ifaddr", "cryptography.hazmat.backends")
"""What commands load late: the user that root becomes may not be able to read root's Python."""


@dataclass(slots=True)
class Scope:
    """Which broker a command is about."""

    config: Path | None = None
    debug: bool = False
    _notice: str = ""
    """The message about the home folder that was shown last."""

    @property
    def home(self) -> Home:
        """The home folder in use; when that is not the system's although there is one, this is said once."""
        home = find_home(for_file=self.config is not None)
        if home.notice and not self._notice:
            self._notice = home.notice
            click.echo(f"warning: {home.notice}", err=True)
        return home

    @property
    def own(self) -> Path:
        """The configuration file that the command is about, absolute."""
        return self.config.absolute() if self.config else self.home.config_file

    def sources(self) -> Sources:
        """Return the files that a broker started with this ``--config`` reads."""
        return sources_of(self.home, self.own)

    def act_as_owner(self, of: Path | None = None) -> None:
        """Become, when run by root, the user to whom the configuration's folder, or ``of``, belongs.

        What the command writes is then that user's, as the broker needs it,
        and a link that such a user put there leads root nowhere.
        """
        if sys.platform == "win32" or os.geteuid() != 0:
            return
        place = of if of is not None else self.own.parent
        folder = next(folder for folder in (place, *place.parents) if folder.exists()).stat()
        if folder.st_uid != 0:
            for needed in _LOADED_BEFORE:
                importlib.import_module(needed)
            os.setgroups([])
            os.setgid(folder.st_gid)
            os.setuid(folder.st_uid)

    def command_line(self, command: str) -> str:
        """Return the command line of ``command`` for the same broker, for messages that say what to do."""
        return command_line("bpbroker", *(("--config", str(self.own)) if self.config else ()), *command.split())


pass_scope = click.make_pass_decorator(Scope)


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    scope = context.find_root().ensure_object(Scope)
    if value and parameter.name:
        setattr(scope, parameter.name, value)


def shared_options(*, environment: bool) -> list[click.Option]:
    """Return the options that every command takes.

    Only those before the command's name read the environment: else a variable,
    read again behind it, would beat a flag in front of it.
    """
    return [
        click.Option(
            ["--config", "-c"], type=FILE, metavar="FILE", expose_value=False, callback=_keep,
            envvar="BPBROKER_CONFIG" if environment else None, help="Path to non-default configuration file.",
        ),
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_keep,
            envvar="BPBROKER_DEBUG" if environment else None, help="Show a traceback with every error.",
        ),
    ]  # fmt: skip


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command that takes the shared options too."""

    def make(function: Callable[..., Any]) -> click.Command:
        made: click.Command = click.command(name, **attributes)(function)  # type: ignore[no-untyped-call]  # Any in it
        made.params.extend(shared_options(environment=False))
        return made

    return make

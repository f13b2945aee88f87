"""The options of ``bpclient``: those of every command, and those that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from bpbroker.client.output import FORMATS
from bpbroker.client.words import content
from bpbroker.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

FLAGS: Final = frozenset(
    (
        *("-h", "--help", "--version", "-q", "--quiet", "--insecure"),
        *("--raw", "--all", "--first", "--keys", "--idempotent", "--etag"),
    )
)
"""Every option without a value; see :func:`bpbroker.client.words.split_cols`."""


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Keep an option of every command where :class:`bpbroker.client.session.Session` finds it; the last one counts."""
    if value is not None and value is not False and value != ():
        context.find_root().ensure_object(dict)[option.name] = value


_EVERYWHERE: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (("-b", "--bpbroker"), {"metavar": "HOST:PORT", "help": "The broker; or set BPBROKER."}),
    (("--discover",), {"metavar": "NAME", "help": "Find the broker that holds NAME, then use that."}),
    (("-a", "--access-key"), {"metavar": "KEY", "help": "Access key, @FILE, or -; or set BPBROKER_ACCESS_KEY."}),
    (("--access-key-file",), {"metavar": "FILE", "help": "File that holds the access key."}),
    (("--token",), {"metavar": "TOKEN", "help": "Join token, @FILE, or -; or set BPBROKER_TOKEN."}),
    (("--fingerprint",), {"metavar": "SHA256", "help": "The broker's certificate must be this one."}),
    (("--cacert",), {"metavar": "FILE", "help": "The broker's certificate must be signed by one of these."}),
    (("--insecure",), {"is_flag": True, "help": "Do not check the broker's certificate."}),
    (("--timeout",), {"metavar": "TIME", "help": "Give up after this time, such as 500ms, 30s, 5m."}),
    (
        ("--retry",),
        {"metavar": "N", "type": click.IntRange(0, 1000), "help": "Try again N times (4) where it is safe."},
    ),
    (("--port",), {"metavar": "PORT", "help": "Port for discovery, and of -b HOST (20443)."}),
    (("--interface",), {"metavar": "NAME", "help": "Discover on this network interface only."}),
    (("--cols",), {"metavar": "COL ...", "multiple": True, "help": "Only these columns, in this order."}),
    (("-f", "--format"), {"type": click.Choice(FORMATS), "help": "Form of the output (text)."}),
    (("-q", "--quiet"), {"is_flag": True, "help": "Nothing on stderr but errors."}),
)


def _everywhere(*, hidden: bool) -> list[click.Parameter]:
    return [
        click.Option(names, expose_value=False, callback=_remember, hidden=hidden, **how) for names, how in _EVERYWHERE
    ]


# One set for all commands: fifteen options for each of a dozen cost a third of a one-shot call.
_HIDDEN: Final = _everywhere(hidden=True)


class Command(click.Command):
    """A command after or before whose name the options of every command may stand, too."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Give its own options, then those of every command; these are shown in the first help only."""
        return [*super().get_params(ctx), *_HIDDEN]


class Group(click.Group):
    """A group of such commands; as the outermost one it shows the options of every command."""

    command_class = Command
    group_class = type

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Give its own options and those of every command."""
        return [*super().get_params(ctx), *(_HIDDEN if ctx.parent else _everywhere(hidden=False))]


name_option = click.option("--name", required=True, help="The entry's name.")
raw_option = click.option("--raw", is_flag=True, help="Print the broker's whole response.")
etag_option = click.option(
    "--etag", is_flag=True, help="Print only the entry's tag, for --if-match and --changed-from."
)
if_match_option = click.option("--if-match", metavar="ETAG", default="", help="Only if the entry's tag is this one.")


def data_options(*, required: bool) -> Callable[[F], F]:
    """Add ``--data`` and ``--data-raw``; the function gets both as they were given."""

    def add(function: F) -> F:
        meaning = "Data: text, a JSON object, @FILE, or - for standard input."
        function = click.option("--data-raw", metavar="TEXT", help="Data, never read as @FILE or -.")(function)
        return click.option("--data", metavar="DATA", help=meaning + (" Required." if required else ""))(function)

    return add


def data_of(data: str | None, data_raw: str | None, *, required: bool) -> str | None:
    """Give what ``--data`` or ``--data-raw`` means.

    Raises:
        UsageError: both, or none though it is required, or it cannot be read.
    """
    if data is not None and data_raw is not None:
        raise UsageError("--data and --data-raw are both given; give one of them")
    if data_raw is not None:
        return data_raw
    if data is None:
        if required:
            raise UsageError("Missing option '--data'")
        return None
    return content(data, "--data")

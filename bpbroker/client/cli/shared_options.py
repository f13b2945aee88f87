"""The options of ``bpclient`` as data, and the classes that describe an option or a command.

The commands themselves are in :mod:`bpbroker.client.cli.command_table`. Two modules read
options and commands: :mod:`bpbroker.client.cli.parser` reads well-formed command lines by
them, and does not load click; :mod:`bpbroker.client.cli.click_tree` turns them into click's
commands, for help, completion and every line that is not well-formed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bpbroker.client.api import CONSISTENCIES
from bpbroker.client.cli.output import FORMATS

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    from typing import Any, Final, TypeAlias

    from bpbroker.client.cli.output import Output


class Option:
    """One option.

    Args:
        names: as typed; the first long one, without its dashes, is its key.
        about: its help.
        key: what its value is called, if not so.
        metavar: what stands for the value in the help.
        flag: whether it has no value; it is True when given.
        multiple: whether it may be given again and again; the value is a tuple.
        required: whether it must be given.
        default: its value when absent.
        positional: whether its value may also stand without it, as a word after the command's.
        choices: the only values; any text if empty.
        bounds: smallest and largest value, which is then an integer.
    """

    def __init__(
        self,
        *names: str,
        about: str,
        key: str = "",
        metavar: str | None = None,
        flag: bool = False,
        multiple: bool = False,
        required: bool = False,
        default: str | None = None,
        positional: bool = False,
        choices: Sequence[str] = (),
        bounds: tuple[int, int] | None = None,
    ) -> None:
        self.names = names
        self.about = about
        self.key = key or next(name for name in names if name.startswith("--"))[2:].replace("-", "_")
        self.metavar = metavar
        self.flag = flag
        self.multiple = multiple
        self.required = required
        self.default: Any = False if flag else () if multiple else default
        self.positional = positional
        self.choices = choices
        self.bounds = bounds


Action: TypeAlias = "Callable[..., Output]"
"""The action of a command: called with a Session and, by their keys, the values of its own options."""


class Command:
    """One command.

    Args:
        path: its words.
        options: of its own.
        action: carries it out; its docstring is the help.
        acts: whether the command changes something at the broker, so that a script must learn the result.
        runs: whether it runs a command of the user, given after ``--``; the action gets its words as ``command``.
    """

    def __init__(
        self, path: tuple[str, ...], options: Sequence[Option], action: Action, *, acts: bool, runs: bool = False
    ) -> None:
        self.path = path
        self.options = options
        self.action = action
        self.acts = acts
        self.runs = runs


class Invocation:
    """A parsed command line.

    Args:
        command: the command.
        own: the values of all the command's own options, by key.
        given: the given options of those that every command has.
    """

    def __init__(self, command: Command, own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.command = command
        self.own = own
        self.given = given


EVERYWHERE: Final = (
    Option(
        "--token",
        metavar="TOKEN",
        about="Join token: broker, its certificate and key in one; @FILE, or -; or set BPBROKER_TOKEN.",
    ),
    Option(
        "-b", "--bpbroker", metavar="HOST:PORT", about="The broker, or several of one registry: A,B,C; or set BPBROKER."
    ),
    Option("--discover", metavar="NAME", about="Find the broker that holds NAME, then use that."),
    Option("-a", "--access-key", metavar="KEY", about="Access key, @FILE, or -; or set BPBROKER_ACCESS_KEY."),
    Option("--access-key-file", metavar="FILE", about="File that holds the access key."),
    Option("--fingerprint", metavar="SHA256", about="The broker's certificate must be this one."),
    Option("--cacert", metavar="FILE", about="The broker's certificate must be signed by one of these."),
    Option("--strict", flag=True, about="Refuse a certificate never seen before; or set BPBROKER_TRUST=strict."),
    Option("--insecure", flag=True, about="Do not check the broker's certificate."),
    Option("--timeout", metavar="TIME", about="Give up after this time, such as 500ms, 30s, 5m."),
    Option(
        "--retry",
        metavar="N",
        bounds=(0, 1000),
        about="Try again N times where it is safe (4; with --timeout or --wait till then; 0: never).",
    ),
    Option("--port", metavar="PORT", about="Port for discovery, and of -b HOST (20443)."),
    Option("--interface", metavar="NAME", about="Discover on this network interface only."),
    Option("--cols", metavar="COL ...", multiple=True, about="Only these columns, in this order."),
    Option("-f", "--format", choices=FORMATS, about="Form of the output (text)."),
    Option("-q", "--quiet", flag=True, about="Nothing on stderr but errors."),
)
"""Options that may stand before, between and after the words of any command."""

TTL: Final = Option("--ttl", metavar="TIME", default="30s", about="How long it outlives its owner, at least (30s).")
TTL_LONG: Final = Option(
    "--ttl", metavar="TIME", default="60s", about="How long it outlives its owner, at least (60s)."
)
WAIT: Final = Option("--wait", metavar="TIME", about="Give up after this time (never), with exit code 124.")
LOCK_NAME: Final = Option("--name", required=True, about="The lock's name.")
SESSION: Final = Option(
    "--session",
    key="owner",
    metavar="ID",
    about="The entry belongs to this session, '' to none; or set BPBROKER_SESSION.",
)
LOCK: Final = Option(
    "--lock", key="fence", metavar="NAME:TOKEN", about="Only if this lock is held; or set BPBROKER_LOCK."
)
SESSION_ID: Final = Option("--id", key="session_id", required=True, positional=True, metavar="ID", about="The session.")
NAME: Final = Option("--name", required=True, positional=True, about="The entry's name.")
DATA: Final = Option("--data", metavar="DATA", about="Data: text, a JSON object, @FILE, or - for standard input.")
DATA_NEEDED: Final = Option("--data", metavar="DATA", about=f"{DATA.about} Required.")
UNSET: Final = Option(
    "--unset", multiple=True, metavar="KEY", about="Remove this key first, or a.b; may be given again."
)
DATA_RAW: Final = Option("--data-raw", metavar="TEXT", about="Data, never read as @FILE or -.")
JSON: Final = Option("--json", key="only_json", flag=True, about="Refuse data that is no JSON object.")
RAW: Final = Option("--raw", flag=True, about="Print the broker's whole response.")
ETAG: Final = Option("--etag", flag=True, about="Print only the entry's tag, for --if-match and --changed-from.")
CONSISTENCY: Final = Option(
    "--consistency", choices=CONSISTENCIES, default="strong",
    about="local: what this broker knows is enough, even if it cannot reach a shared registry.",
)  # fmt: skip
OWN_IP: Final = Option(
    "--own-ip", flag=True, about="Put this host's address, as the broker sees it, into the data: ip."
)
IF_MATCH: Final = Option("--if-match", metavar="ETAG", default="", about="Only if the entry's tag is this one.")

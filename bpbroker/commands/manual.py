"""``bpbroker manual``: the manual pages of both programs, made of the same tables as their help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click

from bpbroker import __version__
from bpbroker.commands.scope import command
from bpbroker.files import replace

_DATE: Final = "2026-11-27"
"""Of the last change of what is here; the same source makes the same page."""

_ENVIRONMENT: Final[Mapping[str, Mapping[str, str]]] = {
    "bpbroker": {
        "BPBROKER_HOME": "The home folder, instead of /usr/local/bpbroker.",
        "BPBROKER_CONFIG": "As --config.",
        "BPBROKER_DEBUG": "As --debug.",
    },
    "bpclient": {
        "BPBROKER": "The broker's address, as -b.",
        "BPBROKER_TOKEN": "A join token, as --token.",
        "BPBROKER_ACCESS_KEY": "The access key, as -a.",
        "BPBROKER_TRUST": "With strict, as --strict.",
        "BPBROKER_KNOWN_BROKERS": "The file of certificates that were seen before.",
    },
}
_FILES: Final[Mapping[str, Mapping[str, str]]] = {
    "bpbroker": {
        "/usr/local/bpbroker/etc/bpbroker.json": "The global configuration, and the registry's entries.",
        "/usr/local/bpbroker/lib": "The extension modules.",
        "/usr/local/bpbroker/backups": "The backups.",
    },
    "bpclient": {"~/.config/bpbroker/known_brokers": "The certificates that were seen before."},
}
_EXIT: Final[Mapping[str, str]] = {
    "bpbroker": "0 done, 1 other, 2 usage, 78 bad configuration or damaged file.",
    "bpclient": (
        "0 done, 1 other, 2 usage, 3 not found, 4 exists or precondition failed, 5 access refused, 6 cannot connect"
        " or wrong certificate, 7 several brokers answered, 111 lock or session lost, 124 timed out."
    ),
}
_ABOUT: Final[Mapping[str, str]] = {
    "bpbroker": "registry, discovery and remote calls for installations",
    "bpclient": "talk to a bpbroker",
}
_OTHER: Final[Mapping[str, str]] = {"bpbroker": "bpclient", "bpclient": "bpbroker"}


@command("manual", hidden=True)
@click.argument("folder", type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.pass_context
def manual(context: click.Context, folder: Path) -> None:
    """Write the manual pages bpbroker.1 and bpclient.1 into FOLDER."""
    root = context.find_root().command
    assert isinstance(root, click.Group)  # noqa: S101 - the program
    for name, text in pages(root).items():
        replace(folder / name, [text.encode()], mode=0o644)


def pages(bpbroker: click.Group) -> dict[str, str]:
    """Return the manual pages of ``bpbroker``, whose commands these are, and of ``bpclient``: file name to text."""
    from bpbroker.client.cli.click_tree import bpclient

    return {f"{name}.1": _page(name, root) for name, root in (("bpbroker", bpbroker), ("bpclient", bpclient()))}


def _page(program: str, root: click.Group) -> str:
    lines = [
        f'.TH {program.upper()} 1 "{_DATE}" "bpbroker {__version__}" "User Commands"',
        ".SH NAME",
        rf"{program} \- {_plain(_ABOUT[program])}",
        ".SH SYNOPSIS",
        rf"\fB{program}\fR [\fIOPTIONS\fR] \fICOMMAND\fR ...",
        ".SH DESCRIPTION",
        *_paragraphs(root.help),
        ".SH OPTIONS",
        *_options(click.Context(root, info_name=program)),
        ".SH COMMANDS",
        *_commands(click.Context(root, info_name=program)),
        ".SH EXIT STATUS",
        _plain(_EXIT[program]),
    ]
    for title, terms in (("ENVIRONMENT", _ENVIRONMENT[program]), ("FILES", _FILES[program])):
        lines += [f".SH {title}", *_terms((rf"\fB{_plain(term)}\fR", _plain(about)) for term, about in terms.items())]
    lines += [".SH SEE ALSO", rf"\fB{_OTHER[program]}\fR(1)"]
    return "\n".join(lines) + "\n"


def _commands(context: click.Context) -> Iterator[str]:
    """Yield a section for each command, those below others included; hidden ones are left out."""
    assert isinstance(context.command, click.Group)  # noqa: S101 - called for groups alone
    for name in context.command.list_commands(context):
        found = context.command.get_command(context, name)
        if found is None or found.hidden:
            continue
        own = click.Context(found, info_name=name, parent=context)
        if not isinstance(found, click.Group) or found.invoke_without_command:
            pieces = " ".join(found.collect_usage_pieces(own))
            yield f".SS {_plain(f'{own.command_path} {pieces}')}"
            yield from _paragraphs(found.help)
            yield from _options(own)
        if isinstance(found, click.Group):
            yield from _commands(own)


def _options(context: click.Context) -> Iterator[str]:
    shared = {option.opts[0] for option in context.find_root().command.params} if context.parent else set()
    rows = []
    for parameter in context.command.get_params(context):
        row = parameter.get_help_record(context)
        if row is not None and row[1] and parameter.opts[0] not in shared and "--help" not in parameter.opts:
            rows.append((rf"\fB{_plain(row[0])}\fR", _plain(row[1])))
    yield from _terms(iter(rows))


def _terms(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    for term, about in rows:
        yield from (".TP", term, about or r"\&")


def _paragraphs(text: str | None) -> Iterator[str]:
    """Yield a help text; a paragraph that begins with a backspace keeps its lines, as in click's help."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text or "").partition("\f")[0])):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *map(_plain, paragraph.strip("\b\n").split("\n")), ".fi")
        else:
            yield _plain(" ".join(paragraph.split()))


def _plain(text: str) -> str:
    """Return text as troff writes it: nothing in it is a request."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga").replace("'", r"\(aq")
    escaped = escaped.replace("^", r"\(ha").replace("~", r"\(ti").replace("\u2026", "...")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped

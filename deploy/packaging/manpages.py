"""Manual pages from the programs' own help.

    python manpages.py bpbroker|bpclient DATE

A program of its own, so that it describes the modules that are packaged and not those of who builds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import click

ABOUT: Final = {
    "bpbroker": "message broker for the installation of applications",
    "bpclient": "client of bpbroker",
}


def root_of(name: str) -> click.Group:
    """Return the click group of a program."""
    if name == "bpbroker":
        from bpbroker.cli import cli

        return cli
    from bpbroker.client.cli.tree import bpclient

    return bpclient()


def page(name: str, date: str) -> Iterator[str]:
    """Yield the lines of a manual page, section 1."""
    root = root_of(name)
    yield f'.TH {name.upper()} 1 "{date}" "{name}" "User Commands"'
    yield ".SH NAME"
    yield f"{name} \\- {plain(ABOUT[name])}"
    yield ".SH SYNOPSIS"
    yield f".B {name}"
    yield "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR ..."
    yield ".SH DESCRIPTION"
    yield from paragraphs(root.help or "")
    yield ".SH OPTIONS"
    yield from options(root, click.Context(root, info_name=name))
    yield ".SH COMMANDS"
    yield from commands(root, click.Context(root, info_name=name), ())
    if root.epilog:
        yield ".SH NOTES"
        yield from paragraphs(root.epilog)


def commands(group: click.Group, context: click.Context, path: tuple[str, ...]) -> Iterator[str]:
    """Yield the commands of a group, and of the groups in it."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        own = click.Context(command, parent=context, info_name=name)
        if isinstance(command, click.Group):
            yield from commands(command, own, (*path, name))
            continue
        usage = " ".join((*path, name, *command.collect_usage_pieces(own)))
        yield f".SS {plain(usage)}"
        yield from paragraphs(command.help or command.short_help or "")
        yield from options(command, own)


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the options of a command that its help shows."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield ".TP"
            yield f".B {plain(record[0])}"
            yield plain(record[1]) or "\\&"


def paragraphs(text: str) -> Iterator[str]:
    """Yield text as roff, a paragraph for each of its own; lines behind a backspace stay lines, as with click."""
    for part in text.replace("\f", "\n\n").split("\n\n"):
        lines = [line.strip() for line in part.strip().splitlines()]
        if lines and lines[0] == "\b":
            yield ".nf"
            yield from (plain(line) for line in lines[1:])
            yield ".fi"
        elif lines:
            yield ".PP"
            yield plain(" ".join(lines))


def plain(text: str) -> str:
    """Escape what roff would take for its own."""
    escaped = text.replace("\\", "\\(rs").replace("-", "\\-").replace("'", "\\(aq").replace("\n", " ")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    sys.stdout.write("\n".join(page(sys.argv[1], sys.argv[2])) + "\n")

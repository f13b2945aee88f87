"""The reference of bpclient's commands in docs/bpclient.md: ``python -m tests.support.reference`` writes it anew."""

from __future__ import annotations

from collections.abc import Iterator

import click

from bpbroker.client.cli.click_tree import bpclient
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "bpclient.md"
BEGIN = "<!-- What follows is written by: python -m tests.support.reference -->\n"
END = "<!-- End of what is written. -->\n"


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command that does something, by its words, in the order of the help."""
    if words and not (isinstance(command, click.Group) and not command.invoke_without_command):
        yield words, command
    if isinstance(command, click.Group):
        for name in command.commands:
            yield from leaves(command.commands[name], (*words, name))


def options(command: click.Command) -> Iterator[click.Option]:
    """Yield the options that the help of a command shows, but for ``--help``."""
    for each in command.params:
        if isinstance(each, click.Option) and not each.hidden:
            yield each


def value_of(option: click.Option) -> str:
    """Return what stands for an option's value; versions of click differ in that."""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "\\|".join(map(str, option.type.choices))
    return "N" if isinstance(option.type, click.IntRange) else "TEXT"


def table(command: click.Command) -> Iterator[str]:
    """Yield the lines of the table of a command's options."""
    yield "| option | |\n|---|---|\n"
    for each in options(command):
        value = "" if each.is_flag else f" {value_of(each)}"
        yield f"| `{', '.join(each.opts)}{value}` | {(each.help or '').replace('|', chr(92) + '|')} |\n"


def reference() -> str:
    """Return the reference as Markdown."""
    root = bpclient()
    parts = [BEGIN, "\n### Options of every command\n\nThey may stand before, between and behind the words.\n\n"]
    parts += table(root)
    for words, command in leaves(root):
        with click.Context(command, info_name=" ".join(("bpclient", *words))) as context:
            usage = " ".join(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")
        call = " ".join(("bpclient", *words, usage)).strip()
        parts.append(f"\n### {' '.join(words)}\n\n`{call}`: {command.help}\n")
        if any(options(command)):
            parts += ["\n", *table(command)]
    return "".join([*parts, "\n", END])


def main() -> None:
    """Write the reference into the page."""
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{PAGE} does not have the two lines between which the reference stands"
    PAGE.write_text(f"{before}{reference()}{after}")


if __name__ == "__main__":
    main()

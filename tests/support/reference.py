"""The references in docs/: bpclient's commands in bpclient.md, the settings in configuration.md.

``python -m tests.support.reference`` writes both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from bpbroker.client.cli.click_tree import bpclient
from bpbroker.config import schema
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "bpclient.md"
SETTINGS = ROOT / "docs" / "configuration.md"
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


def allowed(key: schema.Key) -> str:
    """Return what a setting must be, in the words of its check."""
    return (key.check(object()) or "").removeprefix("must be ")


def default(key: schema.Key) -> str:
    """Return a setting's default as JSON; empty where there is none."""
    return "" if key.default in (None, "", (), {}) else f"`{json.dumps(key.default)}`"


def settings() -> str:
    """Return the tables of all settings as Markdown."""
    parts = [BEGIN]
    for section, keys in (*schema.KNOWN.items(), ("", schema.EXTENSION)):
        heading = f"`{section}`" if section else "The section of an extension"
        parts.append(f"\n### {heading}\n\n| setting | default | must be | meaning |\n|---|---|---|---|\n")
        parts += [
            f"| `{name}`{'*' * key.at_start} | {default(key)} | {allowed(key)} | {key.help} |\n"
            for name, key in keys.items()
        ]
    return "".join([*parts, "\n", END])


def write(page: Path, what: str) -> None:
    """Write a reference into its page."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{page} does not have the two lines between which the reference stands"
    page.write_text(f"{before}{what}{after}")


def main() -> None:
    """Write both references into their pages."""
    write(PAGE, reference())
    write(SETTINGS, settings())


if __name__ == "__main__":
    main()

"""Every command line that a page shows, or a message of the program names, has commands and options that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bpbroker.cli import cli
from bpbroker.client.cli.click_tree import bpclient
from tests.support.pages import PAGES, ROOT

PROGRAMS: dict[str, click.Group] = {"bpbroker": cli, "bpclient": bpclient()}
SOURCES = sorted((ROOT / "bpbroker").rglob("*.py"))


def lines(page: Path) -> Iterator[str]:
    """Yield what a page shows in a block, fenced or indented, also in a list, and begins as a command does."""
    for line in page.read_text().splitlines():
        found = re.match(r"(?:[a-z]*\$ |>? {3,})((?:bpbroker|bpclient) .*)", line)
        if found:
            yield found[1]


def spans(path: Path) -> Iterator[str]:
    """Yield what stands between backticks and begins as a command does."""
    yield from re.findall(r"(?<!`)`((?:bpbroker|bpclient) [^`{}\n]*)`", path.read_text())


def words(line: str) -> list[str]:
    """Return the words of the first command in a line, as far as a shell would give them to it."""
    line = re.split(r"(?: \|| &&| ;|;| >| <| 2>|\)| #| …)(?= |$|\S)", line.replace("$(", "$("), maxsplit=1)[0]
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def wrong(line: str, *, whole: bool) -> str:
    """Return what is wrong with a command line; empty if nothing is.

    Args:
        line: as it is shown.
        whole: whether it is all that is typed; if not, what is missing in it is no fault.
    """
    program, *rest = words(line)
    command: click.Command = PROGRAMS[program]
    every = list(command.params)
    while isinstance(command, click.Group) and rest and rest[0] != "--":
        if rest[0].startswith("-"):
            option = next((each for each in command.params if rest[0].partition("=")[0] in each.opts), None)
            if option is None:
                break  # of the command itself, if it is one as well
            rest = rest[1 if "=" in rest[0] or getattr(option, "is_flag", False) else 2 :]
            continue
        if not re.fullmatch("[a-z-]+", rest[0]):  # such as COMMAND, or a name that the command takes
            break
        try:
            below = command.get_command(click.Context(command), rest[0])
        except click.UsageError:
            below = None
        if below is None and command in PROGRAMS.values():
            return f"no command {rest[0]}"
        if below is None:
            break
        command, rest = below, rest[1:]
        every += command.params
    given = {word.partition("=")[0] for word in rest[: rest.index("--") if "--" in rest else None]}
    known = {name for each in every for name in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}
    unknown = [word for word in given if re.match("--?[a-z]", word) and word not in known]
    if unknown:
        return f"no option {unknown[0]}"
    if whole and not isinstance(command, click.Group):
        missing = [each for each in command.params if each.required and isinstance(each, click.Option)]
        return "".join(f"without {each.opts[0]}" for each in missing if not given & set(each.opts))
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_can_be_typed(page: Path) -> None:
    found = [(line, wrong(line, whole=True)) for line in lines(page)]
    found += [(line, wrong(line, whole=False)) for line in spans(page)]
    assert not [(line, why) for line, why in found if why]


def test_what_a_message_or_a_docstring_names_can_be_typed() -> None:
    found = [(path.name, line, wrong(line, whole=False)) for path in SOURCES for line in spans(path)]
    assert len(found) > 10
    assert not [each for each in found if each[2]]


def test_nothing_says_to_install_from_the_index() -> None:
    """There it has another version: 0.22."""
    index = re.compile(r"pipx? install[^`\n]*\sbpbroker\b|pipx? install[^`\n]*'bpbroker\[")
    found = [(path.name, index.findall(path.read_text())) for path in (*PAGES, *SOURCES)]
    assert not [each for each in found if each[1]]
    assert "`pipx install .`" in (ROOT / "docs" / "operations.md").read_text()

"""The manual pages: made of the present help, without a fault, with every command and option."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from bpbroker.cli import cli
from bpbroker.client.cli.click_tree import bpclient
from bpbroker.commands import manual

PAGES = Path(__file__).parents[2] / "deploy" / "man"
ROOTS = {"bpbroker.1": cli, "bpclient.1": bpclient()}


def test_they_are_up_to_date() -> None:
    there = {path.name: path.read_text() for path in PAGES.iterdir()}
    assert there == manual.pages(cli), "make them anew: bpbroker manual deploy/man"


@pytest.mark.parametrize("name", ROOTS)
def test_man_has_nothing_to_say_against_them(name: str) -> None:
    tools = (["mandoc", "-T", "lint", "-W", "warning"], ["man", "--warnings", "--local-file"])
    there = [words for words in tools if shutil.which(words[0])]
    if not there:
        pytest.skip("needs mandoc or man-db")
    for words in there:
        shown = subprocess.run([*words, str(PAGES / name)], capture_output=True, text=True, check=False)
        complaints = shown.stdout if words[0] == "mandoc" else shown.stderr
        assert (shown.returncode, complaints) == (0, ""), words


def test_what_looks_like_a_request_of_troff_is_text() -> None:
    assert manual._plain(".so /etc/passwd \\n-x") == r"\&.so /etc/passwd \en\-x"


@pytest.mark.parametrize("name", ROOTS)
def test_every_command_and_option_is_in_them(name: str) -> None:
    text = (PAGES / name).read_text().replace(r"\-", "-")

    def see(command: click.Command, path: str) -> None:
        if command.hidden:
            return
        if not isinstance(command, click.Group) or command.invoke_without_command:
            assert f"{path} " in text
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[-1] in text
        if isinstance(command, click.Group):
            context = click.Context(command)
            for below in command.list_commands(context):
                found = command.get_command(context, below)
                assert found is not None
                see(found, f"{path} {below}")

    see(ROOTS[name], name.partition(".")[0])


def test_they_are_written_where_one_says(tmp_path: Path) -> None:
    assert cli.main(["manual", str(tmp_path)], standalone_mode=False) is None
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == manual.pages(cli)

"""Reading a command line without click: as click reads it, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bpbroker.client.cli import click_tree
from bpbroker.client.cli.command_table import COMMANDS, FLAGS, GROUPS, WORDS
from bpbroker.client.cli.parser import parse
from bpbroker.client.cli.shared_options import EVERYWHERE, Invocation, Option
from bpbroker.client.cli.words import split_cols
from bpbroker.errors import UsageError
from tests.support import pages
from tests.support.extent import examples

PAGES = "\n".join(page.read_text() for page in pages.PAGES)


def read(call: Invocation | None) -> Any:
    return call and (call.command.path, dict(call.own), dict(call.given))


def by_click(words: Iterable[str]) -> Any:
    """Return what click understands; None if it does not, or has done something else, such as help."""
    try:
        return read(click_tree.parse(list(words)))
    except (UsageError, SystemExit):
        return None


VALUES = st.one_of(
    st.sampled_from(
        ["x", "", "-", "--", "--name", "-b", "-fjson", "@file", "a=b", "service", "get", "{}", "json", "xml", "--help"]
    ),
    st.sampled_from(["5", "0", "-1", "1001", "007", " 7", "1_0", "+5", "٣", "9" * 12, "1.5"]),
    st.text(max_size=6),
)


@st.composite
def options(draw: st.DrawFn, known: tuple[Option, ...], *, right: bool = False) -> list[str]:
    """Return an option as somebody types it: right mostly, or always."""
    option = draw(st.sampled_from(known))
    name = draw(st.sampled_from(option.names))
    if option.flag:
        joined = "" if right else draw(st.sampled_from(["", "", "", "=1", "=", "q", "fjson", "b"]))
        return [name + joined]
    good = st.just(str(option.bounds[0])) if option.bounds else st.sampled_from(list(option.choices) or ["x"])
    value = draw(good if right and (option.choices or option.bounds) else good | VALUES)
    if name.startswith("--"):
        return draw(st.sampled_from([[name, value], [f"{name}={value}"]]))
    if right and not value:  # nothing is left of the word, so the next one is the value
        return [name, value]
    forms = [[name, value], [name + value], [f"-q{name[1:]}", value]]
    return draw(st.sampled_from(forms if right else [*forms, [f"{name}={value}"]]))


@st.composite
def lines(draw: st.DrawFn, *, right: bool = False) -> list[str]:
    """Return a command line that begins well; often, or always, all of it makes sense."""
    command = draw(st.sampled_from(list(COMMANDS.values())))
    words: list[str] = []
    for word in command.path:
        words += [each for option in draw(st.lists(options(EVERYWHERE, right=right), max_size=2)) for each in option]
        words.append(word)
    for option in command.options:
        if option.required and (right or draw(st.integers(0, 9))):
            value = "3" if option.bounds else draw(VALUES)
            words += draw(st.sampled_from([[option.names[0], value], [f"{option.names[0]}={value}"]]))
    every = (*EVERYWHERE, *command.options)
    words += [each for option in draw(st.lists(options(every, right=right), max_size=3)) for each in option]
    if not right and not draw(st.integers(0, 7)):
        words.insert(draw(st.integers(0, len(words))), draw(VALUES))
    return words


@settings(max_examples=examples(1000), deadline=None)
@given(lines())
@example(["service", "get", "--name", "--"])
@example(["-b", "-q", "service", "get", "--name", "-x"])
@example(["service", "get", "--name", "x", "--"])
@example(["-qfjson", "service", "-qb", "h", "get", "--name=a=b", "-q"])
@example(["--cols", "a", "service", "--cols", "b", "get", "--name", "x", "--cols=c", "--cols=d"])
@example(["-b=h", "ping"])
@example(["--retry", "007", "ping"])
@example(["-b"])
@example(["service"])
@example([""])
@example(["-"])
def test_it_reads_as_click_does_or_not_at_all(words: list[str]) -> None:
    for form in (words, list(split_cols(words, WORDS, FLAGS))):
        found = read(parse(form))
        if found is not None:
            assert found == by_click(form)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.text(alphabet="-=abfq -", max_size=4) | st.sampled_from(sorted(WORDS | FLAGS)), max_size=6))
def test_nonsense_is_left_to_click(words: list[str]) -> None:
    found = read(parse(words))
    assert found is None or found == by_click(words)


@settings(max_examples=examples(500), deadline=None)
@given(lines(right=True))
def test_nothing_that_is_well_formed_is_left_to_click(words: list[str]) -> None:
    understood = by_click(words)
    assert understood is not None
    assert read(parse(words)) == understood


def page_lines() -> list[list[str]]:
    """Return the words after each ``bpclient`` on the pages that is a call, not prose."""
    import shlex

    found = []
    for line in re.findall(r"^(?:[abc]*\$ (?:.* |.*\()?|\| [^|]* \| `)bpclient ([^`|\n]*)", PAGES, re.MULTILINE):
        command = line.split(" #")[0].split(" > ")[0].rstrip(") ")
        if "[" not in command and "…" not in command:
            found.append(shlex.split(command))
    return found


@pytest.mark.parametrize("words", page_lines(), ids=" ".join)
def test_every_call_of_the_pages_is_read_without_click(words: list[str]) -> None:
    found = parse(list(split_cols(words, WORDS, FLAGS)))
    assert found is not None
    assert read(found) == by_click(split_cols(words, WORDS, FLAGS))


def test_the_pages_have_calls() -> None:
    assert len(page_lines()) >= 10


@pytest.mark.parametrize(
    "line",
    [
        "service get --name x",
        "-b h:1 service get --name x --wait 5m",
        "-a @key service register --name x --data -",
        "--discover n -q service replace --name=x --data-raw=-y --if-match e",
        "service -b h update --name x --data @f --raw -f shell",
        "service list --prefix p --keys --format csv --cols a b",
        "service get --name x --consistency local",
        "service list --consistency=strong",
        "service wait --prefix p --count 5 --timeout 10m",
        "service delete --name x --retry 0",
        "ping --data --help",
        "discover --name n --all --interface eth0 --port 1",
        "execute --method a.B --data x --token t --insecure",
    ],
)
def test_common_calls_are_read_without_click(line: str) -> None:
    words = list(split_cols(line.split(), WORDS, FLAGS))
    assert read(parse(words)) == by_click(words) is not None


def test_no_option_of_a_command_hides_one_of_all() -> None:
    everywhere = {name for option in EVERYWHERE for name in (*option.names, option.key)}
    for command in COMMANDS.values():
        assert everywhere.isdisjoint(name for option in command.options for name in (*option.names, option.key))
    assert all(len(path) == 1 or path[:-1] in GROUPS or path[:-1] in COMMANDS for path in COMMANDS)


@pytest.mark.parametrize(
    ("line", "path", "command"),
    [
        ("lock --name x -- ls -l --name y", ("lock",), ("ls", "-l", "--name", "y")),
        ("-b h lock --name -- -- ls", ("lock",), ("ls",)),
        ("session run --ttl 60s -- a -- b", ("session", "run"), ("a", "--", "b")),
        ("session run -q", ("session", "run"), ()),
        ("once --name x --output -q -- true", ("once",), ("true",)),
        ("watch --prefix x --cols a -- cat", ("watch",), ("cat",)),
        ("lock holder --name x --wait 5s", ("lock", "holder"), None),
        ("lock -q holder --name x", ("lock", "holder"), None),
    ],
)
def test_a_command_stands_behind_two_dashes(line: str, path: tuple[str, ...], command: tuple[str, ...] | None) -> None:
    words = list(split_cols(line.split(), WORDS, FLAGS))
    found = read(parse(words))
    assert found is not None
    assert found == by_click(words)
    assert (found[0], found[1].get("command")) == (path, command)


@pytest.mark.parametrize(
    "line", ["lock", "lock --name x --", "lock --name x holder --name y", "service get x -- y -- z"]
)
def test_a_command_that_is_missing_is_refused(line: str) -> None:
    assert parse(line.split()) is None
    with pytest.raises(UsageError):
        click_tree.parse(line.split())

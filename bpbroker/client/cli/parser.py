"""Well-formed command lines, read without click: loading click costs more than a whole call. Pure.

It reads a line as click does, or not at all: all doubtful lines (help, ``--``, an unknown word, a value that click
would convert or refuse) are left to click. A test compares the two over generated command lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpbroker.client.cli.command_table import COMMANDS, FLAGS, GROUPS
from bpbroker.client.cli.shared_options import EVERYWHERE, Invocation, Option
from bpbroker.client.cli.words import wants_next

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any


class _Unsure(Exception):
    """Leave the line to click."""


def parse(words: Sequence[str]) -> Invocation | None:
    """Parse a command line; return None to leave it to click."""
    own, behind = split_command(words)
    if behind == ():
        return None
    try:
        call = _call(list(reversed(own)))
    except _Unsure:
        return None
    return with_command(call, behind)


def split_command(words: Sequence[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """Return the words of bpclient itself, and those of the command behind ``--``; None without ``--``."""
    path: tuple[str, ...] = ()
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            command = COMMANDS.get(path)
            if command is not None and command.runs:
                return list(words[:at]), tuple(words[at + 1 :])
            break
        if word.startswith("-"):
            at += wants_next(word, FLAGS)
        elif (*path, word) in COMMANDS or (*path, word) in GROUPS:
            path = (*path, word)
        at += 1
    return list(words), None


def with_command(call: Invocation, behind: tuple[str, ...] | None) -> Invocation:
    """Return a call with the words of the user's command, if it runs one."""
    if not call.command.runs:
        return call
    return Invocation(call.command, {**call.own, "command": behind or ()}, call.given)


def _call(rest: list[str]) -> Invocation:
    everywhere = _by_name(EVERYWHERE)
    given: dict[str, Any] = {}
    path: tuple[str, ...] = ()
    while path not in COMMANDS:
        if path and path not in GROUPS:
            raise _Unsure
        # If an option is given on several levels, the last level counts.
        given |= _level(rest, everywhere)
        path = (*path, _next(rest))
    command = COMMANDS[path]
    known = everywhere | _by_name(command.options)
    found = _level(rest, known)
    while rest and (*path, rest[-1]) in COMMANDS:  # a command below a command, such as lock holder
        if any(option.key in found for option in command.options):
            raise _Unsure
        given |= found
        path = (*path, rest.pop())
        command = COMMANDS[path]
        known = everywhere | _by_name(command.options)
        found = _level(rest, known)
    word = next((option for option in command.options if option.positional), None)
    if rest and word is not None and word.key not in found:
        _keep(word, rest.pop(), found)
        # If it is given by its name as well, click refuses it.
        found = _level(rest, {name: option for name, option in known.items() if option is not word}, found)
    if rest or any(option.required and option.key not in found for option in command.options):
        raise _Unsure
    own = {option.key: found.pop(option.key, option.default) for option in command.options}
    return Invocation(command, own, given | found)


def _by_name(options: Sequence[Option]) -> dict[str, Option]:
    return {name: option for option in options for name in option.names}


def _level(rest: list[str], options: Mapping[str, Option], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read options, with their values, up to the next word that is no option.

    Args:
        rest: the words to come, the next one last.
        options: the possible options, by name.
        before: the options found so far.
    """
    found = dict(before or {})
    while rest and rest[-1].startswith("-"):
        word = rest.pop()
        if word.startswith("--"):
            name, equals, attached = word.partition("=")
            option = _known(name, options)
            if option.flag and equals:
                raise _Unsure
            _keep(option, None if option.flag else attached if equals else _next(rest), found)
            continue
        letters = word[1:] or "-"  # a lone dash is no option
        while letters:  # flags together, as in -qf json; the first option with a value takes what is left, as in -fjson
            option = _known(f"-{letters[0]}", options)
            letters = letters[1:]
            if option.flag:
                _keep(option, None, found)
            else:
                _keep(option, letters or _next(rest), found)
                letters = ""
    return found


def _keep(option: Option, text: str | None, found: dict[str, Any]) -> None:
    if text is None:
        found[option.key] = True
    elif option.multiple:
        found[option.key] = (*found.get(option.key, ()), text)
    else:
        found[option.key] = _value(option, text)


def _value(option: Option, text: str) -> str | int:
    if option.choices and text not in option.choices:
        raise _Unsure
    if option.bounds is None:
        return text
    smallest, largest = option.bounds
    # Click would take " 7" and "1_0", too; no script needs that.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and smallest <= int(text) <= largest):
        raise _Unsure
    return int(text)


def _known(name: str, options: Mapping[str, Option]) -> Option:
    try:
        return options[name]
    except KeyError:
        raise _Unsure from None


def _next(rest: list[str]) -> str:
    if not rest:
        raise _Unsure
    return rest.pop()

"""Words of a command line to values: durations, secrets, data, lists of columns."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import islice

from bpbroker.errors import UsageError

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Final

DATA_MAX_BYTES: Final = 16 * 1024 * 1024
"""The largest size that a broker can be configured for."""
_SECRET_MAX_BYTES: Final = 64 * 1024
_DURATION_MAX_SECS: Final = 366 * 86400
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """Read a duration: ``500ms``, ``30s``, ``5m``, ``2h``, ``1d``, or a number of seconds.

    Raises:
        UsageError: the text is no duration.
    """
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text.strip()[len(number) :]
    try:
        value = float(number) * _UNITS[unit or "s"]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 <= value <= _DURATION_MAX_SECS:
        raise UsageError(f"{text[:40]!r} is no duration; write 500ms, 30s, 5m or 2h")
    return value


def content(text: str, what: str, limit: int = 0) -> str:
    """Return an argument's content: ``-`` is standard input, ``@file`` is a file, anything else is itself.

    Args:
        text: the argument.
        what: names it in messages.
        limit: the most that is read, in bytes; 0: :data:`DATA_MAX_BYTES`.

    Raises:
        UsageError: it cannot be read, is too large, or is not UTF-8.
    """
    limit = limit or DATA_MAX_BYTES
    if text == "-":
        return _decoded(_standard_input(what, limit), f"What standard input has for {what}")
    if text.startswith("@"):
        return _decoded(_file(text[1:], what, limit), f"The file {text[1:]!r} for {what}")
    return text


def json_fault(data: str) -> str:
    """Return why data that begins as a JSON object is not valid; empty if it is valid, or is meant as text."""
    if not data.lstrip().startswith("{"):
        return ""
    import json

    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        hint = "; keys and texts are in double quotes" if "'" in data else ""
        return f"{error.msg} at line {error.lineno} column {error.colno}{hint}"
    except (ValueError, RecursionError):
        return ""  # the broker says what is wrong with it
    return ""


def at_path(value: object, path: str) -> object:
    """Return the value at a path of keys joined by dots, such as ``net.ip``; a key may have dots itself.

    Raises:
        KeyError: there is none.
    """
    if not isinstance(value, Mapping):
        raise KeyError(path)
    if path in value:
        found: object = value[path]
        return found
    begin, dot, rest = path.partition(".")
    while dot:
        if begin in value:
            try:
                return at_path(value[begin], rest)
            except KeyError:
                pass
        more, dot, rest = rest.partition(".")
        begin = f"{begin}.{more}"
    raise KeyError(path)


def secret(text: str, what: str) -> str:
    """Return a key or a token: itself, or the content of ``@file`` or of ``-`` without the newline at its end.

    Raises:
        UsageError: it cannot be read, or it is empty.
    """
    found = content(text, what, _SECRET_MAX_BYTES)
    if found is text:
        return text
    found = found.rstrip("\r\n")
    if not found:
        raise UsageError(f"The file or standard input that {what} names is empty")
    return found


def secret_file(path: str, what: str) -> str:
    """Return the secret in a file, without the newline at its end; errors as of :func:`secret`."""
    return secret(path if path == "-" else f"@{path}", what)


def _standard_input(what: str, limit: int) -> bytes:
    if sys.stdin is None:
        raise UsageError(f"Standard input is closed; {what} was to be read from it")
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise UsageError(f"Standard input for {what} is larger than {limit} bytes")
    return data


def _file(path: str, what: str, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs a one-shot call more than reading the file
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"The file {path!r} that {what} names cannot be read: {why}") from None
    if len(data) > limit:
        raise UsageError(f"The file {path!r} that {what} names is larger than {limit} bytes")
    return data


def _decoded(data: bytes, what: str) -> str:
    from bpbroker.text import decode

    try:
        return decode(data)
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not UTF-8 text (nor UTF-16 with a byte order mark)") from None


class Secrets:
    """What the options and the environment say of a broker: how to be let in, and by what to recognise it.

    Args:
        key: access key; empty if none was given.
        fingerprints: SHA-256 of the certificates that the broker may have, canonical.
        discovery: the discovery secret of its registry.
        addresses: where a join token says that it is.
        registry: the id of the registry that a join token's key is for; empty if it does not say.
    """

    __slots__ = ("addresses", "discovery", "fingerprints", "key", "registry")

    def __init__(
        self,
        key: str = "",
        fingerprints: Sequence[str] = (),
        discovery: str = "",
        addresses: Sequence[str] = (),
        registry: str = "",
    ) -> None:
        self.key = key
        self.registry = registry
        self.fingerprints = tuple(fingerprints)
        self.discovery = discovery
        self.addresses = tuple(addresses)


def secrets(given: Mapping[str, str | None], environ: Mapping[str, str] = os.environ) -> Secrets:
    """Work out what is known of the broker: options before the environment, the more particular before the token.

    Args:
        given: the options ``access_key``, ``access_key_file``, ``token`` and ``fingerprint``, None where absent.
        environ: for ``BPBROKER_ACCESS_KEY`` and ``BPBROKER_TOKEN``.

    Raises:
        UsageError: one of them cannot be used.
    """
    given_token = given.get("token")
    token_word = given_token or environ.get("BPBROKER_TOKEN", "")
    found = Secrets()
    if token_word:
        from bpbroker.discovery.jointoken import parse_token

        token = parse_token(secret(token_word, "the join token"))
        found = Secrets(token.key, token.fingerprints, token.secret, token.addresses, token.registry)
    key = given.get("access_key")
    key_file = given.get("access_key_file")
    if key is not None:
        found.key = secret(key, "--access-key")
    elif key_file:
        found.key = secret_file(key_file, "--access-key-file")
    elif environ.get("BPBROKER_ACCESS_KEY") and not (given_token and found.key):
        found.key = secret(environ["BPBROKER_ACCESS_KEY"], "BPBROKER_ACCESS_KEY")
    if found.registry and found.key != token.key:
        found.registry = ""  # it says whose key the token's own is
    fingerprint = given.get("fingerprint")
    if fingerprint:
        from bpbroker.discovery.jointoken import canonical_fingerprint

        found.fingerprints = (canonical_fingerprint(fingerprint),)
    return found


def split_cols(arguments: Sequence[str], commands: Container[str], flags: Container[str]) -> Iterator[str]:
    """Yield the arguments with ``--cols a b`` written as ``--cols=a --cols=b``, which click understands.

    0.22 took any number of words after ``--cols``, up to the next option. Here
    they also end at the name of a command.

    Args:
        arguments: as the shell gave them.
        commands: the names of all commands.
        flags: the options that take no value; what follows any other one is its value, whatever it looks like.
    """
    rest = iter(arguments)
    collecting = False
    for argument in rest:
        if argument == "--":
            yield argument
            yield from rest
            return
        if collecting and not argument.startswith("-") and argument not in commands:
            yield f"--cols={argument}"
            continue
        collecting = argument == "--cols"
        if collecting:
            continue
        yield argument
        if argument.startswith("-") and wants_next(argument, flags):
            yield from islice(rest, 1)


def wants_next(option: str, flags: Container[str]) -> bool:
    """Whether the value of an option is the next word."""
    if option.startswith("--"):
        return "=" not in option and option not in flags
    # Flags together, as in -qf json; the first letter that is none takes what is left of the word, as in -fjson.
    valued = next((at for at in range(1, len(option)) if f"-{option[at]}" not in flags), 0)
    return valued == len(option) - 1 > 0

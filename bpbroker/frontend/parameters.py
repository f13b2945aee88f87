"""A request's parameters: from the query string, else from a form, else from a JSON body. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from bpbroker.errors import BadRequest, TooLarge
from bpbroker.messages import WAIT_MAX_SECS
from bpbroker.registry import entry_values

_FIELDS_MAX: Final = 200
_KEY_NAMES: Final = ("access_key", "access-key")


class Parameters:
    """The parameters of a request, with the access keys apart from all others."""

    def __init__(
        self,
        values: Mapping[str, Any],
        keys: tuple[object, ...],
        pairs: Sequence[tuple[str, str]] = (),
        body_bytes: int | None = None,
    ) -> None:
        self._pairs = pairs
        self.values = values
        """First value of each parameter; text, or any JSON value from a JSON body."""
        self.keys = keys
        """Every access key that was given and is not empty."""
        self.body_bytes = body_bytes
        """Size of the JSON body that they were read from; None if they came otherwise."""

    def text(self, name: str) -> str | None:
        """Return a parameter as text; None if it is not there.

        Raises:
            BadRequest: it is a JSON value of another kind.
        """
        if name not in self.values:
            return None
        value = self.values[name]
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        raise BadRequest(f"The parameter {name} must be text")

    def several(self, name: str) -> list[object]:
        """Return all values of a parameter that may be given several times: a list in a JSON body."""
        found: list[object] = [value for key, value in self._pairs if key == name]
        value = self.values.get(name)
        return found or (list(value) if isinstance(value, list) else [] if value is None else [value])

    def texts(self) -> dict[str, str]:
        """Return all of them as text, other JSON values as their JSON: what an extension sees."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in self.values.items()
        }

    def name(self, max_bytes: int) -> str:
        """Return the entry's name.

        Raises:
            BadRequest: it is missing or cannot be a name.
        """
        if "name" not in self.values:
            raise BadRequest("Missing name parameter")
        return entry_values.check_name(self.values["name"], max_bytes=max_bytes)

    def data(self, max_bytes: int, max_depth: int, *, needed: bool = True) -> Mapping[str, Any]:
        """Return the entry's own part; empty if it is not there and not needed.

        Raises:
            BadRequest, TooLarge: it is missing or cannot be stored.
        """
        if "data" not in self.values:
            if not needed:
                return {}
            raise BadRequest("Missing data parameter")
        value = self.values["data"]
        if isinstance(value, str):
            return entry_values.parse(value, max_bytes=max_bytes, max_depth=max_depth)
        if not isinstance(value, dict):
            text = json.dumps(value, ensure_ascii=False)
            # Text that does not begin as an object is kept as it is, after the same checks.
            return entry_values.parse(text, max_bytes=max_bytes, max_depth=max_depth)
        if entry_values.too_deep(value, max_depth):
            raise BadRequest(f"The data cannot be used: it is nested deeper than {max_depth}")
        own = entry_values.check_object(value)
        if len(own.json) > max_bytes:
            raise TooLarge(f"The data is larger than {max_bytes} bytes")
        return own

    def unset(self) -> tuple[str, ...]:
        """Return the keys that an update removes; none if it says nothing of them.

        Raises:
            BadRequest: one of the keys cannot be removed.
        """
        return entry_values.check_unset(self.several("unset")) if "unset" in self.values else ()

    def seconds(self, name: str) -> float:
        """Return a parameter as seconds, 0 if it is not there.

        Raises:
            BadRequest: it is no number from 0 to 600.
        """
        text = self.text(name)
        if not text:
            return 0.0
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= WAIT_MAX_SECS:
            raise BadRequest(f"The parameter {name} must be a number of seconds from 0 to {WAIT_MAX_SECS:g}")
        return value

    def count(self, name: str) -> int:
        """Return a parameter as a whole number, 0 if it is not there.

        Raises:
            BadRequest: it is no whole number, or negative.
        """
        text = self.text(name) or "0"
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise BadRequest(f"The parameter {name} must be a whole number")
        return int(text)


def parse(query: str, content_type: str, body: bytes, max_depth: int) -> Parameters:
    """Read the parameters of a request.

    Args:
        query: the query string as it came, without the question mark.
        content_type: of the body; may be empty.
        body: the whole body.
        max_depth: how deep an entry may be nested.

    Raises:
        BadRequest: they cannot be read.
    """
    if query:
        return _pairs(query)
    if not body:
        return _NONE
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return _json(body, max_depth)
    if kind in ("application/x-www-form-urlencoded", ""):
        try:
            return _pairs(body.decode())
        except UnicodeDecodeError:
            raise BadRequest("The form is not valid UTF-8") from None
    raise BadRequest("The body must be JSON (application/json) or a form (application/x-www-form-urlencoded)")


def _pairs(text: str) -> Parameters:
    try:
        pairs = split(text)
    except UnicodeDecodeError:
        raise BadRequest("The parameters are not valid UTF-8") from None
    values: dict[str, Any] = {}
    keys: list[str] = []
    for name, value in pairs:
        if name not in _KEY_NAMES:
            values.setdefault(name, value)
        elif value:
            keys.append(value)
    return Parameters(values, tuple(keys), pairs)


def split(text: str) -> list[tuple[str, str]]:
    """Return the names and values of a query or form, as :func:`urllib.parse.parse_qsl` does in twice the time.

    Raises:
        UnicodeDecodeError: what is escaped is not valid UTF-8.
        BadRequest: there are too many.
    """
    parts = text.split("&")
    if len(parts) > _FIELDS_MAX:
        raise BadRequest(f"There are more than {_FIELDS_MAX} parameters")
    pairs = []
    for part in parts:
        name, _, value = part.partition("=")
        if "%" in part or "+" in part:
            name, value = _unescaped(name), _unescaped(value)
        if part:
            pairs.append((name, value))
    return pairs


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ")).decode() if "%" in text else text.replace("+", " ")


def _json(body: bytes, max_depth: int) -> Parameters:
    value = json_object(body, max_depth + 1)
    keys = tuple(value.pop(name) for name in _KEY_NAMES if name in value)
    return Parameters(value, tuple(key for key in keys if key != "" and key is not None), (), len(body))


def json_object(body: bytes, max_depth: int) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        BadRequest: the body is something else.
    """
    try:
        value = entry_values.strict_json(body.decode(), what="The request body", max_depth=max_depth)
    except UnicodeDecodeError:
        raise BadRequest("The request body is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"The request body is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    if not isinstance(value, dict):
        raise BadRequest("The request body must be a JSON object")
    return value


_NONE: Final = Parameters({}, ())

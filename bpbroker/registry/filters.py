"""Which entries count for a List: those whose fields have certain values. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from bpbroker.errors import BadRequest
from bpbroker.messages import Record

Conditions = tuple[tuple[str, str], ...]
"""Dotted paths of fields and their values as text."""

_MAX: Final = 16


def parse(texts: Sequence[object], what: str) -> Conditions:
    """Return the conditions of ``FIELD=VALUE`` texts.

    Raises:
        BadRequest: one is none.
    """
    if len(texts) > _MAX:
        raise BadRequest(f"There may be at most {_MAX} {what}")
    found = []
    for text in texts:
        field, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
        if not equals or not all(field.split(".")):
            raise BadRequest(f"{what} must be FIELD=VALUE, such as state=ready, not {str(text)[:80]!r}")
        found.append((field, value))
    return tuple(found)


def matches(record: Record, conditions: Conditions) -> bool:
    """Return whether an entry has all of these values."""
    value = json.loads(record.json)
    return all(_text(_field(value, path)) == wanted for path, wanted in conditions)


_ABSENT: Final = object()


def _field(value: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _text(value: Any) -> str | None:
    """Return a field's value as it is written in a condition; None if the field is not there."""
    if value is _ABSENT:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

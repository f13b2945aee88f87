"""The conditions of a List: fields of an entry and their values. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from bpbroker.errors import BadRequest
from bpbroker.record import Record

Conditions = tuple[tuple[str, str], ...]
"""Dotted paths of fields and their values as text."""

_MAX: Final = 16
_FIELD_MAX: Final = 1024


def parse(texts: Sequence[object], what: str) -> Conditions:
    """Return the conditions of ``FIELD=VALUE`` texts.

    Raises:
        BadRequest: one of the texts is no condition.
    """
    if len(texts) > _MAX:
        raise BadRequest(f"There may be at most {_MAX} {what}")
    found = []
    for text in texts:
        field, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
        if len(field) > _FIELD_MAX:
            raise BadRequest(f"A field of {what} has at most {_FIELD_MAX} characters")
        if not equals or not all(field.split(".")):
            raise BadRequest(f"{what} must be FIELD=VALUE, such as state=ready, not {str(text)[:80]!r}")
        found.append((field, value))
    return tuple(found)


def value_of(record: Record) -> Any:
    """Return an entry's value, parsed once for all calls of :func:`has_all` and :func:`has_any`."""
    return json.loads(record.json)


def has_all(value: Any, conditions: Conditions) -> bool:
    """Return whether an entry's value meets all of the conditions."""
    return all(_text(_field(value, path)) == wanted for path, wanted in conditions)


def has_any(value: Any, conditions: Conditions) -> bool:
    """Return whether an entry's value meets one of the conditions."""
    return any(_text(_field(value, path)) == wanted for path, wanted in conditions)


class Sorted(NamedTuple):
    """The entries with one prefix, sorted by conditions."""

    counted: tuple[Record, ...]
    """The entries that meet all conditions."""
    listed: tuple[Record, ...]
    """The entries that a List shows: those that meet the conditions, and those that have failed."""
    failed: bool
    """Whether an entry has failed."""


def sort(records: tuple[Record, ...], where: Conditions, fail_where: Conditions) -> Sorted:
    """Sort entries by conditions; each entry is parsed once, and not at all without conditions."""
    if not where and not fail_where:
        return Sorted(records, records, failed=False)
    counted, listed, failed = [], [], False
    for record in records:
        value = value_of(record)
        counts, fails = has_all(value, where), has_any(value, fail_where)
        failed = failed or fails
        if counts:
            counted.append(record)
        if counts or fails:
            listed.append(record)
    return Sorted(tuple(counted), tuple(listed) if where else records, failed=failed)


_ABSENT: Final = object()


def _field(value: Any, path: str) -> Any:
    dot = "."
    while dot:  # the cost of a long path ends where the entry ends
        part, dot, path = path.partition(".")
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _text(value: Any) -> str | None:
    """Return a field's value as it is written in a condition; None if the field is not there."""
    if value is _ABSENT:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

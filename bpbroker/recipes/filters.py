"""Conditions on an entry's fields, as ``FIELD=VALUE``. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bpbroker.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def texts(where: Mapping[str, Any] | Sequence[str] | str) -> list[str]:
    """Return conditions as texts, ``FIELD=VALUE`` each.

    Raises:
        UsageError: a condition has no field.
    """
    found = stated(where)
    for each in found:
        if not each.partition("=")[1] or not each.partition("=")[0]:
            raise UsageError(f"{each[:80]!r} is no condition; write FIELD=VALUE, such as state=ready")
    return found


def stated(where: Mapping[str, Any] | Sequence[str] | str) -> list[str]:
    """Return conditions as texts; the broker refuses invalid ones."""
    if isinstance(where, str):
        return [where]
    if isinstance(where, Mapping):
        return [f"{field}={value if isinstance(value, str) else json.dumps(value)}" for field, value in where.items()]
    return list(where)


def matches(entry: Mapping[str, Any], condition: str) -> bool:
    """Return whether an entry's field, dotted if it is deep, has the value: as text, or as JSON."""
    field, _, wanted = condition.partition("=")
    value: Any = entry
    if field in entry:
        value = entry[field]
    else:
        for part in field.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
    return value == wanted if isinstance(value, str) else json.dumps(value, ensure_ascii=False) == wanted

"""What each write does to an entry: conditions, the entry that comes out, refusals. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable

from bpbroker.errors import AlreadyExists, PreconditionFailed, TooLarge
from bpbroker.messages import Condition, Delete, Record, Register, Replace, Update
from bpbroker.registry import entry

Write = Register | Replace | Update | Delete


def record(name: str, encoded: bytes) -> Record:
    """Give the record of an encoded entry."""
    return Record(name, encoded, entry.etag(encoded))


def outcome(message: Write, current: Record | None, now: float, max_bytes: int) -> Record | None:
    """Give the entry as it is after the write, None for no entry.

    Args:
        message: the write.
        current: the entry before it.
        now: Unix time in seconds.
        max_bytes: the most that a merged entry may take.

    Raises:
        BadRequest, PreconditionFailed, AlreadyExists, TooLarge: nothing is to be changed.
    """
    if not isinstance(message, Delete):
        entry.check_new_name(message.name)
    _check_condition(message.name, message.condition, current)
    if isinstance(message, Delete):
        return None
    if isinstance(message, Register) and current is not None:
        raise AlreadyExists(f"Entry '{message.name}' already exists")
    own = message.data
    if isinstance(message, Update) and current is not None:
        own = entry.deep_merge(entry.without_stamp(json.loads(current.json)), own)
        if len(entry.encode(own)) > max_bytes:
            raise TooLarge(f"The merged entry would be larger than {max_bytes} bytes; nothing was changed")
    return record(message.name, entry.encode(entry.stamp(own, message.source, now)))


def _check_condition(name: str, condition: Condition, current: Record | None) -> None:
    """Check ``If-Match`` and ``If-None-Match`` as RFC 9110, section 13.1, has them."""
    if condition.match is not None and not _tagged(condition.match, current):
        found = "it does not exist" if current is None else f"its tag is {_tag(current)}"
        raise PreconditionFailed(f"Entry '{name}' is not as expected: {found}")
    # Weak comparison here, strong above: a weak tag must never let a write through.
    if condition.none_match is not None and _tagged((tag.removeprefix("W/") for tag in condition.none_match), current):
        raise PreconditionFailed(f"Entry '{name}' is not as expected: it exists with tag {_tag(current)}")


def _tag(current: Record | None) -> str:
    return current.etag if current else ""


def _tagged(tags: Iterable[str], current: Record | None) -> bool:
    return current is not None and any(tag in ("*", current.etag) for tag in tags)

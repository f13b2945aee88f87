"""What each kind of write does to an entry. Pure functions: the same state and write give the same result.

To add a kind of write:

1. its message in ``messages.py``: a frozen dataclass with ``name`` and ``condition``, and what else it needs;
2. its function here: ``(write, current, now, max_bytes)`` → the entry after it, or a refusal that it raises;
3. one row in :data:`WRITES`, one name in :data:`Write`.

The registry takes it then, on each store: it decides the write on the staged
state, commits it with others, decides again after a conflict, and replies when
the entry is durable. What is left is how it is called: a row each in
``frontend/actions.py`` (HTTP) and ``extensions/registry_calls.py`` (``rh.registry``),
and a method in ``client/api.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from bpbroker.errors import AlreadyExists, PreconditionFailed, TooLarge
from bpbroker.messages import ALWAYS, ChangeKey, Condition, Delete, Record, Register, Replace, Update
from bpbroker.registry import entry, named_keys
from bpbroker.registry.etag import etag

Write = Register | Replace | Update | Delete | ChangeKey


def record(name: str, encoded: bytes) -> Record:
    """Return the record of an encoded entry."""
    return Record(name, encoded, etag(encoded))


def _register(write: Register, current: Record | None, now: float, _max_bytes: int) -> Record:
    if current is not None:
        raise AlreadyExists(f"Entry '{write.name}' already exists")
    return record(write.name, entry.encode(entry.stamp(write.data, write.source, now)))


def _replace(write: Replace, _current: Record | None, now: float, _max_bytes: int) -> Record:
    return record(write.name, entry.encode(entry.stamp(write.data, write.source, now)))


def _update(write: Update, current: Record | None, now: float, max_bytes: int) -> Record:
    own = write.data
    if current is not None:
        own = entry.deep_merge(entry.without_stamp(json.loads(current.json)), own)
        if len(entry.encode(own)) > max_bytes:
            raise TooLarge(f"The merged entry would be larger than {max_bytes} bytes; nothing was changed")
    return record(write.name, entry.encode(entry.stamp(own, write.source, now)))


def _delete(_write: Delete, _current: Record | None, _now: float, _max_bytes: int) -> None:
    return None


def _change_key(write: ChangeKey, current: Record | None, now: float, _max_bytes: int) -> Record:
    value = None if current is None else json.loads(current.json)
    name = write.name.removeprefix(named_keys.PREFIX)
    after = named_keys.changed(write.kind, name, value, write.given, now)
    return current if current is not None and after == value else record(write.name, entry.encode(after))


WRITES: Final[dict[type[Any], Callable[[Any, Record | None, float, int], Record | None]]] = {
    Register: _register,
    Replace: _replace,
    Update: _update,
    Delete: _delete,
    ChangeKey: _change_key,
}
"""Message type to what it does."""


def decide(write: Write, current: Record | None, now: float, max_bytes: int) -> Record | None:
    """Return the entry as it is after a write, None for no entry.

    Args:
        write: the write.
        current: the entry before it.
        now: Unix time in seconds.
        max_bytes: the most that a merged entry may take.

    Raises:
        BadRequest, PreconditionFailed, AlreadyExists, TooLarge: nothing is to be changed.
    """
    if type(write) is not Delete:
        entry.check_new_name(write.name)
    if write.condition is not ALWAYS:
        _check_condition(write.name, write.condition, current)
    return WRITES[type(write)](write, current, now, max_bytes)


def _check_condition(name: str, condition: Condition, current: Record | None) -> None:
    """Check ``If-Match`` and ``If-None-Match`` as RFC 9110, section 13.1, defines them."""
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

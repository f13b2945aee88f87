"""Changes and records for tests of stores."""

from __future__ import annotations

from collections.abc import Mapping

from bpbroker.record import Record
from bpbroker.registry.changes import Change, Group
from bpbroker.registry.stored import split


def change(name: str, value: bytes | None, index: int = 0) -> Group:
    """Return one change as a group of its own."""
    return Group((Change(name, None if value is None else Record(name, value, index), place=index),))


def without_revisions(entries: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return stored records as clients see them."""
    return {name: split(name, value).json for name, value in entries.items()}

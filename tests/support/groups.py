"""Groups of changes and what a store holds, in the few words that tests need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpbroker.record import Record
from bpbroker.registry.changes import ANYTHING, Anything, Change, Group, Seen
from bpbroker.registry.stored import split

if TYPE_CHECKING:
    from bpbroker.storage.etcd.store import EtcdStore


def change(name: str, json: bytes | None, expects: int | Anything = ANYTHING, index: int = 0) -> Change:
    """Return a change to this JSON; None deletes."""
    return Change(name, None if json is None else Record(name, json, index), expects, index)


def one(name: str, json: bytes | None, expects: int | Anything = ANYTHING, index: int = 0) -> Group:
    """Return a group of one change."""
    return Group((change(name, json, expects, index),))


def value(seen: Seen) -> bytes | None:
    """Return the JSON that a store held."""
    return None if seen.record is None else seen.record.json


def peeked(store: EtcdStore) -> dict[str, bytes]:
    """Return what is in a store: name to JSON."""
    return {name: split(name, stored).json for name, stored in store.peek().items()}

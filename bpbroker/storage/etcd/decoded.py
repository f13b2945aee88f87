"""What values in etcd were found to be: the same value of the same key is decoded and checked once.

A broker's own writes come back with its watch, and most reads find what was read or written before.

A value that is kept counts only for a value that is the same, byte for byte, under the same key: of the same
revision and timeline, or written by this broker, whose record has no revision of its own yet.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

from bpbroker.record import Record
from bpbroker.registry.changes import Seen
from bpbroker.storage.etcd.keys import Keys, as_seen
from bpbroker.storage.etcd.restore_detection import Moment

KEPT_BYTES: Final = 4 * 1024 * 1024
"""Of keys and values that are kept, about; beyond it all are dropped at once."""
_MORE_BYTES: Final = 400
"""What one takes beside its value, about."""


class Decoded:
    """Turns keys and values of etcd into what was seen; any thread may use it.

    Args:
        keys: of the registry.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, int, Record]] = {}
        """Key, as the gateway gives it, to its value, the version (0: not known yet), and the record."""
        self._bytes = 0

    def written(self, key: str, value: str, record: Record) -> None:
        """Remember what is about to be written; the record's revision is its place in the commit."""
        self._keep(key, value, 0, record)

    def seen(self, key: str, kv: Mapping[str, Any] | None, as_of: int, moment: Moment) -> Seen:
        """Return what a key's value is as a record, as :func:`bpbroker.storage.etcd.keys.as_seen` does."""
        if kv is None:
            self._known.pop(key, None)  # the value may be a secret that was taken
            return as_seen(self._keys.name(key), None, as_of, moment)
        value, revision = kv.get("value", ""), int(kv["mod_revision"])
        version = moment.version(revision)
        known = self._known.get(key)
        if known is not None and known[0] == value:
            _, at, record = known
            if not at:
                record = record.at(moment.registry.revision(revision))
                self._known[key] = value, version, record
            if not at or at == version:
                return Seen(record.name, record, version, moment.version(as_of))
        found = as_seen(self._keys.name(key), kv, as_of, moment)
        if found.record is not None and not found.fault:
            self._keep(key, value, version, found.record)
        return found

    def _keep(self, key: str, value: str, version: int, record: Record) -> None:
        with self._lock:
            self._bytes += len(value) + _MORE_BYTES
            if self._bytes > KEPT_BYTES:
                self._known.clear()
                self._bytes = len(value) + _MORE_BYTES
            self._known[key] = value, version, record

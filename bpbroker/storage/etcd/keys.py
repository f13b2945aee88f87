"""What is under which key of a registry in etcd.

Each key is behind the configured prefix and a slash::

    registry          {"id": …, "format": 2, "base": …}, see :mod:`bpbroker.storage.etcd.registry_id`
    entries/<name>    an entry in its stored form; etcd's mod_revision is in its version and its revision
    entries/_…        a record of the registry itself; entries/_session/<id> has a lease
    commits/<random>  a broker's last commit, see :mod:`bpbroker.storage.etcd.commits`
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bpbroker.errors import BadRequest
from bpbroker.registry import entry_values, stored
from bpbroker.registry.changes import Seen
from bpbroker.storage.etcd.responses import decode, encode
from bpbroker.storage.etcd.restore_detection import Moment

NAME_MAX_BYTES: Final = 4096
"""Longest name that any broker may allow."""
_INTERNAL: Final = "_"
"""Names of the registry's own records begin with it; those of entries never do."""


class Keys:
    """The keys of one registry, as the gateway takes them."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.rstrip("/")
        base = f"{self.prefix}/".encode()
        self._base = base
        self._entries = base + b"entries/"
        self._commits = base + b"commits/"
        self.registry = encode(base + b"registry")

    def entry(self, name: str) -> str:
        """Return the key of an entry."""
        return encode(self._entries + name.encode())

    def name(self, key: str) -> str:
        """Return the name of the entry with this key."""
        return decode(key)[len(self._entries) :].decode(errors="replace")

    def commit(self, broker: str) -> str:
        """Return the key of a broker's last commit."""
        return encode(self._commits + broker.encode())

    def entries(self, prefix: str) -> tuple[str, str]:
        """Return begin and end of the keys of all entries whose names begin with ``prefix``."""
        begin = self._entries + prefix.encode()
        return encode(begin), encode(_after(begin))

    def span(self, first: str, last: str) -> tuple[str, str]:
        """Return begin and end of the keys from one entry to another, both included."""
        return self.entry(first), encode(decode(self.entry(last)) + b"\0")

    def clients(self, prefix: str) -> list[tuple[str, str]]:
        """Return begin and end of the keys of entries whose names begin with ``prefix``.

        The registry's own records are in it only if ``prefix`` is one of theirs.
        """
        begin, end = self.entries(prefix)
        if prefix:
            return [(begin, end)]
        internal, after = self.entries(_INTERNAL)
        return [(begin, internal), (after, end)]

    def followed(self) -> tuple[str, str]:
        """Return begin and end of a range that has all entries, and ``registry``."""
        return encode(self._entries), encode(decode(self.registry) + b"\0")

    def is_entry(self, key: str) -> bool:
        """Return whether this is the key of an entry, or of a record of the registry itself."""
        return decode(key).startswith(self._entries)

    def commits(self) -> tuple[str, str]:
        """Return begin and end of the keys of all brokers' last commits."""
        return encode(self._commits), encode(_after(self._commits))

    def gaps(self) -> Iterator[tuple[str, str]]:
        """Yield begin and end of every range behind the prefix in which only ``registry`` may be."""
        registry = decode(self.registry)
        yield encode(self._base), encode(self._commits)
        yield encode(_after(self._commits)), encode(self._entries)
        yield encode(_after(self._entries)), encode(registry)
        yield encode(registry + b"\0"), encode(_after(self._base))


def _after(prefix: bytes) -> bytes:
    """Return the first key behind all that begin with ``prefix``; UTF-8 never has a byte 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def as_seen(name: str, kv: Mapping[str, Any] | None, as_of: int, moment: Moment) -> Seen:
    """Return what a key's value is as a record.

    ``as_of`` is a revision; ``moment`` is from before the request, and knows the registry.
    """
    if kv is None:
        return Seen(name, None, 0, moment.version(as_of))
    at = int(kv["mod_revision"])
    value = decode(kv.get("value", ""))
    record = stored.split(name, value, moment.registry.revision(at))
    return Seen(name, record, moment.version(at), moment.version(as_of), _fault(name, value))


def _fault(name: str, value: bytes) -> str:
    try:
        if not name.startswith(_INTERNAL):
            entry_values.check_name(name, max_bytes=NAME_MAX_BYTES)
        found = json.loads(value)
    except (ValueError, RecursionError):
        return f"Entry '{name[:64]}' in etcd is no JSON"
    except BadRequest as error:
        return f"A key in etcd cannot be an entry's name: {error}"
    return "" if isinstance(found, dict) else f"Entry '{name[:64]}' in etcd is no JSON object"


def revision_of(answer: Mapping[str, Any]) -> int:
    """Return the revision of the cluster that an answer is of."""
    return int(answer["header"]["revision"])

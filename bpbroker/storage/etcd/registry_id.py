"""Which registry is in etcd, and which revisions its commits have. Pure.

A commit at etcd's revision M has the revision ``base + M * INDEX_MAX``, and the
changes in it count on from there. A cluster that is restored from a snapshot
reaches the same M with other contents. So the registry in it gets a new id then,
and a base that is higher than every revision before.

A base is also not below the Unix time of its making in 1/1024 milliseconds. No
cluster makes so many commits (250 a second, for years). So a registry that is made
anew begins above the one before, too, although it knows nothing of it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bpbroker.errors import ConfigurationError
from bpbroker.record import INDEX_MAX
from bpbroker.storage.etcd.responses import decode, encode

FORMAT: Final = 2
"""Of what is behind the prefix. Format 1 had no base, and no records of the registry itself."""

REVISION_END: Final = 1 << 53
"""Revisions are below: JSON's numbers are exact up to here everywhere."""

_MARGIN: Final = 1_000_000 * INDEX_MAX
"""How many more revisions of a lost history other brokers may know than the one that sets the new base."""
_TIME_STEPS: Final = 1024
_TIME_MAX: Final = 1 << 52
"""Highest base that comes from the clock alone: it may be wrong by centuries."""


class NotOurs(ValueError):
    """What is under the registry's key was made by another program."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A registry as its key describes it."""

    registry_id: str
    """32 hexadecimal digits."""
    base: int
    value: str
    """Of the key, as the gateway gives it. Each commit compares it."""

    def revision(self, at: int) -> int:
        """Return the revision of a commit at a revision of etcd."""
        return self.base + at * INDEX_MAX

    def reached(self, at: int) -> int:
        """Return the highest revision that a change may have up to a revision of etcd."""
        return self.base + at * INDEX_MAX + INDEX_MAX - 1

    def check_room(self, at: int) -> None:
        """Raise ConfigurationError if a commit after ``at`` would have a revision that is too high."""
        if self.reached(at + 1) >= REVISION_END:
            raise ConfigurationError("The registry in etcd cannot count its revisions on: its key registry is damaged")


def made(above: int, registry_id: str = "") -> Identity:
    """Return the identity of a registry that begins after a revision; ``registry_id`` empty: with a new id."""
    base = max(above + _MARGIN if above else 0, min(int(time.time() * 1000) * _TIME_STEPS, _TIME_MAX), 0)
    registry_id = registry_id or secrets.token_hex(16)
    value = json.dumps({"id": registry_id, "format": FORMAT, "base": base})
    return Identity(registry_id, base, encode(value.encode()))


def read(value: str) -> Identity | str:
    """Return what is under the registry's key; of format 1 the registry's id alone.

    Raises:
        NotOurs: it is something else.
        ConfigurationError: it was made by a newer bpbroker.
    """
    try:
        found: Mapping[str, Any] = json.loads(decode(value))
        registry_id, version = str(found["id"]), int(found["format"])
        if version > FORMAT:
            raise ConfigurationError(
                f"The registry in etcd was made by a newer bpbroker (format {version}); upgrade this one"
            )
        if version == 1:
            return registry_id
        base = found["base"]
    except (ValueError, TypeError, KeyError) as error:
        raise NotOurs from error
    if version != FORMAT or not isinstance(base, int) or not 0 <= base < REVISION_END:
        raise NotOurs
    return Identity(registry_id, base, value)

"""Whether the cluster still has the history that we know.

A cluster that is restored from a snapshot goes back: its revisions start again
at a lower number, and reach the same numbers with other contents. Earlier
knowledge is worthless then. So every answer is compared with the known id of
the cluster and the known revision, and every new connection, before it is used,
with a *witness*: the newest change that we know. A restored member is a new
process, so no answer of it comes over an old connection.

The member's id and its Raft term say nothing: a member may be replaced, and
terms differ between members for a moment.

Which registry is there is known as well: it has revisions of its own
(:mod:`bpbroker.storage.etcd.registry_id`), and they must not go back.

What is known belongs to a timeline, and timelines are numbered. A version is
the number of its timeline and a revision of etcd in one integer, so that
versions grow even when revisions go back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from bpbroker.errors import Unavailable
from bpbroker.storage.etcd.registry_id import Identity
from bpbroker.storage.etcd.responses import Failed

logger = logging.getLogger(__name__)

_SPAN: Final = 1 << 64
"""Revisions of etcd are below."""
_NEVER: Final = -1
"""No key has this revision."""

WENT_BACK: Final = "The registry's etcd cluster was restored from an older snapshot: all entries are read anew"
ANOTHER: Final = "The registry's etcd cluster is another one, or a restored one: all entries are read anew"
FORGOTTEN: Final = "The registry's etcd cluster has forgotten what we knew last: all entries are read anew"
RESTORED_MEANWHILE: Final = (
    "The registry's etcd cluster was restored from an older snapshot while this broker did not run, or is another one"
)
REPLACED: Final = "The registry in etcd is another one than before: all entries are read anew"


class Restored(Unavailable):
    """Nothing that was known before holds any more; ``outcome_known`` is False if a request may have been received."""


@dataclass(frozen=True, slots=True)
class Witness:
    """The newest change that we know."""

    key: str
    """As the gateway gives it."""
    revision: int
    value: str | None
    """As the gateway gives it; None for a deletion."""

    def is_newest(self, kv: Mapping[str, Any] | None) -> bool:
        """Whether the key's present state, None for none, is this change."""
        return self.value is not None and self._is(kv)

    def is_in(self, at: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> bool:
        """Whether this change is in a history that has the key like this at its revision, and at the one before."""
        return (at is None and before is not None) if self.value is None else self._is(at)

    def _is(self, kv: Mapping[str, Any] | None) -> bool:
        return kv is not None and int(kv["mod_revision"]) == self.revision and kv.get("value", "") == self.value


@dataclass(frozen=True, slots=True)
class Moment:
    """What was known before a request was sent."""

    timeline: int
    """The number of the timeline."""
    revision: int
    """Every later answer has this one or a higher one."""
    witness: Witness | None
    identity: Identity | None = None
    """The registry; None if it is not known yet in this timeline."""

    @property
    def registry(self) -> Identity:
        """The registry; it must be known."""
        if self.identity is None:
            raise RuntimeError("The registry is not known")
        return self.identity

    def of(self, identity: Identity) -> Moment:
        """Return the same moment with the registry that was found since."""
        return replace(self, identity=identity)

    def version(self, revision: int) -> int:
        """Return the version that stands for a revision of this timeline."""
        return self.timeline * _SPAN + revision

    def revision_of(self, version: int) -> int:
        """Return the revision to expect for a version, 0 for no entry; of another timeline one that no key has."""
        timeline, revision = divmod(version, _SPAN)
        return revision if timeline == self.timeline or not version else _NEVER

    def has(self, version: int) -> bool:
        """Whether a version is of the present timeline."""
        return version // _SPAN == self.timeline


class Timeline:
    """What all connections to a cluster know of its history; any thread may use it.

    Args:
        begun: is called after a new timeline began, in the thread that noticed.
    """

    def __init__(self, begun: Callable[[], None] = lambda: None) -> None:
        self._begun = begun
        self._lock = threading.Lock()
        self._number = 0
        self._cluster = ""
        self._revision = 0
        self._witness: Witness | None = None
        self._identity: Identity | None = None
        self._floor = 0
        self._why = ""
        """Why the present timeline began."""
        self._notice = ""
        """The same until it was said."""

    @property
    def floor(self) -> int:
        """The highest revision of all lost histories; a registry with a lower base must get a higher one."""
        return self._floor

    @property
    def number(self) -> int:
        """How often a new timeline has begun."""
        return self._number

    def raise_floor(self, reached: int) -> None:
        """Note that a lost history had revisions up to this one."""
        with self._lock:
            self._floor = max(self._floor, reached)

    @property
    def reached(self) -> tuple[str, int]:
        """The cluster's id and its highest revision that are known; empty and 0 before an answer."""
        with self._lock:
            return self._cluster, self._revision

    def moment(self) -> Moment:
        """Return the present knowledge; call it before a request is made."""
        with self._lock:
            return Moment(self._number, self._revision, self._witness, self._identity)

    def adopt(self, identity: Identity, before: Moment) -> Moment:
        """Take the registry that was found; return ``before`` with it.

        Raises:
            Restored: another one was known, or what was known does not hold any more.
        """
        with self._lock:
            known = self._number == before.timeline and self._identity in (None, identity)
            if known:
                self._identity = identity
        if not known:
            self.begin(before, REPLACED)
        return before.of(identity)

    def take_notice(self) -> str:
        """Return once why the present timeline began; empty if that was said already."""
        with self._lock:
            notice, self._notice = self._notice, ""
        return notice

    def check(self, answer: Mapping[str, Any], before: Moment) -> None:
        """Compare a linearizable answer with the knowledge before its request was sent, and learn from it.

        Raises:
            Restored: it is of another history.
            Failed: it has no header.
        """
        try:
            header = answer["header"]
            cluster, revision = str(header["cluster_id"]), int(header["revision"])
        except (KeyError, TypeError, ValueError):
            raise Failed("it answers something else than etcd does", sent=True) from None
        with self._lock:
            if self._number != before.timeline:
                raise Restored(self._why)
            if self._cluster in ("", cluster) and revision >= before.revision:
                self._cluster, self._revision = cluster, max(self._revision, revision)
                return
            why = WENT_BACK if self._cluster == cluster else ANOTHER
        self.begin(before, why)

    def note(self, key: str, revision: int, value: str | None, before: Moment) -> None:
        """Take a change, seen in an answer that was checked, as witness if it is the newest."""
        with self._lock:
            if before.timeline == self._number and (self._witness is None or revision > self._witness.revision):
                self._witness = Witness(key, revision, value)

    def begin(self, before: Moment, why: str) -> NoReturn:
        """Begin a new timeline, unless another thread did so after ``before``.

        Raises:
            Restored: always.
        """
        with self._lock:
            new = self._number == before.timeline
            if new:
                self._number += 1
                if self._identity is not None and why in (WENT_BACK, ANOTHER):
                    self._floor = max(self._floor, self._identity.reached(self._revision))
                self._cluster, self._revision, self._witness, self._identity = "", 0, None, None
                self._why = why
                self._notice = why if why != FORGOTTEN else ""
        if new and why:  # without one we did it ourselves
            logger.log(logging.WARNING if why == FORGOTTEN else logging.ERROR, "%s", why)
            self._begun()
        raise Restored(self._why)

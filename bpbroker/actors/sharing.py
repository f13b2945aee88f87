"""What the registry needs beside its entries when its store is shared with other brokers.

The store's calls may take seconds, so each kind has a lane, an actor of its own
that makes one call at a time; reads that come while one is under way go into
the next one together. A thread follows what other brokers change. All of them
tell the registry, and only its thread touches what is here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from bpbroker.actors.base import Actor, ActorAddress, launch
from bpbroker.errors import BpbrokerError, StorageFull, Unavailable
from bpbroker.registry.changes import READ_MAX, Broken, Change, Outcome, Seen, State
from bpbroker.storage.base import SharedStore

logger = logging.getLogger(__name__)

AWAY: Final = "The registry's store does not answer"

CHECK_SECS: Final = 1.0
"""A store that nobody has used for so long is asked whether it is there."""
_STOP_SECS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Done:
    """A lane to the registry: a call has ended."""

    take: Callable[[Any], None]
    """Takes the result, or the error, in the registry's thread."""
    result: Any


@dataclass(frozen=True, slots=True)
class _Work:
    """The registry to a lane: make this call."""

    call: Callable[[], Any]


_Read = tuple[str, Callable[[Unavailable | None], None]]
"""A name, and who wants to hear that it has been read."""


class _Lane(Actor):
    """Makes one call at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers = {_Work: lambda work: work.call()}


class Versions:
    """Which version of each entry is known, and so whether something that comes late is news. Pure.

    Names that are known to be absent are not kept one by one: ``floor`` is the
    newest version at which any name was seen to be absent.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._floor = 0
        self.newest = 0
        """Version of the last change of all."""

    def forget(self) -> None:
        """Forget everything: the store is another one."""
        self._known.clear()
        self._floor = self.newest = 0

    def __getitem__(self, name: str) -> int:
        """Give the version to expect; 0 for no entry."""
        return self._known.get(name, 0)

    def take(self, seen: Seen) -> bool | None:
        """Note what was seen: True if it is news, False if not, None if nobody can tell and it must be read again."""
        known = self._known.get(seen.name)
        if seen.value is None:
            if known is not None and known > seen.as_of:
                return False
            self._floor = max(self._floor, seen.as_of)
            if known is None:
                return False
            del self._known[seen.name]
            self.newest = max(self.newest, seen.as_of)
            return True
        if known is None and seen.as_of < self._floor:
            return None
        if known is not None and known >= seen.version:
            return False
        self._known[seen.name] = seen.version
        self.newest = max(self.newest, seen.version)
        return True


class Sharing:
    """The registry's side of a shared store.

    Args:
        store: open already, or not to be reached yet.
        version: what is known of it goes up to here; None if it could not be reached.
        tell: tells the registry.
        learn: takes what was read, in the registry's thread; False if that may be old and is to be read again.
    """

    def __init__(
        self, store: SharedStore, version: int | None, tell: Callable[[Any], None], learn: Callable[[Seen], bool]
    ) -> None:
        self.versions = Versions()
        self.faults: dict[str, str] = {}
        """Name to why what is there cannot be an entry."""
        self.trouble = ""
        """Why the store does not answer; empty while it does."""
        self._store = store
        self._tell = tell
        self._learn = learn
        self._lanes = {kind: ActorAddress(f"registry {kind}", launch(_Lane)) for kind in ("commit", "read", "scan")}
        self._reads: list[_Read] = []
        self._reading = False
        self._fresh_at = time.monotonic()
        self._broken_at: float | None = None
        threading.Thread(target=self._follow, args=(version,), name="registry follower", daemon=True).start()

    def age_secs(self) -> float:
        """Give how long ago what the registry knows was surely the newest state."""
        now = time.monotonic()
        return now - min(self._fresh_at, now if self._broken_at is None else self._broken_at)

    def close(self) -> None:
        """Stop lanes and follower; what is under way is given a moment."""
        for lane in self._lanes.values():
            lane.stop(_STOP_SECS)
        for _, take in self._reads:
            take(Unavailable("The broker is stopping"))

    # --- calls ---

    def commit(
        self, changes: Sequence[Change], take: Callable[[Sequence[Outcome] | BaseException], None]
    ) -> Future[Any]:
        """Have changes committed."""
        return self._call("commit", lambda: self._store.commit(changes), take)

    def scan(self, prefix: str, take: Callable[[State | BaseException], None]) -> None:
        """Have all entries read whose names begin with ``prefix``."""
        self._call("scan", lambda: self._store.scan(prefix), take)

    def probe(self, take: Callable[[object], None]) -> None:
        """Have it looked whether a commit would work now."""
        self._call("scan", self._store.probe, take)

    def read(self, name: str, take: Callable[[Unavailable | None], None]) -> None:
        """Have the newest state of a name read and learnt; then ``take`` hears how that went."""
        self._reads.append((name, take))
        if not self._reading:
            self._reading = True
            # Behind what is in the inbox: reads that came together are asked together.
            self._tell(Done(self._read, None))

    def _read(self, _: object = None) -> None:
        names = list(dict.fromkeys(name for name, _ in self._reads))[:READ_MAX]
        among = set(names)
        asking = [read for read in self._reads if read[0] in among]
        self._reads = [read for read in self._reads if read[0] not in among]

        def taken(result: Sequence[Seen] | BaseException) -> None:
            unsure: set[str] = set()
            if not isinstance(result, BaseException):
                unsure = {seen.name for seen in result if not self._learn(seen)}
            self._reads = [read for read in asking if read[0] in unsure] + self._reads
            self._read_ended([read for read in asking if read[0] not in unsure], result)

        self._call("read", lambda: self._store.read(names), taken)

    def _read_ended(self, asking: list[_Read], result: object) -> None:
        """Let everybody hear how the read of what they asked for went, and go on with those who came meanwhile."""
        failure = unavailable(result) if isinstance(result, BaseException) else None
        if failure is not None:
            asking, self._reads = asking + self._reads, []  # they would only wait for the same once more
        for _, take in asking:
            take(failure)
        self._reading = bool(self._reads)
        if self._reading:
            self._read()

    def _call(self, kind: str, call: Callable[[], Any], take: Callable[[Any], None]) -> Future[Any]:
        begun = time.monotonic()

        def settled(result: Any) -> None:
            if not isinstance(result, BaseException):
                self._answered(begun)
            elif isinstance(result, Unavailable) and not isinstance(result, StorageFull):
                self._failed(str(result) if result.outcome_known else AWAY)
            take(result)

        reply = self._lanes[kind].ask(_Work(call), float("inf"))
        reply.add_done_callback(lambda done: self._tell(Done(settled, done.exception() or done.result())))
        return reply

    # --- how the store is ---

    def _answered(self, begun: float) -> None:
        self._fresh_at = max(self._fresh_at, begun)
        if self.trouble:
            logger.info("The registry's store answers again")
            self.trouble = ""
            self._store.hurry()

    def _failed(self, why: str) -> None:
        if why != self.trouble:
            logger.warning("The registry's store: %s", why)
        self.trouble = why

    def look(self) -> float:
        """Have the store asked whether it is there if nobody has used it lately; gives when to look again."""
        now = time.monotonic()
        if now - self._fresh_at >= CHECK_SECS and not self._reading:
            self._reading = True
            self._call("read", self._store.check, lambda result: self._read_ended([], result))
        return now + CHECK_SECS

    # --- what others change ---

    def _follow(self, version: int | None) -> None:
        self._store.follow(version, self._tell)

    def watching(self) -> None:
        """Hear that the watch is up."""
        self._broken_at = None

    def broken(self, news: Broken) -> None:
        """Hear that the watch broke off."""
        if self._broken_at is None:
            self._broken_at = time.monotonic()
            logger.warning("The watch on the registry's store broke off: %s", news.why)


def unavailable(error: BaseException) -> Unavailable:
    """Give what a failed call of the store means to a client."""
    if isinstance(error, Unavailable):
        return error
    if not isinstance(error, BpbrokerError):
        logger.error("The store failed in a way that it should not", exc_info=error)
    return Unavailable("The registry's store failed; the broker's log has the reason")

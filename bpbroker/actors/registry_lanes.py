"""The threads of a registry whose store is shared: lanes that make its calls, and one that follows its changes.

The store's calls may take seconds, so each kind has a lane, an actor of its own
that makes one call at a time. Lanes and follower only send the result to the registry, whose thread does the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Literal

from bpbroker.actors.base import Actor, ActorAddress, launch
from bpbroker.registry.changes import News

Kind = Literal["commit", "read", "scan", "session"]

_KINDS: Final[tuple[Kind, ...]] = ("commit", "read", "scan", "session")
_STOP_SECS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Done:
    """From a lane to the registry: a call has ended."""

    then: Callable[[Any], None]
    """Called with the result, or the error, in the registry's thread."""
    result: Any = None


@dataclass(frozen=True, slots=True)
class _Work:
    """From the registry to a lane: make this call."""

    call: Callable[[], Any]


class _Lane(Actor):
    """Makes one call at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers = {_Work: lambda work: work.call()}


class Lanes:
    """The threads beside one registry actor.

    Args:
        tell: tells the registry :class:`Done`; from any thread.
    """

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell
        self._lanes = {kind: ActorAddress(f"registry {kind}", launch(_Lane)) for kind in _KINDS}

    def call(self, kind: Kind, call: Callable[[], Any], then: Callable[[Any], None]) -> Future[Any]:
        """Queue a call; ``then`` gets its result or its error later, in the registry's thread."""
        result = self._lanes[kind].ask(_Work(call), float("inf"))
        result.add_done_callback(lambda done: self._tell(Done(then, done.exception() or done.result())))
        return result

    def follow(self, follow: Callable[[int | None, Callable[[News], None]], None], after: int | None) -> None:
        """Send the store's changes after a version to the registry until the store is closed."""
        threading.Thread(target=follow, args=(after, self._tell), name="registry follower", daemon=True).start()

    def abandon(self) -> None:
        """End each lane as soon as its call does; from any thread, and waits for none."""
        for lane in self._lanes.values():
            lane.stop(0.0)
            lane.abandon()

    def stop(self) -> None:
        """Stop the lanes; wait a moment for each running call."""
        for lane in self._lanes.values():
            lane.stop(_STOP_SECS)

"""The calls that wait in the registry: reads, watches, and calls about locks. They need no thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bpbroker.actors.base import DEFERRED
from bpbroker.actors.registry_backend import Owner
from bpbroker.errors import Overloaded, RequestError, Unavailable
from bpbroker.messages import Get, List, fail, settle
from bpbroker.record import Record
from bpbroker.registry.filters import sort
from bpbroker.registry.parked import Key, ParkedCall
from bpbroker.registry.replies import not_found, send
from bpbroker.registry.requests import Watch
from bpbroker.registry.waiting_reads import Waiter

_TOLD_AT_ONCE: Final = 64
"""How many watches get their reply before the registry handles its other messages."""


@dataclass(frozen=True, slots=True)
class _TellWatches:
    """From the registry to itself: reply to watches, after the writers have their replies."""


@dataclass(frozen=True, slots=True)
class _Left:
    """From the registry to itself: the client of this waiting read or call has gone."""

    waiter: Waiter | ParkedCall


class Waiting:
    """Lets calls wait, and replies to those whose time is over.

    Args:
        owner: the registry.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._memory = owner.memory
        self.max_waiting = 0
        """``api.max_waiting``."""
        self.expire: dict[type, Callable[[ParkedCall], None]] = {Watch: self._watched}
        """Kind of call to the function that replies when its time is over."""
        self._memory.watches_concerned = lambda: owner.tell_self(_TellWatches())
        self.handlers: Mapping[type, Callable[[Any], Any]] = {
            Watch: self._watch,
            _TellWatches: lambda _: self._tell_watches(),
            _Left: lambda message: self._left(message.waiter),
        }

    # --- watches ---

    def _watch(self, message: Watch) -> Any:
        trouble = self._owner.backend.away
        if trouble:
            raise Unavailable(trouble)
        reply, ahead = self._owner.reply, self._memory.history.ahead(message)
        if ahead and reply is not None:
            self._owner.backend.reached(partial(self._watch_ahead, message, reply, ahead))
            return DEFERRED
        return self._watch_now(message, reply)

    def _watch_now(self, message: Watch, reply: Future[Any] | None) -> Any:
        watched = self._memory.history.read(message)
        if watched.events or message.since is None or message.wait_secs <= 0 or reply is None:
            return watched
        key = ("prefix", message.prefix) if message.name is None else ("name", message.name)
        self.park(key, message, reply)
        return DEFERRED

    def _watch_ahead(self, message: Watch, reply: Future[Any], ahead: int, reached: int | Unavailable) -> None:
        """Let a watch go on from the cursor of a broker that knew more than this one, if the store has come so far."""
        if isinstance(reached, Unavailable):
            fail(reply, reached)
            return
        try:
            if reached < ahead:
                raise self._memory.history.not_reached()
            watched = self._watch_now(message, reply)  # this broker may know more by now
        except RequestError as error:
            fail(reply, error)
        else:
            if watched is not DEFERRED:
                settle(reply, watched)

    def _tell_watches(self) -> None:
        if self._memory.tell_watches(_TOLD_AT_ONCE):
            self._owner.tell_self(_TellWatches())

    def _watched(self, call: ParkedCall) -> None:
        try:
            settle(call.reply, self._memory.history.read(call.message))
        except RequestError as error:
            fail(call.reply, error)

    # --- all of them ---

    def park(self, key: Key, message: Any, reply: Future[Any]) -> bool:
        """Let a call wait; return False if there was no room and it was refused."""
        if not self._has_room(message.client, reply):
            return False
        call = self._memory.parked.add(key, message, reply, time.monotonic() + message.wait_secs)
        self._began(call)
        return True

    def read(self, message: Get | List, reply: Future[Any], counted: Sequence[Record] = ()) -> None:
        """Let a read wait.

        Args:
            message: the read.
            reply: its reply.
            counted: for a List: the entries that count already.
        """
        if self._has_room(message.client, reply):
            self._began(self._memory.waiters.add(message, reply, time.monotonic() + message.wait_secs, counted))

    def _began(self, waiter: Waiter | ParkedCall) -> None:
        self._owner.set_alarm()
        # Called in the thread that cancels the reply.
        waiter.reply.add_done_callback(lambda done: self._owner.tell_self(_Left(waiter)) if done.cancelled() else None)

    def _has_room(self, client: str, reply: Future[Any]) -> bool:
        places = self._memory.places
        if places.room(client, self.max_waiting):
            return True
        mine = f", {places.of(client)} of them from {client}" if client else ""
        fail(reply, Overloaded(f"{places.size} requests wait already{mine} (api.max_waiting)"))
        return False

    def _left(self, waiter: Waiter | ParkedCall) -> None:
        if isinstance(waiter, Waiter):
            self._memory.waiters.remove(waiter)
        else:
            self._memory.parked.remove(waiter)

    def next_moment(self) -> float:
        """Return the monotonic time at which the first wait ends; infinite if no call waits."""
        return min(self._memory.waiters.next_deadline(), self._memory.parked.next_deadline())

    def pass_time(self, now: float) -> None:
        """Reply to the calls whose time is over, with the current entries; ``now`` is monotonic time."""
        entries = self._memory.entries
        for waiter in self._memory.waiters.expired(now):
            if isinstance(waiter.message, List):
                message = waiter.message
                settle(waiter.reply, sort(entries.matching(message.prefix), message.where, message.fail_where).listed)
            else:
                name = waiter.message.name
                send(waiter.reply, entries.get(name) or not_found(name))
        for call in self._memory.parked.expired(now):
            self.expire[type(call.message)](call)

    def refuse_all(self, error: Unavailable) -> None:
        """Reply to all of them with an error; from any thread, while the registry's own is stuck or has ended."""
        waiting = [waiter.reply for waiter in self._memory.waiters.all()]
        for reply in (*waiting, *(call.reply for call in self._memory.parked.all())):
            fail(reply, error)

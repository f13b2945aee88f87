"""The registry's locks: the calls that wait for one, and who holds it. Used in the registry's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bpbroker.actors.base import DEFERRED
from bpbroker.actors.registry_backend import Owner
from bpbroker.actors.registry_waiting import Waiting
from bpbroker.errors import AlreadyExists, Unavailable
from bpbroker.messages import fail, settle
from bpbroker.record import Record
from bpbroker.registry import locks
from bpbroker.registry.parked import ParkedCall
from bpbroker.registry.requests import Done, Holder, Lock, Unlock


@dataclass(frozen=True, slots=True)
class _Again:
    """The registry to itself: a waiting call has lost its place."""

    call: ParkedCall


class Locks:
    """Replies to calls about locks.

    Args:
        owner: the registry.
        waiting: where calls wait.
    """

    def __init__(self, owner: Owner, waiting: Waiting) -> None:
        self._owner = owner
        self._memory = owner.memory
        self._waiting = waiting
        self._memory.lock_changed = self._changed
        waiting.expire[Lock] = self._waited
        waiting.expire[Holder] = self._looked
        self.handlers: Mapping[type, Callable[[Any], Any]] = {
            Lock: self._lock,
            Holder: self._holder,
            _Again: self._again,
        }

    def _lock(self, message: Lock) -> Any:
        reply = self._owner.reply
        if reply is not None:
            self._owner.ask_self(message, partial(self._placed, message, reply))
        return DEFERRED

    def _placed(self, message: Lock, reply: Future[Any], result: Any) -> None:
        """Reply if the place holds the lock, else let the call wait."""
        if isinstance(result, BaseException):
            fail(reply, result)
            return
        if "since" in result.data:  # also if other brokers have changed the lock since
            settle(reply, _got(message.session, result))
            return
        queue = self._queue(message.name)
        place = queue.place_of(message.session)
        if place is None:
            # Another call gave it back, or the session is over; or memory has lost a shared store's history and reads
            # it anew. What is decided once more is decided on what the store has.
            self._owner.ask_self(message, partial(self._placed, message, reply))
        elif queue.holds(message.session) is not None:
            settle(reply, _granted(message.session, place))
        elif message.wait_secs <= 0:
            fail(reply, self._held(message.name))
        elif not self._waiting.park(("lock", message.name), message, reply):
            self._give_back(message, lambda _: None, if_waiting=False)

    def _give_back(self, message: Lock, then: Callable[[Any], None], *, if_waiting: bool) -> None:
        """Give a place back, unless another call of its session waits for it.

        Args:
            message: the call that has no use for it.
            then: gets the reply, or its error; None if nothing was given back.
            if_waiting: see :class:`~bpbroker.registry.requests.Unlock`.
        """
        if any(call.message.session == message.session for call in self._memory.parked.at(("lock", message.name))):
            then(None)
        else:
            self._owner.ask_self(Unlock(message.name, message.session, if_waiting), then)

    def _changed(self, name: str, record: Record | None) -> None:
        """Reply to the calls that waited for this change of a lock."""
        parked = self._memory.parked
        waiting, looking = parked.at(("lock", name)), parked.at(("holder", name))
        if not waiting and not looking:
            return
        queue = locks.parse(record)
        for call in waiting:
            place = queue.holds(call.message.session)
            if place is not None and parked.remove(call):
                settle(call.reply, _granted(call.message.session, place))
            elif queue.place_of(call.message.session) is None and parked.remove(call):
                # Its session is over, or an earlier call of it has given the place back late. Not decided here: this
                # may be the middle of a commit.
                self._owner.tell_self(_Again(call))
        for call in looking:
            shown = queue.shown()
            if shown["token"] != call.message.unless_token and parked.remove(call):
                settle(call.reply, Done(shown, record.revision if record is not None else 0))

    def _held(self, name: str) -> AlreadyExists:
        return locks.held(name, self._queue(name), partial(self._memory.ages.of, locks.PREFIX + name))

    def _queue(self, name: str) -> locks.Queue:
        return locks.parse(self._memory.get(locks.PREFIX + name))

    def _holder(self, message: Holder) -> Any:
        reply = self._owner.reply
        if reply is not None:
            name = locks.PREFIX + message.name
            self._owner.backend.read((name,), partial(self._look_at_holder, message, reply))
        return DEFERRED

    def _look_at_holder(self, message: Holder, reply: Future[Any], failure: Unavailable | None) -> None:
        record = self._memory.get(locks.PREFIX + message.name)
        shown = locks.parse(record).shown()
        if failure is not None:
            fail(reply, Unavailable(str(failure)))
        elif message.wait_secs > 0 and shown["token"] == message.unless_token:
            self._waiting.park(("holder", message.name), message, reply)
        else:
            settle(reply, Done(shown, record.revision if record is not None else 0))

    def _again(self, message: _Again) -> None:
        """Take a place anew for a call that has lost its own, for the rest of its time."""
        call = message.call
        if call.reply.cancelled():  # its client has left, and has no use for a place
            return
        left_secs = max(0.0, call.deadline - time.monotonic())
        asked = replace(call.message, wait_secs=left_secs)
        self._owner.ask_self(asked, partial(self._placed, asked, call.reply))

    # --- calls that have waited long enough ---

    def _waited(self, call: ParkedCall) -> None:
        """Refuse a call once its place is given back: whoever is refused must not get the lock later.

        A place that holds the lock by then is kept, and the call told so: it may be that a later call of the same
        session, perhaps at another broker, rests on it.
        """
        held = self._held(call.message.name)

        def given_back(result: Any) -> None:
            if isinstance(result, BaseException):
                error = Unavailable(f"{held}; whether the place in its queue was given back is not known: {result}")
                error.outcome_known = False
                fail(call.reply, error)
            elif result is not None and "since" in result.data:
                settle(call.reply, _got(call.message.session, result))
            else:
                fail(call.reply, held)

        self._give_back(call.message, given_back, if_waiting=True)

    def _looked(self, call: ParkedCall) -> None:
        settle(call.reply, Done(self._queue(call.message.name).shown(), self._memory.history.revision))


def _got(session: str, result: Done) -> Done:
    """Return the reply for a write that found its place holding the lock."""
    token = result.data.get("token", result.revision)
    return Done({"session": session, "token": token, "since": result.data["since"]}, token)


def _granted(session: str, place: locks.Place) -> Done:
    return Done({"session": session, "token": place.token, "since": place.since}, place.token)

"""The registry's locks: the calls that wait for one, and who holds it. Used in the registry's thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from bpbroker.actors.base import DEFERRED
from bpbroker.actors.registry_backend import Owner
from bpbroker.actors.registry_waiting import Waiting
from bpbroker.errors import AlreadyExists, NotFound, Unavailable
from bpbroker.messages import Record, fail, settle
from bpbroker.registry import locks, sessions
from bpbroker.registry.parked import ParkedCall
from bpbroker.registry.requests import Done, Holder, Lock, Unlock


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
        self.handlers: Mapping[type, Callable[[Any], Any]] = {Lock: self._lock, Holder: self._holder}

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
            token = result.data.get("token", result.revision)
            settle(reply, Done({"session": message.session, "token": token, "since": result.data["since"]}, token))
            return
        queue = self._queue(message.name)
        place = queue.place_of(message.session)
        if place is None and self._memory.get(sessions.PREFIX + message.session) is not None:
            self._owner.ask_self(message, partial(self._placed, message, reply))  # another call gave it back
        elif place is None:
            fail(reply, sessions.over(message.session))
        elif queue.holds(message.session) is not None:
            settle(reply, _granted(message.session, place))
        elif message.wait_secs <= 0:
            fail(reply, self._held(message.name))
        elif not self._waiting.park(("lock", message.name), message, reply):
            self._give_back(message, lambda _: None)

    def _give_back(self, message: Lock, then: Callable[[Any], None]) -> None:
        """Give a place back, unless another call of its session waits for it; ``then`` gets an error if that failed."""
        if any(call.message.session == message.session for call in self._memory.parked.at(("lock", message.name))):
            then(None)
        else:
            self._owner.ask_self(Unlock(message.name, message.session), then)

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
                fail(call.reply, NotFound(f"The place in the lock '{name}' is gone: its session is over"))
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

    # --- calls that have waited long enough ---

    def _waited(self, call: ParkedCall) -> None:
        """Refuse a call once its place is given back: whoever is refused must not get the lock later."""
        held = self._held(call.message.name)

        def given_back(result: Any) -> None:
            if isinstance(result, BaseException):
                error = Unavailable(f"{held}; whether the place in its queue was given back is not known: {result}")
                error.outcome_known = False
                fail(call.reply, error)
            else:
                fail(call.reply, held)

        self._give_back(call.message, given_back)

    def _looked(self, call: ParkedCall) -> None:
        settle(call.reply, Done(self._queue(call.message.name).shown(), self._memory.history.revision))


def _granted(session: str, place: locks.Place) -> Done:
    return Done({"session": session, "token": place.token, "since": place.since}, place.token)

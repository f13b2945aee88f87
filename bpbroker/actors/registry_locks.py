"""The registry's locks: their holders, and the calls that wait. Used in the registry's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from bpbroker.actors.base import DEFERRED
from bpbroker.actors.registry_backend import Owner
from bpbroker.actors.registry_sessions import Sessions, share_of
from bpbroker.actors.registry_waiting import Waiting
from bpbroker.errors import AlreadyExists, Overloaded, Unavailable
from bpbroker.messages import fail, settle
from bpbroker.record import Record
from bpbroker.registry import locks
from bpbroker.registry.changes import READ_MAX
from bpbroker.registry.coming import Coming
from bpbroker.registry.parked import Key, ParkedCall
from bpbroker.registry.requests import Done, Holder, Lock, Unlock
from bpbroker.server.request import network_of


@dataclass(frozen=True, slots=True)
class _Again:
    """From the registry to itself: a waiting call may have lost its place, or it may be its turn."""

    call: ParkedCall


@dataclass(frozen=True, slots=True)
class _Tell:
    """From the registry to itself: reply to the calls that wait for another holder of a lock."""

    name: str


class Locks:
    """Replies to calls about locks.

    The cost of a change grows with the number of holders, not with the number of waiting calls.

    Args:
        owner: the registry.
        waiting: where calls wait.
        sessions: the sessions, with the client of each.
    """

    def __init__(self, owner: Owner, waiting: Waiting, sessions: Sessions) -> None:
        self._owner = owner
        self._memory = owner.memory
        self._waiting = waiting
        self._sessions = sessions
        self.most_places = 0
        """``_registry.max_places``."""
        self._memory.lock_changed = self._changed
        self._near: dict[str, frozenset[str]] = {}
        """For locks with waiting calls: lock to the sessions in its own record."""
        self._coming: dict[str, Coming] = {}
        """Lock to the sessions for which calls under way may take a place in its queue."""
        waiting.expire[Lock] = self._waited
        waiting.expire[Holder] = self._looked
        self.handlers: Mapping[type, Callable[[Any], Any]] = {
            Lock: self._lock,
            Holder: self._holder,
            _Again: lambda message: self._again(message.call),
            _Tell: lambda message: self._tell(message.name),
        }

    def _lock(self, message: Lock) -> Any:
        name, session, reply = message.name, message.session, self._owner.reply
        if reply is None:
            return None
        coming, queue = self._coming.get(name) or Coming(), self._queue(name)
        if session not in coming and not self._has_place(name, session, queue):
            self._check_share(message, queue, coming)
            coming.begin(session, network_of(message.source))
            self._coming[name] = coming

        def decided(result: Any) -> None:
            coming = self._coming.get(name)
            if coming is not None:
                coming.end(session)
                if not coming:
                    del self._coming[name]
            self._placed(message, reply, result)

        self._owner.ask_self(message, decided)
        return DEFERRED

    def _check_share(self, message: Lock, queue: locks.Queue, coming: Coming) -> None:
        """Check that no client takes all places of a queue: beyond the limit, clients with few places still get one.

        Raises:
            Overloaded: there are so many places, and this client has its share of them.
        """
        size = queue.size + len(coming)
        if size < self.most_places:
            return
        share = share_of(self.most_places)
        left = share - coming.of(network_of(message.source))
        held = (each for each in self._sessions.of(message.source) if self._has_place(message.name, each, queue))
        if left <= 0 or sum(1 for _ in islice(held, left)) == left:
            raise Overloaded(
                f"{size} have a place in the queue of the lock '{message.name}' already"
                f" (_registry.max_places), {share} or more of them of this client; nothing was changed"
            )

    def _placed(self, message: Lock, reply: Future[Any], result: Any) -> None:
        """Reply if the place holds the lock, else let the call wait."""
        if isinstance(result, BaseException):
            fail(reply, result)
            return
        if "since" in result.data:  # also if other brokers have changed the lock since
            settle(reply, _got(message.session, result))
            return
        queue = self._queue(message.name)
        if self._lives_in(message.name, message.session, queue):
            place = queue.holds(message.session)
            if place is not None:
                settle(reply, _granted(message.session, place))
            elif message.wait_secs <= 0:
                fail(reply, self._held(message.name))
            elif self._waiting.park(_key(message), message, reply):
                self._near.setdefault(message.name, _sessions(queue))
                self._look_at_holders(queue)
            else:
                self._give_back(message, lambda _: None, if_waiting=False)
        else:
            # Another call gave it back, or its session is over, whether or not there is a later one of its name; or
            # memory reads a shared store again. A new decision is made on the state of the store.
            self._owner.ask_self(message, partial(self._placed, message, reply))

    def _has_place(self, name: str, session: str, queue: locks.Queue) -> bool:
        return locks.place_in(name, queue, session, self._memory.get) is not None

    def _lives_in(self, name: str, session: str, queue: locks.Queue) -> bool:
        """Return whether a session has a place, and not one that an earlier session of its name has left."""
        place = locks.place_in(name, queue, session, self._memory.get)
        return place is not None and locks.is_living(place, self._memory.get)

    def _give_back(self, message: Lock, then: Callable[[Any], None], *, if_waiting: bool) -> None:
        """Give a place back, unless another call of its session waits for it.

        Args:
            message: the call that does not use the place any more.
            then: gets the reply, or its error; None if nothing was given back.
            if_waiting: see :class:`~bpbroker.registry.requests.Unlock`.
        """
        if self._memory.parked.first(_key(message)) is not None:
            then(None)
        else:
            self._owner.ask_self(Unlock(message.name, message.session, if_waiting), then)

    def _changed(self, name: str, record: Record | None) -> None:
        """Reply to the calls that waited for this change of a lock. More changes of the same commit may follow.

        Args:
            name: of the record, without the prefix of locks.
            record: its new state.
        """
        parked = self._memory.parked
        stored_name = locks.PREFIX + name
        if stored_name.startswith(locks.FAR):
            if record is None:
                self._look_again(("lock", name.removeprefix(" ")))
            return
        near, looking = self._near.get(name), parked.first(("holder", name))
        if near is None and looking is None:
            return
        queue = locks.parse(record)
        if near is not None:
            for place in queue.holders:
                key = ("lock", f"{name}/{place.session}")
                if self._owner.backend.leases:
                    self._look_again(key)  # the same news may end its session, and open it again; that comes last
                    continue
                for call in parked.at(key):
                    if parked.remove(call):
                        settle(call.reply, _granted(place.session, place))
            now = _sessions(queue)
            for session in near - now:
                self._look_again(("lock", f"{name}/{session}"))
            if record is None:
                del self._near[name]
            else:
                self._near[name] = now
                self._look_at_holders(queue)
        # All of them wait for another token; a call that came after the change gets the same reply.
        if looking is not None and queue.token != looking.message.unless_token:
            self._owner.tell_self(_Tell(name))  # the other places may not be known yet

    def _look_at_holders(self, queue: locks.Queue) -> None:
        """Let the places go that nobody gives back, as their sessions are over: calls wait for them."""
        if self._owner.backend.leases:
            for place in locks.dead_holders(queue, self._memory.get):
                self._sessions.sweep_soon(place.session)

    def _look_again(self, key: Key) -> None:
        """Check later what became of the place for which calls wait.

        It may be their turn. Or it is lost: the session is over, or an earlier call of it gave the place back.
        """
        for call in self._memory.parked.at(key):
            self._owner.tell_self(_Again(call))

    def _tell(self, name: str) -> None:
        parked, record = self._memory.parked, self._memory.get(locks.PREFIX + name)
        shown = self._shown(name)
        for call in parked.at(("holder", name)):
            if shown["token"] != call.message.unless_token and parked.remove(call):
                settle(call.reply, Done(shown, record.revision if record is not None else 0))

    def _held(self, name: str) -> AlreadyExists:
        return locks.held(name, self._queue(name), partial(self._memory.ages.of, locks.PREFIX + name))

    def _queue(self, name: str) -> locks.Queue:
        return locks.parse(self._memory.get(locks.PREFIX + name))

    def _shown(self, name: str) -> dict[str, Any]:
        queue = self._queue(name)
        return queue.shown(tuple(locks.far_places(name, queue, self._memory.get)))

    def _holder(self, message: Holder) -> Any:
        reply = self._owner.reply
        if reply is not None:
            name = locks.PREFIX + message.name
            self._owner.backend.read((name,), partial(self._look_at_far, message, reply))
        return DEFERRED

    def _look_at_far(self, message: Holder, reply: Future[Any], failure: Unavailable | None) -> None:
        """On a shared store, also bring the next places up to date that are not in the lock's own record.

        The rest of a longer queue is shown as this broker knows it: it changes all the time.
        """
        queue = self._queue(message.name)
        if failure is not None or queue.far is None or not self._owner.backend.leases:
            self._look_at_holder(message, reply, failure)
            return
        far = islice(locks.far_places(message.name, queue, self._memory.get), READ_MAX - 1)
        names = (locks.PREFIX + message.name, *(locks.far_name(message.name, place.session) for place in far))
        self._owner.backend.read(names, partial(self._look_at_holder, message, reply))

    def _look_at_holder(self, message: Holder, reply: Future[Any], failure: Unavailable | None) -> None:
        record = self._memory.get(locks.PREFIX + message.name)
        shown = self._shown(message.name)
        if failure is not None:
            fail(reply, Unavailable(str(failure)))
        elif message.wait_secs > 0 and shown["token"] == message.unless_token:
            self._waiting.park(("holder", message.name), message, reply)
        else:
            settle(reply, Done(shown, record.revision if record is not None else 0))

    def _again(self, call: ParkedCall) -> None:
        """Grant the lock to a call whose turn it is, or take another place for one that has lost its own."""
        name, session = call.message.name, call.message.session
        queue = self._queue(name)
        if self._lives_in(name, session, queue):
            self._near.setdefault(name, _sessions(queue))
            place = queue.holds(session)
            if place is not None and self._memory.parked.remove(call):
                settle(call.reply, _granted(session, place))
            return
        if not self._memory.parked.remove(call):
            return
        if call.reply.cancelled():  # its client has left and needs no place
            return
        left_secs = max(0.0, call.deadline - time.monotonic())
        asked = replace(call.message, wait_secs=left_secs)
        self._owner.ask_self(asked, partial(self._placed, asked, call.reply))

    # --- calls whose time is over ---

    def _waited(self, call: ParkedCall) -> None:
        """Refuse a call after its place is given back: a refused call must not get the lock later.

        If the place holds the lock by then, it is kept, and the call gets it: a later call of the same session,
        perhaps at another broker, may depend on it.
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
        settle(call.reply, Done(self._shown(call.message.name), self._memory.history.revision))


def _key(message: Lock) -> Key:
    """Return the event that a call waits for: the turn of its session."""
    return "lock", f"{message.name}/{message.session}"


def _sessions(queue: locks.Queue) -> frozenset[str]:
    return frozenset([place.session for place in queue.places])


def _got(session: str, result: Done) -> Done:
    """Return the reply for a write that found its place holding the lock."""
    token = result.data.get("token", result.revision)
    return Done({"session": session, "token": token, "since": result.data["since"]}, token)


def _granted(session: str, place: locks.Place) -> Done:
    return Done({"session": session, "token": place.token, "since": place.since}, place.token)

"""What is in a lock's record: a queue of places, the first ``limit`` of which hold the lock. Pure.

A place's token is the revision of the change that made it, so tokens grow with
every place, whatever happens to the record. While the place's commit is not
durable yet, its token is a place in that commit (below ``INDEX_MAX``); such a one
is stored as its distance from the record's own revision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bpbroker.errors import AlreadyExists, Overloaded, PreconditionFailed
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry import sessions
from bpbroker.registry.requests import Done, Lock, Unlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from bpbroker.registry.ages import Age
    from bpbroker.registry.writes import Limits, View

PREFIX: Final = "_lock/"
_LOOKED_AT: Final = 10
"""Holders of which it is looked whether their sessions live, when one more wants the lock."""


@dataclass(frozen=True, slots=True)
class Place:
    """One place in a lock's queue."""

    session: str
    token: int
    since: int
    """Unix time in seconds."""
    data: Any = None

    def shown(self) -> dict[str, Any]:
        """Return it as clients see it."""
        return {"session": self.session, "token": self.token, "since": self.since, "data": self.data}


@dataclass(frozen=True, slots=True)
class Queue:
    """A lock: how many may hold it, and its places in their order."""

    limit: int = 1
    places: tuple[Place, ...] = ()

    @property
    def holders(self) -> tuple[Place, ...]:
        """The places that hold the lock."""
        return self.places[: self.limit]

    def place_of(self, session: str) -> Place | None:
        """Return a session's place."""
        return next((place for place in self.places if place.session == session), None)

    def without(self, session: str) -> Queue:
        """Return the queue without a session's place."""
        return Queue(self.limit, tuple(place for place in self.places if place.session != session))

    def holds(self, session: str) -> Place | None:
        """Return a session's place if it holds the lock."""
        return next((place for place in self.holders if place.session == session), None)

    def shown(self) -> dict[str, Any]:
        """Return it as clients see it."""
        holders, waiting = self.holders, self.places[self.limit :]
        return {
            "holders": [place.shown() for place in holders],
            "waiting": [{"session": each.session, "since": each.since, "data": each.data} for each in waiting],
            "token": max((place.token for place in holders), default=None),
            "limit": self.limit,
        }


def parse(record: Record | None) -> Queue:
    """Return the queue in a lock's record."""
    if record is None:
        return Queue()
    value = json.loads(record.json)
    places = tuple(
        Place(
            one["session"], one["token"] if "token" in one else record.revision - one["back"], one["since"], one["data"]
        )
        for one in value["places"]
    )
    return Queue(value["limit"], places)


def _token(place: dict[str, Any], revision: int) -> int:
    token: int = place["token"] if "token" in place else revision - place["back"]
    return token


def encode(queue: Queue, index: int) -> bytes:
    """Return a lock's record for a write whose place in its commit is ``index``."""
    places = [
        {
            "session": place.session,
            **({"token": place.token} if place.token >= INDEX_MAX else {"back": index - place.token}),
            "since": place.since,
            "data": place.data,
        }
        for place in queue.places
    ]
    return json.dumps({"limit": queue.limit, "places": places}, ensure_ascii=False).encode()


def lock(write: Lock, view: View, limits: Limits) -> Done:
    """Take a place, or find the session's own; without waiting only one that holds the lock.

    The reply's data say ``since`` if it holds the lock as soon as this is durable: whatever becomes of the place then.
    """
    sessions.must_live(view, write.session)
    name = PREFIX + write.name
    queue = parse(view.get(name))
    if queue.place_of(write.session) is not None:
        mine = queue.holds(write.session)
        return Done() if mine is None or mine.token < INDEX_MAX else _held_by(mine)
    if len(queue.holders) >= queue.limit:
        queue = _without_dead(queue, view)
    if not queue.places:
        queue = Queue(write.limit)
    elif queue.limit != write.limit:
        raise _refusal(f"The lock '{write.name}' is in use with limit={queue.limit}", queue)
    if len(queue.places) >= queue.limit and write.wait_secs <= 0:
        raise held(write.name, queue, partial(view.age, name))
    if len(queue.places) >= limits.places:
        raise Overloaded(f"{limits.places} wait for the lock '{write.name}' already (_registry.max_places)")
    place = Place(write.session, view.index, int(view.now), write.data)
    view.put(name, encode(Queue(queue.limit, (*queue.places, place)), view.index))
    return Done({"since": place.since} if len(queue.places) < queue.limit else {}, view.index)


def _without_dead(queue: Queue, view: View) -> Queue:
    """Return the queue without holders whose sessions are over: a broker may not have known yet what was theirs."""
    for place in queue.holders[:_LOOKED_AT]:
        if not sessions.lives(view, place.session):
            queue = queue.without(place.session)
    return queue


def _held_by(place: Place) -> Done:
    """Return the reply that a place holds the lock; its token is the revision if this very commit makes it."""
    if place.token < INDEX_MAX:
        return Done({"since": place.since}, place.token)
    return Done({"since": place.since, "token": place.token})


def unlock(write: Unlock, view: View, _limits: Limits) -> Done:
    """Give a place back."""
    if write.if_waiting:
        mine = parse(view.get(PREFIX + write.name)).holds(write.session)
        if mine is not None:
            return _held_by(mine)
    return Done(revision=view.index) if leave(view, PREFIX + write.name, write.session) else Done()


def leave(view: View, name: str, session: str) -> bool:
    """Take a session's place out of a lock's record; return whether there was one."""
    queue = parse(view.get(name))
    if queue.place_of(session) is None:
        return False
    left = queue.without(session)
    if left.places:
        view.put(name, encode(left, view.index))
    else:
        view.delete(name)
    return True


def must_hold(view: View, name: str, token: int) -> None:
    """See that a place holds a lock, also when the write happens.

    Raises:
        PreconditionFailed: it does not.
    """
    queue = parse(view.get(PREFIX + name))
    if not any(place.token == token for place in queue.holders):
        error = PreconditionFailed(f"The lock '{name}' is not held with token {token} any more; nothing was changed")
        error.data = queue.shown()
        raise error


def held(name: str, queue: Queue, age: Callable[[int], Age]) -> AlreadyExists:
    """Return the error that others hold the lock; it says who.

    Args:
        name: the lock's.
        queue: its places.
        age: returns for how long a place with a token has been there.
    """
    who = ", ".join(f"{_called(place)} (for {age(place.token)})" for place in queue.holders[:5])
    return _refusal(f"The lock '{name}' is held by {who}", queue)


def _called(place: Place) -> str:
    """Return what a holder says of itself if that is a short word, else its session."""
    data = place.data
    return data if isinstance(data, str) and data.isprintable() and 0 < len(data) <= 100 else place.session


def _refusal(text: str, queue: Queue) -> AlreadyExists:
    error = AlreadyExists(text)
    shown = queue.shown()
    error.data = {**shown, "waiting": len(shown["waiting"])}
    return error

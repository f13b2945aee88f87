"""The queue of a lock: its places in their order, the first ``limit`` of which hold the lock. Pure.

A lock's record has the places that hold the lock and the next few. Those behind them
have a record each, linked with those beside it. So a change costs the same however many
wait: the lock's record, the place, and what is linked with it.

A place's token is the revision of the change that made it, so tokens grow with
every place, whatever happens to the record. While the place's commit is not
durable yet, its token is a place in that commit (below ``INDEX_MAX``); such a one
is stored as its distance from the record's own revision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bpbroker.errors import AlreadyExists, Overloaded, PreconditionFailed, RequestError
from bpbroker.record import INDEX_MAX, Record, when
from bpbroker.registry import sessions
from bpbroker.registry.requests import Done, Lock, Unlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bpbroker.registry.view import Age, Limits, View

PREFIX: Final = "_lock/"
FAR: Final = "_lock/ "
"""Before the lock's name, a slash and the session: the record of a place that waits far behind.

No lock's name begins with a blank, so these are before all locks in the order of names.
"""
NEAR = 8
"""How many of the waiting places are in the lock's own record; half as many are moved into it together."""
_Kind = TypeVar("_Kind", bound=RequestError)
_LOOKED_AT: Final = 10
"""For how many holders it is checked whether their sessions live, when another session wants the lock or waits."""


@dataclass(frozen=True, slots=True)
class Place:
    """One place in a lock's queue."""

    session: str
    token: int
    since: int
    """Unix time in seconds."""
    data: Any = None
    within: str = ""
    """The nonce of its session; empty: that has none, as without a shared store."""

    def at(self, revision: int) -> Place:
        """Return it as it is when its commit is durable at a revision."""
        return self if self.token >= INDEX_MAX else replace(self, token=revision + self.token)

    def shown(self) -> dict[str, Any]:
        """Return it as clients see it."""
        return {"session": self.session, "token": self.token, "since": self.since, "data": self.data}


@dataclass(frozen=True, slots=True)
class Far:
    """The places that have records of their own."""

    count: int
    first: str
    """Session of the first one."""
    last: str
    """Session of the last one."""


@dataclass(frozen=True, slots=True)
class FarPlace:
    """A place that has a record of its own."""

    place: Place
    before: str
    """Session of the one before it; without meaning in the first one."""
    after: str
    """Session of the one behind it; empty in the last one."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A lock: how many may hold it, and its places in their order."""

    limit: int = 1
    places: tuple[Place, ...] = ()
    """Those in the lock's own record: all that hold it, and the next few."""
    far: Far | None = None
    """Those behind them; None if there are none."""

    @property
    def holders(self) -> tuple[Place, ...]:
        """The places that hold the lock."""
        return self.places[: self.limit]

    @property
    def size(self) -> int:
        """How many places there are."""
        return len(self.places) + (self.far.count if self.far is not None else 0)

    @property
    def token(self) -> int | None:
        """The newest holder's token."""
        return max((place.token for place in self.holders), default=None)

    def place_of(self, session: str) -> Place | None:
        """Return a session's place, unless that is far."""
        return next((place for place in self.places if place.session == session), None)

    def without(self, session: str) -> Queue:
        """Return the queue without a session's place."""
        return replace(self, places=tuple(place for place in self.places if place.session != session))

    def holds(self, session: str) -> Place | None:
        """Return a session's place if it holds the lock."""
        return next((place for place in self.holders if place.session == session), None)

    def shown(self, far: tuple[Place, ...] = ()) -> dict[str, Any]:
        """Return it as clients see it.

        Args:
            far: the places that are not in the lock's own record.
        """
        waiting = (*self.places[self.limit :], *far)
        return {
            "holders": [place.shown() for place in self.holders],
            "waiting": [{"session": each.session, "since": each.since, "data": each.data} for each in waiting],
            "token": self.token,
            "limit": self.limit,
        }

    def at(self, revision: int) -> Queue:
        """Return it as it is when its commit is durable at a revision."""
        return replace(self, places=tuple([place.at(revision) for place in self.places]))

    def counted(self) -> dict[str, Any]:
        """Return it as a refusal shows it: with the number of waiting places only."""
        return {
            "holders": [place.shown() for place in self.holders],
            "waiting": max(0, self.size - self.limit),
            "token": self.token,
            "limit": self.limit,
        }


def far_name(name: str, session: str) -> str:
    """Return the name of a place's own record."""
    return f"{FAR}{name}/{session}"


def is_lock(stored_name: str) -> bool:
    """Return whether a record is a lock's own, and not that of a place far behind in its queue."""
    return stored_name.startswith(PREFIX) and not stored_name.startswith(FAR)


def lock_of(stored_name: str) -> str:
    """Return the lock to which a record belongs."""
    if stored_name.startswith(FAR):
        return stored_name[len(FAR) : stored_name.rindex("/")]
    return stored_name.removeprefix(PREFIX)


def parse(record: Record | None) -> Queue:
    """Return the queue in a lock's record; for a far place's record, that place alone, which holds nothing."""
    if record is None:
        return Queue()
    if record.name.startswith(FAR):
        return Queue(0, (far_place(record).place,))
    return _queue(record.json, record.revision)


@lru_cache(64)  # what was changed is looked at several times
def _queue(stored: bytes, revision: int) -> Queue:
    value = json.loads(stored)
    far = value.get("far")
    return Queue(
        value["limit"],
        tuple(_place(one, revision) for one in value["places"]),
        None if far is None else Far(far["count"], far["first"], far["last"]),
    )


def far_place(record: Record) -> FarPlace:
    """Return the content of a far place's record."""
    return _far_place(record.json, record.revision)


@lru_cache(1024)
def _far_place(stored: bytes, revision: int) -> FarPlace:
    value = json.loads(stored)
    return FarPlace(_place(value["place"], revision), value["before"], value["after"])


def _place(one: dict[str, Any], revision: int) -> Place:
    token = one["token"] if "token" in one else revision - one["back"]
    return Place(one["session"], token, one["since"], one["data"], one.get("within", ""))


def encode(queue: Queue, index: int) -> bytes:
    """Return a lock's record for a write whose place in its commit is ``index``."""
    value: dict[str, Any] = {"limit": queue.limit, "places": [_encoded(place, index) for place in queue.places]}
    if queue.far is not None:
        value["far"] = {"count": queue.far.count, "first": queue.far.first, "last": queue.far.last}
    return json.dumps(value, ensure_ascii=False).encode()


def _encode_far(far: FarPlace, index: int) -> bytes:
    value = {"place": _encoded(far.place, index), "before": far.before, "after": far.after}
    return json.dumps(value, ensure_ascii=False).encode()


def _encoded(place: Place, index: int) -> dict[str, Any]:
    return {
        "session": place.session,
        **({"token": place.token} if place.token >= INDEX_MAX else {"back": index - place.token}),
        "since": place.since,
        "data": place.data,
        **({"within": place.within} if place.within else {}),
    }


def far_places(name: str, queue: Queue, get: Callable[[str], Record | None]) -> Iterator[Place]:
    """Yield the places that are not in the lock's own record, in their order.

    Args:
        name: the lock's.
        queue: what is in the lock's own record.
        get: returns a record.
    """
    session, left = (queue.far.first, queue.far.count) if queue.far is not None else ("", 0)
    while session and left:
        record = get(far_name(name, session))
        if record is None:
            return
        far = far_place(record)
        yield far.place
        session, left = far.after, left - 1


def place_in(name: str, queue: Queue, session: str, get: Callable[[str], Record | None]) -> Place | None:
    """Return a session's place, also one that is far.

    Args:
        name: the lock's.
        queue: what is in the lock's own record.
        session: whose place.
        get: returns a record.
    """
    place = queue.place_of(session)
    if place is not None or queue.far is None:
        return place
    record = get(far_name(name, session))
    return None if record is None else far_place(record).place


def lock(write: Lock, view: View, limits: Limits) -> Done:
    """Take a place, or return the session's own; without waiting, only a place that holds the lock.

    The reply's data have ``since`` if the place holds the lock once this is durable, whatever happens to it later.

    Raises:
        NotFound: the session is over.
        AlreadyExists: others hold the lock, or it is in use with another limit.
        Overloaded: the queue has as many places as the limits allow.
    """
    sessions.must_live(view, write.session)
    name = PREFIX + write.name
    within = _leave_left(view, name, write.session) if limits.ended_in_parts else ""
    queue = parse(view.get(name))
    if queue.place_of(write.session) is not None:
        mine = queue.holds(write.session)
        return Done() if mine is None or mine.token < INDEX_MAX else _held_by(mine)
    if queue.far is not None and view.get(far_name(write.name, write.session)) is not None:
        return Done()
    taken: tuple[str, ...] = ()
    if len(queue.holders) >= queue.limit:
        queue, taken = _filled(_without_dead(queue, view), write.name, view)
    if not queue.places:
        queue = Queue(write.limit)
    elif queue.limit != write.limit:
        raise _refusal(AlreadyExists, f"The lock '{write.name}' is in use with limit={queue.limit}", queue)
    if len(queue.places) >= queue.limit and write.wait_secs <= 0:
        raise held(write.name, queue, partial(view.age, name))
    if queue.size >= limits.places:
        raise Overloaded(f"{limits.places} wait for the lock '{write.name}' already (_registry.max_places)")
    place = Place(write.session, view.index, int(view.now), write.data, within)
    if queue.far is None and len(queue.places) < queue.limit + NEAR:
        _put(replace(queue, places=(*queue.places, place)), write.name, view, taken)
    else:
        _append(queue, place, write.name, view, taken)
    return Done({"since": place.since} if len(queue.places) < queue.limit else {}, view.index)


def _append(queue: Queue, place: Place, name: str, view: View, taken: tuple[str, ...]) -> None:
    """Put a place behind all others, in a record of its own."""
    far = queue.far or Far(0, place.session, "")
    _put(replace(queue, far=Far(far.count + 1, far.first, place.session)), name, view, taken)
    view.put(far_name(name, place.session), _encode_far(FarPlace(place, far.last, ""), view.index))
    if far.last:
        _link(name, far.last, view, after=place.session)


def _link(name: str, session: str, view: View, *, before: str | None = None, after: str | None = None) -> None:
    """Set the neighbours of a far place."""
    record = view.get(far_name(name, session))
    if record is not None:
        far = far_place(record)
        linked = FarPlace(far.place, far.before if before is None else before, far.after if after is None else after)
        view.put(record.name, _encode_far(linked, view.index))


def _put(queue: Queue, name: str, view: View, taken: tuple[str, ...] = ()) -> None:
    """Put a lock's record, before those of far places; these were taken into it.

    In this order, another broker sees a place in the lock's record before its own record is removed.
    """
    if queue.size:
        view.put(PREFIX + name, encode(queue, view.index))
    else:
        view.delete(PREFIX + name)
    for session in taken:
        view.delete(far_name(name, session))


def _filled(queue: Queue, name: str, view: View) -> tuple[Queue, tuple[str, ...]]:
    """Return the queue with the next far places in the lock's own record, if there is room, and their sessions."""
    most, far = queue.limit + NEAR, queue.far
    # Only when half of the near places are free, so that several places move in one write.
    if far is None or len(queue.places) > most - max(1, NEAR // 2):
        return queue, ()
    places, taken, session = list(queue.places), [], far.first
    while session and len(places) < most:
        record = view.get(far_name(name, session))
        if record is None:  # memory may be behind a shared store, which is asked next
            break
        found = far_place(record)
        places.append(found.place)
        taken.append(session)
        session = found.after
    left = Far(far.count - len(taken), session, far.last) if session else None
    return Queue(queue.limit, tuple(places), left), tuple(taken)


def _without_dead(queue: Queue, view: View) -> Queue:
    """Return the queue without holders whose sessions are over: their broker may not have known all their places."""
    for place in dead_holders(queue, view.get):
        queue = queue.without(place.session)
    return queue


def dead_holders(queue: Queue, get: Callable[[str], Record | None]) -> tuple[Place, ...]:
    """Return holders, of the first ones, whose sessions are over; ``get`` returns a record."""
    return tuple(place for place in queue.holders[:_LOOKED_AT] if not is_living(place, get))


def is_living(place: Place, get: Callable[[str], Record | None]) -> bool:
    """Return whether the session lives that took a place, and not just a later one of its name.

    Args:
        place: the place.
        get: returns a record.
    """
    opened = get(sessions.PREFIX + place.session)
    # Without a nonce only revisions could tell, and after a restore a holder's token is lower than its session.
    return opened is not None and not (place.within and is_earlier(place, opened))


def is_earlier(place: Place, opened: Record) -> bool:
    """Return whether a place was taken in an earlier session than the one that is open under its name.

    Brokers of earlier builds write neither with a nonce. Where one of the two has none, revisions decide.
    """
    nonce = sessions.nonce_of(opened)
    if place.within and nonce:
        return place.within != nonce
    return when(place.token) < when(opened.revision)


def _leave_left(view: View, stored_name: str, session: str) -> str:
    """Give back the place that an earlier session of this name has left. Return the nonce of the present one."""
    opened = view.get(sessions.PREFIX + session)
    place = place_in(lock_of(stored_name), parse(view.get(stored_name)), session, view.get)
    if place is not None and not is_living(place, view.get):
        leave(view, stored_name, session)
    return "" if opened is None else sessions.nonce_of(opened)


def _held_by(place: Place) -> Done:
    """Return the reply that a place holds the lock; its token is the revision if this very commit makes it."""
    if place.token < INDEX_MAX:
        return Done({"since": place.since}, place.token)
    return Done({"since": place.since, "token": place.token})


def unlock(write: Unlock, view: View, limits: Limits) -> Done:
    """Give a place back."""
    if write.if_waiting:
        mine = parse(view.get(PREFIX + write.name)).holds(write.session)
        # On a shared store an earlier session of the name may have left it.
        if mine is not None and (not limits.ended_in_parts or is_living(mine, view.get)):
            return _held_by(mine)
    return Done(revision=view.index) if leave(view, PREFIX + write.name, write.session) else Done()


def leave(view: View, stored_name: str, session: str) -> bool:
    """Take a session's place out of a lock's queue; return whether there was one.

    Args:
        view: the state.
        stored_name: of the lock's record, or of the place's.
        session: whose place.
    """
    name = lock_of(stored_name)
    queue = parse(view.get(PREFIX + name))
    if queue.place_of(session) is not None:
        left, taken = _filled(queue.without(session), name, view)
        _put(left, name, view, taken)
        return True
    record = view.get(far_name(name, session)) if queue.far is not None or stored_name.startswith(FAR) else None
    if record is None:
        return False
    if queue.far is not None:
        _unlink(queue, queue.far, far_place(record), name, view)
    view.delete(record.name)
    return True


def _unlink(queue: Queue, far: Far, gone: FarPlace, name: str, view: View) -> None:
    """Join the two neighbours of a far place."""
    session = gone.place.session
    before, after = gone.before if session != far.first else "", gone.after
    if far.count > 1:
        left = Far(far.count - 1, far.first if before else after, far.last if after else before)
        _put(replace(queue, far=left), name, view)
    else:
        _put(replace(queue, far=None), name, view)
    if before:
        _link(name, before, view, after=after)
        if after:
            _link(name, after, view, before=before)


def must_hold(view: View, name: str, token: int, limits: Limits) -> None:
    """Check that a place holds a lock, also when the write happens.

    Raises:
        PreconditionFailed: it does not hold the lock.
    """
    queue = parse(view.get(PREFIX + name))
    place = next((each for each in queue.holders if each.token == token), None)
    if place is not None and limits.ended_in_parts and not is_living(place, view.get):
        place = None
    # A place that is not durable yet has no token that a client could know.
    if token < INDEX_MAX or place is None:
        text = f"The lock '{name}' is not held with token {token} any more; nothing was changed"
        raise _refusal(PreconditionFailed, text, queue)


def held(name: str, queue: Queue, age: Callable[[int], Age]) -> AlreadyExists:
    """Return the error that others hold the lock; it names them.

    Args:
        name: the lock's.
        queue: its places.
        age: returns for how long a place with a token has been there.
    """
    who = ", ".join(f"{_called(place)} (for {age(place.token)})" for place in queue.holders[:5])
    return _refusal(AlreadyExists, f"The lock '{name}' is held by {who}", queue)


def _called(place: Place) -> str:
    """Return a holder's data if it is a short word, else its session."""
    data = place.data
    return data if isinstance(data, str) and data.isprintable() and 0 < len(data) <= 100 else place.session


def _refusal(kind: type[_Kind], text: str, queue: Queue) -> _Kind:
    """Return a refusal that shows a lock; the tokens are there when their commit is durable."""
    error = kind(text)
    error.data = queue.counted()
    if any(place.token < INDEX_MAX for place in queue.holders):
        error.when_durable = lambda revision: _refusal(kind, text, queue.at(revision))
    return error

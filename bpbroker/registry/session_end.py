"""The end of a session, and what it removes: its entries, and its places in locks. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bpbroker.record import when
from bpbroker.registry import locks, sessions
from bpbroker.registry.requests import Close, Done, Expire

if TYPE_CHECKING:
    from bpbroker.record import Record
    from bpbroker.registry.view import Limits, View


def close(write: Close, view: View, limits: Limits) -> Done:
    """End a session."""
    if view.get(sessions.PREFIX + write.session) is None:
        return Done()
    view.delete(sessions.PREFIX + write.session)
    names = view.names_of(write.session)[: limits.ended_at_once]
    for name in names:
        _let_go(view, name, write.session)
    if limits.ended_in_parts:  # others may know of more names than this broker
        view.put(sessions.CLOSED + write.session, b"{}")
    return Done(revision=view.index, ended=tuple(names))


def expire(write: Expire, view: View, limits: Limits) -> Done:
    """Remove all that belongs to a session whose time is over, and keep a note of its entries.

    On a shared store, the store ends a session, and brokers learn that, perhaps late. A session that exists then is a
    later one with the same name: it lives on, with all that belongs to it.
    """
    opened, names = view.get(sessions.PREFIX + write.session), view.names_of(write.session)
    if opened is not None and limits.ended_in_parts:
        names = [name for name in names if _is_older(view, name, write.session, opened)]
        if not names:
            return Done()
    elif opened is not None:
        view.delete(sessions.PREFIX + write.session)
    closed = view.get(sessions.CLOSED + write.session)
    names = names[: limits.ended_at_once]
    for name in names:
        found = _let_go(view, name, write.session)
        # An entry that is newer than the end of a session belongs to a later session of its name.
        if found is not None and (closed is None or when(found.revision) > when(closed.revision)):
            lost = {"entry": json.loads(found.json), "when": int(view.now), "session": write.session}
            view.put(sessions.LOST + name, json.dumps(lost, ensure_ascii=False).encode())
    return Done(revision=view.index if view.changes else 0, ended=tuple(names))


def _is_older(view: View, name: str, session: str, opened: Record) -> bool:
    """Return whether an entry or place belongs to an earlier session than the one that is open under its name."""
    found = view.get(name)
    if found is None:
        return False
    if name.startswith(locks.PREFIX):
        place = locks.parse(found).place_of(session)
        return place is not None and locks.is_earlier(place, opened)
    return found.session == session and when(found.revision) < when(opened.revision)


def _let_go(view: View, name: str, session: str) -> Record | None:
    """Remove a session's entry or place. Return the removed entry."""
    found = view.get(name)
    if found is None:
        return None
    if name.startswith(locks.PREFIX):
        locks.leave(view, name, session)
        return None
    if found.session != session:
        return None
    view.delete(name)
    return found

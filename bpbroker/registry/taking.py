"""Taking: an entry goes to one receiver alone, and is destroyed when that one has it. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from bpbroker.errors import AlreadyExists, NotFound
from bpbroker.record import Record
from bpbroker.registry.requests import Ack, Done, Take

if TYPE_CHECKING:
    from bpbroker.registry.view import Limits, View

PREFIX: Final = "_taken/"


def take(write: Take, view: View, _limits: Limits) -> Record:
    """Hand an entry to a receiver and remove it; the same receiver may ask again.

    Raises:
        NotFound: there is no such entry.
        AlreadyExists: another receiver has it.
    """
    taken = view.get(PREFIX + write.name)
    if taken is not None:
        value = json.loads(taken.json)
        if value["receiver"] != write.receiver:
            raise _another(write.name, value["receiver"])
        return Record(write.name, json.dumps(value["entry"], ensure_ascii=False).encode(), taken.revision)
    found = view.get(write.name)
    if found is None:
        raise NotFound(f"Entry '{write.name}' not found")
    value = {"receiver": write.receiver, "when": int(view.now), "entry": json.loads(found.json)}
    view.put(PREFIX + write.name, json.dumps(value, ensure_ascii=False).encode())
    view.delete(write.name)
    return Record(write.name, found.json, view.index)


def ack(write: Ack, view: View, _limits: Limits) -> Done:
    """Destroy an entry that this receiver has taken; no error if it is gone.

    Raises:
        AlreadyExists: another receiver has it.
    """
    taken = view.get(PREFIX + write.name)
    if taken is None:
        return Done()
    receiver = json.loads(taken.json)["receiver"]
    if receiver != write.receiver:
        raise _another(write.name, receiver)
    _destroy(view, taken)
    return Done(revision=view.index)


def destroy(view: View, name: str) -> None:
    """Destroy the entry that was taken under a name, if any: the name is deleted."""
    taken = view.get(PREFIX + name) if view.peek(name) is None else None
    if taken is not None:
        _destroy(view, taken)


def _destroy(view: View, taken: Record) -> None:
    view.apart(taken)  # that it was taken is why its earlier values are forgotten everywhere
    view.delete(taken.name)


def must_be_free(view: View, name: str) -> None:
    """Check that nothing was taken under this name that its receiver has not acknowledged yet.

    Raises:
        AlreadyExists: something was.
    """
    if view.peek(name) is not None:
        return  # what is taken is no entry any more, and whether this one is still there is compared by who asks
    taken = view.get(PREFIX + name)
    if taken is not None:
        raise _another(name, json.loads(taken.json)["receiver"])


def _another(name: str, receiver: str) -> AlreadyExists:
    error = AlreadyExists(f"Entry '{name}' was taken by {receiver}")
    error.data = {"receiver": receiver}
    return error

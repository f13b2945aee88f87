"""Numbers: pools in which each owner has one of its own, and counters. Pure.

A pool is an entry whose own keys are the owners. Numbers that must rest for a
while are in a record beside it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from bpbroker.errors import AlreadyExists, BadRequest, Overloaded, TooLarge
from bpbroker.registry import entry, taking
from bpbroker.registry.requests import Allocate, Done, Next, Release

if TYPE_CHECKING:
    from bpbroker.messages import Record
    from bpbroker.registry.writes import Limits, View

_RESTING: Final = "_pool/"
_COUNTED: Final = "_counter/"
_LIVES: Final = "_counters/"
_SHOWN: Final = 100


def allocate(write: Allocate, view: View, limits: Limits) -> Done:
    """Give an owner its number."""
    entry.check_new_name(write.pool)
    taking.must_be_free(view, write.pool)
    current = view.get(write.pool)
    owners = _owners(write.pool, current)
    mine = owners.get(write.owner)
    if mine is not None:
        if write.number not in (None, mine):
            raise _refusal(f"{write.owner} has the number {mine} in '{write.pool}' already", owners)
        return Done({"number": mine}, current.revision if current else 0)
    if len(owners) >= limits.numbers:
        raise Overloaded(f"The pool '{write.pool}' has {limits.numbers} owners already (_registry.max_numbers)")
    used = set(owners.values()) | _resting(view, write.pool)
    if write.number is not None:
        if write.number in used:
            raise _refusal(f"The number {write.number} of '{write.pool}' is in use", owners)
        number = write.number
    else:
        free = (each for each in range(write.low, write.high + 1) if each not in used)
        found = next(free, None)
        if found is None:
            span = f"{write.low} to {write.high}"
            raise _refusal(f"The pool '{write.pool}' is full: all of {span} are in use", owners)
        number = found
    owners[write.owner] = number
    _put(write.pool, owners, write.source, view, limits, current)
    return Done({"number": number}, view.index)


def release(write: Release, view: View, limits: Limits) -> Done:
    """Free an owner's number."""
    current = view.get(write.pool)
    owners = _owners(write.pool, current)
    number = owners.pop(write.owner, None)
    if number is None:
        return Done()
    _put(write.pool, owners, write.source, view, limits, current)
    if write.quarantine_secs > 0:
        name = _RESTING + write.pool
        resting = {key: until for key, until in _until(view.get(name)).items() if until > view.now}
        resting[str(number)] = view.now + write.quarantine_secs
        view.put(name, json.dumps(resting).encode())
    return Done({"number": number}, view.index)


def count(write: Next, view: View, limits: Limits) -> Done:
    """Count on."""
    entry.check_new_name(write.name)
    taking.must_be_free(view, write.name)
    kept = f"{_COUNTED}{write.name}/{write.owner}"
    current = view.get(write.name)
    life = _life(view, write.name)
    if current is None:  # it begins anew: what owners had of an earlier one counts no more
        life += 1
    elif write.owner:
        known = view.get(kept)
        had = json.loads(known.json) if known is not None else {}
        if known is not None and had.get("life") == life:
            return Done({"number": had["number"]}, known.revision)
    own = entry.without_stamp(json.loads(current.json)) if current else {"value": 0}
    value = own.get("value")
    if not isinstance(value, int) or isinstance(value, bool):
        raise AlreadyExists(f"Entry '{write.name}' is no counter: its field value is no whole number")
    number = own["value"] = value + write.by
    if abs(number) >= 2**53:
        raise BadRequest(f"The counter '{write.name}' would leave the range of exact numbers")
    stamped = entry.encode(entry.stamp(own, write.source, view.now))
    if len(stamped) > limits.data_bytes:
        raise TooLarge(f"Entry '{write.name}' would be too large")
    view.put(write.name, stamped, current.session if current else "")
    if write.owner:
        view.put(kept, json.dumps({"number": number, "life": life}).encode())
    if current is None:
        view.put(_LIVES + write.name, json.dumps({"life": life}).encode())
    return Done({"number": number}, view.index)


def _life(view: View, name: str) -> int:
    """Return how often a counter of this name has begun."""
    found = view.get(_LIVES + name)
    return int(json.loads(found.json)["life"]) if found is not None else 0


def _owners(pool: str, current: Record | None) -> dict[str, int]:
    if current is None:
        return {}
    own: dict[str, Any] = entry.without_stamp(json.loads(current.json))
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in own.values()):
        raise AlreadyExists(f"Entry '{pool}' is no pool: its fields must be owners with their numbers")
    return own


def _put(pool: str, owners: dict[str, int], source: str, view: View, limits: Limits, current: Record | None) -> None:
    value = entry.encode(entry.stamp(owners, source, view.now))
    if len(value) > limits.data_bytes:
        raise TooLarge(f"The pool '{pool}' would be larger than {limits.data_bytes} bytes; nothing was changed")
    view.put(pool, value, current.session if current else "")


def _resting(view: View, pool: str) -> set[int]:
    return {int(number) for number, until in _until(view.get(_RESTING + pool)).items() if until > view.now}


def _until(record: Record | None) -> dict[str, float]:
    return json.loads(record.json) if record else {}


def _refusal(text: str, owners: dict[str, int]) -> AlreadyExists:
    error = AlreadyExists(text)
    error.data = {"owners": dict(list(owners.items())[:_SHOWN])}
    return error

"""Numbers: pools in which each owner has one of its own, and counters. Pure.

A pool is an entry whose own keys are the owners. Numbers that must rest for a while are in a record beside it. Each
has the seconds that it has to rest, from when the registry sees the record: setting a clock does not change that.
"""

from __future__ import annotations

import json
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from bpbroker.errors import AlreadyExists, BadRequest, Overloaded, TooLarge
from bpbroker.registry import entry_values, taking
from bpbroker.registry.requests import Allocate, Done, Next, Release, Rest

if TYPE_CHECKING:
    from collections.abc import Hashable

    from bpbroker.record import Record
    from bpbroker.registry.pools import Pool
    from bpbroker.registry.view import Limits, View

RESTING: Final = "_pool/"
_COUNTED: Final = "_counter/"
_LIVES: Final = "_counters/"
_SHOWN: Final = 100

_Value = dict[str, Any]
"""A resting number: its seconds, its last owner, and when that owner freed it."""


def allocate(write: Allocate, view: View, limits: Limits) -> Done:
    """Return the number that an owner has in a pool; without one, give it the lowest free number, or the wanted one.

    Raises:
        AlreadyExists: no number is free, or the wanted one is not; ``data`` has owners, and seconds of quarantine.
        Overloaded: the pool has as many owners as the limits allow.
    """
    entry_values.check_new_name(write.pool)
    taking.must_be_free(view, write.pool)
    current = view.get(write.pool)
    pool = view.pools.of(write.pool, current)
    mine = pool.owners.get(write.owner)
    if mine is not None:
        if write.number not in (None, mine):
            raise _refusal(f"{write.owner} has the number {mine} in '{write.pool}' already", pool)
        return Done({"number": mine}, current.revision if current else 0)
    if len(pool.owners) >= limits.numbers:
        raise Overloaded(f"The pool '{write.pool}' has {limits.numbers} owners already (_registry.max_numbers)")
    rests = _rests(view.get(RESTING + write.pool))
    resting = {each for each, value in rests.items() if _left(view, write.pool, each, value) > 0}
    number = write.number
    if number is None:
        number = pool.lowest_free(write.low, write.high, resting)
        if number is None:
            raise _full(write, view, pool, {each: value for each, value in rests.items() if each in resting})
    elif number in pool:
        owner = next((each for each, other in pool.owners.items() if other == number), "another owner")
        raise _refusal(f"The number {number} of '{write.pool}' is {owner}'s", pool)
    elif number in resting:
        secs = ceil(_left(view, write.pool, number, rests[number]))
        text = f"The number {number} of '{write.pool}' was {rests[number]['of']}'s"
        raise _refusal(f"{text} and is in quarantine for another {secs} s", pool, {number: secs})
    if number in rests:
        _put_rests(view, write.pool, {each: value for each, value in rests.items() if each != number})
    body = pool.with_owner(write.owner, number)
    value = _put(write.pool, body, write.source, view, limits, current)
    pool.add(write.owner, number, body, value)
    return Done({"number": number}, view.index)


def release(write: Release, view: View, limits: Limits) -> Done:
    """Free an owner's number."""
    current = view.get(write.pool)
    pool = view.pools.of(write.pool, current)
    number = pool.owners.get(write.owner)
    if number is None:
        return Done()
    body = pool.without_owner(write.owner)
    value = _put(write.pool, body, write.source, view, limits, current)
    pool.remove(write.owner, body, value)
    if write.quarantine_secs > 0:
        rests = _still(view, write.pool)
        rests[number] = {"secs": write.quarantine_secs, "of": write.owner, "when": int(view.now)}
        _put_rests(view, write.pool, rests)
    return Done({"number": number}, view.index)


def rest(write: Rest, view: View, _limits: Limits) -> Done:
    """Store how long numbers still have to rest, so that a restart does not begin that time again."""
    still = _still(view, write.pool)
    left = {number: {**value, "secs": _left(view, write.pool, number, value)} for number, value in still.items()}
    _put_rests(view, write.pool, left)
    return Done()


def parts(record: Record | None) -> dict[Hashable, float]:
    """Return the parts of a record of resting numbers, each with the seconds that it has to rest."""
    return {_part(number, value): value["secs"] for number, value in _rests(record).items()}


def _part(number: int, value: _Value) -> Hashable:
    return number, value["of"], value["when"], value["secs"]


def _rests(record: Record | None) -> dict[int, _Value]:
    return {int(number): value for number, value in json.loads(record.json).items()} if record else {}


def _still(view: View, pool: str) -> dict[int, _Value]:
    found = _rests(view.get(RESTING + pool))
    return {number: value for number, value in found.items() if _left(view, pool, number, value) > 0}


def _put_rests(view: View, pool: str, rests: dict[int, _Value]) -> None:
    if rests:
        view.put(RESTING + pool, json.dumps(rests, ensure_ascii=False).encode())
    elif view.get(RESTING + pool) is not None:
        view.delete(RESTING + pool)


def _left(view: View, pool: str, number: int, value: _Value) -> float:
    """Return the seconds that a number still has to rest."""
    return float(value["secs"]) - view.age(RESTING + pool, _part(number, value)).secs


def count(write: Next, view: View, limits: Limits) -> Done:
    """Increase a counter; an owner that has a number of it gets the same one.

    Raises:
        AlreadyExists: the entry is no counter.
        BadRequest: the sum would not be a number below 2^53.
        TooLarge: the entry would exceed the limit.
    """
    entry_values.check_new_name(write.name)
    taking.must_be_free(view, write.name)
    kept = f"{_COUNTED}{write.name}/{write.owner}"
    current = view.get(write.name)
    life = _life(view, write.name)
    if current is None:  # it begins again: the owners' values of an earlier counter do not count any more
        life += 1
    elif write.owner:
        known = view.get(kept)
        had = json.loads(known.json) if known is not None else {}
        if known is not None and had.get("life") == life:
            return Done({"number": had["number"]}, known.revision)
    own = entry_values.without_stamp(json.loads(current.json)) if current else {"value": 0}
    value = own.get("value")
    if not isinstance(value, int) or isinstance(value, bool):
        raise AlreadyExists(f"Entry '{write.name}' is no counter: its field value is no whole number")
    number = own["value"] = value + write.by
    if abs(number) >= 2**53:
        raise BadRequest(f"The counter '{write.name}' would leave the range of exact numbers")
    stamped = entry_values.encode(entry_values.stamp(own, write.source, view.now))
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


def _put(pool: str, body: bytes, source: str, view: View, limits: Limits, current: Record | None) -> bytes:
    stamp = entry_values.encode(entry_values.stamp({}, source, view.now))
    value = b"%b%b%b" % (body, b", " if body != b"{" else b"", stamp[1:])
    if len(value) > limits.data_bytes:
        raise TooLarge(f"The pool '{pool}' would be larger than {limits.data_bytes} bytes; nothing was changed")
    view.put(pool, value, current.session if current else "")
    return value


def _full(write: Allocate, view: View, pool: Pool, resting: dict[int, _Value]) -> AlreadyExists:
    within = {
        number: ceil(_left(view, write.pool, number, value))
        for number, value in resting.items()
        if write.low <= number <= write.high
    }
    text = f"The pool '{write.pool}' is full: all of {write.low} to {write.high} are in use"
    if within:
        text += f", {len(within)} of them in quarantine; the next is free in {min(within.values())} s"
    return _refusal(text, pool, within)


def _refusal(text: str, pool: Pool, resting: dict[int, int] | None = None) -> AlreadyExists:
    error = AlreadyExists(text)
    owners = {"owners": dict(list(pool.owners.items())[:_SHOWN])}
    left = {str(number): secs for number, secs in sorted((resting or {}).items())[:_SHOWN]}
    error.data = {**owners, "quarantine": left} if left else owners
    return error

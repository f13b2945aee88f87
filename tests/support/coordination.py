"""What sessions, locks, pools, counters, taking and batches must do, in a few lines; and a check of histories.

:func:`outcomes` is the specification: what a state and one call lead to. Tests that ask one thing
after the other compare with it directly. For calls of several clients at once
:func:`contradiction` looks for an order of them that fits their times and in which each
answer is right: Wing and Gong's search with Lowe's memory of what was tried.

A call without an answer may be in that order, at any time after its start, or not at all. Three things keep such calls
from making the search exponential: orders in which each of them happens soon, or never, are tried first, for one order
is enough; who was asked may have died, and does nothing after that; and a call that fits and changes nothing is taken
at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bpbroker.record import INDEX_MAX

State = Mapping[str, Any]
"""Hashable values by keys such as ``session/s1``, ``entry/a``, ``lock/l``; see the functions below."""
Answer = tuple[int, Any]
"""Status, and what counts of the data."""

UNKNOWN: Final[Answer] = (0, "unknown")
"""No answer, or one that says that the outcome is not known."""
NOTHING: Final[Answer] = (503, "nothing was done")

MOST_POINTS: Final = 400_000
_SOON_SECS: Final = (0.5, 3.0, float("inf"))
"""How long after its start a call without an answer may happen, in the orders that are tried one after the other."""


@dataclass(slots=True)
class Call:
    """One call, and what became of it."""

    kind: str
    args: Mapping[str, Any]
    start: float = 0.0
    end: float = float("inf")
    answer: Answer = UNKNOWN
    client: object = None
    latest: float = float("inf")
    """If it is not answered, it does nothing after this moment."""


@dataclass
class History:
    """All calls of one group of names. Threads may add to it."""

    calls: list[Call] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, kind: str, args: Mapping[str, Any], client: object = None) -> Call:
        """Note that a call begins."""
        call = Call(kind, args, time.monotonic(), client=client)
        with self._lock:
            self.calls.append(call)
        return call

    @staticmethod
    def end(call: Call, answer: Answer) -> None:
        """Note its answer."""
        call.answer = answer
        if answer != UNKNOWN:
            call.end = time.monotonic()

    def waited(self, call: Call) -> None:
        """Note what else a Lock that waited has done, now that it has ended: it held the lock, or left the queue."""
        kinds = {200: "Granted", 409: "Left", UNKNOWN[0]: "Left"}
        if call.answer[0] in kinds:
            with self._lock:
                self.calls.append(replace(call, kind=kinds[call.answer[0]]))

    def done_by(self, moment: float) -> None:
        """Note that calls so far which are not answered have happened by this moment, or never do."""
        with self._lock:
            for call in self.calls:
                call.latest = min(call.latest, moment)


# --- the specification ---


def outcomes(state: State, kind: str, args: Mapping[str, Any], answer: Answer) -> Iterator[State]:
    """Yield the states that a call may lead to, if it is answered like this; none if it never is.

    With :data:`UNKNOWN` all answers are possible.
    """
    for expected, after in _RULES[kind](dict(state), args, answer):
        if answer in (UNKNOWN, expected):
            yield after


def answers(state: State, kind: str, args: Mapping[str, Any]) -> list[Answer]:
    """Return the right answers to a call in a state; where a token comes with it, it is None."""
    return [expected for expected, _ in _RULES[kind](dict(state), args, UNKNOWN)]


Found = Iterator[tuple[Answer, dict[str, Any]]]


def _lives(state: State, session: str) -> bool:
    return f"session/{session}" in state


def _holder(state: State, name: str) -> tuple[str, int | None] | None:
    places = state.get(f"lock/{name}", ())
    return places[0][:2] if places else None


def _open(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    state[f"session/{args['session']}"] = True
    yield (200, None), state


def _renew(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    yield (200 if _lives(state, args["session"]) else 404, None), state


def _close(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    yield (200, None), without_session(state, args["session"])


def without_session(state: State, session: str) -> dict[str, Any]:
    """Return the state after a session has ended."""
    after: dict[str, Any] = {}
    for key, value in state.items():
        left = value
        if key == f"session/{session}" or (key.startswith("entry/") and value[1] == session):
            continue
        if key.startswith("lock/"):
            left = tuple(place for place in value if place[0] != session)
        if left != ():
            after[key] = left
    return after


def _write(state: dict[str, Any], args: Mapping[str, Any], _: Answer, *, anew: bool) -> Found:
    key, session = f"entry/{args['name']}", args.get("session") or ""
    there = state.get(key)
    if f"taken/{args['name']}" in state:
        yield (409, None), state
        return
    if "lock" in args:
        name, _, token = args["lock"].rpartition(":")
        holder = _holder(state, name)
        if holder is None or holder[1] not in (None, int(token)):
            yield (412, None), state
            return
        if holder[1] is None and int(token) <= state[f"lock/{name}"][0][2]:
            yield (412, None), state
            return
    if anew and there is not None:
        yield (409, None), state
        return
    if session and not _lives(state, session):
        yield (404, None), state
        return
    state[key] = (args["value"], session if "session" in args else there[1] if there is not None else "")
    yield (200, None), state


def _register(state: dict[str, Any], args: Mapping[str, Any], answer: Answer) -> Found:
    return _write(state, args, answer, anew=True)


def _replace(state: dict[str, Any], args: Mapping[str, Any], answer: Answer) -> Found:
    return _write(state, args, answer, anew=False)


def _delete(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    state.pop(f"entry/{args['name']}", None)
    state.pop(f"taken/{args['name']}", None)
    yield (200, None), state


def _get(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    there = state.get(f"entry/{args['name']}")
    yield (404, None) if there is None else (200, there[0]), state


def _lock(state: dict[str, Any], args: Mapping[str, Any], answer: Answer) -> Found:
    """Take a lock at once or not at all. A new token is higher than each before."""
    key, session = f"lock/{args['name']}", args["session"]
    if not _lives(state, session):
        yield (404, None), state
        return
    holder = _holder(state, args["name"])
    if holder is not None and holder[0] != session:
        yield (409, None), state
        return
    token = answer[1] if answer[0] == 200 else None
    if holder is not None and holder[1] is not None:
        yield (200, holder[1]), state
        return
    if holder is None:
        state[key] = (_place(state, args["name"], session),)
    if token is None or _learn(state, args["name"], token):
        yield (200, token), state


def _place(state: State, name: str, session: str) -> tuple[str, int | None, int]:
    """Return a new place: session, its token if it is known, and what that is above."""
    return session, None, state.get(f"last/{name}", 0)


def _learn(state: dict[str, Any], name: str, token: int, at: int = 0) -> bool:
    """Note the token of a place that is not known yet; return False if it cannot be this one.

    Tokens grow with the places, whenever they are learnt.
    """
    key, last = f"lock/{name}", f"last/{name}"
    places = state[key]
    session, _, above = places[at]
    if token <= above or any(place[1] is not None and place[1] <= token for place in places[at + 1 :]):
        return False
    state[key] = (*places[:at], (session, token, above), *places[at + 1 :])
    state[last] = max(state.get(last, 0), token)
    return True


def _unlock(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    yield (200, None), _without_place(state, args["name"], args["session"])


def _without_place(state: dict[str, Any], name: str, session: str) -> dict[str, Any]:
    left = tuple(place for place in state.pop(f"lock/{name}", ()) if place[0] != session)
    return {**state, f"lock/{name}": left} if left else state


# A Lock that waits is two or three calls, each at a moment of its own: it takes a place at the end of the queue; then
# it holds the lock; or its time is over, and its place is given back before it is answered.


def _enter(state: dict[str, Any], args: Mapping[str, Any], answer: Answer) -> Found:
    """Take a place, or find the session's own."""
    name, session = args["name"], args["session"]
    key = f"lock/{name}"
    if not _lives(state, session):
        yield (404, None), state
        return
    state[f"entered/{args['id']}"] = True
    places = state.get(key, ())
    at = next((number for number, place in enumerate(places) if place[0] == session), len(places))
    if at == len(places):
        state[key] = (*places, _place(state, name, session))
    if answer[0] != 200:
        yield (409, None), state
    elif state[key][at][1] is not None or _learn(state, name, answer[1], at):
        yield (200, state[key][at][1]), state


def _granted(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    """Hold the lock at last, with the place's own token."""
    holder = _holder(state, args["name"])
    if holder is None or holder[0] != args["session"] or state.pop(f"entered/{args['id']}", None) is None:
        return
    yield (200, holder[1]), state


def _left(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    """Give the place back, for it was not granted in time."""
    if state.pop(f"entered/{args['id']}", None) is not None:
        yield (409, None), _without_place(state, args["name"], args["session"])


def _show_holder(state: dict[str, Any], args: Mapping[str, Any], answer: Answer) -> Found:
    holder = _holder(state, args["name"])
    if holder is None:
        yield (200, None), state
        return
    session, token = holder
    if token is None and answer[0] == 200 and answer[1] is not None:
        token = answer[1][1]
        if not _learn(state, args["name"], token):
            return
    yield (200, (session, token)), state


def _allocate(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    key = f"pool/{args['pool']}"
    owners = dict(state.get(key, ()))
    number = owners.get(args["owner"])
    if number is None:
        used = {*owners.values(), *state.get(f"rests/{args['pool']}", ())}
        number = next((n for n in range(args["from"], args["to"] + 1) if n not in used), None)
        if number is None:
            yield (409, None), state
            return
        owners[args["owner"]] = number
        state[key] = tuple(sorted(owners.items()))
    yield (200, number), state


def _release(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    key, resting = f"pool/{args['pool']}", f"rests/{args['pool']}"
    had = state.get(key, ())
    owners = tuple(item for item in had if item[0] != args["owner"])
    if args.get("quarantine"):  # for longer than any test
        state[resting] = tuple(sorted({*state.get(resting, ()), *(item[1] for item in had if item not in owners)}))
    if owners:
        state[key] = owners
    else:
        state.pop(key, None)
    yield (200, None), state


def _next(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    key, own = f"counter/{args['name']}", f"counted/{args['name']}/{args.get('owner', '')}"
    if args.get("owner") and own in state:
        yield (200, state[own]), state
        return
    number = state[key] = state.get(key, 0) + 1
    if args.get("owner"):
        state[own] = number
    yield (200, number), state


def _take(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    key, entry = f"taken/{args['name']}", f"entry/{args['name']}"
    if key in state:
        receiver, value = state[key]
        yield (200, value) if receiver == args["receiver"] else (409, None), state
    elif entry in state:
        value = state.pop(entry)[0]
        state[key] = (args["receiver"], value)
        yield (200, value), state
    else:
        yield (404, None), state


def _ack(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    key = f"taken/{args['name']}"
    if key in state and state[key][0] != args["receiver"]:
        yield (409, None), state
        return
    state.pop(key, None)
    yield (200, None), state


def _batch(state: dict[str, Any], args: Mapping[str, Any], answer: Answer) -> Found:
    """Carry out writes of several entries, all or none; those of one id once."""
    done = f"batch/{args['id']}" if "id" in args else ""
    if done in state:
        yield (200, None), state
        return
    after: State = dict(state)
    for kind, own in args["operations"]:
        ((expected, after),) = _RULES[kind](dict(after), own, answer)
        if expected[0] != 200:
            yield (expected[0], None), state
            return
    yield (200, None), {**after, done: True} if done else dict(after)


def _together(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    """Read several entries at one moment; they are there."""
    found = [state.get(f"entry/{name}") for name in args["names"]]
    if any(each is None for each in found):
        yield (404, None), state
    else:
        yield (200, tuple(each[0] for each in found if each is not None)), state


_RULES: Final[Mapping[str, Any]] = {
    "Open": _open, "Renew": _renew, "Close": _close, "Register": _register, "Replace": _replace, "Delete": _delete,
    "Get": _get, "Lock": _lock, "Unlock": _unlock, "Enter": _enter, "Granted": _granted, "Left": _left,
    "Holder": _show_holder, "Allocate": _allocate, "Release": _release, "Next": _next, "Take": _take, "Ack": _ack,
    "Batch": _batch, "Together": _together,
}  # fmt: skip

READING: Final = frozenset({"Renew", "Get", "Holder", "Together"})


# --- watches ---


@dataclass
class Writes:
    """What became of the writes of entries that a watch sees. Each entry has one writer: none of them shares a commit.

    Threads may add to it.
    """

    done: dict[tuple[str, int], int | None] = field(default_factory=dict)
    """Name and revision to the value, None for a deletion."""
    unsure: set[tuple[str, int | None]] = field(default_factory=set)
    """Name and value of writes without an answer: each may have happened."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a watch told, from one cursor on."""

    since: int
    """The revision of the cursor that it began with."""
    upto: int
    """The revision of the cursor that it had in the end."""
    events: tuple[tuple[int, str, int | None], ...]
    """Revision, name and value, None for a deletion."""


def untold(told: Told, writes: Writes) -> str:
    """Say what a watch should not have told, or should have; empty if each change came once, in order."""
    seen: set[tuple[str, int]] = set()
    before = told.since
    for revision, name, value in told.events:
        if revision < before or revision <= told.since:
            return f"{name}: revision {revision} after {before}"
        if revision > told.upto:
            return f"{name}: revision {revision} is beyond the cursor {told.upto}"
        key = (name, revision)
        if value is None and key not in writes.done:
            # etcd tells no place of a deletion in its commit: it is told with the first revision of that.
            deleted = (each for each, what in writes.done.items() if each[0] == name and what is None)
            key = next((each for each in deleted if 0 < each[1] - revision < INDEX_MAX), key)
        if key in seen:
            return f"{name}: revision {revision} was told twice"
        if writes.done[key] != value if key in writes.done else (name, value) not in writes.unsure:
            return f"{name}: nobody wrote {value} at revision {revision}"
        seen.add(key)
        before = revision
    missing = {key for key in writes.done if told.since < key[1] <= told.upto} - seen
    return f"never told: {sorted(missing)[:5]}" if missing else ""


# --- the check ---


def contradiction(calls: Sequence[Call], before: State | None = None, most_points: int = MOST_POINTS) -> str:
    """Say where the calls stop making sense, or that there are too many orders; empty if one explains all answers.

    Args:
        calls: all of a group of names.
        before: the state that they began with.
        most_points: so many states are looked at, for each of :data:`_SOON_SECS`.
    """
    ordered = sorted(
        (call for call in calls if call.answer != NOTHING and not (call.answer == UNKNOWN and call.kind in READING)),
        key=lambda call: call.start,
    )
    problem = ""
    for soon in _SOON_SECS:
        bounded = [replace(call, latest=min(call.latest, call.start + soon)) for call in ordered]
        problem = _without_order(bounded, before or {}, most_points)
        if not problem:
            break
    return problem


def _without_order(ordered: Sequence[Call], before: State, most_points: int) -> str:
    """Say why no order was found; empty if there is one."""
    needed = sum(1 << number for number, call in enumerate(ordered) if call.answer != UNKNOWN)
    start: tuple[int, State] = (0, dict(before))
    stack, seen, furthest = [start], {_key(*start)}, start
    while stack:
        point = stack.pop()
        done, state = point
        if done & needed == needed:
            return ""
        if (done & needed).bit_count() > (furthest[0] & needed).bit_count():
            furthest = point
        for following in _following(ordered, done, state):
            key = _key(*following)
            if key not in seen:
                seen.add(key)
                stack.append(following)
        if len(seen) > most_points:
            return f"undecided after {most_points} points; {_told(ordered, furthest)}"
    return _told(ordered, furthest)


def _key(done: int, state: State) -> tuple[int, tuple[tuple[str, Any], ...]]:
    return done, tuple(sorted(state.items()))


def _following(ordered: Sequence[Call], done: int, state: State) -> list[tuple[int, State]]:
    """Return the points that one more call leads to; the likeliest last, for a stack."""
    found = []
    for number in sorted(_candidates(ordered, done), key=lambda each: -ordered[each].end):
        call = ordered[number]
        with_it = done | 1 << number
        now = _without_late(ordered, with_it)
        for after in outcomes(state, call.kind, call.args, call.answer):
            if after == state and now == with_it and _changes_nothing(call):
                return [(now, state)]
            found.append((now, after))
    return found


def _changes_nothing(call: Call) -> bool:
    """Whether its answer says so, wherever it is in the order. A Holder may tell a token that was not known."""
    return call.kind in READING or (call.answer[0] in (404, 409, 412) and call.kind not in ("Enter", "Left"))


def _candidates(ordered: Sequence[Call], done: int) -> list[int]:
    """Return the calls that may come next: a call that began after another one, not in the order yet, ended may not."""
    limit, found = float("inf"), []
    first = ((done + 1) & ~done).bit_length() - 1
    for number in range(first, len(ordered)):
        if ordered[number].start > limit:
            break
        if not done >> number & 1:
            limit = min(limit, ordered[number].end)
            found.append(number)
    return [number for number in found if ordered[number].start <= limit]


def _without_late(ordered: Sequence[Call], done: int) -> int:
    """Add the calls that cannot come any more: one of those in the order began after their latest moment."""
    began = ordered[done.bit_length() - 1].start
    for number in _candidates(ordered, done):
        if ordered[number].answer == UNKNOWN and ordered[number].latest < began:
            done |= 1 << number
    return done


def _told(ordered: Sequence[Call], point: tuple[int, State]) -> str:
    done, state = point
    return f"after {done.bit_count()} calls, at {dict(state)}, none fits: " + "; ".join(
        f"{each.client}: {each.kind} {dict(each.args)} -> {each.answer}"
        for each in (ordered[number] for number in _candidates(ordered, done))
    )

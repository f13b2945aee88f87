"""What sessions, locks, pools, counters, taking and batches must do, in a few lines; and a check of histories.

:func:`outcomes` is the specification: what a state and one call lead to. Tests that ask one thing
after the other compare with it directly. For calls of several clients at once
:func:`contradiction` looks for an order of them that fits their times and in which each
answer is right: Wing and Gong's search with Lowe's memory of what was tried.

A call without an answer may be in that order, at any time after its start, or not at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

State = Mapping[str, Any]
"""Hashable values by keys such as ``session/s1``, ``entry/a``, ``lock/l``; see the functions below."""
Answer = tuple[int, Any]
"""Status, and what counts of the data."""

UNKNOWN: Final[Answer] = (0, "unknown")
"""No answer, or one that says that the outcome is not known."""
NOTHING: Final[Answer] = (503, "nothing was done")

_MOST_POINTS: Final = 400_000


@dataclass(slots=True)
class Call:
    """One call, and what became of it."""

    kind: str
    args: Mapping[str, Any]
    start: float = 0.0
    end: float = float("inf")
    answer: Answer = UNKNOWN
    client: object = None


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
    return places[0] if places else None


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
        if holder[1] is None and int(token) <= state.get(f"last/{name}", 0):
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
    key, session, last = f"lock/{args['name']}", args["session"], f"last/{args['name']}"
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
    if token is not None:
        if token <= state.get(last, 0):
            return
        state[last] = token
    state[key] = ((session, token),)
    yield (200, token), state


def _unlock(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    holder = _holder(state, args["name"])
    if holder is not None and holder[0] == args["session"]:
        del state[f"lock/{args['name']}"]
    yield (200, None), state


def _show_holder(state: dict[str, Any], args: Mapping[str, Any], answer: Answer) -> Found:
    holder = _holder(state, args["name"])
    if holder is None:
        yield (200, None), state
        return
    session, token = holder
    if token is None and answer[0] == 200 and answer[1] is not None:
        token = answer[1][1]
        if token <= state.get(f"last/{args['name']}", 0):
            return
        state[f"lock/{args['name']}"] = ((session, token),)
        state[f"last/{args['name']}"] = token
    yield (200, (session, token)), state


def _allocate(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    key = f"pool/{args['pool']}"
    owners = dict(state.get(key, ()))
    number = owners.get(args["owner"])
    if number is None:
        number = next((n for n in range(args["from"], args["to"] + 1) if n not in owners.values()), None)
        if number is None:
            yield (409, None), state
            return
        owners[args["owner"]] = number
        state[key] = tuple(sorted(owners.items()))
    yield (200, number), state


def _release(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    key = f"pool/{args['pool']}"
    owners = tuple(item for item in state.get(key, ()) if item[0] != args["owner"])
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
    """Carry out writes of several entries, all or none."""
    after: State = dict(state)
    for kind, own in args["operations"]:
        ((expected, after),) = _RULES[kind](dict(after), own, answer)
        if expected[0] != 200:
            yield (expected[0], None), state
            return
    yield (200, None), dict(after)


def _together(state: dict[str, Any], args: Mapping[str, Any], _: Answer) -> Found:
    """Read several entries at one moment; they are there."""
    found = [state.get(f"entry/{name}") for name in args["names"]]
    if any(each is None for each in found):
        yield (404, None), state
    else:
        yield (200, tuple(each[0] for each in found if each is not None)), state


_RULES: Final[Mapping[str, Any]] = {
    "Open": _open, "Renew": _renew, "Close": _close, "Register": _register, "Replace": _replace, "Delete": _delete,
    "Get": _get, "Lock": _lock, "Unlock": _unlock, "Holder": _show_holder, "Allocate": _allocate, "Release": _release,
    "Next": _next, "Take": _take, "Ack": _ack, "Batch": _batch, "Together": _together,
}  # fmt: skip

READING: Final = frozenset({"Renew", "Get", "Holder", "Together"})


# --- the check ---


def contradiction(calls: Sequence[Call], before: State | None = None) -> str:
    """Say where the calls stop making sense; empty if some order explains all answers.

    Raises:
        RuntimeError: there are too many orders to decide.
    """
    ordered = sorted(
        (call for call in calls if call.answer != NOTHING and not (call.answer == UNKNOWN and call.kind in READING)),
        key=lambda call: call.start,
    )
    needed = sum(1 << number for number, call in enumerate(ordered) if call.answer != UNKNOWN)
    start: tuple[int, State] = (0, dict(before or {}))
    stack, seen, furthest = [start], {_key(*start)}, start
    while stack:
        point = stack.pop()
        done, state = point
        if done & needed == needed:
            return ""
        if (done & needed).bit_count() > (furthest[0] & needed).bit_count():
            furthest = point
        for number in sorted(_candidates(ordered, done), key=lambda each: -ordered[each].end):
            call = ordered[number]
            for after in outcomes(state, call.kind, call.args, call.answer):
                following = (done | 1 << number, after)
                key = _key(*following)
                if key not in seen:
                    seen.add(key)
                    stack.append(following)
        if len(seen) > _MOST_POINTS:
            raise RuntimeError(f"undecided after {_MOST_POINTS} points; {_told(ordered, furthest)}")
    return _told(ordered, furthest)


def _key(done: int, state: State) -> tuple[int, tuple[tuple[str, Any], ...]]:
    return done, tuple(sorted(state.items()))


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


def _told(ordered: Sequence[Call], point: tuple[int, State]) -> str:
    done, state = point
    return f"after {done.bit_count()} calls, at {dict(state)}, none fits: " + "; ".join(
        f"{each.client}: {each.kind} {dict(each.args)} -> {each.answer}"
        for each in (ordered[number] for number in _candidates(ordered, done))
    )

"""What happened to a registry, and whether that can be: a check for linearizability.

Every call is kept with its start, its end and its answer. For each name there
must be an order of the calls that fits their times, in which each answer is
what a plain dict would have answered, and after which the entry is what is
found in the end. A call without an answer, or with one that says that its
outcome is not known, may be in that order, at any time after its start, or not:
wholly, or not at all.

The search is Wing and Gong's with Lowe's memory of what was tried ("Testing for
linearizability", 2017), a name at a time, with three things added, so that neither
many clients of one name nor many broken connections make it exponential:

* calls of unknown outcome whose data nobody ever saw are told apart only by what they do;
* a call that fits and can change nothing is taken at once;
* data that was sent once does not come back, so who saw it comes before it is gone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

State = Mapping[str, Any] | None
"""An entry's own keys; None for no entry."""


class Word:
    """A value that is equal to nothing but itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


REFUSED: Final = Word("REFUSED")
"""The answer of a Register that found the name taken."""
ABSENT: Final = Word("ABSENT")
"""The answer of a Get that found nothing."""
UNMATCHED: Final = Word("UNMATCHED")
"""The answer of a write whose condition did not hold."""
NOTHING: Final = Word("NOTHING")
"""An answer that says that nothing was done."""
UNKNOWN: Final = Word("UNKNOWN")
"""No answer, or one that says that the outcome is not known."""
ANYTHING: Final = Word("ANYTHING")
"""A condition that always holds; an end that nobody looked at."""
UNSEEN: Final = Word("UNSEEN")
"""Data that was sent and occurs in no answer."""

MOST_STATES: Final = 2_000_000
"""Who needs more to decide has a history that is too hard, not a right one."""


@dataclass(slots=True)
class Call:
    """One call, and what became of it."""

    kind: str
    name: str
    data: Mapping[str, Any]
    start: float
    end: float = float("inf")
    answer: Any = UNKNOWN
    """The entry's own keys as answered, None for a Delete, or one of the words above."""
    expects: Any = ANYTHING
    """The own keys of the entry that a condition names, None for no entry, or ANYTHING."""
    client: object = None
    broker: object = None

    @property
    def changes_nothing(self) -> bool:
        """Whether its answer says so, wherever it is in the order."""
        return self.kind == "Get" or self.answer in (REFUSED, UNMATCHED)

    def apply(self, state: State) -> tuple[State, Any]:
        """Return the state after this call on a plain dict, and the right answer."""
        if self.kind == "Get":
            return state, ABSENT if state is None else state
        if self.expects is not ANYTHING and state != self.expects:
            return state, UNMATCHED
        if self.kind == "Delete":
            return None, None
        if self.kind == "Register" and state is not None:
            return state, REFUSED
        after = {**state, **self.data} if self.kind == "Update" and state is not None else dict(self.data)
        return after, after


@dataclass
class History:
    """All calls since the last crash, or since the beginning. Threads may add to it."""

    before: dict[str, State] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(
        self,
        kind: str,
        name: str,
        data: Mapping[str, Any],
        *,
        expects: Any = ANYTHING,
        client: object = None,
        broker: object = None,
    ) -> Call:
        """Note that a call begins."""
        call = Call(kind, name, data, time.monotonic(), expects=expects, client=client, broker=broker)
        with self._lock:
            self.calls.append(call)
        return call

    @staticmethod
    def end(call: Call, answer: Any) -> None:
        """Note its answer."""
        call.answer = answer
        call.end = time.monotonic()

    @property
    def answered(self) -> int:
        return sum(call.answer is not UNKNOWN for call in self.calls)

    def problems(self, found: Mapping[str, State] | None = None) -> list[str]:
        """Return what cannot have been, a text for each name; ``found`` is what was there in the end, if known.

        Raises:
            RuntimeError: a name's calls are too many to decide.
        """
        by_name: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            by_name[call.name].append(call)
        problems = []
        for name in sorted({*by_name, *self.before, *(found or ())}):
            before, after = self.before.get(name), ANYTHING if found is None else found.get(name)
            problem = contradiction(before, by_name[name], after)
            if problem:
                problems.append(f"{name}: {before} became {after}, but {problem}")
        return problems


def possible(before: State, calls: Iterable[Call], after: Any = ANYTHING) -> bool:
    """Whether some order of these calls on one name explains all answers and the last state."""
    return not contradiction(before, calls, after)


def contradiction(before: State, calls: Iterable[Call], after: Any = ANYTHING) -> str:
    """Say where the calls on one name stop making sense; "" if some order explains all answers and the last state.

    Raises:
        RuntimeError: after MOST_STATES it is still open.
    """
    calls = list(calls)
    required, optional = _sorted_out(before, calls, after)
    search = _Search(required, optional, _sent(before, calls))
    start = _Point(0, 0, (0,) * len(optional), before)
    seen = {start.key}
    open_points = [start]
    furthest = start
    while open_points:
        point = open_points.pop()
        if point.low == len(required) and (after is ANYTHING or point.state == after):
            return ""
        if point.done > furthest.done:
            furthest = point
        for following in search.following(point):
            key = following.key
            if key not in seen:
                seen.add(key)
                open_points.append(following)
        if len(seen) > MOST_STATES:
            raise RuntimeError(f"undecided after {MOST_STATES} states; {search.told(furthest)}")
    return search.told(furthest)


def _sorted_out(before: State, calls: Iterable[Call], after: Any) -> tuple[list[Call], list[list[Call]]]:
    """Return the calls that must be in the order, and those that may: by what they do, each kind by start."""
    relevant = [
        call for call in calls if call.answer is not NOTHING and not (call.kind == "Get" and call.answer is UNKNOWN)
    ]
    sent = _sent(before, relevant)
    named = {pair for call in relevant for pair in _pairs(call.expects)}
    seen: dict[str, float] = {}
    for state, at in [(call.answer, call.end) for call in relevant] + [(after, float("inf"))]:
        for pair in _pairs(state):
            seen[pair] = min(at, seen.get(pair, float("inf")))
    required, optional = [], defaultdict(list)
    for call in sorted(relevant, key=lambda call: call.start):
        if call.answer is not UNKNOWN:
            required.append(call)
            continue
        own = [pair for pair in _pairs(call.data) if sent[pair] == 1]
        shown = [seen[pair] for pair in own if pair in seen]
        if shown:
            # It has happened, before the first call that saw it was answered.
            required.append(replace(call, end=min(shown)))
            continue
        hidden = call
        if own and len(own) == len(call.data) and not named.intersection(own):
            hidden = replace(call, data=dict.fromkeys(call.data, UNSEEN))
        optional[f"{call.kind} {_text(hidden.data)} {call.expects}"].append(hidden)
    return required, list(optional.values())


def _sent(before: State, calls: Iterable[Call]) -> Counter[str]:
    """Return how often each piece of data came in."""
    sent = Counter(pair for call in calls for pair in _pairs(call.data))
    sent.update(_pairs(before))
    return sent


def _pairs(state: Any) -> Iterator[str]:
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield f"{key}={value!r}"


def _text(state: State) -> str:
    return repr(None if state is None else sorted(state.items(), key=lambda item: item[0]))


@dataclass(frozen=True, slots=True)
class _Point:
    """How far an order has come."""

    low: int
    """All required calls before this one are in it,"""
    mask: int
    """and of this one and those behind it those with a bit."""
    used: tuple[int, ...]
    """How many of each kind of optional call are in it."""
    state: State

    @property
    def key(self) -> tuple[int, int, tuple[int, ...], str]:
        return self.low, self.mask, self.used, _text(self.state)

    @property
    def done(self) -> int:
        return self.low + self.mask.bit_count()


class _Search:
    def __init__(self, required: Sequence[Call], optional: Sequence[Sequence[Call]], sent: Counter[str]) -> None:
        self._required = required
        self._optional = optional
        self._seers: dict[str, list[int]] = defaultdict(list)
        """Which required calls saw data that was sent once."""
        for number, call in enumerate(required):
            matched = call.expects if call.answer is not UNMATCHED else None
            for pair in {*_pairs(call.answer), *_pairs(matched)}:
                if sent[pair] == 1:
                    self._seers[pair].append(number)

    def following(self, point: _Point) -> Iterator[_Point]:
        """Yield the points that one more call leads to; the likeliest last, for a stack."""
        candidates, limit = self._candidates(point)
        for _, number, call in candidates:
            if call.changes_nothing and call.answer == call.apply(point.state)[1]:
                yield self._after(point, number, point.state)
                return
        for following in self._changing(point, candidates, limit):
            if not self._too_late(point, following):
                yield following

    def _too_late(self, point: _Point, following: _Point) -> bool:
        """Whether data is gone that a call still has to see."""
        gone = set(_pairs(point.state)).difference(_pairs(following.state))
        return any(
            number >= following.low and not following.mask >> (number - following.low) & 1
            for pair in gone
            for number in self._seers.get(pair, ())
        )

    def _changing(self, point: _Point, candidates: Sequence[tuple[float, int, Call]], limit: float) -> Iterator[_Point]:
        for kind, (calls, used) in enumerate(zip(self._optional, point.used, strict=True)):
            # Of those that do the same the one that began first can take any other's place.
            if used < len(calls) and calls[used].start <= limit:
                state, _ = calls[used].apply(point.state)
                if state != point.state:
                    counts = (*point.used[:kind], used + 1, *point.used[kind + 1 :])
                    yield _Point(point.low, point.mask, counts, state)
        for _, number, call in sorted(candidates, reverse=True):
            state, right = call.apply(point.state)
            if call.answer is UNKNOWN or call.answer == right:
                yield self._after(point, number, state)

    @staticmethod
    def _after(point: _Point, number: int, state: State) -> _Point:
        low, mask = point.low, point.mask | 1 << (number - point.low)
        while mask & 1:
            low, mask = low + 1, mask >> 1
        return _Point(low, mask, point.used, state)

    def _candidates(self, point: _Point) -> tuple[list[tuple[float, int, Call]], float]:
        """Return the required calls that may come next, and the time after which none may have begun.

        Who began after another one, not in the order yet, was answered cannot come before it.
        """
        limit = float("inf")
        found = []
        for number in range(point.low, len(self._required)):
            call = self._required[number]
            if call.start > limit:
                break
            if not point.mask >> (number - point.low) & 1:
                limit = min(limit, call.end)
                found.append((call.end, number, call))
        return [each for each in found if each[2].start <= limit], limit

    def told(self, point: _Point) -> str:
        """Say what nobody can explain after this point."""
        calls = [call for _, _, call in self._candidates(point)[0]]
        return f"after {point.done} calls, at {point.state}, none of these fits: {calls}"

"""What happened to a registry, and whether that can be: a check for linearizability with a crash at the end.

Every call is kept with its start, its end and its answer. For each name there
must be an order of the calls that fits their times, in which each answer is
what a plain dict would have answered, and after which the entry is what is
found after the crash. A call without an answer may be in that order or not:
wholly, or not at all.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

State = Mapping[str, Any] | None
"""An entry's own keys; None for no entry."""

REFUSED = object()
"""The answer of a Register that found the name taken."""
ABSENT = object()
"""The answer of a Get that found nothing."""
UNKNOWN = object()
"""No answer, or one that says that the outcome is not known."""


@dataclass(slots=True)
class Call:
    """One call, and what became of it."""

    kind: str
    name: str
    data: Mapping[str, Any]
    start: float
    end: float = float("inf")
    answer: Any = UNKNOWN
    """The entry's own keys as answered, None for a Delete, or one of the three words above."""

    def apply(self, state: State) -> tuple[State, Any]:
        """Give the state after this call on a plain dict, and the right answer."""
        if self.kind == "Get":
            return state, ABSENT if state is None else state
        if self.kind == "Delete":
            return None, None
        if self.kind == "Register" and state is not None:
            return state, REFUSED
        after = {**state, **self.data} if self.kind == "Update" and state is not None else dict(self.data)
        return after, after


@dataclass
class History:
    """All calls since the last crash. Threads may add to it."""

    before: dict[str, State] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, kind: str, name: str, data: Mapping[str, Any]) -> Call:
        """Note that a call begins."""
        call = Call(kind, name, data, time.monotonic())
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

    def problems(self, found: Mapping[str, State]) -> list[str]:
        """Give the names whose calls cannot have been in any order that leads to what was found."""
        by_name: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            by_name[call.name].append(call)
        return [
            f"{name}: {self.before.get(name)} became {found.get(name)} by {by_name[name]}"
            for name in sorted({*by_name, *self.before, *found})
            if not possible(self.before.get(name), by_name[name], found.get(name))
        ]


def possible(before: State, calls: list[Call], after: State) -> bool:
    """Whether some order of these calls on one name explains all answers and the last state."""
    calls = sorted(calls, key=lambda call: call.start)
    certain = sum(1 << number for number, call in enumerate(calls) if call.answer is not UNKNOWN)
    seen: set[tuple[int, str]] = set()
    open_states: list[tuple[int, State]] = [(0, before)]
    while open_states:
        done, state = open_states.pop()
        if done & certain == certain and state == after:
            return True
        # Who began after another one, not in the order yet, was answered cannot come before it.
        limit = min((call.end for number, call in enumerate(calls) if not done >> number & 1), default=0.0)
        for number, call in enumerate(calls):
            if call.start > limit:
                break
            if done >> number & 1:
                continue
            next_state, right = call.apply(state)
            if call.answer is UNKNOWN or call.answer == right:
                key = (done | 1 << number, repr(next_state))
                if key not in seen:
                    seen.add(key)
                    open_states.append((key[0], next_state))
    return False

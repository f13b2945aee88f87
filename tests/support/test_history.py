"""The check of the crash tests: it must find what it is there to find, and nothing else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import history as checked
from tests.support.history import (
    ABSENT,
    ANYTHING,
    NOTHING,
    REFUSED,
    UNKNOWN,
    UNMATCHED,
    Call,
    History,
    State,
    contradiction,
    possible,
)


def call(kind: str, start: float, end: float, answer: Any, expects: Any = ANYTHING, **data: Any) -> Call:
    return Call(kind, "n", data, start, end, answer, expects)


INF = float("inf")
ONE, TWO = {"v": 1}, {"v": 2}
WRITTEN = call("Replace", 0, 1, ONE, v=1)
UNANSWERED = call("Replace", 0, INF, UNKNOWN, v=1)


@pytest.mark.parametrize(
    ("before", "calls", "after"),
    [
        (None, [], None),
        (None, [WRITTEN], ONE),
        (TWO, [UNANSWERED], TWO),
        (TWO, [UNANSWERED], ONE),
        (None, [call("Register", 0, 2, ONE, v=1), call("Register", 1, 3, REFUSED, v=2)], ONE),
        (None, [call("Register", 0, 2, REFUSED, v=1), call("Register", 1, 3, TWO, v=2)], TWO),
        (TWO, [call("Update", 0, 1, {"v": 2, "w": 3}, w=3), call("Delete", 2, 3, None)], None),
        (None, [call("Get", 0, 1, ABSENT), call("Register", 0.5, 2, ONE, v=1), call("Get", 3, 4, ONE)], ONE),
        (None, [UNANSWERED, call("Get", 2, 3, ABSENT)], ONE),
        (None, [call("Update", 0, 5, {"a": 1, "b": 1}, a=1), call("Update", 0, 5, {"b": 1}, b=1)], {"a": 1, "b": 1}),
        # an uncertain call happens long after its connection broke
        (TWO, [UNANSWERED, call("Get", 2, 3, TWO), call("Get", 4, 5, ONE)], ONE),
        # nobody saw it, but it was there
        (None, [UNANSWERED, call("Register", 2, 3, REFUSED, v=2), call("Replace", 4, 5, TWO, v=2)], TWO),
        # conditions
        (ONE, [call("Replace", 0, 1, TWO, ONE, v=2), call("Delete", 2, 3, UNMATCHED, ONE)], TWO),
        (None, [call("Replace", 0, 2, ONE, None, v=1), call("Replace", 0, 2, UNMATCHED, None, v=2)], ONE),
        (ONE, [call("Delete", 0, INF, UNKNOWN, ONE), call("Update", 1, 2, UNMATCHED, ONE, v=2)], None),
        (ONE, [call("Replace", 0, 1, NOTHING, v=2)], ONE),
        (ONE, [call("Get", 0, INF, UNKNOWN)], ANYTHING),
        # data that is not unique proves nothing
        (None, [UNANSWERED, call("Get", 2, 3, ABSENT), call("Replace", 4, 5, ONE, v=1)], ONE),
        (ONE, [call("Get", 0, 1, ONE), call("Replace", 2, INF, UNKNOWN, v=1)], ONE),
    ],
)
def test_what_can_be(before: State, calls: list[Call], after: State) -> None:
    assert possible(before, calls, after)


@pytest.mark.parametrize(
    ("before", "calls", "after"),
    [
        (None, [], ONE),
        (TWO, [], None),
        (None, [WRITTEN], None),
        (TWO, [WRITTEN], TWO),
        (None, [UNANSWERED], TWO),
        (ONE, [call("Delete", 0, 1, None)], ONE),
        # an order against the times
        (None, [WRITTEN, call("Replace", 2, 3, TWO, v=2)], ONE),
        (None, [call("Register", 0, 1, ONE, v=1), call("Register", 2, 3, TWO, v=2)], TWO),
        # a read of what is gone after the crash
        (None, [UNANSWERED, call("Get", 2, 3, ONE)], None),
        # half an update
        (TWO, [call("Update", 0, INF, UNKNOWN, a=1, b=1)], {"v": 2, "a": 1}),
        # a lost update
        (None, [call("Update", 0, 5, {"a": 1}, a=1), call("Update", 0, 5, {"b": 1}, b=1)], {"b": 1}),
        # happened twice
        (ONE, [call("Delete", 0, 1, None), call("Get", 2, 3, ONE)], None),
        # an uncertain call that happens, is undone, and happens again
        (TWO, [UNANSWERED, call("Get", 2, 3, ONE), call("Delete", 4, 5, None), call("Get", 6, 7, ONE)], ANYTHING),
        # a read from before: another broker has answered the write already
        (TWO, [WRITTEN, call("Get", 2, 3, TWO)], ANYTHING),
        # two reads that go back in time, while the write is still under way
        (TWO, [call("Replace", 0, 9, ONE, v=1), call("Get", 1, 2, ONE), call("Get", 3, 4, TWO)], ANYTHING),
        # a read of what is going to be written
        (TWO, [call("Get", 0, 1, ONE), call("Replace", 2, 3, ONE, v=1)], ANYTHING),
        (TWO, [call("Get", 0, 1, ONE), call("Replace", 2, INF, UNKNOWN, v=1)], ANYTHING),
        # two winners; a loser without a winner; a loser that is found
        (None, [call("Register", 0, 5, ONE, v=1), call("Register", 0, 5, TWO, v=2)], ANYTHING),
        (None, [call("Register", 0, 5, REFUSED, v=1)], ANYTHING),
        (None, [call("Register", 0, 5, REFUSED, v=1), call("Register", 0, 5, TWO, v=2)], ONE),
        # refused by its own first attempt
        (None, [call("Register", 0, 5, REFUSED, v=1), call("Get", 6, 7, ONE)], ANYTHING),
        # "nothing was changed", but it was
        (TWO, [call("Replace", 0, 1, NOTHING, v=1), call("Get", 2, 3, ONE)], ANYTHING),
        (TWO, [call("Delete", 0, 1, NOTHING), call("Get", 2, 3, ABSENT)], ANYTHING),
        # conditions that held or did not hold wrongly; both of two with the same one
        (TWO, [call("Replace", 0, 1, {"v": 3}, ONE, v=3)], ANYTHING),
        (ONE, [call("Replace", 0, 1, UNMATCHED, ONE, v=3)], ANYTHING),
        (ONE, [call("Replace", 0, 5, TWO, ONE, v=2), call("Replace", 0, 5, {"v": 3}, ONE, v=3)], ANYTHING),
        (None, [call("Delete", 0, 1, None, ONE)], ANYTHING),
        # acknowledged and lost, though something uncertain is about
        (None, [WRITTEN, call("Replace", 2, INF, UNKNOWN, v=2), call("Get", 3, 4, ABSENT)], ANYTHING),
        # an update merged into what was no longer there
        (ONE, [call("Replace", 0, 1, {"w": 2}, w=2), call("Update", 2, 3, {"v": 1, "x": 3}, x=3)], ANYTHING),
    ],
)
def test_what_cannot_be(before: State, calls: list[Call], after: State) -> None:
    assert not possible(before, calls, after)


def test_names_are_apart() -> None:
    history = History({"kept": ONE, "lost": ONE})
    History.end(history.begin("Replace", "n", ONE), ONE)
    history.begin("Replace", "open", ONE)
    assert history.answered == 1
    found: dict[str, State] = {"kept": ONE, "n": ONE, "open": ONE}
    assert [problem.split(":")[0] for problem in history.problems(found)] == ["lost"]
    assert history.problems() == []


def test_it_says_where_it_stops_making_sense() -> None:
    stale = replace(call("Get", 2, 3, {"v": 3}), client=7, broker="b")
    text = contradiction(TWO, [WRITTEN, stale])
    assert text.startswith("after 1 calls, at {'v': 1}, none of these fits: ")
    assert "client=7" in text
    assert "Replace" not in text


def test_too_hard_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "MOST_STATES", 3)
    with pytest.raises(RuntimeError, match="undecided"):
        possible(None, [call("Get", 0, 9, ABSENT) for _ in range(5)])


# --- against a search that is too simple to be wrong ---

VALUES = st.sampled_from([1, 2])
DATA = st.sampled_from([{"a": 1}, {"a": 2}, {"b": 1}])
STATES = st.none() | DATA


def plainly_possible(before: State, calls: Sequence[Call], after: Any) -> bool:
    """Try every order of every choice of the uncertain calls."""
    calls = [each for each in calls if each.answer is not NOTHING]
    certain = [each for each in calls if each.answer is not UNKNOWN]
    uncertain = [each for each in calls if each.answer is UNKNOWN]
    for size in range(len(uncertain) + 1):
        for chosen in itertools.combinations(uncertain, size):
            if any(_explains(before, order, after) for order in itertools.permutations([*certain, *chosen])):
                return True
    return False


def _explains(before: State, order: Sequence[Call], after: Any) -> bool:
    if any(later.end < earlier.start for earlier, later in itertools.combinations(order, 2)):
        return False
    state = before
    for each in order:
        state, right = each.apply(state)
        if each.answer is not UNKNOWN and each.answer != right:
            return False
    return after is ANYTHING or state == after


@st.composite
def any_call(draw: st.DrawFn) -> Call:
    kind = draw(st.sampled_from(["Get", "Register", "Replace", "Update", "Delete"]))
    start = draw(st.integers(0, 8))
    data = {} if kind in ("Get", "Delete") else draw(DATA)
    expects = ANYTHING if kind == "Get" else draw(st.just(ANYTHING) | STATES)
    answers = {"Get": st.just(ABSENT) | DATA, "Delete": st.none() | st.just(UNMATCHED)}.get(
        kind, DATA | st.sampled_from([REFUSED, UNMATCHED, {"a": 1, "b": 1}, {"a": 2, "b": 1}])
    )
    answer = draw(answers | st.just(UNKNOWN))
    end = float("inf") if answer is UNKNOWN else start + draw(st.integers(0, 5))
    return call(kind, start, end, answer, expects, **data)


@given(before=STATES, calls=st.lists(any_call(), max_size=5), after=st.just(ANYTHING) | STATES)
def test_it_is_as_right_as_trying_everything(before: State, calls: list[Call], after: Any) -> None:
    assert possible(before, calls, after) is plainly_possible(before, calls, after)


# --- against a store that is right, and the same store with a fault ---


class Simulated:
    """Clients of one name; each call takes effect at a moment between its start and its end."""

    def __init__(self, seed: int, size: int, uncertain: float) -> None:
        chance = random.Random(seed)  # noqa: S311 - for chance, not for secrets
        self.state: State = None
        self.calls: list[Call] = []
        self.clients = [0.0] * 16
        moments: list[tuple[float, Call]] = []
        for number in range(size):
            client = min(range(16), key=lambda each: self.clients[each])
            start = self.clients[client] + chance.random() * 0.1
            point = start + chance.random()
            end = point + chance.random()
            kind = chance.choice(["Get", "Get", "Register", "Replace", "Update", "Delete"])
            data = {} if kind in ("Get", "Delete") else {chance.choice("ab"): number, "n": number}
            made = call(kind, start, end, NOTHING, **data)
            if chance.random() < uncertain:
                made.answer, made.end = UNKNOWN, float("inf")
                point += chance.choice([0, 0, 5, float("inf")])
            self.clients[client] = end
            self.calls.append(made)
            moments.append((point, made))
        states: list[State] = []
        for point, made in sorted(moments, key=lambda item: item[0]):
            if point == float("inf"):
                continue
            states.append(self.state)
            if made.expects is ANYTHING and made.kind == "Replace" and chance.random() < 0.3:
                made.expects = chance.choice(states[-5:])
            self.state, answer = made.apply(self.state)
            if made.answer is not UNKNOWN:
                made.answer = answer


@given(seed=st.integers(0, 2**32), uncertain=st.sampled_from([0.0, 0.02, 0.1]))
def test_a_right_store_is_always_right(seed: int, uncertain: float) -> None:
    store = Simulated(seed, 60, uncertain)
    assert contradiction(None, store.calls, store.state) == ""


@pytest.mark.parametrize("uncertain", [0.0, 0.01])
def test_a_long_history_is_decided_soon(uncertain: float) -> None:
    store = Simulated(1, 3000, uncertain)
    assert contradiction(None, store.calls, store.state) == ""


@pytest.mark.parametrize("uncertain", [0.0, 0.01])
def test_one_stale_read_in_a_long_history_is_found_soon(uncertain: float) -> None:
    store = Simulated(1, 1000, uncertain)
    reads = [each for each in store.calls if each.kind == "Get" and each.answer not in (UNKNOWN, ABSENT)]
    early = reads[len(reads) // 3]
    late = next(each for each in reads if each.start > early.end + 10)
    late.answer = early.answer
    assert contradiction(None, store.calls, store.state)

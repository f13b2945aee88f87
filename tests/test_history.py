"""The crash test's own check: it must find what it is there to find."""

from __future__ import annotations

from typing import Any

import pytest

from tests.history import ABSENT, REFUSED, UNKNOWN, Call, History, State, possible


def call(kind: str, start: float, end: float, answer: Any, **data: Any) -> Call:
    return Call(kind, "n", data, start, end, answer)


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

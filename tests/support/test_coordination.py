"""The check of histories of coordination: what it must accept, and what it must find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.coordination import (
    UNKNOWN,
    Answer,
    Call,
    Told,
    Writes,
    contradiction,
    outcomes,
    untold,
)


def call(kind: str, start: float, end: float, answer: Answer, **args: Any) -> Call:
    return Call(kind, args, start, end, answer)


OPENED = [call("Open", 0, 1, (200, None), session=session) for session in ("s1", "s2")]


def lock(session: str, start: float, end: float, answer: Answer) -> Call:
    return call("Lock", start, end, answer, name="l", session=session)


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([lock("s1", 2, 3, (200, 10)), lock("s2", 4, 5, (409, None))], True),
        # At the same time either may be first, but both cannot hold it.
        ([lock("s1", 2, 5, (200, 10)), lock("s2", 2, 5, (409, None))], True),
        ([lock("s1", 2, 3, (200, 10)), lock("s2", 4, 5, (200, 11))], False),
        ([lock("s1", 2, 5, (200, 10)), lock("s2", 2, 5, (200, 11))], False),
        # A call without an answer may have happened, later too.
        ([lock("s1", 2, float("inf"), UNKNOWN), lock("s2", 4, 5, (409, None))], True),
        ([lock("s1", 2, float("inf"), UNKNOWN), lock("s2", 4, 5, (200, 11))], True),
        # Its token is learnt by a repeat, and no token comes again.
        ([lock("s1", 2, float("inf"), UNKNOWN), lock("s1", 4, 5, (200, 11)), lock("s1", 6, 7, (200, 12))], False),
        (
            [
                lock("s1", 2, 3, (200, 10)),
                call("Close", 4, 5, (200, None), session="s1"),
                lock("s2", 6, 7, (200, 10)),
            ],
            False,
        ),
        # A fence that has fallen.
        (
            [
                lock("s1", 2, 3, (200, 10)),
                call("Unlock", 4, 5, (200, None), name="l", session="s1"),
                lock("s2", 6, 7, (200, 11)),
                call("Replace", 8, 9, (200, None), name="a", value=1, lock="l:10"),
            ],
            False,
        ),
    ],
)
def test_locks(calls: list[Call], right: bool) -> None:
    assert bool(contradiction([*OPENED, *calls])) is not right


def test_who_has_died_does_nothing_more() -> None:
    calls = [*OPENED, lock("s1", 2, float("inf"), UNKNOWN), lock("s2", 4, 5, (200, 10))]
    late = call("Holder", 6, 7, (200, ("s1", 11)), name="l")
    calls += [call("Close", 5, 6, (200, None), session="s2"), late]
    assert not contradiction(calls)
    calls[2].latest = 5.5  # before s2 has let go of it
    assert not contradiction(calls)
    calls[2].latest = 3
    assert contradiction(calls)


def tokens(kind: str) -> st.SearchStrategy[Answer]:
    """Answers that calls of a lock may have, right or wrong."""
    given_token = st.tuples(st.just(200), st.integers(1, 3))
    refused = st.sampled_from([(404, None), (409, None)])
    if kind in ("Lock", "Enter"):
        return given_token | refused
    if kind == "Holder":
        return st.tuples(st.just(200), st.none() | st.tuples(st.sampled_from(["s1", "s2"]), st.integers(1, 3)))
    return st.sampled_from([(200, None), (404, None)] if kind == "Renew" else [(200, None)])


@st.composite
def a_call(draw: st.DrawFn) -> Call:
    kind = draw(st.sampled_from(["Open", "Close", "Renew", "Lock", "Lock", "Enter", "Unlock", "Holder"]))
    args = {"name": "l", "session": draw(st.sampled_from(["s1", "s2"])), "id": draw(st.integers(1, 2))}
    start = draw(st.integers(0, 6))
    if draw(st.integers(0, 2)) == 0:
        return Call(kind, args, start, latest=start + draw(st.integers(0, 3) | st.just(99)) + 0.5)
    return Call(kind, args, start, start + draw(st.integers(0, 3)) + 0.5, draw(tokens(kind)))


def explained(calls: Sequence[Call], began: float, state: Mapping[str, Any]) -> bool:
    """Whether some order explains the calls: all orders are tried. The last call in the order so far began then."""
    needed = [each for each in calls if each.answer != UNKNOWN]
    if not needed:
        return True
    limit = min(each.end for each in needed)
    for number, each in enumerate(calls):
        if each.start <= limit and (each.answer != UNKNOWN or each.latest >= max(began, each.start)):
            rest = [*calls[:number], *calls[number + 1 :]]
            for after in outcomes(state, each.kind, each.args, each.answer):
                if explained(rest, max(began, each.start), after):
                    return True
    return False


@settings(max_examples=1000)
@given(st.lists(a_call(), max_size=6))
def test_it_is_as_if_all_orders_were_tried(calls: list[Call]) -> None:
    before = {"session/s1": True}
    assert (contradiction(calls, before) == "") is explained(calls, 0, before)


def number(owner: str, start: float, end: float, answer: Answer) -> Call:
    return call("Allocate", start, end, answer, pool="p", owner=owner, **{"from": 1, "to": 3})


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([number("a", 0, 9, (200, 2)), number("b", 0, 9, (200, 1)), number("a", 10, 11, (200, 2))], True),
        ([number("a", 0, 1, (200, 2)), number("b", 2, 3, (200, 1))], False),
        ([number("a", 0, 9, (200, 1)), number("b", 0, 9, (200, 1))], False),
        ([number("a", 0, float("inf"), UNKNOWN), number("b", 2, 3, (200, 2))], True),
    ],
)
def test_numbers(calls: list[Call], right: bool) -> None:
    assert bool(contradiction(calls)) is not right


def test_a_batch_is_never_half() -> None:
    writes = {"operations": [("Replace", {"name": name, "value": 7}) for name in "xy"]}
    begun = [
        Call("Batch", {"operations": [("Replace", {"name": name, "value": 1}) for name in "xy"]}, 0, 1, (200, None))
    ]
    for seen, right in (((1, 1), True), ((7, 7), True), ((7, 1), False)):
        calls = [
            *begun,
            Call("Batch", writes, 2, 9, (200, None)),
            call("Together", 3, 4, (200, seen), names=("x", "y")),
        ]
        assert bool(contradiction(calls)) is not right


def test_one_receiver_takes() -> None:
    begun = [call("Register", 0, 1, (200, None), name="a", value=5)]
    takes = [call("Take", 2, 9, (200, 5), name="a", receiver=receiver) for receiver in ("r", "q")]
    assert not contradiction([*begun, takes[0], call("Take", 2, 9, (409, None), name="a", receiver="q")])
    assert contradiction([*begun, *takes])


def entered(number: int, start: float, token: int | None, end: float) -> list[Call]:
    """Return the parts of a Lock of session ``s<number>`` that waited: granted with a token, or refused."""
    answer = (409, None) if token is None else (200, token)
    args = {"name": "l", "session": f"s{number}", "id": number}
    return [Call(kind, args, start, end, answer) for kind in ("Enter", "Left" if token is None else "Granted")]


def unlock(session: str, start: float, end: float) -> Call:
    return call("Unlock", start, end, (200, None), name="l", session=session)


THREE = [*OPENED, call("Open", 0, 1, (200, None), session="s3")]
UNANSWERED = Call("Enter", {"name": "l", "session": "s2", "id": 1}, 4)
HELD = [*THREE, lock("s1", 2, 3, (200, 10))]


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([*entered(2, 4, 11, 9), unlock("s1", 7, 8)], True),
        # Granted while another one holds it.
        ([*entered(2, 4, 11, 9), unlock("s1", 10, 11)], False),
        # In the order of their places, which is that of their tokens.
        ([*entered(2, 4, 11, 20), *entered(3, 5, 12, 30), unlock("s1", 7, 8), unlock("s2", 22, 23)], True),
        ([*entered(2, 4, 11, 30), *entered(3, 5, 12, 20), unlock("s1", 7, 8), unlock("s3", 22, 23)], False),
        ([*entered(2, 4, 12, 30), *entered(3, 5, 11, 20), unlock("s1", 7, 8), unlock("s3", 22, 23)], True),
        ([*entered(2, 4, 9, 9), unlock("s1", 7, 8)], False),
        # Refused: then the place is given back.
        ([*entered(2, 4, None, 9), unlock("s1", 10, 11), lock("s3", 12, 13, (200, 12))], True),
        ([*entered(2, 4, None, 9), unlock("s1", 10, 11), lock("s3", 12, 13, (409, None))], False),
        # It may have been granted for a moment before.
        ([*entered(2, 4, None, 9), unlock("s1", 5, 6), lock("s3", 7, 8, (409, None))], True),
        # Without an answer it may be in the queue for ever, and is found there.
        ([UNANSWERED, unlock("s1", 5, 6), lock("s2", 7, 8, (200, 11))], True),
        (
            [
                UNANSWERED,
                *entered(3, 5, 12, 20),
                unlock("s1", 6, 7),
                lock("s2", 8, 9, (200, 13)),
                unlock("s2", 10, 11),
            ],
            False,  # its place is before the other one's, and its token higher
        ),
        (
            [
                UNANSWERED,
                Call("Left", {"name": "l", "session": "s2", "id": 1}, 4),
                unlock("s1", 6, 7),
                lock("s3", 8, 9, (409, None)),
                lock("s3", 10, 11, (200, 13)),
            ],
            True,  # given back later
        ),
    ],
)  # fmt: skip
def test_locks_that_are_waited_for(calls: list[Call], right: bool) -> None:
    assert bool(contradiction([*HELD, *calls])) is not right


WRITTEN = Writes({("w/1", 10): 1, ("w/2", 11): 2, ("w/1", 15): None}, {("w/2", 3)})


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([(10, "w/1", 1), (11, "w/2", 2), (15, "w/1", None)], ""),
        ([(10, "w/1", 1), (11, "w/2", 2), (13, "w/2", 3), (15, "w/1", None)], ""),
        ([(10, "w/1", 1), (15, "w/1", None)], "never told: [('w/2', 11)]"),
        ([(10, "w/1", 1), (11, "w/2", 2), (11, "w/2", 2), (15, "w/1", None)], "told twice"),
        ([(11, "w/2", 2), (10, "w/1", 1), (15, "w/1", None)], "revision 10 after 11"),
        ([(10, "w/1", 1), (11, "w/2", 3), (15, "w/1", None)], "nobody wrote 3"),
        ([(10, "w/1", 4), (11, "w/2", 2), (15, "w/1", None)], "nobody wrote 4"),
        ([(9, "w/1", 1)], "revision 9 after 9"),
        ([(10, "w/1", 1), (11, "w/2", 2), (15, "w/1", None), (21, "w/2", 3)], "beyond the cursor"),
    ],
)
def test_what_a_watch_tells(events: list[tuple[int, str, int | None]], said: str) -> None:
    found = untold(Told(9, 20, tuple(events)), WRITTEN)
    assert said in found
    assert bool(found) is bool(said)


def test_a_deletion_may_be_told_with_the_first_revision_of_its_commit() -> None:
    writes = Writes({("w/1", 100_007): None})
    assert not untold(Told(9, 200_000, ((100_000, "w/1", None),)), writes)
    assert "told twice" in untold(Told(9, 200_000, ((100_000, "w/1", None), (100_007, "w/1", None))), writes)
    assert "nobody wrote" in untold(Told(9, 200_000, ((90_000, "w/1", None),)), writes)


def test_what_is_before_and_behind_the_cursors_need_not_be_told() -> None:
    assert not untold(Told(10, 14, ((11, "w/2", 2),)), WRITTEN)

"""The check of histories of coordination: what it must accept, and what it must find."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.coordination import UNKNOWN, Answer, Call, contradiction


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

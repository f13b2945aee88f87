"""The reads that wait, by name, by prefix and by deadline."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.messages import Get, List
from bpbroker.registry.waiters import Waiter, Waiters


@pytest.fixture
def waiting() -> Waiters:
    return Waiters()


def add(waiting: Waiters, message: Get | List, deadline: float = 10.0, count: int = 0) -> Waiter:
    return waiting.add(message, Future(), deadline, count)


def test_by_name_and_state(waiting: Waiters) -> None:
    new, changed = add(waiting, Get("a")), add(waiting, Get("a", unless_etag='"1"'))
    add(waiting, Get("b"))
    assert list(waiting.appeared("a", '"1"')) == [new.reply]
    assert list(waiting.appeared("c", '"1"')) == []
    assert list(waiting.appeared("a", '"2"')) == [changed.reply]
    assert len(waiting) == 1


def test_by_prefix_and_count(waiting: Waiters) -> None:
    one, two = add(waiting, List("n", 1)), add(waiting, List("n", 2))
    everything = add(waiting, List("", 2), count=1)
    assert dict(waiting.counted("m1", 1)) == {"": [everything.reply]}
    assert dict(waiting.counted("n1", 1)) == {"n": [one.reply]}
    assert dict(waiting.counted("n1", -1)) == {}
    assert dict(waiting.counted("n2", 1)) == {}
    assert dict(waiting.counted("n3", 1)) == {"n": [two.reply]}
    assert len(waiting) == 0
    assert list(waiting.counted("n4", 1)) == []


def test_a_name_shorter_than_a_prefix_does_not_count(waiting: Waiters) -> None:
    add(waiting, List("node", 1))
    assert list(waiting.counted("nod", 1)) == []


def test_a_waiter_is_taken_out_once(waiting: Waiters) -> None:
    for waiter in (add(waiting, Get("a")), add(waiting, List("a", 5))):
        assert waiting.remove(waiter)
        assert not waiting.remove(waiter)
    assert len(waiting) == 0
    assert list(waiting.expired(100)) == []


def test_deadlines_in_order(waiting: Waiters) -> None:
    assert waiting.next_deadline() == float("inf")
    late, early, gone = add(waiting, Get("a"), 3), add(waiting, List("", 9), 1), add(waiting, Get("b"), 2)
    waiting.remove(gone)
    assert waiting.next_deadline() == 1
    assert list(waiting.expired(2.5)) == [early]
    assert list(waiting.expired(3)) == [late]


def test_those_who_were_answered_take_no_memory(waiting: Waiters) -> None:
    for number in range(10_000):
        add(waiting, Get(f"n{number}"), 600)
        assert len(list(waiting.appeared(f"n{number}", '""'))) == 1
    assert len(waiting._deadlines) < 200


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "ab", "b"]), st.integers(1, 4)) | st.sampled_from(["a", "ab", "abc", "b"])
    )
)
def test_lists_are_answered_exactly_when_there_are_enough(steps: list[Any]) -> None:
    """A step is a List that begins to wait, or a name that comes or goes."""
    waiting, names = Waiters(), set[str]()
    open_lists: dict[int, tuple[List, Future[Any]]] = {}

    def count(prefix: str) -> int:
        return sum(name.startswith(prefix) for name in names)

    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            message = List(*step)
            if count(message.prefix) < message.at_least:
                reply: Future[Any] = Future()
                open_lists[number] = message, reply
                waiting.add(message, reply, 10, count(message.prefix))
            continue
        names ^= {step}
        answered = {id(reply) for _, replies in waiting.counted(step, 1 if step in names else -1) for reply in replies}
        for key, (message, reply) in list(open_lists.items()):
            assert (id(reply) in answered) == (count(message.prefix) >= message.at_least)
            if id(reply) in answered:
                del open_lists[key]
    assert len(waiting) == len(open_lists)


def test_no_client_takes_the_places_of_others(waiting: Waiters) -> None:
    most = 640
    for client in ("a", "b", "c"):
        while waiting.room(client, most):
            add(waiting, Get("x", client=client))
    assert (waiting.of("a"), waiting.of("b"), waiting.of("c")) == (320, 320, 10)
    # All places are taken; another one that comes later gets a few all the same, and so does each of many.
    for number in range(200):
        while waiting.room(f"late {number}", most):
            add(waiting, List("n", 1, client=f"late {number}"))
    assert waiting.of("late 0") == waiting.of("late 60") == 10
    assert len(waiting) == 2 * most
    for waiter in waiting.all():
        waiting.remove(waiter)
    assert waiting.of("a") == waiting.of("late 0") == 0

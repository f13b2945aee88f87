"""The reads that wait, by name, by prefix and by deadline."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import NotFound
from bpbroker.messages import Get, List
from bpbroker.record import Record
from bpbroker.registry.index import EntryIndex
from bpbroker.registry.waiting_reads import Waiter, Waiters


class State:
    """Entries, and the reads that wait for them."""

    def __init__(self) -> None:
        self.entries = EntryIndex()
        self.waiters = Waiters()

    def put(self, name: str, revision: int | None, **own: Any) -> None:
        after = None if revision is None else Record(name, json.dumps(own).encode(), revision)
        before = self.entries.put(name, after)
        self.waiters.changed(name, before, after, self.entries)

    def add(self, message: Get | List, deadline: float = 10.0) -> Waiter:
        counted = self.entries.matching(message.prefix) if isinstance(message, List) else ()
        return self.waiters.add(message, Future(), deadline, counted)


@pytest.fixture
def state() -> State:
    return State()


def names(waiter: Waiter) -> list[str]:
    return [record.name for record in waiter.reply.result(0)]


def test_by_name_and_state(state: State) -> None:
    new, changed, gone = (state.add(Get("a", unless_etag=tag)) for tag in (None, '"1"', '"2"'))
    other = state.add(Get("b"))
    state.put("a", 1)
    assert new.reply.result(0).revision == 1
    assert gone.reply.result(0).revision == 1
    assert not changed.reply.done()
    state.put("a", 2)
    assert changed.reply.result(0).revision == 2
    assert not other.reply.done()
    assert len(state.waiters) == 1


def test_who_waits_for_another_state_hears_that_there_is_none_any_more(state: State) -> None:
    state.put("a", 1)
    changed, new = state.add(Get("a", unless_etag='"1"')), state.add(Get("a"))
    state.put("a", None)
    with pytest.raises(NotFound):
        changed.reply.result(0)
    assert not new.reply.done()


def test_by_prefix_and_count(state: State) -> None:
    one, two, everything = state.add(List("n", 1)), state.add(List("n", 2)), state.add(List("", 2))
    state.put("m1", 1)
    assert not everything.reply.done()
    state.put("n1", 2)
    assert names(everything) == ["m1", "n1"]
    assert names(one) == ["n1"]
    state.put("n1", None)
    state.put("n2", 3)
    assert not two.reply.done()
    state.put("n3", 4)
    assert names(two) == ["n2", "n3"]
    assert len(state.waiters) == 0


def test_only_entries_with_the_wanted_values_count(state: State) -> None:
    waiter = state.add(List("n", 2, where=(("state", "ready"),)))
    state.put("n1", 1, state="ready")
    state.put("n2", 2, state="busy")
    state.put("n1", 3, state="busy")
    state.put("n3", 4, state="ready")
    assert not waiter.reply.done()
    state.put("n2", 5, state="ready")
    assert names(waiter) == ["n2", "n3"]


def test_the_first_failure_ends_the_wait(state: State) -> None:
    waiter = state.add(List("n", 9, where=(("state", "ready"),), fail_where=(("state", "failed"),)))
    state.put("n1", 1, state="ready")
    state.put("n2", 2, state="busy")
    assert not waiter.reply.done()
    state.put("n3", 3, state="failed")
    assert names(waiter) == ["n1", "n3"]


def test_a_name_shorter_than_a_prefix_does_not_count(state: State) -> None:
    waiter = state.add(List("node", 1))
    state.put("nod", 1)
    assert not waiter.reply.done()


def test_a_waiter_is_taken_out_once(state: State) -> None:
    for waiter in (state.add(Get("a")), state.add(List("a", 5))):
        assert state.waiters.remove(waiter)
        assert not state.waiters.remove(waiter)
    assert len(state.waiters) == 0
    assert list(state.waiters.expired(100)) == []


def test_deadlines_in_order(state: State) -> None:
    waiting = state.waiters
    assert waiting.next_deadline() == float("inf")
    late, early, gone = state.add(Get("a"), 3), state.add(List("", 9), 1), state.add(Get("b"), 2)
    waiting.remove(gone)
    assert waiting.next_deadline() == 1
    assert list(waiting.expired(2.5)) == [early]
    assert list(waiting.expired(3)) == [late]


def test_those_who_were_answered_take_no_memory(state: State) -> None:
    for number in range(10_000):
        state.add(Get(f"n{number}"), 600)
        state.put(f"n{number}", 1)
    assert len(state.waiters._deadlines) < 200


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "ab", "b"]), st.integers(1, 4)) | st.sampled_from(["a", "ab", "abc", "b"])
    )
)
def test_lists_are_answered_exactly_when_there_are_enough(steps: list[Any]) -> None:
    """A step is a List that begins to wait, or a name that comes or goes."""
    state = State()
    waiting: dict[int, Waiter] = {}

    def count(message: Any) -> int:
        return len(state.entries.matching(message.prefix))

    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            message = List(*step)
            if count(message) < message.at_least:
                waiting[number] = state.add(message)
            continue
        state.put(step, None if step in state.entries else number)
        for key, waiter in list(waiting.items()):
            enough = isinstance(waiter.message, List) and count(waiter.message) >= waiter.message.at_least
            assert waiter.reply.done() == enough
            if enough:
                del waiting[key]
    assert len(state.waiters) == len(waiting)


def test_no_client_takes_the_places_of_others(state: State) -> None:
    most, places = 640, state.waiters.places
    for client in ("a", "b", "c"):
        while places.room(client, most):
            state.add(Get("x", client=client))
    assert (places.of("a"), places.of("b"), places.of("c")) == (320, 320, 10)
    # All places are taken; another one that comes later gets a few all the same, and so does each of many.
    for number in range(200):
        while places.room(f"late {number}", most):
            state.add(List("n", 1, client=f"late {number}"))
    assert places.of("late 0") == places.of("late 60") == 10
    assert len(state.waiters) == 2 * most
    for waiter in state.waiters.all():
        state.waiters.remove(waiter)
    assert places.of("a") == places.of("late 0") == 0


def test_a_change_is_parsed_once_for_all_that_wait(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        same = tuple((f"f{number}-{each}", "x") for each in range(16))
        state.add(List("n", 2, where=same, fail_where=same))
    parsed = []
    real = json.loads

    def loads(text: Any) -> Any:
        parsed.append(text)
        return real(text)

    monkeypatch.setattr(json, "loads", loads)
    state.put("n1", 1, state="ready")
    assert len(parsed) == 1
    state.put("n1", None)
    assert len(parsed) == 1

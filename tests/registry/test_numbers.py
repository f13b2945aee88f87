"""Numbers: what an owner has it keeps, and no two owners have the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import AlreadyExists
from bpbroker.messages import Delete
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.requests import Allocate, Next, Release
from bpbroker.registry.writes import Limits


class Asked:
    """Decides writes one after the other; each is durable at once."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.now = 1000.0
        self.revision = 10_000

    def __call__(self, message: Any) -> Any:
        write = PendingWrite(message, None)
        self.memory.decide(write, self.now, Limits())
        if isinstance(write.decision, BaseException):
            raise write.decision
        self.revision += 1
        for name, after in self.memory.take_batch().staged.items():
            self.memory.put(name, after.at(self.revision) if after is not None else None)
        return write.decision.at(self.revision)

    def number(self, message: Any) -> int:
        return int(self(message).data["number"])


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_the_lowest_free_number_and_always_the_same(asked: Asked) -> None:
    for owner, number in (("a", 1), ("b", 2), ("a", 1), ("c", 3)):
        assert asked.number(Allocate("p", owner, "i")) == number
    asked(Release("p", "b", "i"))
    assert asked.number(Allocate("p", "d", "i")) == 2
    with pytest.raises(AlreadyExists, match="in use"):
        asked(Allocate("p", "e", "i", number=3))
    assert asked.number(Allocate("p", "e", "i", number=9)) == 9


def test_a_full_pool_says_who_has_its_numbers(asked: Asked) -> None:
    for owner in "abc":
        asked(Allocate("p", owner, "i", 1, 3))
    with pytest.raises(AlreadyExists, match="full") as caught:
        asked(Allocate("p", "d", "i", 1, 3))
    assert caught.value.data == {"owners": {"a": 1, "b": 2, "c": 3}}


def test_a_number_rests_for_its_quarantine(asked: Asked) -> None:
    asked(Allocate("p", "a", "i"))
    asked(Release("p", "a", "i", 60))
    assert asked.number(Allocate("p", "b", "i")) == 2
    asked.now += 61
    assert asked.number(Allocate("p", "c", "i")) == 1


def test_a_counter_that_was_deleted_begins_anew_for_all_owners(asked: Asked) -> None:
    assert [asked.number(Next("n", "i", owner=owner)) for owner in "aba"] == [1, 2, 1]
    asked(Delete("n"))
    assert [asked.number(Next("n", "i", owner=owner)) for owner in "bab"] == [1, 2, 1]
    assert asked.number(Next("n", "i", 10)) == 12


@given(st.lists(st.tuples(st.sampled_from(["take", "free"]), st.sampled_from("abcdef")), max_size=40))
def test_no_two_owners_have_the_same(steps: list[tuple[str, str]]) -> None:
    asked, model = Asked(), dict[str, int]()
    for kind, owner in steps:
        if kind == "free":
            asked(Release("p", owner, "i"))
            model.pop(owner, None)
        else:
            number = asked.number(Allocate("p", owner, "i"))
            assert model.setdefault(owner, number) == number
            assert len(set(model.values())) == len(model)
            assert number <= len(model) or number in range(1, 7)

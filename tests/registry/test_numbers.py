"""Numbers: what an owner has it keeps, and no two owners have the same."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import AlreadyExists
from bpbroker.messages import Delete
from bpbroker.registry import entry_values
from bpbroker.registry.ages import Ages
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.requests import Allocate, Next, Release, Rest
from bpbroker.registry.view import Limits


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
    with pytest.raises(AlreadyExists, match="is c's"):
        asked(Allocate("p", "e", "i", number=3))
    assert asked.number(Allocate("p", "e", "i", number=9)) == 9


def test_a_full_pool_says_who_has_its_numbers(asked: Asked) -> None:
    for owner in "abc":
        asked(Allocate("p", owner, "i", 1, 3))
    with pytest.raises(AlreadyExists, match="full") as caught:
        asked(Allocate("p", "d", "i", 1, 3))
    assert caught.value.data == {"owners": {"a": 1, "b": 2, "c": 3}}


def test_a_number_rests_for_its_quarantine_whatever_the_clock_says(asked: Asked) -> None:
    uptime = 5000.0
    asked.memory.ages = Ages(lambda: uptime)
    asked(Allocate("p", "a", "i"))
    asked(Release("p", "a", "i", 60))
    assert asked.number(Allocate("p", "b", "i")) == 2
    uptime += 59
    for asked.now in (10**10, -(10**9), 1000):
        with pytest.raises(AlreadyExists, match="was a's and is in quarantine for another 1 s") as caught:
            asked(Allocate("p", "c", "i", number=1))
        assert caught.value.data == {"owners": {"b": 2}, "quarantine": {"1": 1}}
        with pytest.raises(AlreadyExists, match="1 to 2 are in use, 1 of them in quarantine; the next is free in 1 s"):
            asked(Allocate("p", "c", "i", 1, 2))
    uptime += 2
    assert asked.number(Allocate("p", "c", "i")) == 1


def test_a_number_that_rests_does_not_begin_anew_with_each_start(asked: Asked) -> None:
    uptime = 0.0
    asked.memory.ages = Ages(lambda: uptime)
    for owner in "ab":
        asked(Allocate("p", owner, "i"))
        asked(Release("p", owner, "i", 100 if owner == "a" else 10))
    uptime += 60
    asked(Rest("p"))
    records = [asked.memory.get(name) for name in ("_pool/p", "p")]
    asked.memory = Memory()
    asked.memory.ages = Ages(lambda: uptime)
    asked.memory.fill(record for record in records if record is not None)
    uptime += 39
    assert asked.number(Allocate("p", "c", "i")) == 2
    uptime += 2
    assert asked.number(Allocate("p", "d", "i")) == 1
    assert asked.memory.get("_pool/p") is None


def test_a_call_costs_the_same_at_ten_and_at_a_thousand_owners(asked: Asked) -> None:
    def calls(message: Any) -> int:
        count = 0

        def profile(*_: object) -> None:
            nonlocal count
            count += 1

        gc.disable()  # hypothesis is called at each collection
        sys.setprofile(profile)
        try:
            asked(message)
        finally:
            sys.setprofile(None)
            gc.enable()
        return count

    costs = []
    for owners in (10, 1000):
        for number in range(owners):
            asked(Allocate("p", f"o{number}", "i"))
        asked(Release("p", "o3", "i"))
        costs.append([calls(message) for message in (Allocate("p", "new", "i"), Release("p", "new", "i"))])
        assert asked.number(Allocate("p", "newer", "i")) == 4
        asked(Release("p", "newer", "i"))
    assert costs[0] == costs[1]


STRANGE = st.text(alphabet='ab:, "\\{}é7', min_size=1, max_size=6)


@given(st.lists(st.tuples(st.booleans(), STRANGE, st.none() | st.integers(1, 12)), max_size=30))
def test_a_pool_is_what_its_entry_says(steps: list[tuple[bool, str, int | None]]) -> None:
    asked, model = Asked(), dict[str, int]()
    for free, owner, number in steps:
        if free:
            asked(Release("p", owner, "i"))
            model.pop(owner, None)
            continue
        wanted = number if number is not None else next(n for n in range(1, 99) if n not in model.values())
        wrong = model.get(owner, wanted) != wanted if number is not None else False
        if wrong or (owner not in model and wanted in model.values()):
            with pytest.raises(AlreadyExists):
                asked(Allocate("p", owner, "i", number=number))
        else:
            found = asked.number(Allocate("p", owner, "i", number=number))
            assert found == model.setdefault(owner, wanted)
        record = asked.memory.get("p")
        assert record is not None
        assert entry_values.without_stamp(json.loads(record.json)) == model


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

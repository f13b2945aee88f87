"""Locks: places in their order, tokens that grow, and who is told to hold one."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bpbroker.errors import AlreadyExists, NotFound, PreconditionFailed
from bpbroker.messages import Condition, Replace
from bpbroker.record import INDEX_MAX
from bpbroker.registry import locks
from bpbroker.registry.memory import PendingWrite
from bpbroker.registry.requests import Close, Lock, Open, Unlock
from bpbroker.registry.view import Limits
from tests.registry.test_numbers import Asked


@pytest.fixture
def asked() -> Asked:
    asked = Asked()
    for session in ("s1", "s2", "s3"):
        asked(Open(session, 10, "i"))
    return asked


def queue(asked: Asked) -> locks.Queue:
    return locks.parse(asked.memory.get("_lock/db"))


def test_tokens_grow_with_every_place_also_when_the_lock_was_free_between(asked: Asked) -> None:
    tokens = []
    for session in ("s1", "s2", "s1"):
        asked(Lock("db", session, "i"))
        tokens.append(queue(asked).holders[0].token)
        asked(Unlock("db", session))
        assert asked.memory.get("_lock/db") is None
    assert tokens == sorted(set(tokens))


def test_the_places_keep_their_order_and_their_tokens(asked: Asked) -> None:
    for session in ("s1", "s2", "s3"):
        asked(Lock("db", session, "i", wait_secs=5))
    before = queue(asked).places
    assert [place.session for place in before] == ["s1", "s2", "s3"]
    assert [place.token for place in before] == sorted({place.token for place in before})
    asked(Unlock("db", "s1"))
    assert queue(asked).places == before[1:]


def test_a_held_lock_says_by_whom(asked: Asked) -> None:
    asked(Lock("db", "s1", "i", data="node-7"))
    with pytest.raises(AlreadyExists, match=r"held by node-7 \(for \d+ s\)") as caught:
        asked(Lock("db", "s2", "i"))
    assert caught.value.data is not None
    assert caught.value.data["holders"][0]["session"] == "s1"
    with pytest.raises(NotFound):
        asked(Lock("db", "nobody", "i"))


def test_a_write_with_a_token_happens_only_while_its_place_holds_the_lock(asked: Asked) -> None:
    asked(Lock("db", "s1", "i"))
    token = queue(asked).holders[0].token
    asked(Replace("a", {}, "i", Condition(lock=("db", token))))
    asked(Unlock("db", "s1"))
    asked(Lock("db", "s2", "i"))
    with pytest.raises(PreconditionFailed, match="not held with token"):
        asked(Replace("a", {}, "i", Condition(lock=("db", token))))


def test_several_may_hold_it(asked: Asked) -> None:
    for session in ("s1", "s2"):
        asked(Lock("db", session, "i", limit=2))
    with pytest.raises(AlreadyExists):
        asked(Lock("db", "s3", "i", limit=2))
    with pytest.raises(AlreadyExists, match="limit=2"):
        asked(Lock("db", "s3", "i", limit=3))
    assert [place.session for place in queue(asked).holders] == ["s1", "s2"]


# --- long queues ---

WAIT_SECS = 60.0


def everybody(asked: Asked, name: str = "db") -> list[str]:
    """Return the sessions of all places in their order."""
    found = locks.parse(asked.memory.get(f"_lock/{name}"))
    return [place.session for place in (*found.places, *locks.far_places(name, found, asked.memory.get))]


def crowd(asked: Asked, count: int) -> list[str]:
    """Let so many wait for a lock; return their sessions in order."""
    sessions = [f"c{number}" for number in range(count)]
    for session in sessions:
        asked(Open(session, 10, "i"))
        asked(Lock("db", session, "i", wait_secs=WAIT_SECS))
    return sessions


def test_a_long_queue_keeps_its_order_whoever_leaves(asked: Asked) -> None:
    sessions, chance = crowd(asked, 60), random.Random(4)  # noqa: S311 - not for secrets
    came = False
    assert everybody(asked) == sessions
    while sessions:
        assert queue(asked).size == len(sessions)
        left = chance.choice([sessions[0], sessions[-1], *sessions])
        asked(chance.choice([Unlock("db", left), Close(left)]))
        sessions.remove(left)
        assert everybody(asked) == sessions
        assert [place.session for place in queue(asked).holders] == sessions[:1]
        if len(sessions) == 30 and not came:
            came = True
            asked(Lock("db", sessions[20], "i", wait_secs=WAIT_SECS))  # has its place
            asked(Lock("db", "s1", "i", wait_secs=WAIT_SECS))
            sessions.append("s1")
    assert not list(asked.memory.own.beginning("_lock/"))


@pytest.mark.parametrize("near", [1, 2, 3, 8])
def test_however_few_places_are_in_its_own_record_somebody_holds_a_lock_for_which_others_wait(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, near: int
) -> None:
    monkeypatch.setattr(locks, "NEAR", near)
    waiting = crowd(asked, 20)
    while waiting:
        assert [place.session for place in queue(asked).holders] == waiting[:1]
        with pytest.raises(AlreadyExists):
            asked(Lock("db", "s1", "i"))
        assert everybody(asked) == waiting
        asked(Unlock("db", waiting.pop(0)))
    assert asked.memory.get("_lock/db") is None


def test_the_token_of_a_place_is_the_same_wherever_it_is_kept(asked: Asked) -> None:
    sessions = crowd(asked, 40)
    found = queue(asked)
    before = [place.token for place in (*found.places, *locks.far_places("db", found, asked.memory.get))]
    assert before == sorted(set(before))
    assert min(before) >= INDEX_MAX
    for session in sessions:
        assert queue(asked).holders[0].token == before.pop(0)
        asked(Unlock("db", session))


def test_places_that_come_and_go_in_one_commit_have_their_own_tokens(asked: Asked) -> None:
    crowd(asked, 20)
    for number in range(40):
        asked(Open(f"d{number}", 10, "i"))
    memory = asked.memory
    for number in range(40):
        memory.decide(PendingWrite(Lock("db", f"d{number}", "i", wait_secs=WAIT_SECS), None), 1.0, Limits())
        if number % 3 == 0:
            memory.decide(PendingWrite(Unlock("db", f"d{number}"), None), 1.0, Limits())
    base = asked.revision = asked.revision + 1
    for name, after in memory.take_batch().staged.items():
        memory.put(name, after.at(base) if after is not None else None)
    found = queue(asked)
    places = [*found.places, *locks.far_places("db", found, memory.get)]
    assert [place.session for place in places[20:]] == [f"d{number}" for number in range(40) if number % 3]
    tokens = [place.token for place in places]
    assert tokens == sorted(set(tokens))


def test_how_long_a_place_is_there_counts_from_its_begin(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(asked.memory.ages, "_clock", lambda: now)
    sessions = crowd(asked, 30)
    now += 50
    for session in sessions[:-1]:
        asked(Unlock("db", session))
    with pytest.raises(AlreadyExists, match=r"held by c29 \(for 50 s\)"):
        asked(Lock("db", "s1", "i"))


def test_a_long_queue_belongs_to_its_lock_alone(asked: Asked) -> None:
    for name in ("db", "db/c1", "d"):
        for number in range(15):
            asked(Open(f"c{number}", 10, "i"))
            asked(Lock(name, f"c{number}", "i", wait_secs=WAIT_SECS))
    asked(Unlock("db", "c1"))
    assert everybody(asked) == [f"c{number}" for number in range(15) if number != 1]
    assert len(everybody(asked, "db/c1")) == len(everybody(asked, "d")) == 15
    for number in range(15):
        asked(Close(f"c{number}"))
    assert not list(asked.memory.own.beginning("_lock/"))


class Cost:
    """What a change costs."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._put = asked.memory.put
        self.records = self.size_bytes = self.calls = 0

    def of(self, message: Any) -> tuple[int, int, int]:
        """Return how many records a change writes, their bytes, and the function calls until it is durable."""
        self.records = self.size_bytes = self.calls = 0
        self._asked.memory.put = self._counted  # type: ignore[method-assign]  # looked at on its way
        sys.setprofile(self._called)
        try:
            self._asked(message)
        finally:
            sys.setprofile(None)
            self._asked.memory.put = self._put  # type: ignore[method-assign]  # as it was
        return self.records, self.size_bytes, self.calls

    def _counted(self, name: str, after: Any) -> None:
        self.records += 1
        self.size_bytes += len(name) + (len(after.json) if after is not None else 0)
        self._put(name, after)

    def _called(self, _frame: Any, event: str, _argument: Any) -> None:
        self.calls += event in ("call", "c_call")


CHANGES: dict[str, Callable[[list[str]], Any]] = {
    "joins": lambda _: Lock("db", "s1", "i", wait_secs=WAIT_SECS),
    "the holder leaves": lambda sessions: Unlock("db", sessions[0]),
    "gives up in the middle": lambda sessions: Unlock("db", sessions[-30], if_waiting=True),
    "gives up at the end": lambda sessions: Unlock("db", sessions[-1], if_waiting=True),
    "a session in the middle ends": lambda sessions: Close(sessions[-20]),
    "joins again": lambda sessions: Lock("db", sessions[-10], "i", wait_secs=WAIT_SECS),
}


def test_a_change_costs_the_same_however_many_wait() -> None:
    costs = {}
    for count in (100, 900):
        asked = Asked()
        asked(Open("s1", 10, "i"))
        sessions = crowd(asked, count)
        assert queue(asked).size == count
        costs[count] = {what: Cost(asked).of(change(sessions)) for what, change in CHANGES.items()}
    for what, (records, size_bytes, calls) in costs[900].items():
        assert records == costs[100][what][0], what
        assert size_bytes <= costs[100][what][1] + 100, what
        assert calls <= costs[100][what][2] + 20, what

"""How long something has been there is counted by a clock that is never set."""

from __future__ import annotations

import time

import pytest

from bpbroker.errors import AlreadyExists
from bpbroker.record import Record
from bpbroker.registry.ages import Ages
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.requests import Lock
from bpbroker.registry.view import Age, Limits


def test_parts_keep_their_age_and_kinds_are_in_order() -> None:
    now = 100.0
    ages = Ages(lambda: now)
    ages.starting = True
    ages.parts("l", [1])
    ages.starting = False
    now += 5
    ages.parts("l", [1, 2])
    ages.begin("k/", "k/a")
    now += 2
    ages.begin("k/", "k/b")
    assert (ages.of("l", 1), ages.of("l", 2), ages.of("l", 3)) == (Age(7, False), Age(2, True), Age(0, True))
    assert (str(ages.of("l", 1)), str(ages.of("l", 2))) == ("more than 7 s", "2 s")
    assert (list(ages.older("k/", 1)), ages.secs("k/", "k/a"), ages.secs("k/", "k/c")) == (["k/a"], 2, 0)
    ages.begin("k/", "k/a")  # it is there anew
    assert list(ages.older("k/", 1)) == []
    ages.parts("l", [2])
    ages.parts("l", [1, 2])
    assert ages.of("l", 1) == Age(0, True)


def test_a_lock_is_held_as_long_as_it_is_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    memory = Memory()
    memory.ages = Ages(lambda: now)
    memory.fill([Record("_session/s1", b'{"ttl": 9}', 5000), Record("_session/s2", b'{"ttl": 9}', 5001)])
    memory.decide(PendingWrite(Lock("l", "s1", "i"), None), time.time(), Limits())
    for name, after in memory.take_batch().staged.items():
        memory.put(name, after.at(6000) if after is not None else None)
    now += 12
    real = time.time
    for years in (10, -10):
        monkeypatch.setattr(time, "time", lambda years=years: real() + years * 366 * 86_400)
        write = PendingWrite(Lock("l", "s2", "i"), None)
        memory.decide(write, time.time(), Limits())
        assert isinstance(write.decision, AlreadyExists)
        assert "held by s1 (for 12 s)" in str(write.decision)

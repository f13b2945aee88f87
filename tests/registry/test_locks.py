"""Locks: places in their order, tokens that grow, and who is told to hold one."""

from __future__ import annotations

import pytest

from bpbroker.errors import AlreadyExists, NotFound, PreconditionFailed
from bpbroker.messages import Condition, Replace
from bpbroker.registry import locks
from bpbroker.registry.requests import Lock, Open, Unlock
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

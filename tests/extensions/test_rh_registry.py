"""``rh.registry`` over a made-up channel: what it asks for, and what it takes for lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bpbroker.client.api import Client
from bpbroker.extensions import LockTimeout, NotFound, Registry, SessionLost
from bpbroker.recipes import session as sessions
from bpbroker.recipes.coordination import Coordination

NOT_THERE = {"status": 404, "message": "There is no session", "data": None, "failed": None}


class Channel:
    """Answers each call of a method with the next of its replies; the last one again and again."""

    def __init__(self, **replies: list[dict[str, Any]]) -> None:
        self.asked: list[str] = []
        self._replies = replies

    def __call__(self, head: Mapping[str, Any]) -> Mapping[str, Any]:
        method = head["method"]
        self.asked.append(method)
        replies = self._replies.get(method, [{}])
        data = replies.pop(0) if len(replies) > 1 else replies[0]
        return data if "status" in data else {"status": 200, "answer": {"data": data, "revision": 5}}


def test_a_lock_that_nothing_renews_is_held_until_the_broker_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel(Lock=[{"token": 7}])
    now = [1000.0]
    monkeypatch.setattr(sessions, "boottime", lambda: now[0])
    with Registry(channel, timeout_secs=30).lock("l") as lock:
        now[0] += 29  # of the 30 s that the call may take
        lock.check()
        assert lock.locked()
    assert channel.asked == ["Open", "Lock", "Close"]


def test_the_work_of_once_may_take_the_whole_call(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel(Lock=[{"token": 7}], Get=[{**NOT_THERE, "message": "There is no entry"}])
    now = [1000.0]
    monkeypatch.setattr(sessions, "boottime", lambda: now[0])

    def work() -> int:
        now[0] += 29
        return 1

    assert Registry(channel, timeout_secs=30).once("o", work) == 1
    assert channel.asked[-2:] == ["Replace", "Close"]


def test_a_session_that_cannot_be_renewed_is_lost() -> None:
    session = Registry(Channel(Renew=[{}, NOT_THERE])).session()
    session.open()
    session.renew()
    session.check()
    with pytest.raises(NotFound, match="no session"):
        session.renew()
    with pytest.raises(SessionLost, match="no session"):
        session.check()


def test_a_lock_that_is_refused_is_not_asked_for_again() -> None:
    data = {"holders": [{"data": "other"}], "waiting": 2}
    channel = Channel(Lock=[{"status": 409, "message": "Held", "data": data, "failed": None}])
    with pytest.raises(LockTimeout, match="Held") as caught:
        Registry(channel, timeout_secs=30).lock("l").__enter__()
    assert channel.asked == ["Open", "Lock", "Close"]
    assert caught.value.holders == [{"data": "other"}]
    assert caught.value.data == data


def test_a_lock_that_may_take_longer_than_one_wait_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"status": 409, "message": "Held", "data": None, "failed": None}
    channel = Channel(Lock=[held, {"token": 7}])
    monkeypatch.setattr("bpbroker.recipes.lock.time.sleep", lambda _: None)
    assert Registry(channel, timeout_secs=3600).lock("l").take(3600) == 7
    assert channel.asked == ["Open", "Lock", "Lock"]


@pytest.mark.parametrize("kind", [Client, Registry])
def test_what_the_recipes_rest_on_is_there(kind: type[Coordination]) -> None:
    for name in ("calls", "sibling", "close", "register", "replace", "get", "list"):
        assert getattr(kind, name) is not getattr(Coordination, name), name

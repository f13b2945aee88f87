"""A lock for which very many wait: who is told what, on both stores, and what that costs."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.actors.registry_shared import SharedBackend
from bpbroker.config import layers
from bpbroker.errors import AlreadyExists, PreconditionFailed
from bpbroker.messages import Condition, Ping, Replace
from bpbroker.registry import locks
from bpbroker.registry.requests import Close, Holder, Lock, Open, Unlock
from tests.actors.test_shared_registry import until

if TYPE_CHECKING:
    from tests.actors.conftest import Asked, Ledger, SharedLedger

IP = "10.0.0.1"


@pytest.fixture(params=["registry", "shared_registry"])
def asked(request: pytest.FixtureRequest) -> Asked:
    """A registry on each kind of store."""
    found: Asked = request.getfixturevalue(request.param)
    return found


def waiting(asked: Asked) -> int:
    return int(asked(Ping()).figures["waiting"])


def crowd(asked: Asked, count: int) -> dict[str, Future[Any]]:
    """Let so many want a lock; return what each is told, in the order in which they came."""
    calls = {}
    for number in range(count):
        session = f"c{number}"
        asked(Open(session, 60, IP))
        calls[session] = asked.send(Lock("db", session, IP, wait_secs=60, client=f"client-{number}"))
        until(lambda: calls["c0"].done() and waiting(asked) == len(calls) - 1)
    return calls


def test_each_gets_its_turn_and_whoever_leaves_is_passed_over(asked: Asked) -> None:
    calls = crowd(asked, 40)
    shown = asked(Holder("db")).data
    assert [each["session"] for each in (*shown["holders"], *shown["waiting"])] == list(calls)
    leave = ["c39", "c25", "c24", "c12", "c3"]
    for session in leave:
        asked(Close(session))
    token = 0
    for session in [each for each in calls if each not in leave]:
        told = calls[session].result(10).data
        assert told["session"] == session
        assert told["token"] > token
        token = told["token"]
        assert asked(Holder("db")).data["token"] == token
        asked(Replace("a", {}, IP, Condition(lock=("db", token))))
        asked(Unlock("db", session))
        with pytest.raises(PreconditionFailed):
            asked(Replace("a", {}, IP, Condition(lock=("db", token))))
    assert asked(Holder("db")).data["holders"] == []
    for session in leave:  # there is no such session any more
        assert calls[session].exception(10) is not None
    assert waiting(asked) == 0


def test_a_call_whose_place_is_given_back_from_elsewhere_takes_another_one(asked: Asked) -> None:
    calls = crowd(asked, 30)
    asked(Unlock("db", "c20", if_waiting=True))  # an earlier call of that session, given up late
    until(lambda: asked(Holder("db")).data["waiting"][-1]["session"] == "c20")
    for session in [each for each in calls if each != "c20"]:
        calls[session].result(10)
        asked(Unlock("db", session))
    assert calls["c20"].result(10).data["session"] == "c20"


def test_whoever_is_not_in_time_leaves_no_place(asked: Asked) -> None:
    calls = crowd(asked, 20)
    for number in range(20):
        asked(Open(f"d{number}", 60, IP))
    late = [asked.send(Lock("db", f"d{number}", IP, wait_secs=0.2)) for number in range(20)]
    for each in late:
        with pytest.raises(AlreadyExists, match="held by c0") as caught:
            each.result(10)
        assert caught.value.data is not None
        assert isinstance(caught.value.data["waiting"], int)
    shown = asked(Holder("db")).data
    assert [each["session"] for each in (*shown["holders"], *shown["waiting"])] == list(calls)


def test_who_waits_for_another_holder_is_told_who_waits_behind(asked: Asked) -> None:
    calls = crowd(asked, 30)
    token = calls["c0"].result(10).data["token"]
    looking = [asked.send(Holder("db", 60, token)) for _ in range(3)]
    until(lambda: waiting(asked) == 29 + 3)
    asked(Open("d", 60, IP))
    late = asked.send(Lock("db", "d", IP, wait_secs=60))
    until(lambda: waiting(asked) == 30 + 3)  # this is no other holder
    asked(Unlock("db", "c0"))
    for each in looking:
        shown = each.result(10).data
        assert shown["token"] == calls["c1"].result(10).data["token"]
        assert [one["session"] for one in shown["waiting"]] == [*list(calls)[2:], "d"]
    assert not late.done()


def test_a_long_queue_is_there_after_a_start(ledger: Ledger, registry: Asked, run: Any) -> None:
    calls = crowd(registry, 30)
    before = registry(Holder("db")).data
    again = run(Registry, LocalBackend(lambda: ledger), layers.freeze(layers.DEFAULTS))
    assert again(Holder("db")).data == before
    assert again(Ping()).counts["locks"] == 1
    waits = again.send(Lock("db", "c25", IP, wait_secs=60))
    until(lambda: waiting(again) == 1)
    for session in list(calls)[:25]:
        again(Close(session))
    assert waits.result(10).data["session"] == "c25"


def test_two_brokers_have_one_queue_also_if_they_do_not_hear_of_each_other(
    shared_ledger: SharedLedger, shared_registry: Asked, run: Any
) -> None:
    calls = crowd(shared_registry, 20)
    wanted = list(calls)
    shared_ledger.quiet = True
    other = run(Registry, SharedBackend(lambda: shared_ledger), layers.freeze(layers.DEFAULTS))
    brokers = (shared_registry, other)
    for number in range(8):
        broker, session = brokers[number % 2], f"d{number}"
        broker(Open(session, 60, IP))
        calls[session] = broker.send(Lock("db", session, IP, wait_secs=60))
        wanted.append(session)
        until(lambda: stored(shared_ledger) == wanted)
    for call in calls.values():
        call.cancel()  # else whoever loses its place takes another one
    until(lambda: waiting(shared_registry) == waiting(other) == 0)
    for number, session in enumerate(("d7", "c15", "c16", "c0", "d3", "d6", "c2", "c1", "c3", "d5", "c4", "c10")):
        brokers[number % 2](Unlock("db", session))
        wanted.remove(session)
        assert stored(shared_ledger) == wanted
        for broker in brokers:
            shown = broker(Holder("db")).data
            assert [each["session"] for each in (*shown["holders"], *shown["waiting"])] == wanted
    tokens = [place.token for place in places(shared_ledger)]
    assert tokens == sorted(set(tokens))


def places(ledger: SharedLedger) -> list[locks.Place]:
    """Return the places in a store, in their order."""
    with ledger.lock:
        queue = locks.parse(ledger._seen("_lock/db").record)
        return [*queue.places, *locks.far_places("db", queue, lambda name: ledger._seen(name).record)]


def stored(ledger: SharedLedger) -> list[str]:
    return [place.session for place in places(ledger)]

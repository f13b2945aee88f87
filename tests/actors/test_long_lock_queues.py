"""A lock for which very many wait: who is told what, on both stores, and what that costs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.actors.registry_shared import SharedBackend
from bpbroker.config import layers
from bpbroker.errors import AlreadyExists, PreconditionFailed
from bpbroker.messages import ALWAYS, Condition, Ping, Replace
from bpbroker.registry import locks
from bpbroker.registry.changes import Group
from bpbroker.registry.requests import Close, Holder, Lock, Open, Unlock
from bpbroker.storage.etcd import commits
from tests.actors.test_registry_shared import until

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


def places(ledger: SharedLedger, name: str = "db") -> list[locks.Place]:
    """Return the places in a store, in their order."""
    with ledger.lock:
        queue = locks.parse(ledger._seen(f"_lock/{name}").record)
        return [*queue.places, *locks.far_places(name, queue, lambda stored: ledger._seen(stored).record)]


def stored(ledger: SharedLedger, name: str = "db") -> list[str]:
    return [place.session for place in places(ledger, name)]


@pytest.fixture
def narrow(shared_ledger: SharedLedger) -> SharedLedger:
    """A store that takes no more at once than etcd does."""
    plain = shared_ledger.commit

    def commit(groups: Sequence[Group]) -> Sequence[Any]:
        refused = [commits.refusal(group) for group in groups]
        taken = iter(plain([group for group, why in zip(groups, refused, strict=True) if why is None]))
        return [why if why is not None else next(taken) for why in refused]

    shared_ledger.commit = commit  # type: ignore[method-assign]  # with the limits of the real one
    return shared_ledger


def at_once(ledger: SharedLedger, asked: Asked, messages: Sequence[Any]) -> list[Future[Any]]:
    """Send messages while a commit is under way, so that all of them are decided when it ends."""
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        ledger.before_commit = lambda: None
        begun.set()
        assert go_on.wait(10)

    ledger.before_commit = wait
    first = asked.send(Replace("under way", {}, IP))
    assert begun.wait(10)
    calls = [asked.send(message) for message in messages]
    asked(Ping())
    go_on.set()
    first.result(10)
    return calls


def test_very_many_come_at_once_to_a_store_that_takes_few_at_once(narrow: SharedLedger, shared_registry: Asked) -> None:
    sessions = [f"c{number}" for number in range(300)]
    for session in sessions:
        shared_registry(Open(session, 60, IP))
    clients = (f"client-{number}" for number in range(300))
    calls = at_once(
        narrow,
        shared_registry,
        [Lock("db", session, IP, wait_secs=60, client=next(clients)) for session in sessions],
    )
    until(lambda: waiting(shared_registry) == 299)
    assert stored(narrow) == sessions
    for session, call in zip(sessions, calls, strict=True):
        assert call.result(10).data["session"] == session
        if session in ("c0", "c100"):
            others = [f"c{number}" for number in range(101, 250)] if session == "c100" else []
            for done in at_once(narrow, shared_registry, [Close(other) for other in others]):
                done.result(10)
            sessions_left = [each for each in sessions if each not in others]
        shared_registry(Close(session))
        if session == "c100":
            break
    assert calls[250].result(10).data["session"] == "c250"
    assert stored(narrow) == sessions_left[101:]


@pytest.mark.parametrize("fenced", [False, True])
def test_very_many_writes_of_one_session_or_lock_at_once_are_all_made(
    narrow: SharedLedger, shared_registry: Asked, fenced: bool
) -> None:
    shared_registry(Open("s", 60, IP))
    token = shared_registry(Lock("db", "s", IP)).data["token"]
    condition = Condition(lock=("db", token)) if fenced else ALWAYS
    writes = [Replace(f"e{number}", {}, IP, condition, session=None if fenced else "s") for number in range(200)]
    for call in at_once(narrow, shared_registry, writes):
        call.result(10)


def test_a_session_with_places_in_very_many_queues_ends(narrow: SharedLedger, shared_registry: Asked) -> None:
    for number in range(12):
        shared_registry(Open(f"c{number}", 60, IP))
    for name in (f"lock-{number}" for number in range(40)):
        for number in range(12):
            call = shared_registry.send(Lock(name, f"c{number}", IP, wait_secs=60, client=f"{name} {number}"))
            until(lambda: f"c{number}" in stored(narrow, name))  # noqa: B023 - called at once
            call.cancel()
    shared_registry(Close("c10"))
    until(lambda: not any("c10" in stored(narrow, f"lock-{number}") for number in range(40)))
    assert stored(narrow, "lock-7") == [f"c{number}" for number in range(12) if number != 10]

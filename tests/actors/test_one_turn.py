"""Calls that come together, so that one is decided on what another is about to change, on both stores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.config import layers
from bpbroker.errors import AlreadyExists, PreconditionFailed, RequestError, Unavailable
from bpbroker.messages import Condition, Delete, Get, Ping, Register, Replace, SettingsChanged
from bpbroker.record import INDEX_MAX
from bpbroker.registry.requests import (
    Ack,
    Allocate,
    Batch,
    Check,
    Close,
    Expire,
    Holder,
    Lock,
    Open,
    Release,
    Take,
    Unlock,
    Watch,
)
from tests.actors.test_registry_shared import until

if TYPE_CHECKING:
    from tests.actors.conftest import Asked, SharedLedger

IP = "10.0.0.1"

Turn = Callable[[Sequence[Any]], "list[Future[Any]]"]
"""Sends messages that are decided together, in this order, and committed together."""


@pytest.fixture(params=["local", "shared"])
def asked(request: pytest.FixtureRequest) -> Asked:
    """A registry on each kind of store."""
    found: Asked = request.getfixturevalue("registry" if request.param == "local" else "shared_registry")
    return found


@pytest.fixture
def turn(request: pytest.FixtureRequest, asked: Asked) -> Turn:
    ledger: Any = request.getfixturevalue("ledger")
    shared: Any = request.getfixturevalue("shared_ledger")
    is_local = "local" in request.node.callspec.id.split("-")

    def send(messages: Sequence[Any]) -> list[Future[Any]]:
        begun, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            shared.before_commit = lambda: None
            begun.set()
            assert go_on.wait(10)

        if is_local:
            ledger.hold()
        else:
            shared.before_commit = wait
        first = asked.send(Replace("under way", {}, IP))
        if is_local:
            ledger.await_commit()
        else:
            assert begun.wait(10)
        calls = [asked.send(message) for message in messages]
        if not is_local:
            asked(Ping())
        ledger.release()
        go_on.set()
        first.result(10)
        return calls

    return send


def refusal(call: Future[Any]) -> RequestError:
    error = call.exception(10)
    assert isinstance(error, RequestError)
    return error


def test_a_refusal_tells_the_token_of_a_place_of_the_same_commit(asked: Asked, turn: Turn) -> None:
    for session in "abc":
        asked(Open(session, 60, IP))
    calls = turn(
        [
            Replace("x", {}, IP),
            Lock("db", "a", IP),
            Lock("db", "b", IP),
            Lock("db", "b", IP, limit=2),
            Replace("y", {}, IP, Condition(lock=("db", 5))),
            Batch("", (Register("z", {}, IP), Allocate("p", "o", IP, condition=Condition(lock=("db", 5))))),
            Batch("", (Check("z", Condition(lock=("db", 5))), Register("z", {}, IP)), atomic=False),
        ]
    )
    token = calls[1].result(10).data["token"]
    holders = asked(Holder("db")).data["holders"]
    assert token == holders[0]["token"] > INDEX_MAX
    errors = [*map(refusal, calls[2:6]), calls[6].result(10).results[0]]
    assert [type(each) for each in errors] == [AlreadyExists] * 2 + [PreconditionFailed] * 3
    for each in errors:
        assert each.data == {"holders": holders, "waiting": 0, "token": token, "limit": 1}
    assert errors[3].failed == 1


def test_a_refusal_tells_the_tokens_of_earlier_and_new_places(asked: Asked, turn: Turn) -> None:
    for session in "abc":
        asked(Open(session, 60, IP))
    first = asked(Lock("db", "a", IP, limit=2)).data["token"]
    calls = turn([Lock("db", "b", IP, limit=2), Lock("db", "c", IP, limit=2)])
    second = calls[0].result(10).data["token"]
    data = refusal(calls[1]).data
    assert data is not None
    assert [each["token"] for each in data["holders"]] == [first, second]
    assert data["token"] == second > first


def test_a_refusal_tells_the_tag_of_a_state_of_the_same_commit(asked: Asked, turn: Turn) -> None:
    old = asked(Replace("x", {}, IP))
    stale = Condition(match=(old.etag,))
    calls = turn(
        [
            Replace("before", {}, IP),
            Replace("x", {"y": 1}, IP, stale),
            Replace("x", {"y": 2}, IP, stale),
            Replace("x", {"y": 3}, IP, Condition(none_match=("*",))),
            Register("x", {}, IP),
            Batch("", (Register("z", {}, IP), Check("x", stale))),
            Batch("", (Check("x", stale), Register("z", {}, IP)), atomic=False),
        ]
    )
    new = calls[1].result(10)
    assert asked(Get("x")).etag == new.etag != old.etag
    errors = [*map(refusal, calls[2:6]), calls[6].result(10).results[0]]
    differs, there = f"Entry 'x' is not as expected: its tag is {new.etag}", "Entry 'x' already exists"
    exists = f"Entry 'x' is not as expected: it exists with tag {new.etag}"
    assert [str(each) for each in errors] == [differs, exists, there, differs, differs]
    assert [each.entry_revision for each in errors] == [new.revision] * 5
    assert errors[3].failed == 1


def test_no_number_fits_what_is_not_durable_yet(asked: Asked, turn: Turn) -> None:
    """The place in the commit stands for the number until then; a client that says it has not been told it."""
    asked(Open("a", 60, IP))
    tags = tuple(f'"{number}"' for number in range(20))
    calls = turn(
        [
            Register("x", {}, IP),
            Lock("db", "a", IP),
            Replace("x", {"by": "tag"}, IP, Condition(match=tags)),
            *(Replace("x", {"by": "token"}, IP, Condition(lock=("db", number))) for number in range(20)),
        ]
    )
    assert [refusal(each).status for each in calls[2:]] == [412] * 21
    assert asked(Replace("x", {"by": "other"}, IP, Condition(none_match=tags))).revision > INDEX_MAX


@pytest.mark.parametrize("asked", ["shared"], indirect=True)
def test_late_news_of_a_sessions_end_leave_what_the_next_one_of_its_name_is_just_given(
    asked: Asked, turn: Turn, shared_ledger: SharedLedger
) -> None:
    asked(Open("s", 60, IP))
    shared_ledger.put("stale", b'{"last_write_revision": 4096, "last_write_session": "s"}')
    asked(Get("stale"))
    mine, place, end = turn([Register("mine", {}, IP, session="s"), Lock("db", "s", IP), Expire("s")])
    assert end.result(10).ended == ("stale",)
    assert asked(Get("mine")).revision == mine.result(10).revision
    assert asked(Holder("db")).data["token"] == place.result(10).data["token"]


def test_what_changes_nothing_has_no_revision_though_others_have(asked: Asked, turn: Turn) -> None:
    asked(Open("a", 60, IP))
    asked(Open("b", 60, IP))
    pairs: list[tuple[Any, Any]] = [
        (Delete("x"), Delete("x")),
        (Close("b"), Close("b")),
        (Allocate("p", "o", IP), Release("p", "another", IP)),
        (Lock("db", "a", IP), Unlock("db", "c")),
        (Replace("x", {}, IP), Batch("", (Get("x"), Check("none", Condition(none_match=("*",)))))),
        (Register("y", {}, IP), Batch("", (Check("y", Condition(none_match=('"5"',))),), atomic=False)),
    ]
    for changes, nothing in pairs:
        asked(Replace("x", {}, IP))
        changed, left = turn([changes, nothing])
        assert changed.result(10).revision > INDEX_MAX
        told = left.result(10)
        is_each = isinstance(nothing, Batch) and not nothing.atomic
        assert (told.results[0] if is_each else told).revision == 0, nothing
    assert asked(Batch("", (Get("x"),))).revision == 0


# --- limits ---


def limit(asked: Asked, **settings: int) -> None:
    asked(SettingsChanged(layers.freeze({"_registry": settings})))


def outcomes(calls: Sequence[Future[Any]]) -> list[int]:
    """Return the status of each call that has ended; 0 for one that waits."""
    return [0 if not call.done() else getattr(call.exception(), "status", 200) for call in calls]


def test_a_client_that_opens_all_its_sessions_at_once_has_no_more_than_one_by_one(asked: Asked, turn: Turn) -> None:
    limit(asked, max_sessions=4)
    asked(Open("a0", 60, IP))
    calls = turn([Open(f"a{number}", 60, IP) for number in (0, 1, 2, 3, 3, 4, 5)])
    for call in calls:
        call.exception(10)
    assert outcomes(calls) == [200] * 5 + [503] * 2
    assert "4 sessions already (_registry.max_sessions), 4 of them of 10.0.0.1" in str(refusal(calls[5]))
    others = turn([Open(f"b{number}", 60, f"10.0.1.{number}") for number in range(3)])
    for call in others:
        call.exception(10)
    assert outcomes(others) == [200, 503, 503]  # there is no more room at all
    asked(Close("a1"))
    asked(Close("a2"))
    assert asked(Open("a6", 60, IP)).data["session"] == "a6"


@pytest.mark.parametrize("most", [4, 12])  # 12: places that wait have records of their own
def test_a_client_that_wants_all_its_places_at_once_has_no_more_than_one_by_one(
    asked: Asked, turn: Turn, most: int
) -> None:
    limit(asked, max_places=most)
    sessions = [f"a{number}" for number in range(most + 3)]
    for session in (*sessions, "b"):
        asked(Open(session, 60, "10.0.1.1" if session == "b" else IP))
    calls = turn([Lock("db", each, IP, wait_secs=60, client=each) for each in (sessions[0], sessions[1], *sessions)])
    for call in (calls[0], *calls[-3:]):
        call.exception(10)
    assert outcomes(calls) == [200, 0, 200] + [0] * (most - 1) + [503] * 3
    assert "_registry.max_places" in str(refusal(calls[-1]))
    (other,) = turn([Lock("db", "b", "10.0.1.1", wait_secs=60, client="b")])
    until(lambda: asked(Ping()).figures["waiting"] == most + 1)
    assert not other.done()
    asked(Close(sessions[1]))
    asked(Close(sessions[2]))
    again = asked.send(Lock("db", sessions[-1], IP, wait_secs=60, client="again"))
    until(lambda: asked(Holder("db")).data["waiting"][-1]["session"] == sessions[-1])
    assert not again.done()


def test_a_call_that_made_nothing_counts_no_more(asked: Asked, turn: Turn, request: pytest.FixtureRequest) -> None:
    limit(asked, max_sessions=2, max_places=2)
    asked(Open("a", 60, IP))
    asked(Open("a2", 60, IP))
    for number in range(3):
        (none,) = turn([Lock("db", f"none{number}", IP, wait_secs=60)])
        assert refusal(none).status == 404
    asked(Close("a2"))
    ledger: Any = request.getfixturevalue("ledger")
    shared: Any = request.getfixturevalue("shared_ledger")
    ledger.failures, shared.away = [Unavailable("away")], Unavailable("away")
    with pytest.raises(Unavailable):
        asked(Open("a3", 60, IP))
    shared.away = None
    asked(Open("a4", 60, IP))
    asked(Lock("db", "a", IP))
    waits = asked.send(Lock("db", "a4", IP, wait_secs=60))
    until(lambda: asked(Ping()).figures["waiting"] == 1)
    assert not waits.done()


# --- watches ---


@pytest.mark.parametrize("wait_secs", [0.0, 60.0])
@pytest.mark.parametrize("beyond", [1 << 20, 1 << 53, 10**18])
def test_a_cursor_that_no_change_has_reached_is_refused(asked: Asked, beyond: int, wait_secs: float) -> None:
    asked(Replace("x", {}, IP))
    cursor = asked(Watch()).cursor
    registry_id, _, revision = cursor.rpartition(":")
    calls = [asked.send(Watch(since=f"{registry_id}:{int(revision) + beyond}", wait_secs=wait_secs)) for _ in range(3)]
    for call in calls:
        error = refusal(call)
        assert (error.status, error.data) == (410, {"cursor": asked(Watch()).cursor})


def test_the_revision_of_a_write_is_a_cursor(asked: Asked) -> None:
    registry_id, _, _ = asked(Watch()).cursor.rpartition(":")
    for number in range(20):
        done = asked(Replace("x", {"n": number}, IP))
        asked(Watch(since=f"{registry_id}:{done.revision}"))


@pytest.mark.parametrize("end", [Ack("x", "r"), Delete("x"), Batch("", (Replace("y", {}, IP), Ack("x", "r")))])
def test_what_is_taken_and_destroyed_at_once_is_told_no_more(
    asked: Asked, turn: Turn, end: Any, request: pytest.FixtureRequest
) -> None:
    cursor = asked(Watch()).cursor
    asked(Replace("x", {"pass": "word"}, IP))
    taken, ended, anew = turn([Take("x", "r"), end, Register("x", {"another": "one"}, IP)])
    assert b"word" in taken.result(10).json
    ended.result(10)
    if anew.exception(10) is None:
        last = "another"
    else:  # decided before the end is
        assert refusal(anew).status == 409
        last = "none"
    until(lambda: not any(event.record and b"word" in event.record.json for event in asked(Watch(since=cursor)).events))
    told = [event for event in asked(Watch(since=cursor)).events if event.name == "x"]
    if "shared" in request.node.callspec.id:  # in commits of their own: other brokers are told that it was taken
        assert [event.type for event in told] == ["take"]
    else:
        assert last == "another"
        assert [event.type for event in told] == ["put"]

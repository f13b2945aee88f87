"""Sessions, locks and what stands on them, against a made-up broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from bpbroker.client import BarrierBroken, BatchFailed, Client, CursorExpired, LockLost, LockTimeout, SessionLost
from bpbroker.errors import UsageError
from bpbroker.frontend.coordination import OPERATIONS
from bpbroker.recipes.batch import pieces
from bpbroker.recipes.filters import matches, texts
from tests.support.fake_broker import FakeBroker, answer, failure, success

OPENED = success({"session": "s", "ttl": 2})
GRANTED = success({"token": 7, "session": "s", "since": 1})


def paths(fake: FakeBroker) -> list[str]:
    return [request.path.split("/")[2] for request in fake.requests]


def test_a_session_is_opened_renewed_and_closed(fake: FakeBroker, client: Client) -> None:
    fake.answers = [OPENED]
    with client.session(ttl_secs=2) as session:
        deadline = time.monotonic() + 30
        while "Renew" not in paths(fake):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert paths(fake)[0] == "Open"
    assert paths(fake)[-1] == "Close"
    assert {request.json["session"] for request in fake.requests} == {session.id}


def test_a_session_that_is_over_is_lost_at_once_and_told_at_the_end(fake: FakeBroker, client: Client) -> None:
    fake.answers = [OPENED, failure(404, "There is no session")]
    with pytest.raises(SessionLost, match="There is no session"), client.session(ttl_secs=2) as session:
        assert session.lost.wait(30)
    assert session.ended


def test_the_bodys_own_error_counts_more(fake: FakeBroker, client: Client) -> None:
    fake.answers = [OPENED, failure(404, "There is no session")]
    with pytest.raises(KeyError), client.session(ttl_secs=2) as session:
        assert session.lost.wait(30)
        raise KeyError


def test_a_broker_that_is_away_loses_it_before_it_can_end(fake: FakeBroker, make_client: Callable[..., Client]) -> None:
    fake.answers = [OPENED, failure(503, "away")]
    session = make_client(retries=0).session(ttl_secs=2)
    began = time.monotonic()
    session.open()
    assert session.lost.wait(30)
    assert time.monotonic() - began >= 2 - 2 / 3 - 0.1
    assert not session.ended
    assert "away" in session.reason


def test_a_lock_has_a_token_and_fences_writes(fake: FakeBroker, client: Client) -> None:
    fake.answers = [OPENED, GRANTED, success({}), success({})]
    with client.lock("n", data={"a": 1}) as lock:
        assert lock.locked()
        assert (lock.token, lock.fence) == (7, "n:7")
        client.replace("e", "d", lock=lock)
    assert not lock.locked()
    assert paths(fake) == ["Open", "Lock", "Replace", "Close"]
    assert fake.requests[2].json["lock"] == "n:7"


def test_every_write_may_name_a_lock(fake: FakeBroker, client: Client) -> None:
    fake.answers = [success({"number": 1})]
    client.allocate("p", "o", lock="n:7")
    client.release("p", "o", lock="n:7")
    client.next("c", lock="n:7")
    with client.take("e", "r", lock="n:7"):
        pass
    with client.batch() as batch:
        batch.allocate("p", "o", lock="n:7")
        batch.release("p", "o", lock="n:7")
        batch.next("c", lock="n:7")
        batch.take("e", "r", lock="n:7")
        batch.ack("e", "r", lock="n:7")
    assert paths(fake) == ["Allocate", "Release", "Next", "Take", "Ack", "Batch"]
    sent = [request.json for request in fake.requests[:-1]] + fake.requests[-1].json["operations"]
    assert {each["lock"] for each in sent} == {"n:7"}


def test_a_lock_that_others_hold(fake: FakeBroker, client: Client) -> None:
    held = answer(409, {"success": False, "message": "Held", "data": {"holders": [{"data": "x"}], "waiting": 1}})
    fake.answers = [OPENED, held, success({})]
    lock = client.lock("n")
    assert not lock.acquire(blocking=False)
    fake.answers = [OPENED, held, success({})]
    with pytest.raises(LockTimeout) as raised:
        client.lock("n", wait_secs=0).__enter__()
    assert raised.value.holders == [{"data": "x"}]
    assert isinstance(raised.value, LockTimeout)
    assert paths(fake) == ["Open", "Lock", "Close"] * 2


def test_a_lock_that_is_lost_is_told_at_the_end(fake: FakeBroker, client: Client) -> None:
    fake.answers = [OPENED, GRANTED, failure(404, "There is no session")]
    with pytest.raises(LockLost) as raised, client.lock("n", ttl_secs=2) as lock:
        assert lock.lost.wait(30)
    assert isinstance(raised.value.__cause__, SessionLost)


def test_a_batch_is_sent_once_at_the_end(fake: FakeBroker, client: Client) -> None:
    fake.answers = [success({"results": [{"status": 200}]})]
    with client.batch() as batch:
        batch.register("a", {"x": 1})
        batch.check_empty("p")
        assert not fake.requests
    assert batch.results == [{"status": 200}]
    assert [each["method"] for each in fake.requests[0].json["operations"]] == ["Register", "CheckEmpty"]
    with pytest.raises(KeyError), client.batch() as batch:
        batch.delete("a")
        raise KeyError
    assert len(fake.requests) == 1


def test_a_batch_takes_every_operation_of_the_broker(fake: FakeBroker, client: Client) -> None:
    batch = client.batch(atomic=False)
    batch.list("n")
    batch.take("s", "me")
    batch.ack("s2", "me")
    batch.allocate("p", "me", last=9)
    batch.release("p", "me", quarantine_secs=5)
    batch.next("c", 2)
    for call in (batch.register, batch.replace, batch.update):
        call("a", "x")
    batch.delete("a")
    batch.check("a", lock="l:1")
    batch.check_empty("e")
    batch.get("a")
    assert {each["method"] for each in batch.operations} == set(OPERATIONS)
    assert batch.operations[3] == {"method": "Allocate", "pool": "p", "owner": "me", "from": 1, "to": 9}
    batch.commit()
    assert fake.requests[-1].json["operations"] == batch.operations


def test_a_batch_that_is_refused_says_which(fake: FakeBroker, client: Client) -> None:
    fake.answers = [answer(409, {"success": False, "message": "There", "failed": 1})]
    with pytest.raises(BatchFailed, match="Register b") as raised, client.batch() as batch:
        batch.delete("a")
        batch.register("b", "x")
    assert raised.value.index == 1


def test_a_watch_moves_behind_whole_revisions(fake: FakeBroker, client: Client) -> None:
    events = [{"type": "put", "name": name, "revision": at, "entry": {}} for name, at in (("a", 2), ("b", 3), ("c", 3))]
    fake.answers = [
        success({"events": [], "cursor": "r:1"}),
        success({"events": events, "cursor": "r:3"}),
        answer(410, {"success": False, "message": "Forgotten", "data": {"cursor": "r:9"}}),
    ]
    seen = []
    with pytest.raises(CursorExpired) as raised, client.watch("p") as watch:
        for event in watch:
            seen += [(event.name, watch.cursor)]
    assert seen == [("a", "r:1"), ("b", "r:2"), ("c", "r:2")]
    assert (watch.cursor, raised.value.cursor) == ("r:3", "r:9")


def test_a_barrier_names_the_culprits(fake: FakeBroker, client: Client) -> None:
    entries = {"n1": {"state": "ready"}, "n2": {"state": "failed", "error": "disk full"}, "n3": {"step": "x"}}
    listed = success(entries)
    fake.answers = [success({"events": [], "cursor": "r:1"}), listed, listed, success({"n4": {"entry": {"step": "y"}}})]
    barrier = client.barrier("n", 5, where={"state": "ready"}, fail_where="state=failed")
    with pytest.raises(BarrierBroken) as raised:
        barrier.wait(5)
    said = "1 of 5 ready; failed: n2 (disk full); not ready: n3 (step: x); lost: n4 (step: y); 1 never came"
    assert str(raised.value) == said
    assert (set(raised.value.failed), set(raised.value.missing), set(raised.value.lost)) == ({"n2"}, {"n3"}, {"n4"})


def test_take_acknowledges_on_a_clean_exit_only(fake: FakeBroker, client: Client) -> None:
    fake.answers = [success({"_str": "secret"})]
    with client.take("n", "me") as entry:
        assert entry == {"_str": "secret"}
    with pytest.raises(KeyError), client.take("n", "me"):
        raise KeyError
    assert paths(fake) == ["Take", "Ack", "Take"]


@pytest.mark.parametrize(
    ("condition", "true"),
    [("a=x", True), ("a=y", False), ("b.c=1", True), ("b.c=2", False), ("d=true", True), ("none=x", False)],
)
def test_conditions(condition: str, true: bool) -> None:
    assert matches({"a": "x", "b": {"c": 1}, "d": True}, condition) is true


def test_what_is_no_condition_is_refused() -> None:
    assert texts({"a": "x", "b": True}) == ["a=x", "b=true"]
    for wrong in ("a", "=x"):
        with pytest.raises(UsageError, match="FIELD=VALUE"):
            texts(wrong)


def test_pieces_are_what_a_broker_takes() -> None:
    many: list[dict[str, Any]] = [{"name": str(number), "data": "x" * 20_000} for number in range(250)]
    found = pieces(many)
    assert [each for piece in found for each in piece] == many
    assert max(map(len, found)) <= 100
    assert max(sum(len(each["data"]) for each in piece) for piece in found) < 1024 * 1024

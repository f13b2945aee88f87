"""The registry on a store that others write to: what is decided on old knowledge, and what is served without it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.actors import registry_sessions, registry_shared
from bpbroker.actors.registry import Registry
from bpbroker.config import layers
from bpbroker.errors import AlreadyExists, NotFound, Overloaded, PreconditionFailed, StorageFull, Unavailable
from bpbroker.messages import Condition, Delete, Deleted, Exists, Get, List, Ping, Register, Replace, Snapshot, Update
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry import locks
from bpbroker.registry.browsing import Browse, Recent
from bpbroker.registry.changes import Broken, Changes, Group, Seen
from bpbroker.registry.requests import (
    Batch,
    CheckEmpty,
    Close,
    Done,
    Event,
    Expire,
    Holder,
    Lock,
    Lost,
    Open,
    Renew,
    Unlock,
    Watch,
    Watched,
)
from bpbroker.registry.stored import split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.actors.conftest import Asked, SharedLedger

IP = "10.0.0.1"


def own(record: Any) -> Any:
    value = json.loads(record.json)
    return {key: value[key] for key in value if not key.startswith("last_write_")}


def hold_commits(ledger: SharedLedger) -> tuple[threading.Event, threading.Event]:
    """Let each commit wait until the first event is set; the second one is set once a commit has begun."""
    hold, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert hold.wait(10)

    ledger.before_commit = wait
    return hold, begun


def until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def quiet(shared_ledger: SharedLedger, shared_registry: Asked) -> SharedLedger:
    """A store whose changes by others the registry does not hear of."""
    shared_registry(Ping())
    shared_ledger.quiet = True
    return shared_ledger


# --- decided on old knowledge ---


def test_each_operation_is_decided_on_what_is_there(quiet: SharedLedger, shared_registry: Asked) -> None:
    shared_registry(Register("a", {"x": 1}, IP))
    shared_registry(Register("b", {"x": 1}, IP))
    quiet.put("a", b'{"x": 9, "z": 9}')
    quiet.put("b", None)
    quiet.put("c", b'{"other": true}')
    assert own(shared_registry(Update("a", {"x": 2}, IP))) == {"x": 2, "z": 9}
    assert own(shared_registry(Update("b", {"y": 2}, IP))) == {"y": 2}
    with pytest.raises(AlreadyExists):
        shared_registry(Register("c", {}, IP))
    assert own(shared_registry(Get("c"))) == {"other": True}


def test_a_refusal_is_never_given_on_old_knowledge(quiet: SharedLedger, shared_registry: Asked) -> None:
    tag = shared_registry(Register("a", {"x": 1}, IP)).etag
    quiet.put("a", None)
    assert own(shared_registry(Register("a", {"x": 2}, IP))) == {"x": 2}
    quiet.put("a", b"{}")
    with pytest.raises(PreconditionFailed):
        shared_registry(Replace("a", {}, IP, Condition(match=(tag,))))
    quiet.put("new", b"{}")
    shared_registry(Delete("new"))
    assert "new" not in quiet.entries
    quiet.put("new", b'{"n": 1}')
    assert own(shared_registry(Replace("new", {"n": 2}, IP, Condition(match=("*",))))) == {"n": 2}


def test_a_read_asks_the_store_and_a_local_one_does_not(quiet: SharedLedger, shared_registry: Asked) -> None:
    shared_registry(Register("a", {"x": 1}, IP))
    quiet.put("a", b'{"x": 2}')
    local = shared_registry(Get("a", local=True))
    assert own(local) == {"x": 1}
    assert 0 <= local.age_secs < 60
    quiet.put("b", b"{}")
    known = shared_registry(List(local=True))
    assert [record.name for record in known.records] == ["a"]
    assert 0 <= known.age_secs < 60
    assert 0 <= shared_registry(List("none", local=True)).age_secs < 60
    assert [record.name for record in shared_registry(List())] == ["a", "b"]
    assert own(shared_registry(Get("a"))) == {"x": 2}
    assert own(shared_registry(Get("a", local=True))) == {"x": 2}
    quiet.put("a", None)
    with pytest.raises(NotFound):
        shared_registry(Get("a"))


def test_reads_that_come_together_are_one_read(quiet: SharedLedger, shared_registry: Asked) -> None:
    for name in "abc":
        quiet.put(name, b"{}")
    hold, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert hold.wait(10)

    quiet.before_read = wait
    first = shared_registry.send(Get("a"))
    assert begun.wait(10)
    others = [shared_registry.send(Get(name)) for name in "abcab"]
    hold.set()
    for reply in (first, *others):
        reply.result(10)
    assert quiet.reads == [("a",), ("a", "b", "c")]


def test_news_that_come_between_a_decision_and_its_commit_are_not_lost(
    shared_ledger: SharedLedger, shared_registry: Asked
) -> None:
    hold, begun = hold_commits(shared_ledger)
    first = shared_registry.send(Update("b", {"x": 1}, IP))
    assert begun.wait(10)
    second = shared_registry.send(Update("a", {"y": 1}, IP))
    shared_registry(Ping())  # it is decided
    shared_ledger.put("a", b'{"x": 1}')
    shared_registry(Ping())  # and the news are known
    hold.set()
    assert own(second.result(10)) == {"x": 1, "y": 1}
    first.result(10)


def test_a_conflict_without_end_is_given_up(quiet: SharedLedger, shared_registry: Asked) -> None:
    quiet.before_commit = lambda: quiet.put("a", b'{"n": %d}' % quiet.version)
    with pytest.raises(Overloaded, match="changes too fast; nothing was changed"):
        shared_registry(Update("a", {"x": 1}, IP))
    assert len(quiet.commits) == 8


# --- commits ---


def test_writes_that_come_while_a_commit_runs_are_the_next_one(quiet: SharedLedger, shared_registry: Asked) -> None:
    hold, begun = hold_commits(quiet)
    first = shared_registry.send(Update("a", {"n": {"1": 1}}, IP))
    assert begun.wait(10)
    more = [
        shared_registry.send(message)
        for message in (Update("a", {"n": {"2": 2}}, IP), Register("b", {}, IP), Update("a", {"n": {"3": 3}}, IP))
    ]
    hold.set()
    for reply in (first, *more):
        reply.result(10)
    assert own(more[-1].result(10)) == {"n": {"1": 1, "2": 2, "3": 3}}
    assert len(quiet.commits) <= 3


def test_an_uncertain_commit_is_said_and_those_behind_it_changed_nothing(
    quiet: SharedLedger, shared_registry: Asked
) -> None:
    hold, begun = hold_commits(quiet)
    lost = Unavailable("Whether this was changed is not known: no answer")
    lost.outcome_known = False
    quiet.failures.append(lost)
    first = shared_registry.send(Replace("a", {}, IP))
    assert begun.wait(10)
    behind = [shared_registry.send(Replace(name, {}, IP)) for name in "ab"]
    shared_registry(Ping())
    hold.set()
    with pytest.raises(Unavailable, match="not known") as caught:
        first.result(10)
    assert not caught.value.outcome_known
    for reply in behind:
        with pytest.raises(Unavailable, match="Nothing was changed") as refused:
            reply.result(10)
        assert refused.value.outcome_known
    assert not shared_registry(Ping()).ok
    quiet.before_commit = lambda: None
    assert own(shared_registry(Replace("a", {"n": 1}, IP))) == {"n": 1}
    assert shared_registry(Ping()).ok


def test_a_store_without_space_is_told_until_it_has_some(quiet: SharedLedger, shared_registry: Asked) -> None:
    quiet.failures.append(StorageFull("The etcd cluster's space is used up: nothing was changed"))
    with pytest.raises(StorageFull):
        shared_registry(Replace("a", {}, IP))
    assert "space" in shared_registry(Ping()).detail
    until(lambda: shared_registry(Ping()).ok)


def batch(shared_registry: Asked, *operations: Any, batch_id: str = "") -> Any:
    return shared_registry(Batch(batch_id, operations)).results


def names_in(listed: Any) -> list[str]:
    return [record.name for record in listed]


def test_a_batch_lists_what_is_there_and_not_what_is_known(quiet: SharedLedger, shared_registry: Asked) -> None:
    shared_registry(Register("n/gone", {}, IP))
    quiet.put("n/gone", None)
    quiet.put("n/new", b'{"x": 1}')
    assert names_in(batch(shared_registry, Register("n/mine", {}, IP), List("n/"))[1]) == ["n/mine", "n/new"]
    assert names_in(batch(shared_registry, List("n/"))[0]) == ["n/mine", "n/new"]
    quiet.put("n/newer", b"{}")
    both = batch(shared_registry, List("n/"), Get("n/new"), List(""), List("n/m"))
    assert [names_in(both[at]) for at in (0, 2, 3)] == [["n/mine", "n/new", "n/newer"]] * 2 + [["n/mine"]]
    assert own(both[1]) == {"x": 1}
    (alone,) = shared_registry(Batch("", (List("n/"),), atomic=False)).results
    assert len(alone) == 3


def test_operations_that_stand_alone_are_done_or_refused_by_themselves(shared_registry: Asked) -> None:
    shared_registry(Register("n/old", {}, IP))
    operations = (Register("n/a", {}, IP), Register("n/old", {}, IP), Delete("n/none"), Replace("n/b", {}, IP))
    made, refused, none, replaced = shared_registry(Batch("", operations, atomic=False)).results
    assert (type(refused), none) == (AlreadyExists, Deleted())
    assert shared_registry(List("n/a")) == (made,)
    assert shared_registry(List("n/b")) == (replaced,)


def test_a_batch_lists_as_of_its_own_commit(quiet: SharedLedger, shared_registry: Asked) -> None:
    """What another broker writes in the next moment is not in it, what another write of the same commit did may be."""
    quiet.before_scan_at = lambda: quiet.put("n/later", b"{}")
    assert names_in(batch(shared_registry, Replace("n/a", {}, IP), List("n/"))[1]) == ["n/a"]
    quiet.before_scan_at = lambda: None
    hold, begun = hold_commits(quiet)
    first = shared_registry.send(Replace("other", {}, IP))
    assert begun.wait(10)
    batches = [shared_registry.send(Batch("", (Register(f"n/{name}", {}, IP), List("n/")))) for name in ("x", "y", "z")]
    refused = shared_registry.send(Batch("", (Register("n/never", {}, IP), Register("n/a", {}, IP))))
    hold.set()
    assert own(first.result(10)) == {}
    seen = [names_in(each.result(10).results[1]) for each in batches]
    assert [len(names) for names in seen] == [3, 4, 5]  # one after the other, each with those before it
    assert all("n/never" not in names for names in seen)
    with pytest.raises(AlreadyExists):
        refused.result(10)


def test_a_repeated_batch_shows_what_is_there_now(quiet: SharedLedger, shared_registry: Asked) -> None:
    operations = Replace("n/a", {"x": 1}, IP), Replace("n/b", {"x": 1}, IP), List("n/")
    batch(shared_registry, *operations, batch_id="b")
    batch(shared_registry, *operations[:2], batch_id="c")
    quiet.put("n/a", b'{"x": 2}')
    quiet.put("n/b", None)
    quiet.put("n/c", b"{}")
    first, gone, listed = batch(shared_registry, *operations, batch_id="b")
    assert own(first) == {"x": 2}
    assert isinstance(gone, Done)
    assert names_in(listed) == ["n/a", "n/c"]
    quiet.put("n/a", b'{"x": 3}')
    quiet.put("n/b", b'{"x": 4}')
    again = batch(shared_registry, *operations[:2], batch_id="c")
    assert [own(each) for each in again] == [{"x": 3}, {"x": 4}]


def test_several_entries_are_read_at_one_moment(quiet: SharedLedger, shared_registry: Asked) -> None:
    """Of one of them something newer is known already, of the other one not."""
    shared_registry(Register("a", {"x": 1}, IP))
    shared_registry(Register("b", {"x": 1}, IP))
    reads = len(quiet.reads)

    plain = quiet.read

    def read(names: Any) -> Any:
        quiet.read = plain  # type: ignore[method-assign]  # once
        stale = plain(names)
        for name in names:
            quiet.put(name, b'{"x": 2}')
        quiet.tell(Changes((quiet._seen("a"),), 0))
        return stale

    quiet.read = read  # type: ignore[method-assign]  # the first answer is old when it comes
    assert [own(each) for each in batch(shared_registry, Get("a"), Get("b"))] == [{"x": 2}, {"x": 2}]
    assert len(quiet.reads) == reads + 2


def test_a_prefix_is_as_empty_as_the_store_says(quiet: SharedLedger, shared_registry: Asked) -> None:
    shared_registry(Register("n/old", {}, IP))
    quiet.put("n/old", None)
    batch(shared_registry, CheckEmpty("n/"), Register("a", {}, IP))
    batch(shared_registry, CheckEmpty("n/"))
    quiet.put("n/new", b"{}")
    with pytest.raises(PreconditionFailed, match="n/new"):
        batch(shared_registry, CheckEmpty("n/"), Register("b", {}, IP))
    quiet.put("m/new", b"{}")
    with pytest.raises(PreconditionFailed, match="m/new"):
        batch(shared_registry, CheckEmpty("m/"))
    quiet.put("m/new", None)
    quiet.put("k/new", b"{}")
    with pytest.raises(PreconditionFailed, match="k/new"):
        batch(shared_registry, CheckEmpty("m/"), CheckEmpty("k/"), Get("a"))


def test_batches_that_look_are_groups_of_their_own(quiet: SharedLedger, shared_registry: Asked) -> None:
    """Of each other they know nothing: together they would be more than a store takes."""
    hold, begun = hold_commits(quiet)
    first = shared_registry.send(Replace("other", {}, IP))
    assert begun.wait(10)
    sizes: list[int] = []
    plain = quiet._group

    def count(group: Group, changed: list[str]) -> Any:
        sizes.append(len(group.changes))
        return plain(group, changed)

    quiet._group = count  # type: ignore[method-assign]  # it counts
    batches = [
        shared_registry.send(
            Batch("", (CheckEmpty(f"c{number}/"), *(Register(f"b{number}/{n}", {}, IP) for n in range(50))))
        )
        for number in range(4)
    ]
    hold.set()
    assert own(first.result(10)) == {}
    assert all(len(each.result(10).results) == 51 for each in batches)
    assert sizes[-4:] == [50] * 4


def test_a_list_that_cannot_be_read_after_its_commit(quiet: SharedLedger, shared_registry: Asked) -> None:
    def fail() -> None:
        raise Unavailable("away")

    quiet.before_scan_at = fail
    with pytest.raises(Unavailable, match="carried out") as caught:
        batch(shared_registry, Register("n/a", {}, IP), List("n/"))
    assert not caught.value.outcome_known
    quiet.before_scan_at = lambda: None
    assert own(shared_registry(Get("n/a"))) == {}


@pytest.mark.parametrize("operation", [List("n/"), CheckEmpty("n/")])
@pytest.mark.parametrize("atomic", [True, False])
def test_who_only_looks_is_told_that_the_commit_failed(
    shared_ledger: SharedLedger, shared_registry: Asked, operation: Any, *, atomic: bool
) -> None:
    shared_ledger.failures.append(Unavailable("away"))
    with pytest.raises(Unavailable, match="away"):
        for found in shared_registry(Batch("", (operation,), atomic)).results:
            if isinstance(found, Unavailable):
                raise found
    assert own(shared_registry(Replace("n/a", {}, IP))) == {}


def test_a_lock_was_held_whatever_another_broker_did_then(quiet: SharedLedger, shared_registry: Asked) -> None:
    """It is given back elsewhere before this broker comes to its answer."""
    shared_registry(Open("s1", 60, IP))
    plain = quiet.commit

    def give_back(groups: Any) -> Any:
        outcomes = plain(groups)
        quiet.put("_lock/l", None)
        quiet.tell(Changes((quiet._seen("_lock/l"),), 0))
        return outcomes

    quiet.commit = give_back  # type: ignore[method-assign]  # another broker comes between
    done = shared_registry(Lock("l", "s1", IP))
    assert done.data["token"] == done.revision > 0
    assert done.data["session"] == "s1"
    quiet.commit = plain  # type: ignore[method-assign]  # no more
    again = shared_registry(Lock("l", "s1", IP))
    assert again.data["token"] > done.data["token"]
    assert shared_registry(Lock("l", "s1", IP)) == again


@pytest.mark.parametrize("wait_secs", [0.0, 60.0])
def test_a_dead_holder_does_not_hold(quiet: SharedLedger, shared_registry: Asked, wait_secs: float) -> None:
    """Its session was closed at a broker that did not know of the lock yet."""
    for session in ("s1", "s2", "s3"):
        shared_registry(Open(session, 60, IP))
    first = shared_registry(Lock("l", "s1", IP)).data["token"]
    quiet.put("_session/s1", None)
    assert shared_registry(Lock("l", "s2", IP, wait_secs=wait_secs)).data["token"] > first
    with pytest.raises(AlreadyExists, match="s2"):
        shared_registry(Lock("l", "s3", IP))


def test_nothing_is_held_by_a_session_that_was_closed_where_the_lock_was_not_known(
    quiet: SharedLedger, shared_registry: Asked
) -> None:
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    opened = json.dumps({**json.loads(quiet.entries["_session/s1"][0]), "nonce": "another"}).encode()
    first = shared_registry(Lock("l", "s1", IP)).data["token"]
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    fenced = Replace("a", {}, IP, condition=Condition(lock=("l", first)))
    assert own(shared_registry(fenced)) == {}
    for value in (None, opened):  # opened again, its name is that of another session
        quiet.put("_session/s1", value)
        with pytest.raises(PreconditionFailed):
            shared_registry(fenced)
    assert waiting.result(10).data["token"] > first
    with pytest.raises(AlreadyExists, match="s2"):
        shared_registry(Lock("l", "s1", IP))


def test_a_holder_keeps_the_lock_when_the_revisions_begin_anew(quiet: SharedLedger, shared_registry: Asked) -> None:
    """As after a restore of the cluster: the session's record has a higher revision then, the token has not."""
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    done = shared_registry(Lock("l", "s1", IP))
    quiet.version += 1_000_000
    quiet.put("_session/s1", quiet.entries["_session/s1"][0])
    assert shared_registry(Lock("l", "s1", IP)) == done
    with pytest.raises(AlreadyExists, match="s1"):
        shared_registry(Lock("l", "s2", IP))
    assert own(shared_registry(Replace("a", {}, IP, condition=Condition(lock=("l", done.data["token"]))))) == {}


@pytest.mark.parametrize("others", [0, 20])
def test_a_session_has_no_place_of_an_earlier_one_of_its_name(
    quiet: SharedLedger, shared_registry: Asked, others: int
) -> None:
    """Neither the first one, nor one far behind in the queue."""
    names = [f"o{number}" for number in range(others)]
    for session in (*names, "s"):
        shared_registry(Open(session, 60, IP))
    for session in (*names, "s"):
        shared_registry.send(Lock("l", session, IP, wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == others)
    made = {name: value for name, (value, _) in quiet.entries.items() if name.startswith("_lock/")}
    assert ("_lock/ l/s" in made) == bool(others)
    shared_registry(Close("s"))
    shared_registry(Expire("s"))  # behind that of the registry itself
    for name, value in made.items():  # another broker had made its place just before, which this one did not know
        quiet.put(name, value)
    left = quiet.version * INDEX_MAX + INDEX_MAX - 1
    shared_registry(Open("s", 60, IP))
    again = shared_registry.send(Lock("l", "s", IP, wait_secs=60))
    shared_registry(Ping())
    for name in names:
        shared_registry(Close(name))
    assert again.result(10).data["token"] > left
    shown = shared_registry(Holder("l")).data
    assert (shown["token"], shown["waiting"]) == (again.result(10).data["token"], [])


def opened_elsewhere(ledger: SharedLedger, session: str, **changed: Any) -> None:
    """Let another broker close a session and open another one of its name; this broker does not know yet."""
    value = {**json.loads(ledger.entries[f"_session/{session}"][0]), "nonce": "another", **changed}
    ledger.put(
        f"_session/{session}", json.dumps({key: each for key, each in value.items() if each is not None}).encode()
    )


@pytest.mark.parametrize("nonce", ["another", None])
def test_a_place_that_an_earlier_session_left_goes_whichever_broker_opened_the_later_one(
    quiet: SharedLedger, shared_registry: Asked, nonce: str | None
) -> None:
    """Brokers of earlier builds write no nonce."""
    shared_registry(Open("s", 60, IP))
    shared_registry(Lock("l", "s", IP))
    opened_elsewhere(quiet, "s", nonce=nonce)
    shared_registry(Expire("s"))
    assert "_lock/l" not in quiet.entries
    assert shared_registry(Lock("l", "s", IP)).data["token"]
    shared_registry(Expire("s"))
    assert "_lock/l" in quiet.entries


def test_what_an_earlier_session_left_goes_also_if_it_could_not_be_removed_at_first(
    shared_ledger: SharedLedger, run: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_sessions, "_AGAIN_SECS", 0.2)
    registry = run(Registry, registry_shared.SharedBackend(lambda: shared_ledger), layers.freeze(layers.DEFAULTS))
    until(lambda: registry(Ping()).ok)
    registry(Open("s", 60, IP))
    registry(Lock("l", "s", IP))
    shared_ledger.failures = [Unavailable("away")]
    opened_elsewhere(shared_ledger, "s")
    until(lambda: not shared_ledger.failures)
    until(lambda: "_lock/l" not in shared_ledger.entries)


def test_who_waits_is_not_granted_the_place_of_an_earlier_session_of_its_name(
    quiet: SharedLedger, shared_registry: Asked
) -> None:
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    shared_registry(Lock("l", "s1", IP))
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    left = json.loads(quiet.entries["_lock/l"][0])["places"][1]
    opened_elsewhere(quiet, "s2")
    quiet.failures = [Unavailable("away")]  # so that the left place is not removed just now
    quiet.tell(Changes((quiet._seen("_session/s2"),), 0))
    until(lambda: not quiet.failures)
    shared_registry(Unlock("l", "s1"))
    token = waiting.result(10).data["token"]
    assert own(shared_registry(Replace("a", {}, IP, condition=Condition(lock=("l", token))))) == {}
    assert left["within"] not in quiet.entries["_lock/l"][0].decode()


def test_whose_time_is_over_does_not_get_the_place_of_an_earlier_session_of_its_name(
    quiet: SharedLedger, shared_registry: Asked
) -> None:
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    shared_registry(Lock("l", "s1", IP))
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=0.3))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    opened_elsewhere(quiet, "s2")
    lock = json.loads(quiet.entries["_lock/l"][0])  # given back elsewhere, which this broker does not know either
    quiet.put("_lock/l", json.dumps({**lock, "places": lock["places"][1:]}).encode())
    with pytest.raises(AlreadyExists):
        waiting.result(10)
    assert "_lock/l" not in quiet.entries


def test_who_was_not_in_time_is_told_so_when_the_place_is_given_back(
    quiet: SharedLedger, shared_registry: Asked
) -> None:
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    shared_registry(Lock("l", "s1", IP))
    hold = threading.Event()
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=0.3))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        hold.wait(10)

    quiet.before_commit = wait
    assert begun.wait(10)
    assert not waiting.done()
    hold.set()
    with pytest.raises(AlreadyExists, match="s1"):
        waiting.result(10)
    quiet.before_commit = lambda: None
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=0.3))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    quiet.failures = [Unavailable("away")]
    with pytest.raises(Unavailable, match=r"held by s1.*not known: .*away") as caught:
        waiting.result(10)
    assert not caught.value.outcome_known


def test_news_of_a_sessions_end_that_come_late_do_not_end_the_next_one_of_its_name(
    quiet: SharedLedger, shared_registry: Asked
) -> None:
    shared_registry(Open("s", 60, IP))
    shared_registry(Register("mine", {}, IP, session="s"))
    shared_registry(Lock("l", "s", IP))
    quiet.put("stale", b'{"last_write_revision": 4096, "last_write_session": "s"}')
    shared_registry(Get("stale"))
    # As a broker sweeps that stood still meanwhile; what it tells, the log has.
    assert shared_registry(Expire("s")).ended == ("stale",)
    assert "stale" not in quiet.entries
    assert shared_registry(Expire("s")).ended == ()
    assert shared_registry(Renew("s")).data["session"] == "s"
    assert own(shared_registry(Get("mine"))) == {}
    assert shared_registry(Lock("l", "s", IP)).data["token"]


def open_again(quiet: SharedLedger, session: str) -> Seen:
    """End a session and open it again, as another broker does; return what is told of that."""
    name = f"_session/{session}"
    opened = json.dumps({**json.loads(quiet.entries[name][0]), "nonce": "another"}).encode()
    quiet.put(name, None)
    quiet.put(name, opened)
    return quiet._seen(name)


def queue_of(quiet: SharedLedger) -> locks.Queue:
    """Return the queue of the lock ``l``."""
    stored, version = quiet.entries["_lock/l"]
    return locks.parse(split("_lock/l", stored, version * INDEX_MAX))


def next_in_turn(quiet: SharedLedger) -> Seen:
    """Give back the first place of the lock ``l``, as another broker does; return what is told of that."""
    queue = queue_of(quiet)
    quiet.put("_lock/l", locks.encode(replace(queue, places=queue.places[1:]), 0))
    return quiet._seen("_lock/l")


def without_nonce(quiet: SharedLedger, session: str) -> None:
    """Open a session again as a broker of an earlier build does."""
    value = json.loads(quiet.entries[f"_session/{session}"][0])
    del value["nonce"]
    quiet.put(f"_session/{session}", json.dumps(value).encode())


@pytest.mark.parametrize("others", [0, 20])
def test_an_earlier_build_that_opens_a_session_again_gets_no_place_of_the_session_before(
    quiet: SharedLedger, shared_registry: Asked, others: int
) -> None:
    """Neither the first one, nor one far behind in the queue."""
    names = [f"o{number}" for number in range(others)]
    for session in (*names, "s"):
        shared_registry(Open(session, 60, IP))
    for session in (*names, "s"):
        shared_registry.send(Lock("l", session, IP, wait_secs=60))
    place = "_lock/ l/s" if others else "_lock/l"
    until(lambda: place in quiet.entries and shared_registry(Ping()).figures["waiting"] == others)
    left = quiet.version * INDEX_MAX + INDEX_MAX - 1
    before = quiet.entries[place]
    without_nonce(quiet, "s")
    quiet.tell(Changes((quiet._seen("_session/s"),), 0))
    until(lambda: quiet.entries.get(place) != before)  # as the end of the session before was heard of with it
    again = shared_registry.send(Lock("l", "s", IP, wait_secs=60))
    for name in names:
        shared_registry(Close(name))
    assert again.result(10).data["token"] > left


def test_a_lock_is_not_held_in_a_session_that_an_earlier_build_opened_again(
    quiet: SharedLedger, shared_registry: Asked
) -> None:
    """The end of the session before was not heard of."""
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    first = shared_registry(Lock("l", "s1", IP)).data["token"]
    without_nonce(quiet, "s1")
    with pytest.raises(PreconditionFailed):
        shared_registry(Replace("a", {}, IP, condition=Condition(lock=("l", first))))
    assert shared_registry(Lock("l", "s1", IP)).data["token"] > first
    with pytest.raises(AlreadyExists, match="s1"):
        shared_registry(Lock("l", "s2", IP))


@pytest.mark.parametrize("opened_again", [False, True])
def test_without_a_nonce_in_the_place_revisions_decide(
    quiet: SharedLedger, shared_registry: Asked, opened_again: bool
) -> None:
    """A broker of an earlier build wrote the lock since the place was taken."""
    shared_registry(Open("s", 60, IP))
    done = shared_registry(Lock("l", "s", IP))
    queue = queue_of(quiet)
    quiet.put("_lock/l", locks.encode(replace(queue, places=(replace(queue.places[0], within=""),)), 0))
    shared_registry(Holder("l"))
    if opened_again:
        quiet.put("_session/s", quiet.entries["_session/s"][0])
    shared_registry(Expire("s"))  # perhaps behind that of the registry itself
    assert ("_lock/l" in quiet.entries) == (not opened_again)
    assert (shared_registry(Lock("l", "s", IP)).data["token"] == done.data["token"]) == (not opened_again)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_waiting_call_is_not_granted_the_place_of_an_earlier_session_of_its_name(
    quiet: SharedLedger, shared_registry: Asked, at_once: bool
) -> None:
    """Whether it is its turn later than its session is opened again, or all comes in the same news."""
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    shared_registry(Lock("l", "s1", IP))
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    left = queue_of(quiet).places[1].token
    news: tuple[Seen, ...] = (open_again(quiet, "s2"),)
    if not at_once:
        quiet.failures = [Unavailable("away")]  # the place stays
        quiet.tell(Changes(news, 0))
        until(lambda: not quiet.failures)
        news = ()
    quiet.tell(Changes((next_in_turn(quiet), *news), 0))
    token = waiting.result(10).data["token"]
    assert token > left
    assert own(shared_registry(Replace("a", {}, IP, condition=Condition(lock=("l", token))))) == {}


def refusing(quiet: SharedLedger, monkeypatch: pytest.MonkeyPatch, times: int) -> list[Group]:
    """Let the next commits fail; return the groups of all that are tried."""
    tried: list[Group] = []
    plain = quiet.commit

    def commit(groups: Sequence[Group]) -> Any:
        tried.extend(groups)
        if len(tried) <= times:
            raise Unavailable("away")
        return plain(groups)

    monkeypatch.setattr(quiet, "commit", commit)
    return tried


def test_what_a_session_left_that_is_opened_again_is_removed_also_if_that_fails_at_first(
    quiet: SharedLedger, shared_registry: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_shared, "CHECK_SECS", 0.02)
    monkeypatch.setattr(registry_sessions, "_AGAIN_SECS", 0.05)
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    shared_registry(Register("mine", {}, IP, session="s1"))
    shared_registry(Lock("l", "s1", IP))
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    tried = refusing(quiet, monkeypatch, 3)
    quiet.tell(Changes((open_again(quiet, "s1"),), 0))
    assert waiting.result(10).data["token"]
    assert "mine" not in quiet.entries
    assert shared_registry(Renew("s1")).data["session"] == "s1"
    assert len(tried) == 4


def test_what_a_session_left_is_not_tried_again_before_its_time(
    quiet: SharedLedger, shared_registry: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_shared, "CHECK_SECS", 0.02)
    shared_registry(Open("s", 60, IP))
    shared_registry(Register("mine", {}, IP, session="s"))
    looks = threading.Semaphore(0)
    monkeypatch.setattr(quiet, "check", looks.release)
    tried = refusing(quiet, monkeypatch, 1)
    quiet.tell(Changes((open_again(quiet, "s"),), 0))
    until(lambda: bool(tried))
    for _ in range(10):  # it was woken so often
        assert looks.acquire(timeout=10)
    assert len(tried) == 1
    assert "mine" in quiet.entries


@pytest.mark.parametrize("holds", [True, False])
def test_who_waits_behind_a_place_that_was_left_before_the_broker_started_gets_the_lock(
    shared_ledger: SharedLedger, run: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    """Its session was opened again. It holds the lock, or does so once the holder before it gives its place back."""
    monkeypatch.setattr(registry_shared, "CHECK_SECS", 0.02)
    queue = ("left", "waits") if holds else ("first", "left", "waits")
    places = tuple(locks.Place(session, INDEX_MAX, 1, None, "old") for session in queue)
    shared_ledger.put("_lock/l", locks.encode(locks.Queue(1, places), 0))
    for session in queue:
        nonce = "new" if session == "left" else "old"
        shared_ledger.put(f"_session/{session}", json.dumps({"ttl": 60, "nonce": nonce}).encode())
    asked = run(Registry, registry_shared.SharedBackend(lambda: shared_ledger), layers.freeze(layers.DEFAULTS))
    waiting = asked.send(Lock("l", "waits", IP, wait_secs=60))
    if not holds:
        until(lambda: asked(Ping()).figures["waiting"] == 1)
        next_in_turn(shared_ledger)
    assert waiting.result(10).data["token"] == INDEX_MAX


def test_a_call_whose_session_was_opened_again_before_its_answer_takes_another_place(
    quiet: SharedLedger, shared_registry: Asked
) -> None:
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    shared_registry(Lock("l", "s1", IP))
    plain, left = quiet.commit, []

    def opened_again(groups: Any) -> Any:
        outcomes = plain(groups)
        quiet.commit = plain  # type: ignore[method-assign]  # no more
        left.append(queue_of(quiet).places[1].token)
        quiet.tell(Changes((open_again(quiet, "s2"), next_in_turn(quiet)), 0))
        return outcomes

    quiet.commit = opened_again  # type: ignore[method-assign]  # another broker comes between
    assert shared_registry(Lock("l", "s2", IP, wait_secs=60)).data["token"] > left[0]


@pytest.mark.usefixtures("quiet")
def test_a_waiting_call_that_lost_its_place_takes_another_one(shared_registry: Asked) -> None:
    """An earlier call of its session, at a broker that was cut off, gave it back late."""
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    first = shared_registry(Lock("l", "s1", IP)).data["token"]
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    shared_registry(Unlock("l", "s2", if_waiting=True))
    shared_registry(Unlock("l", "s1"))
    assert waiting.result(10).data["token"] > first


def test_who_holds_the_lock_when_the_time_is_over_is_told_so(quiet: SharedLedger, shared_registry: Asked) -> None:
    """A later call of the session may rest on its place: it is not given back."""
    for session in ("s1", "s2"):
        shared_registry(Open(session, 60, IP))
    first = shared_registry(Lock("l", "s1", IP)).data["token"]
    place = json.loads(quiet.entries["_lock/l"][0])["places"][0]
    waiting = shared_registry.send(Lock("l", "s2", IP, wait_secs=0.3))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)

    def granted() -> None:  # by another broker, just before this one gives the place back
        quiet.before_commit = lambda: None
        record = json.loads(quiet.entries["_lock/l"][0])
        record["places"] = [each for each in record["places"] if each["session"] != place["session"]]
        quiet.put("_lock/l", json.dumps(record).encode())

    quiet.before_commit = granted
    assert waiting.result(10).data["token"] > first
    assert json.loads(quiet.entries["_lock/l"][0])["places"]


def test_stopping_answers_everybody(quiet: SharedLedger, shared_registry: Asked) -> None:
    hold, begun = hold_commits(quiet)
    first = shared_registry.send(Replace("a", {}, IP))
    assert begun.wait(10)
    behind = shared_registry.send(Replace("b", {}, IP))
    waiting = shared_registry.send(Get("later", wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    threading.Timer(0.2, hold.set).start()
    assert shared_registry.address.stop(10)
    assert own(first.result(10)) == {}
    for reply in (behind, waiting):
        with pytest.raises(Unavailable, match="stopping"):
            reply.result(10)
    assert quiet.closed.is_set()


def test_stopping_answers_those_whose_call_does_not_end(
    quiet: SharedLedger, shared_registry: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have opened the session; what only reads has certainly changed nothing."""
    hold, begun = threading.Event(), threading.Barrier(4)

    def hang(*_: object, **__: object) -> Any:
        begun.wait(10)
        assert hold.wait(30)
        raise Unavailable("late")

    for name in ("open_session", "scan", "read"):
        monkeypatch.setattr(quiet, name, hang)
    opening = shared_registry.send(Open("s1", 60.0, IP))
    reading = [shared_registry.send(List("n")), shared_registry.send(Get("a"))]
    begun.wait(10)
    assert shared_registry.address.stop(10)
    with pytest.raises(Unavailable, match="Whether this was changed is not known") as caught:
        opening.result(10)
    assert not caught.value.outcome_known
    for reply in reading:
        with pytest.raises(Unavailable, match="stopping"):
            reply.result(10)
    hold.set()


def test_stopping_answers_a_list_that_would_wait(
    quiet: SharedLedger, shared_registry: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while the registry stops, when the store would be looked at again."""
    hold, begun, scan = threading.Event(), threading.Event(), quiet.scan

    def late(*words: Any, **options: Any) -> Any:
        begun.set()
        assert hold.wait(10)
        return scan(*words, **options)

    monkeypatch.setattr(quiet, "scan", late)
    monkeypatch.setattr(registry_shared, "CHECK_SECS", 0.05)
    parked = shared_registry.send(Get("later", wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    listing = shared_registry.send(List("n", at_least=2, wait_secs=60))
    assert begun.wait(10)
    threading.Timer(0.2, hold.set).start()
    assert shared_registry.address.stop(10)
    for reply in (listing, parked):
        with pytest.raises(Unavailable, match="stopping"):
            reply.result(10)
    assert quiet.closed.is_set()


# --- what others change ---


def test_a_waiting_read_wakes_up_on_a_change_by_others(shared_ledger: SharedLedger, shared_registry: Asked) -> None:
    waiting = shared_registry.send(Get("a", wait_secs=60))
    many = shared_registry.send(List("n", at_least=2, wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 2)
    shared_ledger.put("a", b'{"x": 1}')
    assert own(waiting.result(10)) == {"x": 1}
    changed = shared_registry.send(Get("a", 60, waiting.result(10).etag))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 2)
    shared_ledger.put("a", b'{"x": 2}')
    assert own(changed.result(10)) == {"x": 2}
    shared_ledger.put("n1", b"{}")
    shared_ledger.put("n2", b"{}")
    assert [record.name for record in many.result(10)] == ["n1", "n2"]


def test_news_that_come_late_change_nothing(quiet: SharedLedger, shared_registry: Asked) -> None:
    quiet.put("a", b'{"x": 1}')
    old = Seen("a", Record("a", b'{"x": 1}', 5000), quiet.version, quiet.version)
    quiet.put("a", None)
    with pytest.raises(NotFound):
        shared_registry(Get("a"))
    waiting = shared_registry.send(Get("a", wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    quiet.tell(Changes((old,)))
    until(lambda: len(quiet.reads) == 3)  # it was looked up instead of being believed
    assert not waiting.done()
    with pytest.raises(NotFound):
        shared_registry(Get("a", local=True))


def test_everything_is_taken_anew_after_a_gap(quiet: SharedLedger, shared_registry: Asked) -> None:
    for name in ("gone", "kept"):
        shared_registry(Register(name, {"n": 1}, IP))
    waiting = shared_registry.send(Get("new", wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    quiet.tell(Broken("the history was compacted"))
    quiet.put("gone", None)
    quiet.put("kept", b'{"n": 2}')
    quiet.put("new", b'{"n": 3}')
    quiet.tell(quiet.scan())
    assert own(waiting.result(10)) == {"n": 3}
    assert {record.name: own(record) for record in shared_registry(List(local=True)).records} == {
        "kept": {"n": 2},
        "new": {"n": 3},
    }


def test_nothing_of_another_registry_is_left(quiet: SharedLedger, shared_registry: Asked) -> None:
    for name in ("a", "b"):
        shared_registry(Register(name, {"old": 1}, IP))
    waiting = shared_registry.send(List("", at_least=3, wait_secs=60))
    until(lambda: shared_registry(Ping()).figures["waiting"] == 1)
    with quiet.lock:
        quiet.entries, quiet.version, quiet.registry_id = {"b": (b'{"new": 1}', 2)}, 2, "6" * 32
    quiet.tell(quiet.scan())
    assert [own(record) for record in shared_registry(List(local=True)).records] == [{"new": 1}]
    assert (shared_registry(Exists("a")), shared_registry(Exists("b"))) == ("", quiet.registry_id)
    assert own(shared_registry(Update("a", {"x": 1}, IP))) == {"x": 1}
    shared_registry(Register("c", {}, IP))
    assert [record.name for record in waiting.result(10)] == ["a", "b", "c"]


def test_what_was_decided_on_another_registry_is_decided_again(
    shared_ledger: SharedLedger, shared_registry: Asked
) -> None:
    shared_registry(Register("a", {"old": 1}, IP))
    hold, begun = hold_commits(shared_ledger)
    first = shared_registry.send(Replace("b", {}, IP))
    assert begun.wait(10)
    second = shared_registry.send(Update("a", {"x": 1}, IP))
    shared_registry(Ping())  # it is decided
    with shared_ledger.lock:
        version = shared_ledger.entries["a"][1]  # that of the new registry's entry, as it happens
        shared_ledger.entries, shared_ledger.registry_id = {"a": (b'{"new": 1}', version)}, "6" * 32
    shared_ledger.tell(shared_ledger.scan())
    shared_registry(Ping())  # and the news are known
    hold.set()
    first.result(10)
    assert own(second.result(10)) == {"new": 1, "x": 1}


def test_what_is_no_entry_is_told_and_left_alone(quiet: SharedLedger, shared_registry: Asked) -> None:
    quiet.put("a", b"rubbish")
    for message in (Get("a"), Replace("a", {}, IP), Delete("a")):
        with pytest.raises(Unavailable, match="Entry 'a' in etcd is no JSON object"):
            shared_registry(message)
    assert quiet.entries["a"][0] == b"rubbish"
    assert "no JSON object" in shared_registry(Ping()).detail
    assert shared_registry(List()) == ()
    quiet.put("a", b'{"good": 1}')
    assert own(shared_registry(Get("a"))) == {"good": 1}
    assert shared_registry(Ping()).ok


# --- a store that is away ---


def test_it_starts_without_its_store_and_serves_when_it_comes(
    shared_ledger: SharedLedger, run: Callable[..., Asked]
) -> None:
    shared_ledger.put("a", b"{}")
    shared_ledger.away = Unavailable("nobody there")
    registry = run(Registry, registry_shared.SharedBackend(lambda: shared_ledger), layers.freeze(layers.DEFAULTS))
    assert registry(Ping()).detail == "nobody there"
    assert registry(Exists("a")) == ""
    for message in (Get("a"), Get("a", local=True), List(), Replace("a", {}, IP), Snapshot()):
        with pytest.raises(Unavailable, match="nobody there"):
            registry(message)
    shared_ledger.away = None
    until(lambda: bool(registry(Ping()).ok))
    assert registry(Exists("a")) == shared_ledger.registry_id
    assert own(registry(Get("a"))) == {}


def test_a_broker_that_is_cut_off_says_so_and_is_not_discovered(
    quiet: SharedLedger, shared_registry: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_shared, "CHECK_SECS", 0.1)
    shared_registry(Register("a", {}, IP))
    assert shared_registry(Exists("a")) == quiet.registry_id
    quiet.away = Unavailable("cut off")
    for message in (Get("a"), Replace("a", {}, IP), List()):
        with pytest.raises(Unavailable, match="cut off"):
            shared_registry(message)
    assert shared_registry(Exists("a")) == ""
    assert shared_registry(Ping()).detail == "cut off"
    assert own(shared_registry(Get("a", local=True))) == {}
    quiet.away = None
    until(lambda: bool(shared_registry(Ping()).ok))  # nobody has to ask for anything
    assert shared_registry(Exists("a"))


def test_a_snapshot_is_of_the_store(quiet: SharedLedger, shared_registry: Asked) -> None:
    shared_registry(Register("a", {}, IP))
    quiet.put("b", b'{"by": "others"}')
    taken = shared_registry(Snapshot())
    assert split("b", taken.entries["b"]).json == b'{"by": "others"}'
    assert shared_registry(Snapshot()).sequence == taken.sequence
    shared_registry(Delete("b"))
    assert shared_registry(Snapshot()).sequence > taken.sequence


# --- sessions and watches ---


def test_a_session_is_opened_found_and_renewed(quiet: SharedLedger, shared_registry: Asked) -> None:
    first = shared_registry(Open("s", 60.0, IP))
    assert first.data == {"session": "s", "ttl": 60.0}
    again = shared_registry(Open("s", 5.0, IP))
    assert again.data["ttl"] == 60.0  # it is the one that there is
    assert again.revision == first.revision
    assert quiet.renewals == [("s",)]
    replies = [shared_registry.send(Renew(each)) for each in ("s", "none", "s")]
    assert [replies[number].result(10).data["ttl"] for number in (0, 2)] == [60.0, 60.0]
    with pytest.raises(NotFound, match="'none'"):
        replies[1].result(10)
    shared_registry(Close("s"))
    with pytest.raises(NotFound):
        shared_registry(Renew("s"))


def test_what_belongs_to_a_session_goes_when_its_lease_ends(
    shared_ledger: SharedLedger, shared_registry: Asked
) -> None:
    shared_registry(Open("s", 60.0, IP))
    shared_registry(Register("a", {"x": 1}, IP, session="s"))
    watched = shared_registry.send(Watch(since=shared_registry(Watch()).cursor, wait_secs=60))
    shared_ledger.put("_session/s", None)  # as etcd does it
    watched.result(10)
    until(lambda: "a" not in shared_ledger.entries)
    assert json.loads(shared_ledger.entries["_lost/a"][0])["session"] == "s"
    with pytest.raises(NotFound):
        shared_registry(Get("a"))


def test_what_a_dead_session_left_is_swept_at_the_start(shared_ledger: SharedLedger, run: Callable[..., Asked]) -> None:
    shared_ledger.put("a", b'{"x": 1, "last_write_session": "dead"}')
    shared_ledger.put("b", b'{"x": 1, "last_write_session": "alive"}')
    shared_ledger.put("_session/alive", b'{"ttl": 60}')
    run(Registry, registry_shared.SharedBackend(lambda: shared_ledger), layers.freeze(layers.DEFAULTS))
    until(lambda: "a" not in shared_ledger.entries)
    assert "b" in shared_ledger.entries


def test_a_watch_hears_whole_revisions_from_the_store(shared_ledger: SharedLedger, shared_registry: Asked) -> None:
    cursor = shared_registry(Watch()).cursor
    shared_registry(Register("a", {}, IP))
    shared_ledger.put("b", b"{}")
    shared_registry(Delete("a"))
    told: list[Event] = []
    while len(told) < 3:
        watched = shared_registry(Watch(since=cursor, wait_secs=10))
        told += watched.events
        cursor = watched.cursor
    assert [(event.type, event.name) for event in told] == [("put", "a"), ("put", "b"), ("delete", "a")]
    revisions = [event.revision for event in told]
    assert revisions == sorted(set(revisions))


def test_a_cursor_of_a_broker_that_knows_more_is_waited_for(
    shared_ledger: SharedLedger, shared_registry: Asked
) -> None:
    registry_id, _, _ = shared_registry(Watch()).cursor.rpartition(":")
    shared_ledger.quiet = True  # this broker has not heard of it
    shared_ledger.put("a", b"{}")
    ahead = f"{registry_id}:{shared_ledger.reached()}"
    assert shared_registry(Watch(since=ahead)) == Watched((), ahead)
    waiting = [shared_registry.send(Watch(since=ahead, wait_secs=60)) for _ in range(3)]
    until(lambda: shared_registry(Ping()).figures["waiting"] == 3)
    shared_ledger.quiet = False
    shared_ledger.put("b", b"{}")
    for each in waiting:
        assert [event.name for event in each.result(10).events] == ["b"]
    shared_ledger.quiet = True
    shared_ledger.put("c", b"{}")
    since = f"{registry_id}:{shared_ledger.reached()}"
    shared_ledger.quiet = False
    shared_ledger.before_reached = lambda: shared_ledger.put("d", b"{}")  # it hears of this before its own answer
    assert [event.name for event in shared_registry(Watch(since=since, wait_secs=60)).events] == ["d"]
    shared_ledger.before_reached = lambda: None
    beyond = f"{registry_id}:{shared_ledger.reached() + 1}"
    shared_ledger.away = Unavailable("gone")
    with pytest.raises(Unavailable, match="gone"):  # whether there is such a one cannot be told
        shared_registry(Watch(since=beyond, wait_secs=60))


# --- looking through it, for people ---


def test_pages_are_read_from_what_is_known_and_say_how_old_it_is(
    shared_ledger: SharedLedger, shared_registry: Asked
) -> None:
    shared_registry(Register("a/1", {"x": 1}, IP))
    reads = len(shared_ledger.reads)
    found = shared_registry(Browse(("a/",)))
    assert [record.name for record in found.records] == ["a/1"]
    assert found.age_secs >= 0
    assert len(shared_ledger.reads) == reads  # the store is not asked for that
    until(lambda: [event.name for event in shared_registry(Recent()).events] == ["a/1"])
    shared_ledger.away = Unavailable("gone")
    shared_ledger.tell(Broken("gone"))
    assert shared_registry(Browse(("a/",))).count == 1


def test_what_a_closed_session_had_is_not_lost_however_much_it_was(
    shared_ledger: SharedLedger, shared_registry: Asked
) -> None:
    """More than one commit takes away, and one entry that this broker does not know of yet."""
    shared_registry(Open("s", 60, "i"))
    for number in range(70):
        shared_registry(Register(f"n{number:02}", {}, "i", session="s"))
    shared_registry(Close("s"))
    until(lambda: not any(name.startswith("n") for name in shared_ledger.entries))
    assert shared_registry(Lost()) == ()
    assert "_closed/s" in shared_ledger.entries

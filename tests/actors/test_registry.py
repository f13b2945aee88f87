"""The registry: atomic operations, group commit, conditions, waiting, and what a failed commit means."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.actors import base
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.config import layers
from bpbroker.errors import (
    AlreadyExists,
    DamagedFile,
    NotFound,
    Overloaded,
    PreconditionFailed,
    StorageFailed,
    StorageFull,
    TooLarge,
    Unavailable,
)
from bpbroker.messages import (
    Condition,
    Delete,
    Deleted,
    Exists,
    Get,
    List,
    Ping,
    Register,
    Replace,
    SettingsChanged,
    Snapshot,
    SnapshotSaved,
    Update,
)
from bpbroker.record import Record
from bpbroker.registry.requests import Batch, Watch
from bpbroker.storage.embedded.store import EmbeddedStore

if TYPE_CHECKING:
    from tests.actors.conftest import Asked, Ledger

IP = "10.0.0.1"
NOTHING = Condition(none_match=("*",))
SOMETHING = Condition(match=("*",))


def own(record: Record) -> Any:
    value = json.loads(record.json)
    assert value.pop("last_write_ip") == IP
    assert abs(value.pop("last_write_ts") - time.time()) < 60
    return value


def register(name: str, **data: Any) -> Register:
    return Register(name, data, IP)


def replace(name: str, **data: Any) -> Replace:
    return Replace(name, data, IP)


def update(name: str, **data: Any) -> Update:
    return Update(name, data, IP)


@pytest.fixture
def held(ledger: Ledger, registry: Asked) -> Future[Any]:
    """A write whose commit is under way: what is asked now gathers behind it, and goes into the next one."""
    ledger.hold()
    first: Future[Any] = registry.send(replace("held"))
    ledger.await_commit()
    return first


# --- the five operations ---


def test_register_is_first_come(registry: Asked) -> None:
    assert own(registry(register("a", x=1))) == {"x": 1}
    with pytest.raises(AlreadyExists, match="Entry 'a' already exists"):
        registry(register("a", x=2))
    assert own(registry(Get("a"))) == {"x": 1}


def test_replace_creates_and_overwrites(registry: Asked) -> None:
    registry(replace("a", x=1))
    assert own(registry(replace("a", y=2))) == {"y": 2}
    assert own(registry(Get("a"))) == {"y": 2}


def test_update_creates_and_merges_deeply(registry: Asked) -> None:
    registry(update("a", x={"b": 1, "l": [1, 2]}))
    assert own(registry(update("a", x={"c": 2, "l": [3]}))) == {"x": {"b": 1, "c": 2, "l": [3]}}


def test_a_merge_that_grows_too_large_changes_nothing(registry: Asked) -> None:
    registry(SettingsChanged(layers.freeze({"api": {"max_data_bytes": 100}})))
    registry(update("a", x="x" * 60))
    with pytest.raises(TooLarge, match="larger than 100 bytes; nothing was changed"):
        registry(update("a", y="y" * 60))
    assert own(registry(Get("a"))) == {"x": "x" * 60}


def test_delete_of_what_is_not_there_is_no_error_and_no_commit(registry: Asked, ledger: Ledger) -> None:
    assert isinstance(registry(Delete("a")), Deleted)
    assert ledger.commits == []
    registry(register("a"))
    assert isinstance(registry(Delete("a")), Deleted)
    with pytest.raises(NotFound, match="Entry 'a' not found"):
        registry(Get("a"))


def test_the_tag_is_of_the_content(registry: Asked) -> None:
    stored = registry(register("a", x=1))
    assert registry(Get("a")) == stored
    assert stored.etag != registry(replace("a", x=2)).etag


def test_list_is_sorted_and_by_prefix(registry: Asked) -> None:
    for name in ("b1", "a2", "b", "c", "a1", "b2"):
        registry(register(name))
    registry(Delete("b"))
    registry(Delete("a2"))
    registry(register("a3"))

    def names(prefix: str) -> list[str]:
        return [record.name for record in registry(List(prefix))]

    assert names("") == ["a1", "a3", "b1", "b2", "c"]
    assert names("b") == ["b1", "b2"]
    assert names("bb") == []
    assert names("d") == []


def test_exists(registry: Asked) -> None:
    assert registry(Exists("a")) == ""
    registry(register("a"))
    assert registry(Exists("a"))


def test_it_starts_with_what_the_store_has(ledger: Ledger, run: Callable[..., Asked]) -> None:
    ledger.entries = {"b": b'{"x": 1}', "a": b"{}"}
    registry = run(Registry, LocalBackend(lambda: ledger), layers.DEFAULTS)
    assert [(record.name, record.json) for record in registry(List())] == [("a", b"{}"), ("b", b'{"x": 1}')]


def test_a_store_that_cannot_be_opened_fails_the_start() -> None:
    def damaged() -> EmbeddedStore:
        raise DamagedFile("damaged")

    with pytest.raises(DamagedFile):
        base.launch(Registry, LocalBackend(damaged), layers.DEFAULTS)


# --- conditions ---


@pytest.mark.parametrize("write", [register, replace, update])
def test_conditions_on_what_is_not_there(registry: Asked, write: Callable[..., Any]) -> None:
    message = type(write("a"))
    for refused in (SOMETHING, Condition(match=('"x"',)), Condition(match=())):
        with pytest.raises(PreconditionFailed, match="it does not exist"):
            registry(message("a", {}, IP, refused))
    registry(message("a", {}, IP, Condition(none_match=("*", '"x"'))))


def test_conditions_on_what_is_there(registry: Asked) -> None:
    tag = registry(register("a", x=1)).etag
    refused = [
        NOTHING,
        Condition(none_match=('"x"', tag)),
        Condition(none_match=(f"W/{tag}",)),
        Condition(match=('"x"',)),
        Condition(match=(f"W/{tag}",)),
        Condition(match=(tag,), none_match=(tag,)),
    ]
    for condition in refused:
        for message in (Replace("a", {}, IP, condition), Update("a", {}, IP, condition), Delete("a", condition)):
            with pytest.raises(PreconditionFailed):
                registry(message)
        with pytest.raises(PreconditionFailed):
            registry(Register("a", {}, IP, condition))
    assert own(registry(Get("a"))) == {"x": 1}
    tag = registry(Replace("a", {"x": 2}, IP, Condition(match=('"x"', tag)))).etag
    tag = registry(Update("a", {"y": 3}, IP, Condition(none_match=('"x"',), match=("*",)))).etag
    assert own(registry(Get("a"))) == {"x": 2, "y": 3}
    assert isinstance(registry(Delete("a", Condition(match=(tag,)))), Deleted)


# --- group commit ---


def test_what_gathers_while_a_commit_runs_is_one_commit(registry: Asked, ledger: Ledger, held: Future[Any]) -> None:
    replies = [registry.send(replace(f"n{number}")) for number in range(50)]
    replies.append(registry.send(Delete("n0")))
    ledger.release()
    for reply in (held, *replies):
        reply.result(10)
    assert ledger.commits == [("held",), tuple(f"n{number}" for number in range(50))]
    assert "n0" not in ledger.entries


def test_nothing_is_visible_or_answered_before_it_is_durable(
    registry: Asked, ledger: Ledger, held: Future[Any]
) -> None:
    seen = [registry.send(Get("held")), registry.send(Exists("held")), registry.send(List())]
    assert not held.done()
    ledger.release()
    assert held.result(10) == seen[0].result(10)
    assert seen[1].result(10)
    assert seen[2].result(10) == (held.result(),)


def test_a_read_of_a_staged_name_waits_and_others_do_not(ledger: Ledger, registry: Asked, held: Future[Any]) -> None:
    order: list[str] = []
    replies = {
        "staged": registry.send(replace("a", x=1)),
        "get": registry.send(Get("a")),
        "exists": registry.send(Exists("a")),
        "other": registry.send(Get("held")),
    }
    for name, reply in replies.items():
        reply.add_done_callback(lambda _, name=name: order.append(name))
    ledger.release()
    held.result(10)
    assert own(replies["get"].result(10)) == {"x": 1}
    assert replies["exists"].result(10) == ""
    assert replies["other"].result(10).name == "held"
    assert order == ["exists", "other", "staged", "get"]


def test_each_write_is_decided_on_those_before_it(ledger: Ledger, registry: Asked, held: Future[Any]) -> None:
    replies = [
        registry.send(message)
        for message in (
            register("a", x=1),
            register("a", x=2),
            update("a", y=2),
            Replace("b", {}, IP, SOMETHING),
            Delete("a"),
            register("a", z=3),
            Delete("a", NOTHING),
            Delete("c"),
            Delete("held"),
            Delete("held"),
            update("held", w=4),
        )
    ]
    ledger.release()
    held.result(10)
    outcomes = [reply.exception(10) or reply.result() for reply in replies]
    kinds = [type(outcome) for outcome in outcomes]
    none = Deleted
    decided = [Record, AlreadyExists, Record, PreconditionFailed, none, Record, PreconditionFailed, none, none, none]
    assert kinds == [*decided, Record]
    assert own(outcomes[2]) == {"x": 1, "y": 2}
    assert own(registry(Get("a"))) == {"z": 3}
    assert own(registry(Get("held"))) == {"w": 4}
    assert ledger.commits == [("held",), ("a", "held")]


# --- failures ---


def unknown() -> StorageFailed:
    error = StorageFailed("not known")
    error.outcome_known = False
    return error


def test_a_failed_commit_fails_all_that_was_decided_on_it(registry: Asked, ledger: Ledger) -> None:
    before = registry(register("old", x=1))
    ledger.hold()
    first = registry.send(replace("held"))
    ledger.await_commit()
    ledger.failures = [unknown(), StorageFull("full")]
    written = [registry.send(message) for message in (replace("old", x=2), register("new"))]
    refused = [registry.send(message) for message in (register("new"), Delete("new", NOTHING))]
    reads = [registry.send(Get("old")), registry.send(Get("new"))]
    ledger.release()
    uncertain = first.exception(10)
    assert isinstance(uncertain, StorageFailed)
    assert not uncertain.outcome_known
    for reply in (*written, *refused):
        error = reply.exception(10)
        assert isinstance(error, StorageFull)
        assert error.outcome_known
    assert len({id(reply.exception()) for reply in (*written, *refused)}) == 4
    # Reads go on, and show what is durable.
    assert reads[0].result(10) == before
    assert isinstance(reads[1].exception(10), NotFound)
    assert [record.name for record in registry(List())] == ["old"]


def test_a_refusal_changed_nothing_even_if_the_commit_before_it_is_uncertain(
    registry: Asked, ledger: Ledger, held: Future[Any]
) -> None:
    written, refused = registry.send(register("a")), registry.send(register("a"))
    ledger.failures = [StorageFull("full"), unknown()]
    ledger.release()
    assert isinstance(held.exception(10), StorageFull)
    for reply, known in ((written, False), (refused, True)):
        error = reply.exception(10)
        assert isinstance(error, StorageFailed)
        assert error.outcome_known is known


def test_of_operations_that_stand_alone_each_hears_what_a_failed_commit_means_to_it(
    registry: Asked, ledger: Ledger, held: Future[Any]
) -> None:
    operations = (register("a"), replace("held", x=1), register("b"), Get("c"))
    ledger.failures = [StorageFull("full"), unknown()]
    first, second = (registry.send(Batch("", operations, atomic=False)) for _ in range(2))
    ledger.release()
    assert isinstance(held.exception(10), StorageFull)
    written = first.result(10).results
    assert [type(each) for each in written] == [StorageFailed, StorageFailed, StorageFailed, NotFound]
    assert [each.outcome_known for each in written[:3]] == [False] * 3
    refused = second.result(10).results
    assert [type(each) for each in refused] == [StorageFailed, StorageFailed, StorageFailed, NotFound]
    assert [each.outcome_known for each in refused[:3]] == [True, False, True]
    assert [record.name for record in registry(List())] == []


def test_each_operation_that_stands_alone_has_a_revision_of_its_own(registry: Asked) -> None:
    old = registry(register("old"))
    operations = (Get("old"), register("a"), Delete("none"), register("old"), replace("b"), Delete("old"), List())
    done = registry(Batch("", operations, atomic=False))
    before, a, none, refused, b, deleted, listed = done.results
    assert before == old
    assert old.revision < a.revision < b.revision < deleted.revision <= done.revision
    assert (none, type(refused)) == (Deleted(), AlreadyExists)
    assert [each.json for each in listed] == [a.json, b.json]
    assert registry(List()) == (a, b)


def test_health_says_that_the_disk_is_full_until_it_is_not(registry: Asked, ledger: Ledger) -> None:
    assert registry(Ping()).ok
    ledger.failures = [StorageFull("The disk is full")]
    ledger.probe_failure = StorageFull("The disk is full")
    with pytest.raises(StorageFull):
        registry(register("a"))
    assert not registry(Ping()).ok
    assert registry(Ping()).detail == "The disk is full"
    ledger.probe_failure = None
    assert registry(Ping()).ok
    registry(register("a"))


def test_health_looks_again_after_a_look_that_could_not_tell(registry: Asked, ledger: Ledger) -> None:
    ledger.failures.append(StorageFull("The disk is full"))
    ledger.probe_failure = Unavailable("The journal is busy")
    with pytest.raises(StorageFull):
        registry(Replace("a", {}, IP))
    assert registry(Ping()).detail == "The disk is full"
    ledger.probe_failure = None
    assert registry(Ping()).ok


def test_health_says_that_no_write_is_taken_any_more(registry: Asked, ledger: Ledger) -> None:
    ledger.failures = [unknown()]
    with pytest.raises(StorageFailed):
        registry(register("a"))
    for _ in range(2):
        assert registry(Ping()).detail == "not known"
    assert not registry(Ping()).ok


def test_a_store_that_is_busy_is_not_ill(registry: Asked, ledger: Ledger) -> None:
    ledger.failures = [Unavailable("busy")]
    with pytest.raises(Unavailable, match="busy"):
        registry(register("a"))
    assert registry(Ping()).ok
    registry(register("a"))


def test_whatever_a_store_raises_everybody_hears_of_it(registry: Asked, ledger: Ledger, held: Future[Any]) -> None:
    replies = [registry.send(register("a")), registry.send(register("b"))]
    ledger.failures = [ValueError("a bug"), StorageFull("full")]
    ledger.release()
    error = held.exception(10)
    assert isinstance(error, StorageFailed)
    assert not error.outcome_known
    for reply in replies:
        assert isinstance(reply.exception(10), StorageFull)


def test_stopping_commits_what_is_staged(ledger: Ledger, registry: Asked, held: Future[Any]) -> None:
    staged = registry.send(register("a"))
    waiting = registry.send(Get("b", 100))
    assert not registry.address.stop(0.01)
    late = []
    try:
        late.append(registry.send(register("late")))
    except Unavailable:
        pass
    ledger.release()
    assert registry.address.stop(10)
    assert held.result(10).name == "held"
    assert staged.result(10).name == "a"
    assert set(ledger.entries) == {"held", "a"}
    with pytest.raises(Unavailable, match="stopping"):
        waiting.result(10)
    for reply in late:
        with pytest.raises(Unavailable, match="stopping"):
            reply.result(10)
    assert ledger.closed


# --- waiting ---


def test_get_waits_for_a_name(registry: Asked) -> None:
    waiting = [registry.send(Get("a", 100)) for _ in range(1000)]
    other = registry.send(Get("b", 100))
    assert registry(Ping()).figures["waiting"] == 1001
    stored = registry(register("a", x=1))
    assert {reply.result(10) for reply in waiting} == {stored}
    assert not other.done()
    assert registry(Ping()).figures["waiting"] == 1


def test_get_waits_for_another_state(registry: Asked) -> None:
    first = registry(register("a", x=1))
    assert registry(Get("a", 100, '"other"')) == first
    waiting = registry.send(Get("a", 100, first.etag))
    second = registry(replace("a", x=2))
    assert waiting.result(10) == second
    waiting = registry.send(Get("a", 100, second.etag))
    registry(Delete("a"))
    with pytest.raises(NotFound):  # it does not wait for the name to come back
        waiting.result(10)


def test_waiting_comes_to_an_end(registry: Asked) -> None:
    begun = time.monotonic()
    stored = registry(register("a"))
    same, absent = registry.send(Get("a", 0.2, stored.etag)), registry.send(Get("b", 0.1))
    few = registry.send(List("", 5, 0.15))
    with pytest.raises(NotFound):
        absent.result(10)
    assert few.result(10) == (stored,)
    assert same.result(10) == stored
    assert time.monotonic() - begun >= 0.2
    assert registry(Ping()).figures["waiting"] == 0


def test_waiting_ends_while_there_is_traffic(registry: Asked) -> None:
    waiting = registry.send(Get("b", 0.1))
    end = time.monotonic() + 10
    while not waiting.done() and time.monotonic() < end:
        registry(Exists("a"))
    assert isinstance(waiting.exception(0), NotFound)


def test_list_waits_for_enough(registry: Asked) -> None:
    two, three = registry.send(List("a", 2, 100)), registry.send(List("a", 3, 100))
    everything = registry.send(List("", 3, 100))
    registry(register("a1"))
    registry(register("b"))
    registry(Delete("a1"))
    registry(register("a2"))
    registry(replace("a2", x=1))
    assert not two.done()
    registry(register("a3"))
    assert [record.name for record in two.result(10)] == ["a2", "a3"]
    assert [record.name for record in everything.result(10)] == ["a2", "a3", "b"]
    assert not three.done()
    registry(register("a4"))
    assert len(three.result(10)) == 3
    assert len(registry(List("a", 3, 100))) == 3


def test_too_many_that_wait_are_refused_and_who_left_makes_room(registry: Asked) -> None:
    registry(SettingsChanged(layers.freeze({"api": {"max_waiting": 3}})))
    waiting = [registry.send(Get("a", 100)), registry.send(Get("b", 100)), registry.send(List("", 5, 100))]
    with pytest.raises(Overloaded, match=r"3 requests wait already \(api.max_waiting\)"):
        registry(Get("c", 100))
    for reply in waiting:
        assert reply.cancel()
    assert registry(Ping()).figures["waiting"] == 0
    waiting.append(registry.send(Get("c", 100)))
    stored = registry(register("c"))
    assert waiting[-1].result(10) == stored


def test_a_waiting_get_sees_only_what_is_durable(registry: Asked, ledger: Ledger) -> None:
    waiting = registry.send(Get("a", 100))
    ledger.failures = [StorageFull("full")]
    with pytest.raises(StorageFull):
        registry(register("a", x=1))
    assert not waiting.done()
    stored = registry(register("a", x=2))
    assert waiting.result(10) == stored


# --- snapshots ---


def test_a_snapshot_is_a_committed_state_of_its_own(registry: Asked, ledger: Ledger) -> None:
    registry(register("b"))
    registry(register("a", x=1))
    ledger.hold()
    held = registry.send(replace("c"))
    ledger.await_commit()
    staged, taken = registry.send(replace("a", x=2)), registry.send(Snapshot())
    ledger.release()
    held.result(10)
    staged.result(10)
    snapshot = taken.result(10)
    assert snapshot.sequence == 1_000_006
    assert list(snapshot.entries) == ["a", "b", "c"]
    assert json.loads(snapshot.entries["a"])["x"] == 1
    registry(Delete("a"))
    assert len(snapshot.entries) == 3
    assert dict(snapshot.entries) == {name: snapshot.entries[name] for name in "abc"}


def test_forgetting_goes_on_between_other_messages(registry: Asked, ledger: Ledger) -> None:
    ledger.pieces = 5
    reply = registry.send(SnapshotSaved(7))
    second = registry.send(SnapshotSaved(9))
    assert registry(Exists("a")) == ""
    assert reply.result(10) is None
    assert second.result(10) is None
    assert ledger.forgotten[0] == 7
    assert ledger.forgotten[-1] == 9
    assert len(ledger.forgotten) == 5


def test_stopping_forgets_to_the_end(registry: Asked, ledger: Ledger) -> None:
    ledger.pieces = 1000
    registry.address.tell(SnapshotSaved(7))
    assert registry.address.stop(10)
    assert len(ledger.forgotten) == 1000


def test_forgetting_that_fails_is_said(registry: Asked, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: int) -> bool:
        raise StorageFailed("broken")

    monkeypatch.setattr(ledger, "forget", failing)
    with pytest.raises(StorageFailed, match="broken"):
        registry(SnapshotSaved(1))
    assert registry(Ping()).detail == "broken"


# --- on the real store ---


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    (tmp_path / "b.json").write_text("{}")
    return tmp_path / "b.json.journal"


def test_a_replaced_registry_that_wakes_up_is_fenced_off(run: Callable[..., Asked], journal: Path) -> None:
    """S5: the healthcheck put a fresh one in its place while it was stuck."""
    old = run(Registry, LocalBackend(lambda: EmbeddedStore(journal, dict)), layers.DEFAULTS)
    old(register("a", x=1))
    new = run(Registry, LocalBackend(lambda: EmbeddedStore(journal, dict)), layers.DEFAULTS)
    new(register("b"))
    with pytest.raises(StorageFailed, match="another registry has taken this one's place"):
        old(register("b"))
    assert old.address.stop(10)
    new(update("a", y=2))
    assert new.address.stop(10)
    again = run(Registry, LocalBackend(lambda: EmbeddedStore(journal, dict)), layers.DEFAULTS)
    assert own(again(Get("a"))) == {"x": 1, "y": 2}
    assert [record.name for record in again(List())] == ["a", "b"]


def test_writers_have_their_reply_before_those_who_watch(registry: Asked, ledger: Ledger) -> None:
    cursor = registry(Watch()).cursor
    watching = [registry.send(Watch("w/", since=cursor, wait_secs=60)) for _ in range(200)]
    go_on, plain = threading.Event(), ledger.commit

    def hold(groups: Any) -> Any:
        go_on.wait(10)
        return plain(groups)

    ledger.commit = hold  # type: ignore[method-assign]  # until this thread has the write's reply
    writing = registry.send(Register("w/a", {}, IP))
    written: list[bool] = []
    for each in watching:
        each.add_done_callback(lambda _: written.append(writing.done()))
    go_on.set()
    assert {each.result(10).events[0].name for each in watching} == {"w/a"}
    registry(Ping())
    assert written == [True] * 200
    assert len({id(each.result()) for each in watching}) == 1  # all are shown the same

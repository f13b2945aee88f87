"""What is known of a store with other writers: news, what comes late, another registry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.record import Record
from bpbroker.registry.changes import Seen, State
from bpbroker.registry.memory import Memory
from bpbroker.registry.replica import Replica, Versions


def test_versions_tell_news_from_what_came_late() -> None:
    versions = Versions()
    assert versions.take(Seen("a", Record("a", b"{}"), 5, 5)) is True
    assert versions.take(Seen("a", Record("a", b"{}"), 5, 9)) is False
    assert versions.take(Seen("a", Record("a", b"{}"), 4, 4)) is False
    assert versions.take(Seen("a", None, 0, 4)) is False
    assert versions["a"] == 5
    assert versions.take(Seen("a", None, 0, 7)) is True
    assert versions["a"] == 0
    assert versions.take(Seen("a", None, 0, 8)) is False
    assert versions.take(Seen("a", Record("a", b"{}"), 6, 6)) is None  # before or after it was seen to be absent?
    assert versions.take(Seen("b", Record("b", b"{}"), 3, 3)) is None
    assert versions.take(Seen("b", Record("b", b"{}"), 3, 8)) is True
    assert versions.newest == 7


def json_of(seen: Seen) -> bytes | None:
    return None if seen.record is None else seen.record.json


def known(memory: Memory) -> dict[str, bytes]:
    return {record.name: record.json for record in memory.entries.matching("")}


def test_a_fault_hides_the_entry_until_it_is_mended(caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory()
    replica = Replica(memory)
    assert replica.learn(Seen("a", Record("a", b"{}"), 1, 1))
    assert replica.learn(Seen("a", Record("a", b"[]"), 2, 2, "Entry 'a' is no JSON object"))
    assert (known(memory), list(replica.faults)) == ({}, ["a"])
    assert "no JSON object" in caplog.text
    assert replica.learn(Seen("a", Record("a", b"{}"), 3, 3))
    assert (known(memory), replica.faults) == ({"a": b"{}"}, {})


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12), st.data())
def test_whatever_the_order_nothing_newer_is_replaced(steps: list[tuple[str, bool]], data: st.DataObject) -> None:
    """What has happened comes in any order, each name read at some version; in the end all is read once more."""
    happened, truth, news = 0, dict[str, tuple[bytes, int]](), []
    for name, present in steps:
        happened += 1
        if present:
            truth[name] = b'{"n": %d}' % happened, happened
        else:
            truth.pop(name, None)
        value, version = truth.get(name, (None, 0))
        news.append(Seen(name, None if value is None else Record(name, value), version, happened))
    memory = Memory()
    replica = Replica(memory)
    latest: dict[str, Seen] = {}
    for seen in data.draw(st.permutations(news)):
        sure = replica.learn(seen)
        if seen.name not in latest or latest[seen.name].as_of < seen.as_of:
            latest[seen.name] = seen
            assert not sure or known(memory).get(seen.name) == json_of(seen)
        assert known(memory).get(seen.name) in (json_of(latest[seen.name]), None)
    entries = tuple(Seen(name, Record(name, truth[name][0]), truth[name][1], happened) for name in sorted(truth))
    assert replica.learn_all(State(entries, happened, ""), "") == []
    assert known(memory) == {name: value for name, (value, _) in truth.items()}


def test_of_another_registry_everything_is_news(caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory()
    replica = Replica(memory)
    replica.take_state(
        State((Seen("a", Record("a", b"{}"), 50, 60), Seen("b", Record("b", b"[]"), 60, 60, "bad")), 60, "1" * 32)
    )
    assert replica.take_state(State((Seen("c", Record("c", b"{}"), 2, 3),), 3, "2" * 32)) == []
    assert known(memory) == {"c": b"{}"}
    assert (replica.registry_id, replica.faults, replica.versions["a"]) == ("2" * 32, {}, 0)
    assert "another one than before" in caplog.text


def test_what_another_registry_has_as_well_is_never_seen_to_be_gone() -> None:
    memory = Memory()
    replica = Replica(memory)
    replica.take_state(State((Seen("a", Record("a", b"{}", 5000), 50, 60),), 60, "1" * 32))
    put, told = memory.put, list[tuple[str, bool]]()

    def note(name: str, after: Record | None) -> None:
        told.append((name, after is None))
        put(name, after)

    memory.put = note  # type: ignore[method-assign]  # a spy
    replica.take_state(State((Seen("a", Record("a", b"{}", 9000), 2, 3),), 3, "2" * 32))
    assert told == [("a", False)]


def test_an_answer_from_before_all_was_read_brings_back_nothing_that_was_deleted_meanwhile() -> None:
    memory = Memory()
    replica = Replica(memory)
    late = Seen("_session/s", Record("_session/s", b'{"ttl": 9}'), 90, 100)
    assert replica.take_state(State((Seen("a", Record("a", b"{}"), 95, 110),), 110, "1" * 32)) == []
    assert not replica.learn(late)  # it has to be read again
    assert memory.get("_session/s") is None
    assert replica.learn(Seen("_session/s", late.record, 112, 112))
    other = State((), 210, "2" * 32)
    replica.take_state(other)
    assert not replica.learn(late)
    assert memory.get("_session/s") is None

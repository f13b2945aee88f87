"""The staged state: each write meets those before it, and nothing is seen before it is durable."""

from __future__ import annotations

import dataclasses
import re
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import AlreadyExists, Overloaded, PreconditionFailed
from bpbroker.messages import Condition, Delete, Deleted, Get, List, Register, Replace, Update
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry.changes import ANYTHING
from bpbroker.registry.memory import Fate, Memory, PendingWrite
from bpbroker.registry.requests import (
    Ack,
    Allocate,
    Batch,
    BatchDone,
    Check,
    CheckEmpty,
    Close,
    Done,
    Expire,
    Lock,
    Next,
    Open,
    Release,
    Take,
)
from bpbroker.registry.view import Limits
from bpbroker.registry.writes import Write


def decide(memory: Memory, message: Write) -> tuple[Fate, Any]:
    write = PendingWrite(message, None)
    return memory.decide(write, 7.0, Limits(1000)), write.decision


def commit(memory: Memory, revision: int) -> None:
    for name, after in memory.take_batch().staged.items():
        memory.put(name, after.at(revision) if after is not None else None)


def test_each_write_meets_those_before_it() -> None:
    memory = Memory()
    fate, made = decide(memory, Register("a", {"x": 1}, "i"))
    assert fate is Fate.STAGED
    fate, refused = decide(memory, Register("a", {}, "i"))
    assert fate is Fate.STAGED  # it rests on what may not become durable
    assert isinstance(refused, AlreadyExists)
    assert decide(memory, Update("a", {"y": 2}, "i"))[0] is Fate.STAGED
    assert "a" not in memory.entries
    batch = memory.take_batch()
    assert [write.names for write in batch.writes] == [("_taken/a", "a"), ("a",), ("a",)]
    ((change,),) = (group.changes for group in batch.groups())
    assert (change.name, change.expects, change.place) == ("a", ANYTHING, 3)
    assert change.after is not None
    assert b'"y": 2' in change.after.json
    assert (made.json == change.after.json, memory.batch.writes) == (False, [])


def test_what_changes_nothing_and_rests_on_nothing_staged_needs_no_commit() -> None:
    memory = Memory()
    memory.fill([Record("a", b"{}", 5000)])
    fate, refused = decide(memory, Register("a", {}, "i"))
    assert fate is Fate.NOW
    assert isinstance(refused, AlreadyExists)
    assert decide(memory, Delete("b")) == (Fate.NOW, Deleted())
    assert memory.batch.writes == []
    assert decide(memory, Delete("a")) == (Fate.STAGED, Deleted(1))
    assert decide(memory, Delete("a")) == (Fate.STAGED, Deleted())  # the first one may fail
    assert [change.after for group in memory.take_batch().groups() for change in group.changes] == [None]


def test_the_expected_version_is_the_one_at_the_decision() -> None:
    memory, versions = Memory(), {"a": 5}
    memory.version = lambda name: versions.get(name, 0)
    decide(memory, Replace("a", {}, "i"))
    decide(memory, Replace("b", {}, "i"))
    versions["a"] = 6  # news before the commit
    decide(memory, Replace("a", {"x": 1}, "i"))
    groups = memory.take_batch().groups()
    assert [(change.name, change.expects) for group in groups for change in group.changes] == [("a", 5), ("b", 0)]
    assert len(groups) == 2


def test_names_that_one_write_concerns_are_one_group() -> None:
    memory = Memory()
    memory.version = lambda _: 0
    decide(memory, Replace("alone", {}, "i"))
    decide(memory, Batch("", (Replace("a", {}, "i"), Replace("b", {}, "i"), CheckEmpty("z"))))
    decide(memory, Batch("", (Replace("c", {}, "i"), Replace("b", {}, "i"))))
    decide(memory, Batch("", (Replace("d", {}, "i"), Get("e"))))
    groups = memory.take_batch().groups()
    assert [sorted(change.name for change in group.changes) for group in groups] == [["alone"], ["a", "b", "c"]]
    assert groups[1].empty == ("z",)


def test_a_session_is_compared_by_the_writes_that_name_it() -> None:
    memory = Memory()
    memory.version = lambda _: 0
    decide(memory, Open("s", 10, "i"))
    commit(memory, 10_000)
    decide(memory, Register("a", {}, "i", session="s"))
    (group,) = memory.take_batch().groups()
    assert [change.name for change in group.changes] == ["a"]
    assert [name for name, _ in group.compared] == ["_taken/a", "_session/s"]


def test_who_makes_an_entry_compares_whether_it_was_just_taken() -> None:
    """Another broker may know of the entry that it is gone, and not yet that it was taken."""
    memory = Memory()
    memory.version = lambda name: 7 if name == "there" else 0
    memory.fill([Record("there", b"{}", 5000)])
    for message in (Register("a", {}, "i"), Replace("b", {}, "i"), Delete("c"), Replace("there", {}, "i")):
        decide(memory, message)
    compared = [[name for name, _ in group.compared] for group in memory.take_batch().groups()]
    assert compared == [["_taken/a"], ["_taken/b"], []]


def test_a_session_ends_with_what_was_staged_a_moment_before() -> None:
    memory = Memory()
    decide(memory, Open("s", 10, "i"))
    decide(memory, Register("a", {}, "i", session="s"))
    decide(memory, Register("b", {}, "i"))
    commit(memory, 10_000)
    decide(memory, Register("c", {}, "i", session="s"))
    decide(memory, Close("s"))
    commit(memory, 20_000)
    assert [record.name for record in memory.entries.matching("")] == ["b"]
    assert memory.belongings == {}


def test_a_durable_change_ends_the_waits_that_it_satisfies() -> None:
    memory = Memory()
    one, two, other = (Future[Any]() for _ in range(3))
    memory.waiters.add(Get("a", 10), one, 10.0)
    memory.waiters.add(List("", 2, 10), two, 10.0)
    memory.waiters.add(Get("c", 10), other, 10.0)
    a, b = Record("a", b"{}", 5000), Record("b", b"{}", 5001)
    memory.put("a", a)
    assert one.result(0) == a
    assert not two.done()
    memory.put("b", b)
    assert two.result(0) == (a, b)
    assert not other.done()


def test_the_limit_of_sessions_counts_those_that_are_about_to_be() -> None:
    memory = Memory()
    limits = Limits(sessions=2)
    for session, refused in (("a", False), ("b", False), ("b", False), ("c", True)):
        write = PendingWrite(Open(session, 10, "i"), None)
        memory.decide(write, 7.0, limits)
        assert isinstance(write.decision, Overloaded) == refused
    decide(memory, Close("a"))
    write = PendingWrite(Open("c", 10, "i"), None)
    memory.decide(write, 7.0, limits)
    assert not isinstance(write.decision, Overloaded)


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_lists_no_records_of_the_registry(shared: bool) -> None:
    memory = Memory()
    if shared:
        memory.version = lambda _name: 1
    made: list[Write] = [Open("s", 9.0, "i"), Register("e", {"pass": "word"}, "i"), Take("e", "r")]
    for revision, write in enumerate(made, 1):
        decide(memory, write)
        commit(memory, revision)
    lists = (List("_"), List("_taken/"), List("_session/s"))
    _, first = decide(memory, Batch("b", lists))
    commit(memory, 9)
    _, again = decide(memory, Batch("b", lists))
    assert first.results == again.results == ((), (), ())


def _writes(held: Condition) -> list[Write]:
    return [
        Register("new", {}, "i", held),
        Replace("e", {}, "i", held),
        Update("e", {}, "i", held),
        Delete("e", held),
        Allocate("pool", "o", "i", condition=held),
        Release("pool", "o", "i", condition=held),
        Next("count", "i", condition=held),
        Take("e", "r", held),
        Ack("e", "r", held),
    ]


@pytest.mark.parametrize("number", range(9))
def test_every_write_is_refused_without_the_lock_that_it_names(number: int) -> None:
    memory = Memory()
    made: list[Write] = [Open("s", 9.0, "i"), Lock("l", "s", "i"), Register("e", {}, "i"), Register("pool", {}, "i")]
    for revision, write in enumerate(made, INDEX_MAX):
        decide(memory, write)
        commit(memory, revision)
    for stale in (Condition(lock=("l", INDEX_MAX)), Condition(lock=("other", INDEX_MAX + 2))):
        assert isinstance(decide(memory, _writes(stale)[number])[1], PreconditionFailed)
        assert isinstance(decide(memory, Batch("", (_writes(stale)[number],)))[1], PreconditionFailed)
    assert not memory.batch.staged
    assert not isinstance(decide(memory, _writes(Condition(lock=("l", INDEX_MAX + 2)))[number])[1], Exception)


def test_a_batch_that_is_refused_says_which_operation_it_was() -> None:
    memory = Memory()
    for operations, number in (
        ((Register("a", {}, "i"), Get("none")), 1),
        ((Get("none"), Register("a", {}, "i")), 0),
        ((Register("a", {}, "i"), Take("none", "r")), 1),
    ):
        refused = decide(memory, Batch("", operations))[1]
        assert (refused.status, refused.failed) == (404, number)
    assert not memory.batch.staged


_NAMES = st.sampled_from(["a", "b", "_c"])
_TAGS = st.sampled_from([Condition(), Condition(match=("*",)), Condition(none_match=("*",))])
_DATA = st.sampled_from([{}, {"x": 1}, {"big": "x" * 900}])
_ALONE = st.one_of(
    st.builds(Register, _NAMES, _DATA, st.just("i"), _TAGS, st.sampled_from([None, "", "s", "none"])),
    st.builds(Replace, _NAMES, _DATA, st.just("i"), _TAGS, st.sampled_from([None, "s"])),
    st.builds(Update, _NAMES, _DATA, st.just("i"), _TAGS),
    st.builds(Delete, _NAMES, _TAGS),
    st.builds(Get, _NAMES),
    st.builds(List, st.sampled_from(["", "a", "_"])),
    st.builds(Check, _NAMES, _TAGS),
    st.builds(CheckEmpty, _NAMES),
    st.builds(Allocate, st.just("p"), st.sampled_from(["o", "q"]), st.just("i"), st.just(1), st.just(1)),
    st.builds(Next, st.sampled_from(["a", "n"]), st.just("i")),
    st.builds(Take, _NAMES, st.sampled_from(["r", "z"])),
    st.builds(Ack, _NAMES, st.sampled_from(["r", "z"])),
)


def _at(found: Any, *, changed: bool) -> Any:
    """Return what a write's reply is; of its revision only whether it is one of the commit."""
    if isinstance(found, Exception):
        return type(found), re.sub(r"tag \"\d+\"", "tag", str(found))  # of what is staged it is its place
    if type(found) is tuple:
        return [(record.name, record.json) for record in found]
    found = found.at(20_000) if changed and hasattr(found, "at") else found
    if isinstance(found, Record):
        return found._replace(revision=min(found.revision, 20_000))
    return dataclasses.replace(found, revision=min(found.revision, 20_000)) if hasattr(found, "revision") else found


@given(st.lists(_ALONE, max_size=8))
def test_operations_that_stand_alone_are_as_if_each_came_by_itself(operations: list[Any]) -> None:
    alone, together = Memory(), Memory()
    for memory in (alone, together):
        decide(memory, Open("s", 10, "i"))
        decide(memory, Replace("a", {"y": 1}, "i"))
        commit(memory, 10_000)
    expected, sure = [], set()
    for number, operation in enumerate(operations):
        fate, result = decide(alone, Batch("", (operation,)))
        expected.append(result.results[0] if isinstance(result, BatchDone) else result)
        if fate is Fate.NOW:
            sure.add(number)
    fate, done = decide(together, Batch("", tuple(operations), atomic=False))
    assert done.sure == sure
    assert fate is (Fate.NOW if len(sure) == len(operations) else Fate.STAGED)
    for number, found in enumerate(done.at(20_000).results):
        assert _at(found, changed=False) == _at(expected[number], changed=number not in sure)
    assert _staged(together) == _staged(alone)


@pytest.mark.parametrize("atomic", [True, False])
def test_what_a_batch_finds_by_a_prefix_is_told_when_it_is_durable(*, atomic: bool) -> None:
    memory = Memory()
    decide(memory, Register("a/x", {}, "i"))
    fate, done = decide(memory, Batch("", (List("a/"),), atomic))
    assert fate is Fate.STAGED
    assert not done.sure
    assert decide(memory, Batch("", (List("b/"), CheckEmpty("b/")), atomic))[0] is Fate.NOW
    commit(memory, 10_000)
    decide(memory, Delete("a/x"))
    fate, done = decide(memory, Batch("", (CheckEmpty("a/"),), atomic))
    assert fate is Fate.STAGED
    assert not done.sure


@pytest.mark.parametrize("atomic", [True, False])
def test_what_a_batch_lists_has_the_revisions_that_it_is_stored_with(*, atomic: bool) -> None:
    memory = Memory()
    decide(memory, Register("a", {}, "i"))
    commit(memory, 10_000)
    decide(memory, Register("b", {}, "i"))
    done = decide(memory, Batch("", (Register("c", {}, "i"), List("")), atomic))[1].at(20_000)
    listed = {record.name: record.revision for record in done.results[1]}
    assert listed == {"a": 10_001, "b": 20_001, "c": 20_002}


def test_what_was_done_before_keeps_its_revision_beside_a_commit() -> None:
    memory, batch = Memory(), Batch("id", (Register("a", {}, "i"), CheckEmpty("b")))
    first = [decide(memory, write)[1] for write in (Next("n", "i", owner="o"), batch, Allocate("p", "o", "i"))]
    commit(memory, 10_000)
    first = [done.at(10_000).revision for done in first]
    for write in (Next("n", "i"), Replace("a", {}, "i"), Allocate("p", "q", "i")):
        decide(memory, write)
    fate, counted = decide(memory, Next("n", "i", owner="o"))
    assert (fate, counted.at(20_000).revision) == (Fate.STAGED, first[0])
    fate, repeated = decide(memory, batch)
    assert (fate, repeated.at(20_000).revision) == (Fate.STAGED, first[1])
    assert repeated.at(20_000).results[1].revision == first[1]


def test_a_session_that_was_opened_anew_in_one_commit_is_another_one() -> None:
    memory = Memory()
    heard: list[tuple[str, int | None]] = []
    memory.session_began = lambda session, record: heard.append((session, record.revision))
    memory.session_ended = lambda session, before: heard.append((session, before.revision if before else None))
    decide(memory, Open("s", 9.0, "i"))
    commit(memory, 10_000)
    decide(memory, Close("s"))
    decide(memory, Open("s", 60.0, "i"))
    commit(memory, 20_000)
    assert heard == [("s", 10_001), ("s", 10_001), ("s", 20_002)]
    assert memory.sessions == 1


def _staged(memory: Memory) -> dict[str, tuple[bytes | None, int]]:
    """Return what is staged: name to JSON and to which of the changes it is."""
    indexes = memory.batch.indexes
    order = sorted(set(indexes.values()))
    return {name: (r.json if r else None, order.index(indexes[name])) for name, r in memory.batch.staged.items()}


def test_the_end_of_a_session_that_was_closed_changes_nothing() -> None:
    memory = Memory()
    decide(memory, Open("s", 9.0, "i"))
    commit(memory, 10_000)
    decide(memory, Close("s"))
    assert decide(memory, Expire("s")) == (Fate.STAGED, Done())
    commit(memory, 20_000)
    assert decide(memory, Expire("s")) == (Fate.NOW, Done())

"""The staged state: each write meets those before it, and nothing is seen before it is durable."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from bpbroker.errors import AlreadyExists
from bpbroker.messages import Delete, Get, List, Register, Replace, Update
from bpbroker.registry.changes import ANYTHING
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.writes import Write, record


def decide(memory: Memory, message: Write) -> tuple[bool, Any]:
    write = PendingWrite(message, None)
    return memory.decide(write, 7.0, 1000), write.decision


def test_each_write_meets_those_before_it() -> None:
    memory = Memory()
    staged, made = decide(memory, Register("a", {"x": 1}, "i"))
    assert staged
    staged, refused = decide(memory, Register("a", {}, "i"))
    assert staged  # it rests on what may not become durable
    assert isinstance(refused, AlreadyExists)
    assert decide(memory, Update("a", {"y": 2}, "i"))[0]
    assert "a" not in memory.entries
    batch = memory.take_batch()
    assert [write.message.name for write in batch.writes] == ["a", "a", "a"]
    (change,) = batch.changes()
    assert (change.name, change.expects) == ("a", ANYTHING)
    assert change.value is not None
    assert b'"y": 2' in change.value
    assert (made.json == change.value, memory.batch.writes) == (False, [])


def test_what_changes_nothing_and_rests_on_nothing_staged_needs_no_commit() -> None:
    memory = Memory()
    memory.fill([record("a", b"{}")])
    staged, refused = decide(memory, Register("a", {}, "i"))
    assert not staged
    assert isinstance(refused, AlreadyExists)
    assert decide(memory, Delete("b")) == (False, None)
    assert memory.batch.writes == []
    assert decide(memory, Delete("a")) == (True, None)
    assert decide(memory, Delete("a")) == (True, None)  # the first one may fail
    assert [change.value for change in memory.take_batch().changes()] == [None]


def test_the_expected_version_is_the_one_at_the_decision() -> None:
    memory, versions = Memory(), {"a": 5}
    memory.version = lambda name: versions.get(name, 0)
    decide(memory, Replace("a", {}, "i"))
    decide(memory, Replace("b", {}, "i"))
    versions["a"] = 6  # news before the commit
    decide(memory, Replace("a", {"x": 1}, "i"))
    assert [(change.name, change.expects) for change in memory.take_batch().changes()] == [("a", 5), ("b", 0)]


def test_a_durable_change_ends_the_waits_that_it_satisfies() -> None:
    memory = Memory()
    one, two, other = (Future[Any]() for _ in range(3))
    memory.waiters.add(Get("a", 10), one, 10.0, 0)
    memory.waiters.add(List("", 2, 10), two, 10.0, 0)
    memory.waiters.add(Get("c", 10), other, 10.0, 0)
    a, b = record("a", b"{}"), record("b", b"{}")
    memory.put("a", a)
    assert one.result(0) == a
    assert not two.done()
    memory.put("b", b)
    assert two.result(0) == (a, b)
    assert not other.done()

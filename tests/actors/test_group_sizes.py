"""Writes that a shared store has to take together: what is more than it takes at once is refused, or waits."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.errors import RequestError, TooLarge, Unavailable
from bpbroker.messages import Condition, Ping, Register, Replace, Update
from bpbroker.record import Record
from bpbroker.registry.changes import GROUP_MAX
from bpbroker.registry.requests import Batch, BatchDone, Check, Lock, Open

if TYPE_CHECKING:
    from tests.actors.conftest import Asked, SharedLedger

IP = "10.0.0.1"


@pytest.fixture
def largest(shared_ledger: SharedLedger, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of the largest group of each commit."""
    sizes: list[int] = []
    commit = shared_ledger.commit

    def noted(groups: Any) -> Any:
        sizes.append(max(len(group.names) for group in groups))
        return commit(groups)

    monkeypatch.setattr(shared_ledger, "commit", noted)
    return sizes


def hold(ledger: SharedLedger) -> threading.Event:
    """Let the next commit wait until the event is set, so that what comes meanwhile is the one after it."""
    go, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go.wait(10)
        ledger.before_commit = lambda: None

    ledger.before_commit = wait
    return go


def fenced(asked: Asked, number: int) -> Condition:
    """Return the condition that a lock of the session ``s`` is held."""
    return Condition(lock=(f"l{number}", asked(Lock(f"l{number}", "s", IP)).data["token"]))


@pytest.mark.parametrize("free", [0, 1])
def test_a_batch_of_as_many_locks_as_entries(
    shared_ledger: SharedLedger, shared_registry: Asked, largest: list[int], free: int
) -> None:
    """With the session that holds the locks it is one more than the store takes, or just as many."""
    half = GROUP_MAX // 2
    shared_registry(Open("s", 60, IP))
    names = [f"n{number}" for number in range(half)]
    for name in names:
        shared_registry(Register(name, {}, IP))
    held = [fenced(shared_registry, number) for number in range(half - free)]
    conditions = held + [Condition()] * free
    writes = tuple(Replace(name, {"x": 1}, IP, each) for name, each in zip(names, conditions, strict=True))
    before = dict(shared_ledger.entries)
    if free:
        found = shared_registry(Batch("", writes))
        assert len({each.revision for each in found.results}) == 1
        assert largest[-1] == GROUP_MAX
    else:
        with pytest.raises(TooLarge, match=f"{GROUP_MAX + 1} records.*{GROUP_MAX} at once") as caught:
            shared_registry(Batch("", writes))
        assert caught.value.status == 413
        assert caught.value.outcome_known
        assert shared_ledger.entries == before


def test_a_batch_that_only_looks_may_look_at_more(shared_registry: Asked) -> None:
    shared_registry(Open("s", 60, IP))
    checks = tuple(Check(f"n{number}", fenced(shared_registry, number)) for number in range(70))
    known = tuple(Check(f"n{number}", Condition(none_match=("*",))) for number in range(70, 170))
    assert isinstance(shared_registry(Batch("", checks + known)), BatchDone)


def test_batches_of_the_same_entries_are_commits_of_their_own_if_they_are_too_large_together(
    shared_ledger: SharedLedger, shared_registry: Asked, largest: list[int]
) -> None:
    go = hold(shared_ledger)
    waiting = [shared_registry.send(Register("first", {}, IP))]
    for start in (0, 99, 198):  # each has one of the entries of the one before
        operations = tuple(Replace(f"n{number}", {}, IP) for number in range(start, start + 100))
        waiting.append(shared_registry.send(Batch("", operations)))
    waiting += [shared_registry.send(Replace(f"n{number}", {"x": 1}, IP)) for number in (0, 99, 198)]
    shared_registry(Ping())
    go.set()
    for each in waiting:
        assert isinstance(each.result(10), (Record, BatchDone))
    assert sum(name.startswith("n") for name in shared_ledger.entries) == 298
    assert len(largest) >= 2


def test_a_batch_and_writes_of_a_session_that_have_an_entry_in_common(
    shared_ledger: SharedLedger, shared_registry: Asked
) -> None:
    shared_registry(Open("s", 60, IP))
    for number in range(100):
        shared_registry(Register(f"n{number}", {}, IP))
    go = hold(shared_ledger)
    waiting = [shared_registry.send(Register("first", {}, IP))]
    waiting += [shared_registry.send(Batch("", tuple(Replace(f"n{number}", {}, IP) for number in range(100))))]
    waiting += [shared_registry.send(Replace(f"m{number}", {}, IP, session="s")) for number in range(20)]
    waiting += [shared_registry.send(Replace("n7", {}, IP, session="s"))]  # joins the two
    waiting += [shared_registry.send(Replace(f"m{number}", {}, IP, session="s")) for number in range(20, 40)]
    shared_registry(Ping())
    go.set()
    for each in waiting:
        assert isinstance(each.result(10), (Record, BatchDone))


def test_a_batch_of_new_entries_is_taken_as_a_whole(shared_ledger: SharedLedger, shared_registry: Asked) -> None:
    """Of each it is compared that it was not just taken: that is one comparison for all of them."""
    go = hold(shared_ledger)
    waiting = [shared_registry.send(Register("first", {}, IP))]
    waiting += [shared_registry.send(Batch("", tuple(Register(f"{k}{n}", {}, IP) for n in range(100)))) for k in "abc"]
    waiting += [shared_registry.send(Replace("a7", {}, IP))]
    shared_registry(Ping())
    go.set()
    for each in waiting:
        assert isinstance(each.result(10), (Record, BatchDone))


def test_what_is_refused_for_its_size_takes_nobody_along(shared_ledger: SharedLedger, shared_registry: Asked) -> None:
    """It depends on what another write, of the same commit, leaves behind."""
    shared_registry(Open("s", 60, IP))
    held = [fenced(shared_registry, number) for number in range(70)]
    go = hold(shared_ledger)
    first = shared_registry.send(Register("first", {}, IP))
    second = shared_registry.send(Replace("n7", {}, IP))
    large = shared_registry.send(Batch("", tuple(Replace(f"n{n}", {}, IP, each) for n, each in enumerate(held))))
    shared_registry(Ping())
    go.set()
    assert isinstance(first.result(10), Record)
    assert isinstance(second.result(10), Record)
    with pytest.raises(RequestError) as caught:
        large.result(10)
    assert isinstance(caught.value, TooLarge)
    assert not isinstance(caught.value, Unavailable)
    assert list(shared_ledger.entries).count("n8") == 0


def test_updates_that_make_more_of_the_entries_than_the_store_takes_at_once(shared_registry: Asked) -> None:
    names = ("a", "b", "c")
    for name in names:
        shared_registry(Register(name, {"x": "x" * 500_000}, IP))
    with pytest.raises(TooLarge, match="bytes together") as caught:
        shared_registry(Batch("", tuple(Update(name, {"y": 1}, IP) for name in names)))
    assert caught.value.status == 413
    assert isinstance(shared_registry(Batch("", tuple(Update(name, {"y": 1}, IP) for name in names[:2]))), BatchDone)


def test_large_entries_of_one_session_are_not_refused_for_coming_together(
    shared_ledger: SharedLedger, shared_registry: Asked
) -> None:
    shared_registry(Open("s", 60, IP))
    go = hold(shared_ledger)
    waiting = [shared_registry.send(Register("first", {}, IP))]
    for attempt in range(2):  # the same entry again takes the place of what it was
        data = {"x": "x" * 500_000, "attempt": attempt}
        waiting += [shared_registry.send(Replace(f"n{number}", data, IP, session="s")) for number in range(5)]
    shared_registry(Ping())
    go.set()
    for each in waiting:
        assert isinstance(each.result(10), Record)

"""What each write does: pure decisions."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import AlreadyExists, NotFound, PreconditionFailed, TooLarge
from bpbroker.messages import ALWAYS, Condition, Delete, Deleted, Register, Replace, Update
from bpbroker.record import Record
from bpbroker.registry import entry_values, writes
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.view import Limits

THERE = Record("a", entry_values.encode(entry_values.stamp({"x": {"y": 1}}, "10.0.0.9", 5)), 77_000)


def decide(message: writes.Write, current: Record | None, max_bytes: int = 1000) -> Any:
    memory = Memory()
    memory.fill([current] if current else [])
    write = PendingWrite(message, None)
    memory.decide(write, 7.9, Limits(max_bytes))
    if isinstance(write.decision, BaseException):
        raise write.decision
    return write.decision


@pytest.mark.parametrize("kind", [Register, Replace, Update])
def test_what_is_not_there_is_created_and_stamped(kind: type[Register | Replace | Update]) -> None:
    made = decide(kind("a", {"x": 1}, "10.0.0.1"), None)
    assert json.loads(made.json) == {"x": 1, "last_write_ip": "10.0.0.1", "last_write_ts": 7}
    assert made.at(90_000) == Record("a", made.json, 90_001)
    assert made.at(90_000).etag == '"90001"'


def test_each_does_what_its_name_says() -> None:
    with pytest.raises(AlreadyExists):
        decide(Register("a", {}, "i"), THERE)
    replaced, updated = decide(Replace("a", {"z": 2}, "i"), THERE), decide(Update("a", {"x": {"z": 2}}, "i"), THERE)
    assert entry_values.without_stamp(json.loads(replaced.json)) == {"z": 2}
    assert entry_values.without_stamp(json.loads(updated.json)) == {"x": {"y": 1, "z": 2}}
    assert decide(Delete("a"), THERE) == Deleted(1)
    assert decide(Delete("a"), None) == Deleted()


def test_an_update_removes_keys_before_it_merges() -> None:
    def updated(data: dict[str, Any], *unset: str) -> Any:
        found = decide(Update("a", data, "i", unset=unset), THERE)
        return entry_values.without_stamp(json.loads(found.json))

    assert updated({}, "x.y") == {"x": {}}
    assert updated({}, "x") == {}
    assert updated({"x": {"z": 2}}, "x") == {"x": {"z": 2}}
    assert updated({}, "nope", "x.nope", "x.y.z") == {"x": {"y": 1}}
    assert decide(Update("a", {"x": 1}, "i", unset=("y",)), None) is not None
    with pytest.raises(NotFound):
        decide(Update("a", {}, "i", unset=("y",)), None)


def test_only_the_merged_part_counts_for_the_limit() -> None:
    assert decide(Update("a", {"w": 1}, "i" * 500), THERE, max_bytes=25) is not None
    with pytest.raises(TooLarge):
        decide(Update("a", {"w": 12345}, "i"), THERE, max_bytes=25)


def test_a_condition_comes_before_everything_else() -> None:
    with pytest.raises(PreconditionFailed, match="it exists with tag"):
        decide(Register("a", {}, "i", Condition(none_match=("*",))), THERE)


TAGS = st.none() | st.lists(st.sampled_from(["*", THERE.etag, f"W/{THERE.etag}", '"other"']), max_size=3).map(tuple)


@given(match=TAGS, none_match=TAGS, there=st.booleans())
def test_conditions_are_those_of_rfc_9110(
    match: tuple[str, ...] | None, none_match: tuple[str, ...] | None, there: bool
) -> None:
    holds = match is None or (there and bool({"*", THERE.etag} & set(match)))
    tags = {"*", THERE.etag, f"W/{THERE.etag}"}
    holds = holds and (none_match is None or not (there and bool(tags & set(none_match))))
    try:
        decide(Delete("a", Condition(match, none_match)), THERE if there else None)
    except PreconditionFailed:
        assert not holds
    else:
        assert holds


def test_no_condition_expects_nothing() -> None:
    assert decide(Delete("a", ALWAYS), None) == Deleted()


def test_each_kind_of_write_has_its_row() -> None:
    assert set(writes.WRITES) == set(get_args(writes.Write))

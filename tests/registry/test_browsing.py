"""A part of the registry at a time, whatever is beside it."""

from __future__ import annotations

import time

import pytest

from bpbroker.record import Record
from bpbroker.registry.browsing import BELONGINGS_MAX, Browse, browse
from bpbroker.registry.index import EntryIndex
from bpbroker.registry.memory import Memory


def filled(*names: str) -> Memory:
    memory = Memory()
    memory.fill(Record(name, b'{"limit": 1, "places": []}', 9000) for name in names)
    return memory


def test_a_part_of_several_prefixes() -> None:
    memory = filled("a/1", "a/2", "a/3", "b/1", "c/1", "c/2", "_lock/x")

    def shown(offset: int, limit: int) -> tuple[list[str], int]:
        found = browse(memory, Browse(("a/", "c/"), offset, limit), 0.0)
        return [record.name for record in found.records], found.count

    assert shown(0, 2) == (["a/1", "a/2"], 5)
    assert shown(2, 2) == (["a/3", "c/1"], 5)
    assert shown(4, 2) == (["c/2"], 5)
    assert shown(5, 2) == ([], 5)
    assert shown(-1, 1) == (["a/1"], 5)
    assert shown(0, -1) == ([], 5)
    assert browse(memory, Browse(("",), 0, 9), 1.5).count == 6
    assert browse(memory, Browse(("",), 0, 9), 1.5).age_secs == 1.5
    assert [record.name for record in browse(memory, Browse(("_lock/",)), 0.0).records] == ["_lock/x"]


def test_what_belongs_to_a_session_is_counted_and_partly_named() -> None:
    memory = Memory()
    session = Record("_session/s", b'{"ttl": 9, "opened": 1, "source": "x"}', 9000)
    memory.fill([session, *(Record(f"n{number:03}", b"{}", 9000, "s") for number in range(60))])
    count, names = browse(memory, Browse(("_session/",)), 0.0).belongings["s"]
    assert count == 60
    assert names == tuple(f"n{number:03}" for number in range(BELONGINGS_MAX))


@pytest.mark.parametrize("prefix", ["", "a", "b", "ba", "b\U0010ffff", "z", "é"])
def test_a_span_is_where_the_names_with_a_prefix_are(prefix: str) -> None:
    names = ["a", "b", "b\U0010ffff", "b\U0010ffffz", "ba", "bz", "c", "é", "éa"]
    index = EntryIndex(Record(name, b"{}") for name in names)
    assert index.at(index.span(prefix)) == index.matching(prefix)


def test_a_part_costs_the_same_among_many() -> None:
    index = EntryIndex(Record(f"node-{number:06}", b"{}") for number in range(100_000))
    memory = Memory()
    memory.entries = index
    began = time.process_time()
    for _ in range(100):
        browse(memory, Browse(("node-",), 99_900, 50), 0.0)
    assert time.process_time() - began < 0.5  # looking at each name takes more than one second

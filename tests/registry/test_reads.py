"""Reads that come together are one read of the store."""

from __future__ import annotations

from bpbroker.errors import Unavailable
from bpbroker.registry.changes import READ_MAX
from bpbroker.registry.reads import ReadQueue, Then


class Heard:
    def __init__(self) -> None:
        self.names: list[str] = []

    def of(self, name: str) -> Then:
        def then(failure: Unavailable | None) -> None:
            assert failure is None
            self.names.append(name)

        return then

    def call(self, thens: list[Then]) -> list[str]:
        self.names.clear()
        for then in thens:
            then(None)
        return list(self.names)


def queue(heard: Heard, *names: str) -> ReadQueue:
    reads = ReadQueue()
    for name in names:
        reads.add((name,), heard.of(name))
    return reads


def test_each_name_is_read_once_and_what_comes_meanwhile_is_the_next_read() -> None:
    heard = Heard()
    reads = queue(heard, "a", "b", "a")
    assert reads.begin() == ["a", "b"]
    reads.add(("a",), heard.of("late a"))
    assert len(reads) == 1
    assert heard.call(reads.end()) == ["a", "b", "a"]
    assert reads.begin() == ["a"]
    assert heard.call(reads.end()) == ["late a"]
    assert not reads


def test_a_read_takes_no_more_names_than_a_store_does() -> None:
    heard = Heard()
    names = [f"n{number:03}" for number in range(READ_MAX + 1)]
    reads = queue(heard, *names, "n000")
    assert reads.begin() == names[:READ_MAX]
    assert heard.call(reads.end()) == [*names[:READ_MAX], "n000"]
    assert reads.begin() == names[READ_MAX:]


def test_what_may_be_old_is_read_again_before_what_came_later() -> None:
    heard = Heard()
    reads = queue(heard, "a", "b")
    reads.begin()
    reads.add(("c",), heard.of("c"))
    assert heard.call(reads.end(["b"])) == ["a"]
    assert reads.begin() == ["b", "c"]


def test_after_a_failure_nothing_waits() -> None:
    heard = Heard()
    reads = queue(heard, "a")
    reads.begin()
    reads.add(("b",), heard.of("b"))
    assert heard.call(reads.clear()) == ["a", "b"]
    assert (len(reads), reads.end()) == (0, [])


def test_names_that_are_read_together_stay_together() -> None:
    """What is decided on two names needs both as they are at one moment."""
    heard = Heard()
    reads = queue(heard, *(f"n{number:03}" for number in range(READ_MAX - 1)))
    reads.add(("x", "y"), heard.of("x and y"))
    reads.add(("z",), heard.of("z"))
    assert reads.begin()[-2:] == [f"n{READ_MAX - 2:03}", "z"]
    reads.end()
    assert reads.begin() == ["x", "y"]
    assert heard.call(reads.end(["y"])) == []
    assert reads.begin() == ["x", "y"]
    assert heard.call(reads.end()) == ["x and y"]

"""What watches are told of the past."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bpbroker.record import Record
from bpbroker.registry.history import History, _size, events_of
from bpbroker.registry.requests import Watch


def add(history: History, *changes: tuple[str, Record | None, int]) -> None:
    history.add(events_of(changes), changes[-1][2])


def test_what_was_taken_is_in_no_event_not_even_of_before() -> None:
    history = History()
    history.begin("id", 10)
    for revision in range(11, 14):
        add(history, ("secret", Record("secret", b'{"pw": "canary"}', revision), revision))
        add(history, ("other", Record("other", b"{}", revision), revision))
    add(history, ("_taken/secret", Record("_taken/secret", b"{}", 14), 14), ("secret", None, 14))
    found = history.read(Watch(since="id:10"))
    assert [(event.type, event.name, event.revision) for event in found.events] == [
        ("put", "other", 11), ("put", "other", 12), ("put", "other", 13), ("take", "secret", 14)
    ]  # fmt: skip
    assert history.read(Watch(since="id:10", limit=2)).cursor == "id:12"
    assert history.events == found.events


@given(st.lists(st.tuples(st.sampled_from(["put", "delete", "take"]), st.integers(0, 3)), max_size=80))
def test_what_is_kept_is_as_if_each_event_was_looked_at(changes: list[tuple[str, int]]) -> None:
    history = History()
    history.begin("id", 0)
    history.limit_bytes = 3000
    expected: list[tuple[str, str, int, Record | None]] = []
    for revision, (kind, number) in enumerate(changes, 1):
        name = f"n{number}"
        record = Record(name, b'{"pw": "canary"}', revision) if kind == "put" else None
        noted = [(f"_taken/{name}", Record(f"_taken/{name}", b"{}", revision), revision)] if kind == "take" else []
        add(history, *noted, (name, record, revision))
        if kind == "take":  # only what it was is forgotten; deletions have nothing to tell
            expected = [each for each in expected if each[1] != name or each[3] is None]
        expected.append((kind, name, revision, record))
        expected = [each for each in expected if each[2] > history._floor]
        assert [(each.type, each.name, each.revision, each.record) for each in history.events] == expected
        assert history._bytes == sum(map(_size, history._events)) <= history.limit_bytes
        assert history._revisions == [each.revision for each in history._events]
        assert all(
            history._events[place - history._dropped].name == name
            for name, places in history._places.items()
            for place in places
        )
    history.limit_bytes = 0
    add(history, ("last", None, 99))
    assert not history._places
    assert not history.events

"""What watches are told of the past."""

from __future__ import annotations

from bpbroker.record import Record
from bpbroker.registry.history import History, events_of
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


def test_what_is_dropped_is_counted_right() -> None:
    history = History()
    history.begin("id", 0)
    history.limit_bytes = 3000
    for revision in range(1, 60):
        add(history, (f"n{revision % 3}", Record("n", b"{}", revision), revision))
        if revision % 10 == 0:
            taken = f"_taken/n{revision % 3}"
            add(history, (taken, Record(taken, b"{}", revision), revision), (f"n{revision % 3}", None, revision))
    found = history.read(Watch(since=f"id:{history._floor}"))
    assert [event.revision for event in found.events] == sorted(event.revision for event in found.events)
    assert sum(map(len, history._names.values())) == len(history._events)
    history.limit_bytes = 0
    add(history, ("last", None, 99))
    assert not history._names

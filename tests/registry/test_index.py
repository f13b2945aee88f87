"""The records in memory, next to a dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bpbroker.record import Record
from bpbroker.registry.index import EntryIndex, Snapshot

NAMES = st.text("abä/\U0010ffff", min_size=1, max_size=4)


@given(st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=3)), max_size=30), NAMES | st.just(""))
def test_it_is_a_dict_in_order(changes: list[tuple[str, bytes | None]], prefix: str) -> None:
    book, model = EntryIndex(), dict[str, bytes]()
    for name, value in changes:
        before = book.put(name, None if value is None else Record(name, value))
        assert (before.json if before else None) == model.get(name)
        if value is None:
            model.pop(name, None)
        else:
            model[name] = value
    assert len(book) == len(model)
    assert [each.name for each in book.matching(prefix)] == sorted(name for name in model if name.startswith(prefix))
    assert dict(Snapshot(book)) == model
    assert all(name in book and book.get(name) is not None for name in model)


def test_a_snapshot_does_not_change_any_more_and_has_both_kinds_of_records() -> None:
    book, own = EntryIndex([Record("b", b"1"), Record("a", b"2")]), EntryIndex([Record("_x", b"9")])
    taken = Snapshot(book, own)
    book.put("a", None)
    book.put("c", Record("c", b"3"))
    assert list(taken.items()) == [("a", b"2"), ("b", b"1"), ("_x", b"9")]
    assert len(taken) == 3

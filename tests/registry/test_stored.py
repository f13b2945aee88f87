"""The stored form of a record: what is joined comes apart again, and nothing of a client's is taken for ours."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry import entry_values
from bpbroker.registry.stored import joined, split, unrevised

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
# Hypothesis knows the constants of the code, these keys among them.
OWN_KEYS = TEXT.filter(lambda key: key not in entry_values.STORED_KEYS)
ENTRIES = st.dictionaries(OWN_KEYS, TEXT | st.integers() | st.booleans(), max_size=4)
SESSIONS = st.just("") | st.from_regex(r"[A-Za-z0-9._:@+-]{1,128}", fullmatch=True)


@given(ENTRIES, st.integers(INDEX_MAX, 2**53 - 1), SESSIONS)
def test_what_is_joined_comes_apart(own: dict[str, object], revision: int, session: str) -> None:
    record = Record("a", entry_values.encode(entry_values.stamp(own, "10.0.0.1", 5)), revision, session)
    assert split("a", joined(record)) == record
    assert isinstance(json.loads(joined(record)), dict)
    assert split("a", unrevised(joined(record))) == Record("a", record.json, 0, session)


@given(st.integers(0, INDEX_MAX - 1), SESSIONS)
def test_before_its_commit_only_its_place_is_stored(index: int, session: str) -> None:
    record = Record("a", b'{"x": 1}', index, session)
    assert split("a", joined(record), 70_000) == Record("a", b'{"x": 1}', 70_000 + index, session)


def test_an_empty_record_stays_json() -> None:
    record = Record("_x", b"{}", 5000, "s")
    assert json.loads(joined(record)) == {"last_write_revision": 5000, "last_write_session": "s"}
    assert split("_x", joined(record)) == record


@pytest.mark.parametrize("key", entry_values.STORED_KEYS)
def test_clients_cannot_use_its_keys(key: str) -> None:
    with pytest.raises(Exception, match=f"Used reserved data name {key}"):
        entry_values.check_object({key: 1})


def test_a_session_alone_at_the_end_is_one_also_behind_another_key() -> None:
    """An editor may have moved the revision: it stays in the entry, where a reader sees it."""
    stored = b'{"last_write_revision": 70000, "a": 1, "last_write_session": "s"}'
    assert split("a", stored, 9) == Record("a", b'{"last_write_revision": 70000, "a": 1}', 9, "s")


@pytest.mark.parametrize("value", ["last_write_session", '"last_write_revision": 70000}', ' "last_write_'])
def test_a_value_that_looks_like_its_keys_is_a_value(value: str) -> None:
    stored = json.dumps({"a": value}).encode()
    assert split("a", stored, 9) == Record("a", stored, 9)

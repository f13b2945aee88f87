"""Values of etcd that are decoded once: what is kept must never show but in what it saves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bpbroker.record import Record
from bpbroker.registry.stored import joined
from bpbroker.storage.etcd import decoded
from bpbroker.storage.etcd.decoded import Decoded
from bpbroker.storage.etcd.keys import Keys, as_seen
from bpbroker.storage.etcd.registry_id import made
from bpbroker.storage.etcd.responses import encode
from bpbroker.storage.etcd.restore_detection import Moment

KEYS = Keys("/x")
KEY = KEYS.entry("a")
MOMENT = Moment(0, 5, None, made(0))


def kv(value: bytes, revision: int, name: str = "a") -> dict[str, Any]:
    return {"key": KEYS.entry(name), "mod_revision": str(revision), "value": encode(value)}


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names whose values were decoded."""
    found: list[str] = []

    def note(name: str, *rest: Any) -> Any:
        found.append(name)
        return as_seen(name, *rest)

    monkeypatch.setattr(decoded, "as_seen", note)
    return found


@pytest.mark.parametrize("session", ["", "s"])
@pytest.mark.parametrize("index", [0, 7, 10**15])
@pytest.mark.parametrize("value", [b"{}", b'{"n": 1}'])
def test_what_we_wrote_comes_back_as_it_would_be_decoded(
    value: bytes, index: int, session: str, looked: list[str]
) -> None:
    cache, record = Decoded(KEYS), Record("a", value, index, session)
    text = joined(record)
    cache.written(KEY, encode(text), record)
    for as_of in (9, 12):
        assert cache.seen(KEY, kv(text, 9), as_of, MOMENT) == as_seen("a", kv(text, 9), as_of, MOMENT)
    assert looked == []


def test_the_same_value_written_again_has_its_own_revision() -> None:
    cache, text = Decoded(KEYS), joined(Record("a", b"{}", 1))
    for revision in (9, 10, 9):
        assert cache.seen(KEY, kv(text, revision), 12, MOMENT) == as_seen("a", kv(text, revision), 12, MOMENT)


def test_another_value_is_decoded(looked: list[str]) -> None:
    """A write that did not happen, or that another broker was faster than."""
    cache = Decoded(KEYS)
    cache.written(KEY, encode(b'{"n": 1}'), Record("a", b'{"n": 1}'))
    assert cache.seen(KEY, kv(b'{"n": 2}', 9), 9, MOMENT).record == Record(
        "a", b'{"n": 2}', MOMENT.registry.revision(9)
    )
    assert looked == ["a"]
    cache.seen(KEY, kv(b'{"n": 2}', 9), 11, MOMENT)
    assert looked == ["a"]


def test_what_another_registry_held_counts_no_more() -> None:
    """A restored cluster reaches the same revisions with a registry of another base."""
    cache, text = Decoded(KEYS), joined(Record("a", b"{}", 1))
    later = replace(MOMENT, timeline=1, identity=made(10**14))
    for moment in (MOMENT, later, MOMENT):
        assert cache.seen(KEY, kv(text, 9), 9, moment) == as_seen("a", kv(text, 9), 9, moment)


def test_what_is_wrong_is_told_each_time() -> None:
    cache = Decoded(KEYS)
    assert all(cache.seen(KEY, kv(b"[]", 9), 9, MOMENT).fault for _ in range(2))


def test_what_is_gone_is_not_kept() -> None:
    cache = Decoded(KEYS)
    cache.seen(KEY, kv(b"{}", 9), 9, MOMENT)
    assert cache.seen(KEY, None, 10, MOMENT).record is None
    assert not cache._known


def test_no_more_is_kept_than_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "KEPT_BYTES", 10_000)
    cache, value = Decoded(KEYS), json.dumps("x" * 600).encode()
    for number in range(100):
        cache.written(KEYS.entry(str(number)), encode(b'{"v": %b}' % value), Record(str(number), value))
        assert sum(len(each[0]) for each in cache._known.values()) <= 10_000
    assert KEYS.entry("99") in cache._known

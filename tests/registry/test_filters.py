"""Entries sorted by conditions."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from bpbroker.errors import BadRequest
from bpbroker.record import Record
from bpbroker.registry.filters import Sorted, parse, sort

RECORDS = tuple(
    Record(name, json.dumps(value).encode(), 1)
    for name, value in {
        "a": {"state": "ready", "n": 1},
        "b": {"state": "failed"},
        "c": {"state": "ready", "deep": {"n": [1, 2]}},
        "d": {},
    }.items()
)


def names(found: Sorted) -> tuple[str, str, bool]:
    return "".join(r.name for r in found.counted), "".join(r.name for r in found.listed), found.failed


@pytest.mark.parametrize(
    ("where", "fail_where", "expected"),
    [
        ([], [], ("abcd", "abcd", False)),
        (["state=ready"], [], ("ac", "ac", False)),
        (["state=ready", "n=1"], [], ("a", "a", False)),
        (["deep.n=[1, 2]"], [], ("c", "c", False)),
        (["state=ready"], ["state=failed"], ("ac", "abc", True)),
        (["state=ready"], ["x=1", "state=failed"], ("ac", "abc", True)),
        ([], ["state=failed"], ("abcd", "abcd", True)),
        ([], ["state=none"], ("abcd", "abcd", False)),
    ],
)
def test_what_counts_what_is_listed_and_what_failed(
    where: list[str], fail_where: list[str], expected: tuple[str, str, bool]
) -> None:
    assert names(sort(RECORDS, parse(where, "where"), parse(fail_where, "fail_where"))) == expected


@pytest.mark.parametrize("conditions", [1, 16])
def test_an_entry_is_parsed_once_for_all_conditions(conditions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    real = json.loads

    def loads(text: Any) -> Any:
        parsed.append(text)
        return real(text)

    monkeypatch.setattr(json, "loads", loads)
    where = parse([f"state{n}=x" for n in range(conditions)], "where")
    sort(RECORDS, where, where)
    assert len(parsed) == len(RECORDS)
    sort(RECORDS, (), ())
    assert len(parsed) == len(RECORDS)


def test_a_field_is_bounded_and_costs_what_is_there_of_it() -> None:
    with pytest.raises(BadRequest, match="at most 1024 characters"):
        parse(["a." * 500_000 + "a=x"], "where")
    records = RECORDS * 2500
    long = parse([f"{number}{'.x' * 500}=1" for number in range(16)], "where")
    begun = time.process_time()
    assert not sort(records, long, long).listed
    assert time.process_time() - begun < 2.0

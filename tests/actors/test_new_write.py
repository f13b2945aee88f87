"""One more kind of write is a message and a row in the table: the rest comes with the registry, on each store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.messages import Get
from bpbroker.record import Record
from bpbroker.registry import writes
from bpbroker.registry.view import Limits, View

if TYPE_CHECKING:
    from tests.actors.conftest import Asked, Ledger, SharedLedger


@dataclass(frozen=True, slots=True)
class CountUp:
    """Count an entry up."""

    name: str


def count_up(write: CountUp, view: View, _limits: Limits) -> Record:
    current = view.get(write.name)
    number = json.loads(current.json)["n"] if current else 0
    return view.put(write.name, b'{"n": %d}' % (number + 1))


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writes.WRITES, CountUp, count_up)


def number(record: Any) -> Any:
    return json.loads(record.json)["n"]


def test_on_a_local_store(ledger: Ledger, registry: Asked) -> None:
    ledger.hold()
    first = registry.send(CountUp("a"))
    ledger.await_commit()
    more = [registry.send(CountUp("a")) for _ in range(3)]
    ledger.release()
    assert [number(reply.result(10)) for reply in (first, *more)] == [1, 2, 3, 4]
    assert len(ledger.commits) == 2


def test_on_a_shared_store(shared_ledger: SharedLedger, shared_registry: Asked) -> None:
    assert number(shared_registry(CountUp("a"))) == 1
    shared_ledger.quiet = True
    shared_ledger.put("a", b'{"n": 7}')
    assert number(shared_registry(CountUp("a"))) == 8
    assert number(shared_registry(Get("a"))) == 8

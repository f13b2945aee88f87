"""Small requests for much: what they may have the registry and the loop do, over a real registry without a disk."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bpbroker.frontend import coordination
from bpbroker.registry import writes
from bpbroker.registry.browsing import Recent
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse
from tests.support.own_logging import faults
from tests.support.people import KEY, PORT, People


@pytest.fixture
def people() -> People:
    return People()


def batch(people: People, *operations: dict[str, Any], atomic: bool = True) -> Any:
    body = json.dumps({"operations": operations, "atomic": atomic}).encode()
    return json.loads(
        people.send("/services/Batch/", "POST", body, content_type="application/json", x_access_key=KEY).body
    )


READ = {"method": "List", "prefix": "n"}


@pytest.mark.parametrize("what", ["reads", "writes"])
def test_a_batch_has_so_many_bytes_of_entries(people: People, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "_ENTRIES_MAX_BYTES", 100_000)
    for number in range(4):
        people.put(f"n{number}", text="x" * 30_000)
    few = [READ] if what == "reads" else [{"method": "Update", "name": f"n{n}", "data": {"a": 1}} for n in range(4)]
    refused = batch(people, *few)
    assert not refused["success"]
    assert "more than 100000 bytes together" in refused["message"]
    assert refused["failed"] == (0 if what == "reads" else 3)
    done = batch(people, *few[2:], {"method": "Get", "name": "n0"})
    assert done["success"]
    assert "a" not in done["data"]["results"][-1]["data"]  # all or none


def test_of_operations_by_themselves_the_reads_share_that(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "_ENTRIES_MAX_BYTES", 100_000)
    for number in range(2):
        people.put(f"n{number}", text="x" * 30_000)
    update = {"method": "Update", "name": "other", "data": {"a": 1}}
    found = batch(people, READ, READ, update, {"method": "Get", "name": "n1"}, atomic=False)["data"]["results"]
    assert [each["status"] for each in found] == [200, 413, 200, 200]
    assert list(found[0]["data"]) == ["n0", "n1"]
    assert found[3]["data"]["text"] == "x" * 30_000


@pytest.mark.parametrize("text", ["\x7f", "é", "€", "\U0001f600", "[1e15,1e15]", '{"":1}'])
def test_a_batch_too_large_is_found_whatever_its_body_hides(people: People, text: str) -> None:
    written = text if text[0] in "[{" else json.dumps(text, ensure_ascii=False)
    room = coordination._BATCH_SMALL_BYTES // len(written.encode()) - 100

    def sent(count: int) -> Any:
        data = ",".join([written] * count)
        body = f'{{"operations":[{{"method":"Register","name":"a","data":{{"a":[{data}]}}}}]}}'.encode()
        answer = people.send("/services/Batch/", "POST", body, content_type="application/json", x_access_key=KEY)
        return json.loads(answer.body), len(json.dumps(json.loads(body)["operations"]).encode())

    done, measured = sent(room)
    assert measured <= coordination._BATCH_MAX_BYTES
    assert done["success"] or "larger than 524288 bytes" in done["message"]
    refused, measured = sent(9 * room)
    assert measured > coordination._BATCH_MAX_BYTES
    assert refused["message"] == "The operations of a batch are larger than 1048576 bytes together"


@pytest.mark.parametrize(("changes", "size", "heavy"), [(1, 1, False), (300, 1, True), (2, 20_000, True)])
def test_many_events_are_not_written_in_the_loop(people: People, changes: int, size: int, *, heavy: bool) -> None:
    since = people.registry.ask(Recent(), 1.0).result(1).cursor
    for number in range(changes):
        people.put(f"n{number}", text="x" * size)
    fields = {"host": f"broker:{PORT}", "x-access-key": KEY}
    pending = people.application(Request("GET", "/services/Watch/", f"since={since}", fields, "10.0.0.9", b""))
    assert isinstance(pending, PendingResponse)
    pending.ask()
    assert pending.done
    assert pending.heavy == heavy
    assert len(json.loads(pending.response().body)["data"]["events"]) == changes


@pytest.mark.parametrize("number", ["\u00b2", "9" * 5000, "-1", "1.5", ""])
def test_a_cursor_that_is_none_is_refused_and_no_fault_of_the_brokers(
    people: People, number: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry_id = people.registry.ask(Recent(), 1.0).result(1).cursor.rpartition(":")[0]
    body = json.dumps({"since": f"{registry_id}:{number}"}).encode()
    answer = people.send("/services/Watch/", "POST", body, content_type="application/json", x_access_key=KEY)
    assert answer.status == 410
    assert not faults(caplog)

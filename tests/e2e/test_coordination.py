"""Coordination over HTTP against a real process: what is granted once is never granted again, whatever happens."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.contents import contents
from tests.support.crowd import await_that
from tests.support.running import RunningBroker


def ask(broker: RunningBroker, method: str, **parameters: Any) -> tuple[int, Any]:
    answer = broker.call(f"/services/{method}/", **parameters)
    return answer.status, json.loads(answer.body)


def data(broker: RunningBroker, method: str, **parameters: Any) -> Any:
    status, body = ask(broker, method, **parameters)
    assert status == 200, body
    return body.get("data")


def test_all_of_it_survives_a_kill(broker: RunningBroker) -> None:
    data(broker, "Register", name="a", data={"x": 1})
    tag = broker.call("/services/Get/", name="a").headers["ETag"]
    data(broker, "Open", session="s1", ttl=60)
    data(broker, "Register", name="n1", data="up", session="s1")
    first = data(broker, "Lock", name="db", session="s1")["token"]
    numbers = {owner: data(broker, "Allocate", pool="id", owner=owner)["number"] for owner in ("o1", "o2")}
    data(broker, "Register", name="secret", data="pw")
    assert data(broker, "Take", name="secret", receiver="r1")["_str"] == "pw"
    cursor = data(broker, "Watch")["cursor"]
    data(broker, "Replace", name="b", data="late")
    broker.kill()
    broker.start()
    # The session lives on with its entry and its place; the tag and the cursor still mean the same.
    assert broker.call("/services/Get/", name="a").headers["ETag"] == tag
    assert data(broker, "Get", name="n1")["_str"] == "up"
    assert data(broker, "Holder", name="db")["token"] == first
    assert data(broker, "Renew", session="s1")["ttl"] == 60
    assert ask(broker, "Replace", name="a", data="x", lock=f"db:{first}")[0] == 200
    assert data(broker, "Allocate", pool="id", owner="o1")["number"] == numbers["o1"]
    assert data(broker, "Allocate", pool="id", owner="o3")["number"] == 3
    assert ask(broker, "Take", name="secret", receiver="r2")[0] == 409
    assert data(broker, "Take", name="secret", receiver="r1")["_str"] == "pw"
    assert ask(broker, "Watch", since=cursor)[0] in (200, 410)
    data(broker, "Unlock", name="db", session="s1")
    assert data(broker, "Lock", name="db", session="s1")["token"] > first
    assert ask(broker, "Replace", name="a", data="x", lock=f"db:{first}")[0] == 412


def test_a_session_that_nobody_renews_takes_its_entries_and_places_along(broker: RunningBroker) -> None:
    data(broker, "Open", session="alive", ttl=60)
    begun = time.monotonic()
    data(broker, "Open", session="dead", ttl=2)
    data(broker, "Register", name="node-1", data={"step": "packages"}, session="dead")
    dead = data(broker, "Lock", name="db", session="dead")["token"]
    got = data(broker, "Lock", name="db", session="alive", wait=20)
    assert 2 <= time.monotonic() - begun < 4.5
    assert got["token"] > dead
    assert ask(broker, "Get", name="node-1")[0] == 404
    assert data(broker, "List", lost="1", prefix="node-")["node-1"]["entry"]["step"] == "packages"
    assert ask(broker, "Register", name="x", data="x", session="dead")[0] == 404
    assert ask(broker, "Renew", session="dead")[0] == 404


def test_fifty_at_once_get_the_numbers_from_one_to_fifty(broker: RunningBroker) -> None:
    def number(owner: int) -> int:
        return int(data(broker, "Allocate", pool="id", owner=f"m{owner}")["number"])

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(number, range(50))) == list(range(1, 51))
        assert [number(owner) for owner in range(50)] == list(pool.map(number, range(50)))
    status, refused = ask(broker, "Allocate", pool="id", owner="late", **{"from": 1, "to": 50})
    assert (status, len(refused["data"]["owners"])) == (409, 50)


def test_of_two_batches_that_race_for_what_is_absent_one_wins(broker: RunningBroker) -> None:
    def race(number: int) -> int:
        operations = [
            {"method": "CheckEmpty", "prefix": "lead/"},
            {"method": "Register", "name": f"lead/{number}", "data": {"n": number}},
            {"method": "Replace", "name": f"other-{number}", "data": "x"},
        ]
        return ask(broker, "Batch", id=f"b{number}", operations=operations)[0]

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(race, range(8)))
    assert sorted(statuses) == [200] + [412] * 7
    assert len(data(broker, "List", prefix="lead/")) == len(data(broker, "List", prefix="other-")) == 1
    # A batch that is sent again is not carried out again.
    winner = statuses.index(200)
    data(broker, "Delete", name=f"lead/{winner}")
    assert race(winner) == 200
    assert data(broker, "List", prefix="lead/") == {}
    # Under its id nothing else is taken for it.
    status, refused = ask(
        broker, "Batch", id=f"b{winner}", operations=[{"method": "Register", "name": "lead/x", "data": {}}]
    )
    assert status == 409
    assert f"'b{winner}'" in refused["message"]
    assert data(broker, "List", prefix="lead/") == {}


def test_a_watch_hears_of_each_change_in_order(broker: RunningBroker) -> None:
    cursor = data(broker, "Watch", prefix="w/")["cursor"]
    seen: list[tuple[str, str, int]] = []

    def follow() -> None:
        since = cursor
        while len(seen) < 22:
            found = data(broker, "Watch", prefix="w/", since=since, wait=20)
            seen.extend((event["type"], event["name"], event["revision"]) for event in found["events"])
            since = found["cursor"]

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(20):
        data(broker, "Replace", name=f"w/{number % 3}", data={"n": number})
        data(broker, "Replace", name=f"z/{number}", data="not watched")
    data(broker, "Delete", name="w/0")
    await_that(lambda: len(seen) == 21, "not all was told")  # what an entry was is told no more once it is taken
    data(broker, "Take", name="w/1", receiver="r")
    thread.join(30)
    assert [kind for kind, _, _ in seen] == ["put"] * 20 + ["delete", "take"]
    assert [revision for _, _, revision in seen] == sorted({revision for _, _, revision in seen})
    status, gone = ask(broker, "Watch", since=f"{'0' * 32}:5")
    assert (status, gone["data"]["cursor"].partition(":")[0]) == (410, cursor.partition(":")[0])


def test_what_was_taken_and_acknowledged_is_in_no_journal(broker: RunningBroker) -> None:
    data(broker, "Register", name="secret", data="canary-5d2f81")
    assert data(broker, "Take", name="secret", receiver="r")["_str"] == "canary-5d2f81"
    assert ask(broker, "Get", name="secret")[0] == 404
    data(broker, "Ack", name="secret", receiver="r")
    assert ask(broker, "Take", name="secret", receiver="r")[0] == 404
    await_that(lambda: not having(broker, b"canary-5d2f81"), "it is still there")


def having(broker: RunningBroker, canary: bytes) -> list[str]:
    """Return the files of a broker's home that have it."""
    return [path.name for path, content in contents(broker.home).items() if canary in content]


def test_what_was_taken_and_acknowledged_is_in_no_file(broker: RunningBroker) -> None:
    """It was in the configuration file and in a backup, with the journal's slack and in the log."""
    canary = b"canary-77ab03"
    for number in range(40):
        data(broker, "Replace", name=f"other-{number}", data=f"{number}" * 300)
        data(broker, "Replace", name="secret", data=canary.decode() * (1 + number % 20 * 20))
    assert broker.bpbroker("backup").returncode == 0
    broker.restart()
    cursor = data(broker, "Watch")["cursor"]
    data(broker, "Replace", name="secret", data=canary.decode())
    data(broker, "Take", name="secret", receiver="r")
    assert canary.decode() not in json.dumps(data(broker, "Watch", since=cursor))
    with broker.config.open("rb") as before:
        assert canary in before.read()
        data(broker, "Ack", name="secret", receiver="r")
        await_that(lambda: "Backups may still have what was taken as secret" in broker.text, broker.text)
        before.seek(0)
        assert before.read().strip(b"\0") == b""  # overwritten, not only replaced
    left = having(broker, canary)
    assert left
    assert all(name in broker.text for name in left)
    assert all(name.startswith("bpbroker-") for name in left), left
    # All else is as it was.
    assert len(data(broker, "List", prefix="other-")) == 40
    broker.kill()
    broker.start()
    assert len(data(broker, "List", prefix="other-")) == 40
    assert "Traceback" not in broker.text


def test_a_barrier_counts_by_fields_and_ends_at_the_first_failure(broker: RunningBroker) -> None:
    replies: list[Any] = []
    asked = {"prefix": "n/", "count": 2, "wait": 20, "where": ["state=ready"], "fail_where": ["state=failed"]}
    waiting = threading.Thread(target=lambda: replies.append(data(broker, "List", **asked)))
    waiting.start()
    data(broker, "Replace", name="n/1", data={"state": "ready"})
    data(broker, "Replace", name="n/2", data={"state": "busy"})
    data(broker, "Replace", name="n/3", data={"state": "failed", "why": "disk full"})
    waiting.join(15)
    assert [sorted(reply) for reply in replies] == [["n/1", "n/3"]]


def test_bad_input_is_refused_with_the_reason(broker: RunningBroker) -> None:
    for method, parameters, status, says in (
        ("Open", {"session": "s", "ttl": 1}, 400, "ttl must be"),
        ("Open", {"session": "s", "ttl": 90000}, 400, "ttl must be"),
        ("Open", {"session": "a b", "ttl": 5}, 400, "session's id"),
        ("Lock", {"name": "x", "session": "none"}, 404, "no session"),
        ("Allocate", {"pool": "p", "owner": "o", "from": 9, "to": 3}, 400, "from must not"),
        ("Allocate", {"pool": "p", "owner": "o", "number": 256}, 400, "from 1 to 255"),
        ("List", {"lost": "x"}, 400, "lost must be 1 or 0"),
        ("List", {"lost": "1", "where": "a=b"}, 400, "no where"),
        ("Watch", {"since": "x"}, 410, "another registry"),
        ("List", {"where": ["x"], "count": 1, "wait": 1}, 400, "FIELD=VALUE"),
        ("Batch", {"operations": [{"method": "Get", "name": "a"}] * 2}, 400, "occurs twice"),
        ("Batch", {"operations": [{"method": "Get", "name": f"a{n}"} for n in range(101)]}, 400, "at most 100"),
        ("Batch", {"operations": [{"method": "Nope"}]}, 400, "method must be"),
        ("Replace", {"name": "a", "data": "x", "lock": "db"}, 400, "NAME:TOKEN"),
        ("Take", {"name": "a", "receiver": ""}, 400, "receiver"),
        ("Take", {"name": "a", "receiver": "r", "lock": "db:1"}, 412, "is not held"),
        ("Ack", {"name": "a", "receiver": "r", "lock": "db:1"}, 412, "is not held"),
        ("Allocate", {"pool": "p", "owner": "o", "lock": "db:1"}, 412, "is not held"),
        ("Release", {"pool": "p", "owner": "o", "lock": "db:1"}, 412, "is not held"),
        ("Next", {"name": "c", "lock": "db:1"}, 412, "is not held"),
        ("Next", {"name": "c", "lock": "db"}, 400, "NAME:TOKEN"),
        ("Batch", {"operations": [{"method": "Delete", "name": "a", "if-match": "1"}]}, 400, "takes no 'if-match'"),
        ("Batch", {"operations": [{"method": "List", "prefix": "a", "where": "x=y"}]}, 400, "takes no 'where'"),
    ):
        found, body = ask(broker, method, **parameters)
        assert (found, says in body["message"]) == (status, True), (method, parameters, body)


def test_a_list_has_the_same_shape_everywhere(broker: RunningBroker) -> None:
    data(broker, "Register", name="a", data="x")
    _, alone = ask(broker, "List", lost="0")
    listed = {name: alone[name] for name in ("data", "revisions", "revision")}
    assert listed["revisions"] == {"a": listed["revision"]}
    (found,) = data(broker, "Batch", operations=[{"method": "List", "prefix": ""}])["results"]
    assert found == {"status": 200, **listed}
    _, lost = ask(broker, "List", lost="1")
    assert (lost["data"], lost["revision"]) == ({}, 0)

"""Coordination through three brokers on three etcd members: what one broker granted holds at the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bpbroker.registry.changes import GROUP_MAX
from tests.support.crowd import PROGRESS_SECS, await_that
from tests.support.etcd_cluster import PREFIX, EtcdCluster, needs_etcd
from tests.support.running import RunningBroker

pytestmark = needs_etcd


def ask(broker: RunningBroker, method: str, **parameters: Any) -> tuple[int, Any]:
    """Ask until the cluster has a leader: each of these calls may be sent again."""
    end = time.monotonic() + PROGRESS_SECS
    while True:
        answer = broker.call(f"/services/{method}/", **parameters)
        if answer.status != 503 or time.monotonic() >= end:
            return answer.status, json.loads(answer.body)
        time.sleep(0.05)


def data(broker: RunningBroker, method: str, **parameters: Any) -> Any:
    status, body = ask(broker, method, **parameters)
    assert status == 200, body
    return body.get("data")


def test_what_was_granted_outlives_a_broker_and_a_member(
    make_etcd: Callable[..., EtcdCluster], make_broker: Callable[..., RunningBroker]
) -> None:
    etcd = make_etcd().start_all()
    settings = {"_registry": {**etcd.configuration(f"{PREFIX}foo"), "timeout_secs": 2}}
    first, second, third = (make_broker(settings).start() for _ in range(3))
    data(first, "Open", session="s1", ttl=60)
    data(second, "Open", session="s2", ttl=60)
    token = data(first, "Lock", name="db", session="s1")["token"]
    data(first, "Register", name="node-1", data="up", session="s1")
    assert data(first, "Allocate", pool="id", owner="o1")["number"] == 1
    data(first, "Register", name="secret", data={"v": 1})
    data(first, "Take", name="secret", receiver="r1")
    cursor = data(first, "Watch")["cursor"]
    assert data(first, "Replace", name="w/1", data="x")
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(data, second, "Lock", name="db", session="s2", wait=120)
        barrier = pool.submit(data, third, "List", prefix="n/", count=2, wait=120)
        await_that(lambda: data(third, "Holder", name="db")["waiting"] != [], "nobody waits for the lock")
        first.kill()
        killed = etcd.leader()
        etcd.kill(killed)
        # The session, its lock and its entry live on through the other brokers.
        assert data(second, "Renew", session="s1")["ttl"] == 60
        holder = data(third, "Holder", name="db")
        assert [each["session"] for each in holder["holders"]] == ["s1"]
        assert holder["token"] == data(third, "Lock", name="db", session="s1")["token"] == token
        data(second, "Replace", name="w/2", data="x", lock=f"db:{token}")
        assert data(third, "Get", name="node-1") is not None
        assert data(second, "Allocate", pool="id", owner="o1")["number"] == 1
        assert data(third, "Allocate", pool="id", owner="o2")["number"] == 2
        assert ask(third, "Take", name="secret", receiver="r2")[0] == 409
        assert data(second, "Take", name="secret", receiver="r1")["v"] == 1
        # A barrier on one broker counts what another one writes.
        for number in (1, 2):
            data(second, "Replace", name=f"n/{number}", data="x")
        assert sorted(barrier.result(60)) == ["n/1", "n/2"]
        # A watch goes on at another broker from the same cursor.
        events: list[dict[str, Any]] = []
        while [event["name"] for event in events][-1:] != ["n/2"]:
            found = data(third, "Watch", prefix="", since=cursor, wait=60)
            events, cursor = events + found["events"], found["cursor"]
        # Numbers of a pool are events of its entry; one that changed nothing is none.
        assert [event["name"] for event in events] == ["w/1", "w/2", "id", "n/1", "n/2"]
        revisions = [event["revision"] for event in events]
        assert revisions == sorted(set(revisions))
        # It is given back elsewhere than where it was taken, and who waits gets it with a higher token.
        etcd.start(killed)
        data(third, "Unlock", name="db", session="s1")
        later = waiting.result(120)["token"]
    assert later > token
    assert ask(third, "Replace", name="w/3", data="x", lock=f"db:{token}")[0] == 412
    data(third, "Close", session="s1")
    assert ask(second, "Get", name="node-1")[0] == 404
    first.port = 0
    first.start()
    assert data(first, "Holder", name="db")["token"] == later
    registry_id, _, revision = cursor.rpartition(":")
    assert ask(first, "Watch", since=f"{registry_id}:{int(revision) + 2**40}", wait=60)[0] == 410
    for broker in (first, second, third):
        assert broker.stop() == 0, broker.text


def test_a_dead_session_is_swept_once(etcd_section: dict[str, Any], make_broker: Callable[..., RunningBroker]) -> None:
    first, second, third = (make_broker({"_registry": etcd_section}).start() for _ in range(3))
    cursor = data(third, "Watch")["cursor"]
    data(first, "Open", session="dead", ttl=5)
    for start in (0, 60):  # more than one commit takes away
        operations = [
            {"method": "Register", "name": f"d/{number:03}", "data": "x", "session": "dead"}
            for number in range(start, start + 60)
        ]
        data(first, "Batch", id=f"b{start}", operations=operations)
    events: list[dict[str, Any]] = []
    end = time.monotonic() + PROGRESS_SECS
    while sum(event["type"] == "expire" for event in events) < 120:
        assert time.monotonic() < end, events[-3:]
        found = data(third, "Watch", prefix="d/", since=cursor, wait=20)
        events, cursor = events + found["events"], found["cursor"]
    kinds = [(event["type"], event["name"]) for event in events]
    assert len(kinds) == len(set(kinds)) == 240
    assert len(data(second, "List", lost="1", prefix="d/")) == 120


def test_a_batch_is_carried_out_or_refused_for_its_size(
    etcd_section: dict[str, Any], make_broker: Callable[..., RunningBroker]
) -> None:
    """With its session, the largest one has just as many records as etcd takes at once."""
    broker = make_broker({"_registry": etcd_section}).start()
    data(broker, "Open", session="s", ttl=600)
    half = GROUP_MAX // 2
    names = [f"n/{number}" for number in range(half)]
    data(broker, "Batch", operations=[{"method": "Register", "name": name, "data": {"v": 1}} for name in names])
    held = [f"l{number}:{data(broker, 'Lock', name=f'l{number}', session='s')['token']}" for number in range(half)]
    writes = [
        {"method": "Replace", "name": name, "data": {"v": 2}, "lock": lock}
        for name, lock in zip(names, held, strict=True)
    ]
    status, body = ask(broker, "Batch", operations=writes)
    assert status == 413
    assert f"{GROUP_MAX + 1} records" in body["message"]
    assert data(broker, "Get", name=names[0])["v"] == 1
    del writes[0]["lock"]
    assert len(data(broker, "Batch", operations=writes)["results"]) == half
    assert data(broker, "Get", name=names[0])["v"] == 2

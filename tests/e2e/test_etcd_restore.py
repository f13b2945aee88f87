"""Two brokers whose etcd cluster is restored from an older snapshot while they run."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.crowd import await_that, health, own
from tests.support.etcd_cluster import PREFIX, EtcdCluster, needs_etcd
from tests.support.running import RunningBroker

pytestmark = needs_etcd

SETTINGS = {"_global": {"healthcheck_freq_sec": 1}}
SAID = "all entries are read anew"


def value(broker: RunningBroker, name: str) -> Any:
    answer = broker.get(name)
    return own(answer.json["data"]) if answer.status == 200 else answer.status


def listed(broker: RunningBroker) -> dict[str, Any]:
    return {name: own(entry) for name, entry in broker.request("/services/List/").json["data"].items()}


@pytest.mark.parametrize("token", ["", "another-cluster"])
def test_a_restored_cluster_is_read_anew(
    make_etcd: Callable[..., EtcdCluster], make_broker: Callable[..., RunningBroker], tmp_path: Path, token: str
) -> None:
    etcd = make_etcd(1).start_all()
    settings = {"_registry": {**etcd.configuration(f"{PREFIX}restore"), "timeout_secs": 2}, **SETTINGS}
    first, second = (make_broker(settings).start() for _ in range(2))
    both = (first, second)
    for name in ("kept", "changed", "deleted"):
        assert first.register(name, '{"is": "old"}').status == 200
    etcd.save(tmp_path / "snapshot")
    assert second.request("/services/Replace/", name="changed", data='{"is": "lost"}').status == 200
    assert first.request("/services/Delete/", name="deleted").status == 200
    assert second.register("lost", '{"is": "lost"}').status == 200
    lost = {"If-None-Match": second.get("changed").headers["ETag"]}
    for broker in both:
        assert listed(broker) == {"kept": {"is": "old"}, "changed": {"is": "lost"}, "lost": {"is": "lost"}}
        assert value(broker, "deleted") == 404  # known to be absent at a version that will be gone

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.request, "/services/Get/", headers=lost, name="changed", wait="60")
        await_that(lambda: '"waiting": 1' in json.dumps(health(second)[1]), "it waits")
        etcd.restore(tmp_path / "snapshot", token=token)
        begin = time.monotonic()
        restored = {name: {"is": "old"} for name in ("kept", "changed", "deleted")}
        for broker in both:
            await_that(lambda broker=broker: broker.get("kept").status == 200, "it answers")  # type: ignore[misc]  # mypy knows no type of a default
            for name in restored:
                assert value(broker, name) == {"is": "old"}
            assert value(broker, "lost") == 404
            assert listed(broker) == restored
        assert time.monotonic() - begin < 10
        assert own(waiting.result(10).json["data"]) == {"is": "old"}  # it waited for a change, and that is one

    for broker in both:  # health and the log say so once, and all is well again
        await_that(lambda broker=broker: SAID in json.dumps(health(broker)[1]), "health says so")  # type: ignore[misc]  # mypy knows no type of a default
        await_that(lambda broker=broker: health(broker)[0] == 200, "it is well again")  # type: ignore[misc]  # mypy knows no type of a default
        said = [line for line in broker.text.splitlines() if SAID in line]
        assert len([line for line in said if "ERROR" in line and "restore_detection" in line]) == 1
        assert len([line for line in said if "ERROR" in line and "healthcheck" in line]) == 1
    for number, broker in enumerate(both):
        assert broker.request("/services/Update/", name="changed", data=f'{{"by": {number}}}').status == 200
        assert broker.request("/services/Delete/", name="deleted").status == 200
        assert value(broker, "deleted") == 404
        assert broker.register("new", "{}").status == (200, 409)[number]
    assert value(first, "changed") == value(second, "changed") == {"is": "old", "by": 1}

    processes = [psutil.Process(broker.pid) for broker in both]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(1)
    used = [sum(process.cpu_times()[:2]) - was for process, was in zip(processes, before, strict=True)]
    assert max(used) < 0.5, "they burn CPU"


def test_a_version_that_is_reached_again_is_another_entrys(
    make_etcd: Callable[..., EtcdCluster], make_broker: Callable[..., RunningBroker], tmp_path: Path
) -> None:
    """The broker that knows the lost entry must not overwrite what was written at the same version afterwards."""
    etcd = make_etcd(1).start_all()
    settings = {"_registry": {**etcd.configuration(f"{PREFIX}again"), "timeout_secs": 2}, **SETTINGS}
    broker = make_broker(settings).start()
    etcd.save(tmp_path / "snapshot")
    assert broker.register("x", '{"owner": "lost"}').status == 200
    (found,) = json.loads(etcd.etcdctl("get", f"{PREFIX}again/entries/x", "--write-out=json"))["kvs"]
    broker.signal(signal.SIGSTOP)
    try:
        etcd.restore(tmp_path / "snapshot")
        while etcd.revision() < found["mod_revision"] - 1:
            etcd.etcdctl("put", "something", "else")
        etcd.etcdctl("put", f"{PREFIX}again/entries/x", '{"owner": "another"}')
        assert etcd.revision() == found["mod_revision"]
        for _ in range(5):  # the revision alone says nothing any more
            etcd.etcdctl("put", "something", "else")
    finally:
        broker.signal(signal.SIGCONT)

    def updated() -> bool:
        return broker.request("/services/Update/", name="x", data='{"seen": true}').status == 200

    await_that(updated, "it answers")
    assert value(broker, "x") == {"owner": "another", "seen": True}
    assert SAID in broker.text


@pytest.mark.parametrize("token", ["", "another-cluster"])
def test_a_cluster_restored_while_no_broker_runs_is_another_registry(
    make_etcd: Callable[..., EtcdCluster], make_broker: Callable[..., RunningBroker], tmp_path: Path, token: str
) -> None:
    """Revisions are not given out twice, cursors and tags of the lost history hold no more; a second start is calm."""
    etcd = make_etcd(1).start_all()
    broker = make_broker({"_registry": etcd.configuration(f"{PREFIX}restore"), **SETTINGS}).start()
    assert broker.register("a", "{}").status == 200
    etcd.save(tmp_path / "snapshot")
    for number in range(20):
        last = broker.request("/services/Replace/", name="a", data=f'{{"n": {number}}}').json["revision"]
    cursor = broker.request("/services/Watch/").json["data"]["cursor"]
    assert broker.stop() == 0
    etcd.restore(tmp_path / "snapshot", token=token)
    broker.start()
    broker.await_logged("while this broker did not run")
    assert broker.request("/services/Watch/", since=cursor).status == 410
    written = broker.request("/services/Replace/", name="a", data='{"n": "new"}').json["revision"]
    assert written > last
    registry = broker.request("/services/Watch/").json["data"]["cursor"].partition(":")[0]
    assert registry != cursor.partition(":")[0]
    broker.restart()
    assert broker.text.count("while this broker did not run") == 1
    assert broker.request("/services/Watch/").json["data"]["cursor"].startswith(registry)

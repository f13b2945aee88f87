"""``/metrics`` of a real broker: what was done is counted; Prometheus' own tool takes it, and the alerts."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.etcd_cluster import needs_etcd
from tests.support.running import RunningBroker
from tests.support.witness import eventually

DEPLOY = Path(__file__).parents[2] / "deploy"
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here (Debian: prometheus)")
DEMO = """
def Hi(rh):
    return "hi"

def Bad(rh):
    raise ValueError("bad")
"""
SECRET_NAME = "canary-entry-77"


def check(*arguments: str, stdin: str = "", where: Path = DEPLOY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], input=stdin, cwd=where, capture_output=True, text=True, timeout=60, check=False
    )


def values(broker: RunningBroker, **headers: str) -> dict[tuple[str, ...], float]:
    """Return name and labels' values of each sample to its value."""
    answer = broker.request("/metrics", "GET", None, headers)
    assert answer.status == 200, answer
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


@pytest.fixture
def broker(make_broker: Callable[..., RunningBroker]) -> RunningBroker:
    settings: dict[str, Any] = {"api": {"metrics": "open"}, "demo": {"_access_key": "demo-key-4711"}}
    made = make_broker(settings)
    (made.lib / "demo.py").write_text(DEMO)
    return made.start()


def test_what_was_done_is_counted(broker: RunningBroker) -> None:
    for number in range(3):
        assert broker.register(f"{SECRET_NAME}-{number}").status == 200
    assert broker.register(f"{SECRET_NAME}-0").status == 409
    assert broker.request("/demo/Hi/", headers={"X-Access-Key": "demo-key-4711"}).status == 200
    assert broker.request("/demo/Bad/", headers={"X-Access-Key": "demo-key-4711"}).status == 500
    assert broker.request("/demo/Hi/", headers={"X-Access-Key": "wrong-key-4712"}).status == 401
    broker.request("/services/Open/", session="s1", ttl="60")
    broker.request("/services/Lock/", name="l", session="s1")
    broker.request("/services/Open/", session="s2", ttl="60")
    broker.request("/services/Close/", session="s2")
    expected = {
        ("bpbroker_requests_total", "Register", "services", "200"): 3,
        ("bpbroker_requests_total", "Register", "services", "409"): 1,
        ("bpbroker_request_duration_seconds_count", "Register", "services"): 4,
        ("bpbroker_requests_total", "Bad", "demo", "500"): 1,
        ("bpbroker_extension_calls_total", "demo", "answered"): 1,
        ("bpbroker_extension_calls_total", "demo", "failed"): 1,
        ("bpbroker_wrong_keys_total", "https"): 1,
        ("bpbroker_entries",): 3,
        ("bpbroker_sessions",): 1,
        ("bpbroker_ended_sessions_total", "closed"): 1,
        ("bpbroker_ended_sessions_total", "lost"): 0,
        ("bpbroker_locks",): 1,
        ("bpbroker_storage_ok",): 1,
        ("bpbroker_health_ok",): 1,
        ("bpbroker_part_ok", "extension demo"): 1,
        ("bpbroker_actor_restarts_total", "registry"): 0,
        ("bpbroker_backup_interval_seconds",): 3600,
    }
    found: dict[tuple[str, ...], float] = {}

    def is_counted() -> bool:  # a part that does not answer within a quarter of a second is shown as it was before
        found.update(values(broker))
        return {key: found.get(key) for key in expected} == expected

    eventually(is_counted, lambda: {key: found.get(key) for key in expected})
    assert found["bpbroker_commits_total", "done"] >= 7
    assert found["bpbroker_commit_duration_seconds_sum",] >= found["bpbroker_fsync_duration_seconds_sum",] * 0.1 > 0
    assert found["bpbroker_handshakes_total", "done"] >= 12
    assert found["bpbroker_certificate_not_after_timestamp_seconds",] > time.time() + 86400
    assert found["bpbroker_free_disk_bytes",] > found["bpbroker_journal_bytes",] > 0
    text = broker.request("/metrics", "GET").body.decode()
    for secret in (SECRET_NAME, "demo-key-4711", "wrong-key-4712", "s1", "127.0.0.1"):
        assert f'"{secret}' not in text
    assert "127.0.0.1" not in text


def test_waits_and_watches_are_seen_while_they_last(broker: RunningBroker) -> None:
    connections = []
    try:
        for path in (
            "/services/Get/?name=absent&wait=60",
            "/services/List/?prefix=a&count=3&wait=60",
            "/services/Watch/?prefix=a&wait=60&since="
            + broker.request("/services/Watch/", "GET").json["data"]["cursor"],
        ):
            connections.append(broker.connect())
            connections[-1].request("GET", path)
        deadline = time.monotonic() + 30
        while True:
            found = values(broker)
            waiting = {kind: found.get(("bpbroker_waiting_requests", kind)) for kind in ("read", "watch", "lock")}
            if waiting == {"read": 2, "watch": 1, "lock": 0}:
                break
            assert time.monotonic() < deadline, waiting
            time.sleep(0.3)
    finally:
        for connection in connections:
            connection.close()


def test_a_lost_session_is_counted_and_what_it_lost(broker: RunningBroker) -> None:
    broker.request("/services/Open/", session="s1", ttl="2")
    broker.request("/services/Register/", name="node-7", data="x", session="s1")
    deadline = time.monotonic() + 30
    while values(broker)["bpbroker_sessions",]:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    found = values(broker)
    assert found["bpbroker_ended_sessions_total", "lost"] == found["bpbroker_lost_entries_total",] == 1
    assert found["bpbroker_ended_sessions_total", "closed"] == 0


def test_a_reload_changes_who_may_read_them(broker: RunningBroker) -> None:
    assert broker.request("/metrics", "GET").status == 200
    text = broker.config.read_text()
    broker.config.write_text(text.replace('"metrics": "open"', '"metrics": "keyed"'))
    assert broker.bpbroker("reload").returncode == 0
    assert broker.request("/metrics", "GET").status == 401
    key = broker.bpbroker("key", "add", "prometheus", "--allow", "metrics")
    assert (key.returncode, key.stderr) == (0, "")
    assert values(broker, Authorization=f"Bearer {key.stdout.strip()}")["bpbroker_entries",] == 0


def test_a_value_that_is_none_of_the_three_is_refused(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"api": {"metrics": "opne"}})
    ended = broker.bpbroker("validate")
    assert ended.returncode == 78
    assert "api.metrics" in ended.stderr
    assert "did you mean open?" in ended.stderr


@promtool
@pytest.mark.parametrize("accept", ["text/plain"])
def test_promtool_takes_the_metrics(broker: RunningBroker, accept: str) -> None:
    broker.register("foo")
    text = broker.request("/metrics", "GET", None, {"Accept": accept}).body.decode()
    ended = check("check", "metrics", stdin=text)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@promtool
def test_promtool_takes_the_alerts_and_they_fire_when_they_should(tmp_path: Path) -> None:
    ended = check("check", "rules", "alerts.yml")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shutil.copy(Path(__file__).with_name("data") / "alerts_test.yml", tmp_path)
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    ended = check("test", "rules", "alerts_test.yml", where=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_etcd
def test_a_broker_on_etcd_shows_what_there_is_of_it(
    make_broker: Callable[..., RunningBroker], etcd_section: dict[str, Any]
) -> None:
    broker = make_broker({"api": {"metrics": "open"}, "_registry": etcd_section}).start()
    assert broker.register("foo").status == 200
    assert broker.request("/services/Open/", session="s1", ttl="60").status == 200
    assert broker.request("/services/Close/", session="s1").status == 200
    deadline = time.monotonic() + 30
    while not (found := values(broker))["bpbroker_ended_sessions_total", "ended"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    assert (found["bpbroker_entries",], found["bpbroker_storage_ok",]) == (1, 1)
    assert found["bpbroker_store_age_seconds",] >= 0
    assert found["bpbroker_commits_total", "done"] >= 1
    assert found["bpbroker_commit_duration_seconds_count",] >= 1
    assert not [name for name in found if name[0].startswith("bpbroker_fsync") or name[0] == "bpbroker_journal_bytes"]

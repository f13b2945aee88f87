"""Extensions and secrets of brokers whose registry is in etcd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.crowd import await_that, health, own
from tests.support.etcd_cluster import PASSWORDS, PREFIX, USER, EtcdCluster, needs_etcd
from tests.support.running import RunningBroker

pytestmark = needs_etcd

Make = Callable[..., RunningBroker]
CANARY = PASSWORDS[USER]

INVENTORY = """
import bpbroker.config
from bpbroker.errors import Unavailable

def Add(rh):
    rh.registry.register(rh.qs["name"], {"from": "an extension"})
    rh.registry.update(rh.qs["name"], {"more": 1})
    rh.data = rh.registry.get(rh.qs["name"])

def Write(rh):
    rh.registry.replace(rh.qs["name"], {"n": 2})

def Drop(rh):
    rh.registry.delete(rh.qs["name"])

def Names(rh):
    rh.data = sorted(rh.registry.list())

def Careful(rh):
    try:
        rh.registry.replace(rh.qs["name"], {"n": 3})
    except Unavailable as error:
        rh.data = {"met": type(error).__name__, "says": str(error)}

def Settings(rh):
    rh.data = bpbroker.config.data

def Everything(rh):
    import os
    rh.data = repr([rh.config, rh.qs, vars(rh), dict(os.environ), bpbroker.config.data])
"""


def make_one(make_broker: Make, section: dict[str, Any]) -> RunningBroker:
    broker = make_broker(
        {
            "_registry": {**section, "timeout_secs": 2},
            "_global": {"healthcheck_freq_sec": 1},
            "inventory": {"_access_key": ""},
        }
    )
    (broker.lib / "inventory.py").write_text(INVENTORY)
    return broker


def call(broker: RunningBroker, method: str, name: str = "") -> Any:
    return broker.request(f"/inventory/{method}/", name=name)


def test_an_extension_uses_the_registry_that_brokers_share(etcd_section: dict[str, Any], make_broker: Make) -> None:
    first, second = (make_one(make_broker, etcd_section).start() for _ in range(2))
    added = call(first, "Add", "n1")
    assert added.status == 200
    assert own(added.json) == {"from": "an extension", "more": 1}
    assert own(second.get("n1").json["data"]) == {"from": "an extension", "more": 1}
    taken = call(second, "Add", "n1")
    assert (taken.status, taken.json["message"]) == (409, "Entry 'n1' already exists")
    assert call(second, "Write", "n1").status == 200
    assert own(first.get("n1").json["data"]) == {"n": 2}
    assert call(second, "Names").json == ["n1"]
    assert call(second, "Drop", "n1").status == 200
    assert first.get("n1").status == 404


def test_an_extension_is_told_that_the_registry_is_away(
    make_etcd: Callable[..., EtcdCluster], make_broker: Make
) -> None:
    etcd = make_etcd().start_all()
    broker = make_one(make_broker, etcd.configuration(f"{PREFIX}foo")).start()
    assert call(broker, "Add", "n1").status == 200
    for number in range(3):
        etcd.kill(number)
    # Everything that a person may look at says what is wrong.
    await_that(lambda: health(broker)[0] == 503, "healthy without a cluster")
    ready = broker.request("/ready", "GET")
    assert (ready.status, ready.json["message"]) == (
        503,
        "Not ready: registry: The registry's etcd cluster does not answer",
    )
    seen = broker.bpclient("doctor").stdout
    assert "the registry answers 503: The registry's etcd cluster does not answer" in seen
    assert "most members of _registry.endpoints" in broker.bpbroker("doctor").stdout
    # What it lets pass is the answer, with the registry's own words; it is no failure of the extension.
    passed = call(broker, "Write", "n1")
    assert passed.status == 503
    assert "etcd cluster does not answer" in passed.json["message"]
    careful = call(broker, "Careful", "n1")
    assert careful.status == 200
    assert careful.json["met"] == "Unavailable"
    assert "etcd cluster does not answer" in careful.json["says"]
    assert call(broker, "Settings").status == 200  # who does not ask the registry goes on
    assert "Traceback" not in broker.text
    etcd.start_all()
    await_that(lambda: call(broker, "Write", "n1").status == 200, f"it does not come back: {health(broker)}")


@pytest.mark.parametrize("away", [False, True])
def test_the_password_of_the_cluster_is_shown_nowhere(
    make_etcd: Callable[..., EtcdCluster], make_broker: Make, away: bool
) -> None:
    etcd = make_etcd()
    if not away:
        etcd.start_all()
    broker = make_one(make_broker, etcd.configuration(f"{PREFIX}foo"))
    broker.options = ("--log-level", "debug")
    broker.start()
    shown: dict[str, str] = {}
    token = broker.note["token"]
    for path in ("/health", "/ready", "/live", "/openapi.json"):
        answer = broker.request(path, "GET")
        shown[path] = f"{answer.headers} {answer.body!r}"
    for method in ("Status", "Backup", "Reload", "Extensions", "Nope"):
        answer = broker.request(f"/_control/{method}/", headers={"Authorization": f"Bearer {token}"})
        shown[f"_control {method}"] = f"{answer.status} {answer.reason} {answer.body!r}"
    for method in ("Settings", "Everything"):
        answer = call(broker, method)
        assert answer.status == 200, answer
        shown[method] = repr(answer.body)
    for name in ("_registry", "foo", "password"):
        shown[f"get {name}"] = repr(broker.get(name))
    for words in (
        ("status",), ("doctor",), ("check",), ("validate",), ("backups",), ("extensions",), ("reload",),
        ("backup",), ("certificate",), ("--debug", "doctor"), ("configure", "--dry-run"),
    ):  # fmt: skip
        done = broker.bpbroker(*words, stdin="{}")
        shown[" ".join(words)] = f"{done.stdout} {done.stderr}"
    shown["bpclient doctor"] = broker.bpclient("doctor").stdout
    shown["note"] = json.dumps(broker.note)
    shown["command line"] = repr(Path(f"/proc/{broker.pid}/cmdline").read_bytes())
    assert broker.stop() == 0
    shown["log"] = broker.text
    assert [where for where, text in shown.items() if CANARY in text] == []
    # It is kept where it was given, readable by its owner alone.
    assert CANARY in broker.config.read_text()
    assert broker.config.stat().st_mode & 0o077 == 0
    for backup in (broker.home / "backups").glob("*"):
        assert backup.stat().st_mode & 0o077 == 0

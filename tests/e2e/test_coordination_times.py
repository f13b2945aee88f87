"""Clocks that are set, and brokers that are killed or stopped: what coordination promises does not follow them."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.support.etcd_cluster import needs_etcd
from tests.support.running import RunningBroker
from tests.support.set_clock import CLOCK, TEN_YEARS


def ask(broker: RunningBroker, method: str, **parameters: Any) -> tuple[int, Any]:
    answer = broker.call(f"/services/{method}/", **parameters)
    return answer.status, json.loads(answer.body)


def data(broker: RunningBroker, method: str, **parameters: Any) -> Any:
    status, body = ask(broker, method, **parameters)
    assert status == 200, body
    return body.get("data")


def await_gone(broker: RunningBroker, name: str) -> None:
    """Wait until an entry is gone, by this process's clock."""
    end = time.monotonic() + 30
    while ask(broker, "Get", name=name)[0] != 404:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("store", ["embedded", pytest.param("etcd", marks=needs_etcd)])
def test_clocks_that_are_set_end_nothing(
    store: str, make_broker: Callable[..., RunningBroker], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    clock = tmp_path / "clock"
    broker = make_broker({"_registry": request.getfixturevalue("etcd_section")} if store == "etcd" else None)
    # urllib3 finds before 2025 odd, and certificates perhaps wrong.
    warnings = f"{broker.environ['PYTHONWARNINGS']},ignore:System time is way off"
    broker.environ |= {"PYTHONPATH": str(tmp_path), "CLOCK": str(clock), "PYTHONWARNINGS": warnings}
    broker.start()
    data(broker, "Open", session="s1", ttl=60)
    data(broker, "Open", session="s2", ttl=60)
    data(broker, "Register", name="node", data="up", session="s1")
    token = data(broker, "Lock", name="db", session="s1")["token"]
    assert data(broker, "Allocate", pool="id", owner="o1")["number"] == 1
    data(broker, "Release", pool="id", owner="o1", quarantine=3600)
    if store == "embedded":  # on etcd it is etcd that ends them
        data(broker, "Open", session="short", ttl=2)
        data(broker, "Register", name="dying", data="up", session="short")
        clock.write_text(str(-TEN_YEARS))
        await_gone(broker, "dying")
    last = token
    for restart in (False, True):
        for secs in (TEN_YEARS, -TEN_YEARS, 0):
            clock.write_text(str(secs))
            if restart:
                broker.kill()
                broker.start()
            time.sleep(0.1)  # so that the registry wakes up with it
            assert data(broker, "Renew", session="s1")["ttl"] == 60
            assert data(broker, "Get", name="node")["_str"] == "up"
            assert data(broker, "Holder", name="db")["token"] == token
            status, refused = ask(broker, "Lock", name="db", session="s2")
            assert status == 409
            held_secs = int(refused["message"].partition("(for ")[2].removeprefix("more than ").partition(" s)")[0])
            assert held_secs < 3600, refused
            assert data(broker, "Allocate", pool="id", owner=f"{secs}")["number"] != 1
            data(broker, "Release", pool="id", owner=f"{secs}")
            status, written = ask(broker, "Replace", name="a", data="x", lock=f"db:{token}")
            assert (status, written["revision"] > last) == (200, True)
            last = written["revision"]
    data(broker, "Unlock", name="db", session="s1")
    assert data(broker, "Lock", name="db", session="s2")["token"] > last
    assert broker.stop() == 0
    assert "Traceback" not in broker.text


def test_a_broker_that_stood_still_ends_no_session_early(broker: RunningBroker) -> None:
    data(broker, "Open", session="s1", ttl=2)
    data(broker, "Register", name="node", data="up", session="s1")
    broker.signal(signal.SIGSTOP)
    time.sleep(5)
    broker.signal(signal.SIGCONT)
    assert data(broker, "Renew", session="s1")["ttl"] == 2
    assert data(broker, "Get", name="node")["_str"] == "up"


def test_a_watch_with_a_cursor_file_goes_on_over_kills(broker: RunningBroker, tmp_path: Path) -> None:
    """1,000 writes, five kills: each arrives once, in order. What was forgotten by a kill is told by a reset."""
    out, writes, over = tmp_path / "events", 1000, threading.Event()
    with out.open("wb") as file:
        watching = subprocess.Popen(
            [
                *broker.command("bpbroker.client", "-b", f"127.0.0.1:{broker.port}", "watch"),
                "--prefix", "w/", "--cursor-file", str(tmp_path / "cursor"), "--timeout", "3m",
            ],
            env=broker.environ, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "cursor").exists():
            assert watching.poll() is None, watching.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        done = [0]

        def write() -> None:
            for number in range(writes):
                answered = False
                while not (answered or over.is_set()):  # a write of the same data may be sent again
                    with suppress(OSError, HTTPException):
                        answered = broker.call("/services/Register/", name=f"w/{number:04}", data="x").status in (
                            200,
                            409,
                        )
                done[0] = number + 1

        writer = threading.Thread(target=write)
        writer.start()
        for upto in (150, 300, 450, 600, 750):
            while done[0] < upto:
                assert writer.is_alive()
                time.sleep(0.005)
            broker.kill()
            broker.start()
        writer.join(120)
        assert done[0] == writes

        def seen() -> list[tuple[str, str, int]]:
            lines = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
            return [(line["type"], line.get("name", ""), line["revision"]) for line in lines]

        end = time.monotonic() + 60
        while len({name for kind, name, _ in seen() if kind == "put"}) < writes:
            assert watching.poll() is None, watching.communicate()
            assert time.monotonic() < end, (len(seen()), seen()[-3:])
            time.sleep(0.05)
    finally:
        over.set()
        watching.terminate()
        watching.communicate(timeout=30)
    puts = [(name, revision) for kind, name, revision in seen() if kind == "put"]
    assert [name for name, _ in puts] == [f"w/{number:04}" for number in range(writes)]
    assert [revision for _, revision in puts] == sorted({revision for _, revision in puts})

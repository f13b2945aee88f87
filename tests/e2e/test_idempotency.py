"""A repeated call with one Idempotency-Key runs once: at the same time, when its answer was lost, across a restart."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.running import Answer, RunningBroker, untrusting
from tests.support.witness import eventually

MODULE = """
import time
from pathlib import Path
RUNS = Path(__file__).with_name("runs")
GATE = Path(__file__).with_name("gate")
def Once(rh):
    with RUNS.open("a") as file:
        file.write("x")
    while rh.qs.get("data") == "wait" and not GATE.exists():
        time.sleep(0.01)
    rh.data = {"runs": RUNS.stat().st_size}
"""
KEY = {"Idempotency-Key": "install-42"}


@pytest.fixture
def once(make_broker: Callable[..., RunningBroker]) -> RunningBroker:
    broker = make_broker({"once": {}})
    (broker.lib / "once.py").write_text(MODULE)
    return broker.start()


def runs(broker: RunningBroker) -> int:
    note: Path = broker.lib / "runs"
    return note.stat().st_size if note.exists() else 0


def call(broker: RunningBroker, data: str) -> Answer:
    return broker.call("/once/Once", KEY, data=data)


def test_a_repeat_gets_the_stored_answer(once: RunningBroker) -> None:
    assert call(once, "a").json == {"runs": 1}
    assert call(once, "a").json == {"runs": 1}
    once.restart()
    assert call(once, "a").json == {"runs": 1}
    assert once.call("/once/Once", {"Idempotency-Key": "install-43"}, data="a").json == {"runs": 2}
    assert once.call("/once/Once", data="a").json == {"runs": 3}
    assert once.config.with_name("bpbroker.json.answers").stat().st_mode & 0o777 == 0o600


def test_repeats_at_the_same_time_run_once(once: RunningBroker) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: call(once, "a"), range(20)))
    assert [answer.json for answer in answers] == [{"runs": 1}] * 20
    assert runs(once) == 1


@pytest.mark.parametrize("restart", [False, True])
def test_who_lost_the_answer_gets_it(once: RunningBroker, restart: bool) -> None:
    with untrusting().wrap_socket(socket.create_connection(("127.0.0.1", once.port), 30)) as client:
        head = "POST /once/Once/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(
            f"{head}Idempotency-Key: install-42\r\nContent-Length: 16\r\n\r\n".encode() + b'{"data": "wait"}'
        )
        eventually(lambda: runs(once) == 1)
    (once.lib / "gate").touch()
    if restart:
        assert once.call("/once/Once", data="a").json == {"runs": 2}  # behind the other one, which is over
        once.restart()
    assert call(once, "wait").json["runs"] in (1, 2)
    assert runs(once) == (2 if restart else 1)


def test_a_call_that_the_broker_did_not_survive_is_not_run_again(once: RunningBroker) -> None:
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(call, once, "wait")
        eventually(lambda: runs(once) == 1)
        once.kill()
        assert cut.exception(60) is not None
    (once.lib / "gate").touch()
    once.start()
    again = call(once, "wait")
    assert (again.status, "what it did is not known" in again.json["message"]) == (500, True)
    assert runs(once) == 1


def test_the_client_tries_again_under_one_key(once: RunningBroker) -> None:
    """It goes away before the answer, as on a bad network; then the next try is told what the first one did."""
    with ThreadPoolExecutor(1) as pool:
        client = pool.submit(once.bpclient, "execute", "--method", "once.Once", "--data", "wait")
        eventually(lambda: runs(once) == 1)
        once.signal(15)
        begin = time.monotonic()
        assert once.wait() == 0
        assert time.monotonic() - begin < 60
        (once.lib / "gate").touch()
        once.start()
        done = client.result(120)
    assert runs(once) == 1, done
    assert done.stdout == ""
    assert done.returncode != 0
    assert "not known" in done.stderr or "stopping" in done.stderr, done.stderr


def test_answers_of_another_registry_are_put_aside(
    once: RunningBroker, make_broker: Callable[..., RunningBroker]
) -> None:
    assert call(once, "a").json == {"runs": 1}
    once.kill()  # part of the answers are in SQLite's log
    other = make_broker({"once": {}})
    (other.lib / "once.py").write_text(MODULE)
    other.start().stop()
    for path in once.config.parent.glob("*.answers*"):
        shutil.copy(path, other.config.parent)
    other.start()
    other.await_logged("holds answers of the registry")
    assert call(other, "a").json == {"runs": 1}
    assert runs(other) == 1
    (kept,) = other.home.rglob("*.answers.other-*")
    with closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT key FROM answers").fetchall() == [("install-42",)]
    assert other.restart().text.count("holds answers of the registry") == 1
    assert call(other, "a").json == {"runs": 1}


def test_a_file_that_was_written_anew_keeps_its_answers(once: RunningBroker) -> None:
    assert call(once, "a").json == {"runs": 1}
    once.stop()
    once.config.write_text('{"once": {}}')
    once.start()
    assert call(once, "a").json == {"runs": 1}

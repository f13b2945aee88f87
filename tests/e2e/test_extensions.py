"""Extensions through a real broker: access, failures, limits, reload."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.extension import gone
from tests.support.running import RunningBroker
from tests.support.witness import eventually

MODULE = """
import json, os, signal, subprocess, sys, time
from os import system
CONSTANT = 1
class Class:
    def __init__(self, rh): pass
def Test(rh): rh.data = json.dumps(rh.qs)
def _hidden(rh): rh.data = "hidden"
def Sleep(rh):
    child = subprocess.Popen(["sleep", "1000"])
    with open(rh.qs["data"], "w") as note:
        note.write(str(child.pid))
    time.sleep(1000)
def Slow(rh): time.sleep(0.2)
def Exit(rh): sys.exit(0)
def OsExit(rh): os._exit(3)
def Crash(rh): os.kill(os.getpid(), signal.SIGSEGV)
def Raise(rh): raise ValueError("canary-7391")
def Split(rh):
    rh.status, rh.status_message = 418, "tea\\r\\nX-Bad: 1"
def Eat(rh):
    held = []
    while True:
        held.append(bytearray(1 << 20))
def Set(rh): rh.data = eval(rh.qs["data"])
def Status(rh): rh.status = rh.qs["data"]
def Sockets(rh):
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    rh.data = [os.readlink(name) for name in names if os.path.exists(name)]
"""

COMPARE_AND_SET = """
from bpbroker.extensions import NotFound, PreconditionFailed
def Count(rh):
    while True:
        try:
            now = rh.registry.get("count")
            n, revision = now["n"], now.revision
        except NotFound:
            n, revision = 0, 0
        try:
            rh.data = rh.registry.replace("count", {"n": n + 1}, revision=revision).own
        except PreconditionFailed:
            continue
        return
def Register(rh): rh.registry.register(rh.qs["name"], {})
"""

MakeBroker = Callable[..., RunningBroker]


@pytest.fixture
def make(make_broker: Callable[..., RunningBroker]) -> Callable[..., RunningBroker]:
    def make(**section: Any) -> RunningBroker:
        broker = make_broker({"demo": section, "other": {}, "os": {}, "pkg.sub": {}, "api": {}, "worker": {}})
        (broker.lib / "pkg").mkdir()
        for name in ("demo.py", "other.py", "os.py", "pkg/sub.py"):
            (broker.lib / name).write_text(MODULE)
        return broker.start()

    return make


def unharmed(broker: RunningBroker, pid: int) -> None:
    """See that registry and other namespaces serve as before."""
    begin = time.monotonic()
    assert broker.request("/services/Replace/", name="fresh", data="x").status == 200
    assert broker.get("fresh").status == 200
    assert broker.request("/other/Test", data="x").json == {"data": "x"}
    assert time.monotonic() - begin < 20  # 1 s on a quiet machine
    assert broker.pid == pid
    assert broker.request("/health", "GET").status == 200


def test_only_what_is_enabled_and_defined_there_is_called(make: Callable[..., RunningBroker]) -> None:
    broker = make()
    assert broker.request("/pkg.sub/Test", data="x").json == {"data": "x"}
    paths = {
        f"/{name}/Test": "Unauthorized package" for name in ("_config", "_global", "api", "worker", "subprocess", "pkg")
    }
    paths["/os/system"] = paths["/pkg/sub.Test"] = "Unauthorized"
    for method in ("_hidden", "__class__", "%5fhidden", "a.b", "..%2f", "/", "Class", "CONSTANT", "system", "json"):
        paths[f"/demo/{method}"] = "Unauthorized method"
    for path, message in paths.items():
        answer = broker.request(path, data="x")
        assert (answer.status, answer.json["message"].startswith(message)) == (401, True), (path, answer)


def test_a_hanging_call_ends_with_all_it_started(make: Callable[..., RunningBroker], tmp_path: Path) -> None:
    broker, note = make(_timeout_secs=4), tmp_path / "note"
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(broker.request, "/demo/Sleep", data=str(note))
        unharmed(broker, broker.pid)
        answer = hanging.result(60)
    assert answer.status == 504
    assert gone(int(note.read_text()))
    assert broker.request("/demo/Test", data="x").status == 200


@pytest.mark.parametrize("method", ["Exit", "OsExit", "Crash"])
def test_a_crash_hurts_its_own_call_only(make: Callable[..., RunningBroker], method: str) -> None:
    broker = make()
    answer = broker.request(f"/demo/{method}")
    assert (answer.status, answer.json["success"]) == (500, False)
    assert broker.request("/demo/Test", data="x").status == 200
    unharmed(broker, broker.pid)


def test_what_it_raises_is_in_the_log_only(make: Callable[..., RunningBroker]) -> None:
    broker = make()
    answer = broker.request("/demo/Raise", headers={"X-Request-Id": "request-of-mine"})
    assert answer.status == 500
    assert "request-of-mine" in answer.json["message"]
    assert b"canary" not in answer.body + broker.request("/health", "GET").body
    assert "canary-7391" in broker.text
    assert "request-of-mine" in broker.text


def test_no_header_is_injected_and_no_socket_inherited(make: Callable[..., RunningBroker]) -> None:
    broker = make()
    answer = broker.request("/demo/Split")
    assert (answer.status, answer.reason) == (418, "tea X-Bad: 1")
    assert "X-Bad" not in answer.headers
    assert not [name for name in broker.request("/demo/Sockets").json if name.startswith("socket:")]


def test_who_eats_memory_hurts_its_own_call_only(make: Callable[..., RunningBroker]) -> None:
    broker = make(_memory_max_bytes=256 << 20)
    assert broker.request("/demo/Test", data="x").status == 200
    process = psutil.Process(broker.pid)
    before = process.memory_info().rss
    answer = broker.request("/demo/Eat", headers={"X-Request-Id": "hungry"})
    assert (answer.status, "hungry" in answer.json["message"]) == (500, True)
    assert process.memory_info().rss < before + (32 << 20)
    assert "MemoryError" in broker.text
    assert broker.request("/demo/Test", data="x").status == 200
    unharmed(broker, broker.pid)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "there is no demo.py in the lib folder"),
        ("def Test(rh:\n", "it does not parse: '(' was never closed, line 1"),
        (
            "import nothing_of_this_name\ndef Test(rh): pass\n",
            "it cannot be imported: ModuleNotFoundError of nothing_of_this_name, line 1",
        ),
        ("from os import nothing_like_it\ndef Test(rh): pass\n", "it cannot be imported: ImportError of os, line 1"),
    ],
)
def test_why_a_module_cannot_be_used_is_in_log_and_health(
    make: Callable[..., RunningBroker], source: str | None, reason: str
) -> None:
    broker = make()
    (broker.lib / "demo.py").unlink()
    if source is not None:
        (broker.lib / "demo.py").write_text(source)
    done = broker.bpbroker("reload")
    assert (done.returncode, reason in done.stderr) == ((0, False) if source is None else (1, True))
    for _ in range(3):
        answer = broker.request("/demo/Test", data="x")
        assert (answer.status, answer.json["message"]) == (401, "Unauthorized method")

    def told() -> tuple[bool, str]:
        parts = broker.request("/health", "GET").json["data"]["parts"]
        return next((part["ok"], part["detail"]) for part in parts if part["name"] == "extension demo")

    # On a busy machine a ping may take longer than who asks for the health is made to wait.
    eventually(lambda: told() == (False, reason))
    assert f"The extension demo cannot be used: {reason}" in broker.text
    eventually(lambda: reason in broker.bpbroker("extensions").stdout)
    (broker.lib / "demo.py").write_text(MODULE)
    assert broker.bpbroker("reload").returncode == 0
    assert broker.request("/demo/Test", data="x").status == 200, broker.text
    unharmed(broker, broker.pid)


def test_whatever_a_method_answers_with(make: Callable[..., RunningBroker]) -> None:
    broker = make()
    process = psutil.Process(broker.pid)
    sent = {"None": b"", "b'\\xff\\x00'": b"\xff\x00", "{'a': [1, None]}": b'{"a": [1, null]}', "'ü'": "ü".encode()}
    for value, body in sent.items():
        answer = broker.request("/demo/Set", data=value)
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["Content-Length"] == str(len(body))
    before = process.memory_info().rss
    for method, value in (("Set", "b'x' * (100 << 20)"), ("Set", "object()"), ("Set", "7"), ("Status", "x")):
        answer = broker.request(f"/demo/{method}", data=value)
        assert (answer.status, answer.json["success"]) == (500, False), value
        assert "the broker's log says more under" in answer.json["message"]
    assert process.memory_info().rss < before + (32 << 20)
    assert broker.request("/demo/Status", data="204").status == 204
    unharmed(broker, broker.pid)


def test_calls_beyond_the_queue_are_refused(make: Callable[..., RunningBroker]) -> None:
    broker = make(_queue_max=5)
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: broker.request("/demo/Slow"), range(100)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 6
    refused = next(answer for answer in answers if answer.status == 503)
    assert int(refused.headers["Retry-After"]) >= 1
    unharmed(broker, broker.pid)


def test_a_changed_module_takes_effect_at_the_reload(make: Callable[..., RunningBroker]) -> None:
    broker = make()
    assert broker.request("/demo/New").status == 401
    (broker.lib / "demo.py").write_text(MODULE + "\ndef New(rh): rh.data = 'new'\n")
    done = broker.bpbroker("reload")
    assert done.returncode == 0, done.stderr
    assert broker.request("/demo/New").body == b"new"


@pytest.mark.parametrize("source", ["import nothing_of_this_name\n", "no python\n"])
def test_a_reload_with_a_broken_module_says_so_and_the_one_before_goes_on(
    make: Callable[..., RunningBroker], source: str
) -> None:
    broker = make()
    assert broker.request("/demo/Test", data="x").status == 200
    (broker.lib / "demo.py").write_text(source)
    for _ in range(2):
        done = broker.bpbroker("reload")
        assert done.returncode == 1
        assert "extension demo: it " in done.stderr
        assert "line 1; the module that was imported before stays in service" in done.stderr
        assert broker.request("/demo/Test", data="x").status == 200

    def told() -> bool:
        rows = broker.bpbroker("status").stdout.splitlines()
        (row,) = [row for row in rows if row.startswith("extension demo ")]
        return " warning " in row and "stays in service" in row

    eventually(told)
    (broker.lib / "demo.py").write_text(MODULE)
    assert broker.bpbroker("reload").returncode == 0
    unharmed(broker, broker.pid)


def test_reloads_and_new_sections_drop_no_request(make: Callable[..., RunningBroker]) -> None:
    broker = make()
    ended = threading.Event()

    def go_on(path: str) -> list[int]:
        statuses = []
        while not ended.is_set():
            statuses.append(broker.request(path, data="x", name="kept").status)
        return statuses

    with ThreadPoolExecutor(3) as pool:
        traffic = [pool.submit(go_on, path) for path in ("/demo/Slow", "/other/Test", "/services/Replace/")]
        try:
            for number in range(5):
                (broker.lib / "demo.py").write_text(f"{MODULE}\ndef New{number}(rh): rh.data = 'new'\n")
                assert broker.bpbroker("reload").returncode == 0
                assert broker.request(f"/demo/New{number}").body == b"new"
                script = broker.home / f"late{number}.py"
                script.write_text("def Hello(rh): rh.data = 'late'\n")
                done = broker.bpbroker("install-extension", "--script", str(script), "--enable")
                assert done.returncode == 0, done.stderr
                assert broker.request(f"/late{number}/Hello").body == b"late"  # at once, not a moment later
        finally:
            ended.set()
    for each in traffic:
        assert len(each.result()) > 3
        assert set(each.result()) == {200}


def test_stopping_leaves_no_process(make: Callable[..., RunningBroker], tmp_path: Path) -> None:
    broker, note = make(), tmp_path / "note"
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(broker.request, "/demo/Sleep", data=str(note))
        while not (note.exists() and note.read_text()):
            time.sleep(0.01)
        begin = time.monotonic()
        assert broker.stop() == 0
        assert time.monotonic() - begin < 30
        assert hanging.exception(60) is not None or hanging.result().status == 503
    assert gone(int(note.read_text()))
    assert not os.path.lexists(broker.lib / "__pycache__")


def test_calls_in_several_processes_lose_no_change_that_they_compare_and_set(make_broker: MakeBroker) -> None:
    broker = make_broker({"demo": {"_workers": 3}})
    (broker.lib / "demo.py").write_text(COMPARE_AND_SET)
    broker.start()
    with ThreadPoolExecutor(6) as threads:
        seen = list(threads.map(lambda _: broker.call("/demo/Count/").json["n"], range(12)))
    assert sorted(seen) == list(range(1, 13))
    refused = broker.call("/demo/Register/", name="count")
    assert (refused.status, refused.json["message"]) == (409, "Entry 'count' already exists")

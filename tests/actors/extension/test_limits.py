"""Calls that hang, fail or end their process: they hurt themselves only."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from bpbroker import windows
from bpbroker.errors import (
    ExtensionFailed,
    TimedOut,
    Unauthorized,
)
from tests.support.extension import Made, Make, gone
from tests.support.systems import is_wine, posix_only, windows_only

# --- time limit ---


def test_a_call_past_its_limit_is_killed_with_all_it_started(make: Make, tmp_path: Path) -> None:
    demo, note = make(_timeout_secs=4), tmp_path / "pid"
    pid = demo.body("Echo")["pid"]
    with pytest.raises(TimedOut, match="longer than 4 s") as caught:
        demo.call("Grandchild", data=str(note))
    assert not caught.value.outcome_known
    assert gone(pid)
    assert gone(int(note.read_text()))
    assert demo.body("Echo")["pid"] != pid


ESCAPES = """
import os, subprocess, sys, time

START = (
    "import subprocess; null = subprocess.DEVNULL;"
    "print(subprocess.Popen(['sleep', '300'], stdout=null, stderr=null, start_new_session=True).pid)"
)


def daemon():
    # As a daemon does it: the process between ends, so that its parent is no longer in the way; a session of its own.
    done = subprocess.run([sys.executable, "-c", START], stdout=subprocess.PIPE, start_new_session=True)
    return int(done.stdout)


def Restart(rh):
    rh.data = {'pid': daemon()}


def Hang(rh):
    direct = subprocess.Popen(["sleep", "300"], start_new_session=True)
    with open(rh.qs["data"] + ".new", "w") as file:
        file.write(f"{direct.pid} {daemon()}")
    os.rename(rh.qs["data"] + ".new", rh.qs["data"])
    time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what left the group")
def test_what_left_for_a_session_of_its_own_is_killed_as_well(make: Make, tmp_path: Path) -> None:
    made, note = make("escapes", ESCAPES, _timeout_secs=6), tmp_path / "pids"
    before = made.body("Restart")["pid"]
    with pytest.raises(TimedOut):
        made.call("Hang", data=str(note))
    try:
        for pid in map(int, note.read_text().split()):
            assert gone(pid)
        # It is there still: what an earlier call started, such as a service that it restarted, is not this call's.
        os.kill(before, 0)
    finally:
        os.kill(before, signal.SIGKILL)


def test_a_ping_is_answered_while_a_call_hangs(demo: Made) -> None:
    demo.call("Test")
    slow = demo.begin("Sleep")
    demo.until(lambda pong: pong.figures["running"] == 1)
    begin = time.monotonic()
    demo.health()
    assert time.monotonic() - begin < 1
    assert not slow.done()


def test_an_import_that_hangs_is_given_up(make: Make) -> None:
    made = make("slow", "import time\ntime.sleep(1000)\ndef F(rh): pass\n", _timeout_secs=0.5)
    with pytest.raises(Unauthorized):
        made.call("F")
    assert made.health().detail == "it cannot be imported: that takes longer than 0.5 s"


@posix_only("descriptors of sockets")
def test_nothing_of_the_broker_is_inherited(demo: Made) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(server.fileno(), True)
        seen = demo.body("Descriptors")
    assert not [name for name in seen if name.startswith("socket:")]


@posix_only("fork; tests/windows has what a job object ends")
def test_what_is_left_behind_is_ended_with_its_process(demo: Made) -> None:
    begin = time.monotonic()
    with pytest.raises(ExtensionFailed):  # a forked process holds the pipe, which must not be waited for
        demo.call("Orphan")
    assert time.monotonic() - begin < 20
    demo.until(lambda pong: pong.figures["processes"] == 0)


# --- failing calls ---


@pytest.mark.parametrize("method", ["Exit", "OsExit", "Crash", "Thread", "Breaks"])
def test_a_call_that_ends_its_process_hurts_itself_only(make: Make, method: str) -> None:
    demo = make(_timeout_secs=20)
    pid = demo.body("Echo")["pid"]
    with pytest.raises((ExtensionFailed, TimedOut)):
        demo.call(method)
    assert demo.body("Echo")["pid"] != pid
    assert demo.health().ok
    assert method in demo.health().figures["last_error"]
    assert demo.health().figures["failures"] == 1


def test_a_process_that_died_between_two_calls_costs_no_call(demo: Made) -> None:
    for _ in range(3):
        pid = demo.body("Echo")["pid"]
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows each of them kills
        assert gone(pid)
        assert demo.body("Echo")["pid"] != pid


@windows_only("its limit is that of a job object")
def test_the_limit_of_memory_is_said_to_its_job(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        told: list[int | None] = []

        class Told(windows.Job):
            def __init__(self, memory_max_bytes: int | None = None) -> None:
                told.append(memory_max_bytes)
                super().__init__(memory_max_bytes)

        monkeypatch.setattr(windows, "Job", Told)
        assert make(_memory_max_bytes=300 << 20).body("Echo")["pid"]
        assert told == [300 << 20]


@pytest.mark.skipif(is_wine(), reason="Wine keeps a job's limit of memory, and does not look at it")
def test_memory_is_limited(make: Make) -> None:
    demo = make(_memory_max_bytes=256 << 20)
    pid = demo.body("Echo")["pid"]
    with pytest.raises(ExtensionFailed):
        demo.call("Eat")
    assert "MemoryError" in demo.health().figures["last_error"]
    assert demo.body("Echo")["pid"] != pid


def test_what_a_method_raises_is_in_the_log_only(demo: Made, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ExtensionFailed) as caught:
        demo.call("Raise")
    assert str(caught.value) == "Raise failed; the broker's log says more under id-of-Raise"
    assert "canary-7391" not in repr(demo.health())
    assert "canary-7391" in caplog.text
    assert "in Raise" in caplog.text
    assert "id-of-Raise" in caplog.text
    assert demo.call("Test").status == 200


def test_endless_recursion_is_an_error(demo: Made) -> None:
    with pytest.raises(ExtensionFailed):
        demo.call("Deep")
    assert demo.call("Test").status == 200

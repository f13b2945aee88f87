"""Keeping a command: real processes, a session that a test ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bpbroker.client.cli import keeper as keeping
from bpbroker.client.cli.keeper import LOST, Keeper
from bpbroker.errors import UsageError
from bpbroker.recipes.clock import boottime
from tests.support.extension import gone
from tests.support.systems import posix_only

pytestmark = posix_only("process groups")


def held(secs: float = 100.0) -> Any:
    """Return a session as the keeper sees it, with so much time left."""
    now = boottime()
    return SimpleNamespace(lost=threading.Event(), ended=False, stop_at=now + secs * 2 / 3, ends_at=now + secs)


def await_text(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path.read_text()


def await_end(pid: int) -> None:
    assert gone(pid), f"{pid} goes on"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
def test_it_ends_as_its_command_does(script: str, code: int) -> None:
    assert Keeper(["sh", "-c", script], {}).run() == code


def test_what_cannot_be_run_has_a_shells_code(tmp_path: Path) -> None:
    for word, code in ((str(tmp_path / "none"), 127), (str(tmp_path), 126)):
        with pytest.raises(UsageError) as raised:
            Keeper([word], {}).run()
        assert raised.value.exit_code == code
    with pytest.raises(UsageError, match="Which command"):
        Keeper([], {})


def test_it_has_its_environment_its_input_and_keeps_the_end_of_its_output(capfd: pytest.CaptureFixture[str]) -> None:
    kept = Keeper(["sh", "-c", "cat; echo $MORE; yes | head -c 20000"], {"MORE": "m"}, stdin=b"in\n", keep_output=True)
    assert kept.run() == 0
    assert capfd.readouterr().out == "in\nm\n" + "y\n" * 10000
    assert kept.output == "y\n" * 4096


def test_it_is_ended_with_its_whole_group_when_the_session_is_lost(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    session = held()
    session.ended = True
    kept = Keeper(["sh", "-c", f"sleep 1000 & echo $! > {note}; wait"], {})

    def lose() -> None:
        await_text(note)
        session.lost.set()
        kept.wake()

    threading.Thread(target=lose).start()
    assert kept.run(session) == LOST
    assert kept.lost
    await_end(int(note.read_text()))


def test_one_that_ignores_it_is_killed_before_the_session_ends(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    session = held(1.5)
    kept = Keeper(["sh", "-c", f"trap '' TERM; sleep 1000 & echo $! > {note}; wait; wait"], {})
    assert kept.run(session) == LOST
    assert boottime() < session.ends_at + 1.0
    await_end(int(note.read_text()))


def test_a_session_that_is_lost_starts_nothing(tmp_path: Path) -> None:
    session = held()
    session.lost.set()
    assert Keeper(["touch", str(tmp_path / "made")], {}).run(session) == LOST
    assert not (tmp_path / "made").exists()


PROGRAM = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and then it does not go on
from bpbroker.client.cli.keeper import Keeper
sys.exit(Keeper(["sh", "-c", sys.argv[1]], {}).run())
"""
SLOW_TO_TELL = """
import time
from bpbroker.client.cli import keeper
keeper._tell = lambda guard, group: time.sleep(1000)
"""


def started(script: str, program: str = PROGRAM) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(Path(keeping.__file__).parents[3])}
    return subprocess.Popen([sys.executable, "-c", program, script], env=environ, start_new_session=True)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signals_go_on(tmp_path: Path, number: str) -> None:
    note = tmp_path / "ready"
    name = number.removeprefix("SIG")
    process = started(f"trap 'exit 42' {name}; echo r > {note}; while :; do sleep 0.05; done")
    await_text(note)
    process.send_signal(signal.Signals[number])
    assert process.wait(30) == 42


def test_killing_the_keeper_ends_the_command(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    process = started(f"echo $$ > {note}; sleep 1000")
    pid = int(await_text(note))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    await_end(pid)


def test_killing_it_before_it_could_tell_of_the_command_ends_the_command(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    process = started(f"sleep 1000 & echo $$ $! > {note}; wait", SLOW_TO_TELL + PROGRAM)
    pids = [int(word) for word in await_text(note).split()]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    for pid in pids:
        await_end(pid)

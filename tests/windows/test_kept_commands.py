"""What ``bpclient lock``, ``once``, ``session run`` and ``watch`` run on Windows ends with what it rests on."""

from __future__ import annotations

import locale
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bpbroker.client.cli.keeper import LOST, Keeper
from bpbroker.recipes.clock import boottime
from tests.support import heartbeat
from tests.support.systems import windows_only

pytestmark = windows_only("job objects in the place of process groups")

# The command: it starts another one, which notes all the time that it is there, and does something itself.
STARTS = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]])\n"
WAITS = f"{STARTS}time.sleep(1000)"


def command(code: str, beat: Path) -> list[str]:
    return [sys.executable, "-c", code, heartbeat.CODE, str(beat)]


@pytest.fixture
def beat(tmp_path: Path) -> Path:
    return tmp_path / "beat"


def held() -> Any:
    """Return a session as the keeper sees it, with much time left."""
    now = boottime()
    return SimpleNamespace(lost=threading.Event(), ended=False, stop_at=now + 1000, ends_at=now + 1000)


def test_killing_the_keeper_ends_the_command_and_what_it_started(beat: Path) -> None:
    program = "import sys; from bpbroker.client.cli.keeper import Keeper; Keeper(sys.argv[1:], {}).run()"
    keeper = subprocess.Popen([sys.executable, "-c", program, *command(WAITS, beat)])
    assert heartbeat.goes_on(beat, secs=60.0)
    keeper.kill()
    keeper.wait()
    assert heartbeat.ends(beat)


def test_a_lost_session_ends_the_command_and_what_it_started(beat: Path) -> None:
    session = held()

    def lose() -> None:
        assert heartbeat.goes_on(beat, secs=60.0)
        session.stop_at = boottime()
        session.ends_at = session.stop_at + 1

    threading.Thread(target=lose, daemon=True).start()
    assert Keeper(command(WAITS, beat), {}).run(session) == LOST
    assert heartbeat.ends(beat)


def test_what_a_command_that_ended_well_left_running_goes_on(beat: Path, tmp_path: Path) -> None:
    until = tmp_path / "until"
    code = heartbeat.CODE.replace("True", f"not __import__('os').path.exists({str(until)!r})")
    words = [sys.executable, "-c", STARTS, code, str(beat)]
    assert Keeper(words, {}).run() == 0
    try:
        assert heartbeat.goes_on(beat, beats=40, secs=60.0)
    finally:
        until.touch()


def test_ctrl_c_twice_ends_it_and_gives_back_what_is_held(beat: Path, tmp_path: Path) -> None:
    """Once asks the command by Ctrl-Break, which Wine hands to nothing but this process."""
    program = """
import signal, sys, threading, time
from pathlib import Path
from bpbroker.client.cli.keeper import Keeper

def press() -> None:
    while not Path(sys.argv[-1]).exists():
        time.sleep(0.02)
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)

threading.Thread(target=press, daemon=True).start()
try:
    sys.exit(Keeper(sys.argv[2:], {}).run())
finally:
    Path(sys.argv[1]).touch()
"""
    given_back = tmp_path / "given back"
    words = [sys.executable, "-c", program, str(given_back), *command(WAITS, beat)]
    done = subprocess.run(words, timeout=120, check=False)
    assert done.returncode != 0
    assert given_back.exists()
    assert heartbeat.ends(beat)


@pytest.mark.parametrize("code", [0, 7, 0xC0000005])
def test_it_ends_as_its_command_does(code: int) -> None:
    program = "import os, sys; from bpbroker.client.cli.keeper import Keeper; os._exit(Keeper(sys.argv[1:], {}).run())"
    crash = f"import ctypes; ctypes.windll.kernel32.ExitProcess(ctypes.c_uint({code}))"
    words = [sys.executable, "-c", program, sys.executable, "-c", crash]
    assert subprocess.run(words, timeout=120, check=False).returncode == code


@pytest.mark.parametrize("encoding", ["utf-8", locale.getpreferredencoding(False)])
def test_its_output_is_decoded_as_it_was_encoded(encoding: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = "\u00e4".encode(encoding)
    code = f"import sys; sys.stdout.buffer.write({data!r} * 9000 + b'.')"
    kept = Keeper([sys.executable, "-c", code], {}, keep_output=True)
    assert kept.run() == 0
    capfd.readouterr()
    assert kept.output == "\u00e4" * (8191 // len(data)) + "."

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

CODE = (
    "import sys, time; from bpbroker.client.progress import Progress\n"
    "with Progress('entry x', quiet=len(sys.argv) > 1): time.sleep(2.8)\n"
    "print('done', file=sys.stderr)\n"
)


def on_a_terminal(*arguments: str, **environ: str) -> str:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments], stderr=follower, env={**os.environ, "TERM": "xterm", **environ}
    ) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 1000):
                shown += part
        except OSError:  # the other side is closed
            pass
        os.close(leader)
        assert process.wait(30) == 0
    return shown.decode()


def test_a_terminal_shows_what_is_waited_for_and_is_clean_afterwards() -> None:
    shown = on_a_terminal()
    assert "Waiting for entry x … 2 s" in shown
    assert shown.endswith("\r\x1b[Kdone\r\n")


@pytest.mark.parametrize(("arguments", "environ"), [(("quiet",), {}), ((), {"TERM": "dumb"})])
def test_whoever_wants_none_gets_none(arguments: tuple[str, ...], environ: dict[str, str]) -> None:
    assert on_a_terminal(*arguments, **environ) == "done\r\n"


def test_what_is_no_terminal_shows_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, timeout=60, check=True)
    assert done.stderr == b"done\n"

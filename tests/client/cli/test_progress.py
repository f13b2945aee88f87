from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.systems import posix_only

pytestmark = posix_only("pseudo terminals")

CODE = (
    "import sys, time; from bpbroker.client.cli.progress import Progress\n"
    "with Progress('entry x', quiet=len(sys.argv) > 1): time.sleep(2.8)\n"
    "print('done', file=sys.stderr)\n"
)


def on_a_terminal(*arguments: str, **environ: str) -> str:
    leader, follower = os.openpty()
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


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """What each of them shows; all at once, for they mostly wait."""
    ways: dict[str, Callable[[], str]] = {
        "terminal": on_a_terminal,
        "quiet": lambda: on_a_terminal("quiet"),
        "dumb": lambda: on_a_terminal(TERM="dumb"),
        "pipe": lambda: (
            subprocess.run([sys.executable, "-c", CODE], capture_output=True, timeout=60, check=True, text=True).stderr
        ),
    }
    with ThreadPoolExecutor() as pool:
        return dict(zip(ways, pool.map(lambda way: way(), ways.values()), strict=True))


def test_a_terminal_shows_what_is_waited_for_and_is_clean_afterwards(shown: dict[str, str]) -> None:
    assert "Waiting for entry x … 2 s" in shown["terminal"]
    assert shown["terminal"].endswith("\r\x1b[Kdone\r\n")


@pytest.mark.parametrize("way", ["quiet", "dumb"])
def test_whoever_wants_none_gets_none(shown: dict[str, str], way: str) -> None:
    assert shown[way] == "done\r\n"


def test_what_is_no_terminal_shows_nothing(shown: dict[str, str]) -> None:
    assert shown["pipe"] == "done\n"

"""What a person at a terminal sees while something takes long, and that nobody else does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bpbroker import progress
from tests.support.systems import posix_only
from tests.support.terminal import Terminal

CODE = (
    "import sys, time; from bpbroker import progress\n"
    "progress.show_on_terminal()\n"
    "with progress.Work('Waiting for entry x', quiet=len(sys.argv) > 1): time.sleep(2.8)\n"
    "print('done', file=sys.stderr)\n"
)


def on_a_terminal(*arguments: str, code: str = CODE, columns: int = 80, **environ: str) -> str:
    with Terminal([sys.executable, "-c", code, *arguments], {**os.environ, **environ}, columns=columns) as terminal:
        assert terminal.ended() == 0
        return terminal.written


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """What each of them shows; all at once, for they mostly wait."""
    ways: dict[str, Callable[[], str]] = {
        "terminal": lambda: on_a_terminal(TERM="xterm"),
        "narrow": lambda: on_a_terminal(TERM="xterm", columns=20),
        "quiet": lambda: on_a_terminal("quiet", TERM="xterm"),
        "dumb": lambda: on_a_terminal(TERM="dumb"),
        "pipe": lambda: (
            subprocess.run([sys.executable, "-c", CODE], capture_output=True, timeout=60, check=True, text=True).stderr
        ),
    }
    with ThreadPoolExecutor() as pool:
        return dict(zip(ways, pool.map(lambda way: way(), ways.values()), strict=True))


at_terminals = posix_only("pseudo terminals")


@at_terminals
def test_a_terminal_shows_what_is_waited_for_and_is_clean_afterwards(shown: dict[str, str]) -> None:
    assert "Waiting for entry x … 2 s" in shown["terminal"]
    assert " … 0 s" not in shown["terminal"]
    assert shown["terminal"].endswith("\r\x1b[Kdone\r\n")


@at_terminals
def test_a_narrow_terminal_is_never_filled(shown: dict[str, str]) -> None:
    lines = shown["narrow"].split("\r\x1b[K")
    assert "Waiting for … … 2 s" in lines
    assert max(map(len, lines)) < 20


@at_terminals
@pytest.mark.parametrize("way", ["quiet", "dumb"])
def test_whoever_wants_none_gets_none(shown: dict[str, str], way: str) -> None:
    assert shown[way] == "done\r\n"


@at_terminals
def test_a_script_sees_nothing(shown: dict[str, str]) -> None:
    assert shown["pipe"] == "done\n"


@at_terminals
def test_work_inside_of_work_is_shown_with_it_and_an_error_clears_the_line() -> None:
    code = (
        "import time; from bpbroker import progress\n"
        "progress._PATIENCE_SECS = progress._FLICKER_SECS = 0; progress._STEP_SECS = 0.05\n"
        "progress.show_on_terminal()\n"
        "try:\n"
        "    with progress.Work('Backup 1 of 2', look=lambda: 'outer'):\n"
        "        with progress.Work('Reading a\\x1b[2Jb', look=lambda: 'almost') as work:\n"
        "            work.step(7, 10); time.sleep(0.5)\n"
        "            raise ValueError\n"
        "except ValueError: print('failed')\n"
    )
    written = on_a_terminal(code=code, TERM="xterm")
    assert "Backup 1 of 2: Reading a?[2Jb, 70 %: almost … 0 s" in written
    assert written.endswith("\r\x1b[Kfailed\r\n")


# --- who looks ---


class Looking:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def begin(self, work: progress.Work) -> None:
        self.seen.append(f"begin {work}")

    def step(self, work: progress.Work) -> None:
        self.seen.append(str(work))

    def end(self, work: progress.Work) -> None:
        self.seen.append(f"end {work.what}")


@pytest.fixture
def looking() -> Iterator[Looking]:
    display = Looking()
    before = progress.show_on(display)
    yield display
    progress.show_on(before)


def test_how_far_writing_is(looking: Looking) -> None:
    assert b"".join(progress.following([b"a", b"b", b"c", b"d"], "Writing x", 4)) == b"abcd"
    assert looking.seen == [
        "begin Writing x", "Writing x, 0 %", "Writing x, 25 %", "Writing x, 50 %", "Writing x, 75 %", "end Writing x",
    ]  # fmt: skip


def test_writing_that_fails_is_over(looking: Looking) -> None:
    pieces = progress.following([b"a", b"b"], "Writing x", 2)
    assert next(pieces) == b"a"
    del pieces
    assert looking.seen[-1] == "end Writing x"


def test_a_step_is_of_the_innermost_work(looking: Looking) -> None:
    progress.step(1, 2)
    with progress.Work("a"), progress.Work("b"):
        progress.step(1, 2)
    progress.step(1, 2)
    assert looking.seen == ["begin a", "begin b", "b, 50 %", "end b", "end a"]


def test_more_done_than_there_is_to_do_is_all() -> None:
    with progress.Work("a") as work:
        work.step(9, 3)
        assert str(work) == "a, 100 %"


def test_words_for_a_log_do_not_come_too_often(looking: Looking) -> None:
    told: list[str] = []
    progress.show_on(progress.Telling(told.append, every_secs=3600))
    with progress.Work("Reading x") as work:
        for number in range(100):
            work.step(number, 100)
    assert told == ["Reading x"]
    progress.show_on(progress.Telling(told.append, every_secs=0))
    with progress.Work("Reading y") as work:
        work.step(1, 4)
    assert told[1:] == ["Reading y", "Reading y, 25 %"]
    assert not looking.seen

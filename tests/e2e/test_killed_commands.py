"""SIGKILL at the n-th system call of the first start and of every command that changes files.

The next start works by itself, or says with exit 78 what to do; and the same
command again works. Some calls of each command; all of them with
``BPBROKER_LONG=1``. What every single one leaves is looked at without processes
in ``tests/storage/test_power_cut.py``.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support.coming_up import come_up
from tests.support.power_cut import Tree, put
from tests.support.power_driver import SETTINGS, BareBroker

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

LONG: Final = os.environ.get("BPBROKER_LONG") == "1"
CALLS: Final = (
    "openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,link,unlink,unlinkat,mkdir,rmdir"
)
LINE: Final = re.compile(r"(\d+) +(\w+)\((.*)")
MODULE: Final = '"""Sums."""\n\n\ndef Add(rh):\n    rh.data = "3"\n'


class Target(NamedTuple):
    """The ``number``-th call of this name in some thread; strace counts in each thread for itself."""

    call: str
    number: int


class Place:
    """A home folder that can be put back to what it was."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.broker = BareBroker(self.home)
        self.trace = folder / "trace"
        self.module = folder / "sums.py"
        self.module.write_text(MODULE)

    def tree(self) -> Tree:
        """Return what is there."""
        return {
            str(path.relative_to(self.home)): None if path.is_dir() else path.read_bytes()
            for path in self.home.rglob("*")
            if not path.name.endswith((".log", ".lock", ".sock", "-shm"))
        }

    def run(self, words: list[str], *strace: str) -> int:
        """Run a command to its end, a start until it is ready; return its exit code, 0 when it was ready."""
        prefix = ("strace", "-f", "-qqq", *strace, "--") if strace else ()
        if words != ["start"]:
            text = json.dumps({"more": {"x": 1}})
            command = [*prefix, *self.broker.command("bpbroker", *words)]
            environ = self.broker.environ
            done = subprocess.run(
                command, env=environ, input=text, capture_output=True, text=True, timeout=120, check=False
            )
            assert "Traceback" not in done.stderr, done.stderr
            return done.returncode
        self.broker.prefix = prefix
        try:
            self.broker.start()
            assert self.broker.request("/services/Replace/", name="new", data='{"v": "1"}').status == 200
        except (AssertionError, HTTPException, OSError):  # it was killed
            return self.broker.wait()
        finally:
            self.broker.prefix = ()
        pid = self.broker.note["pid"]
        os.kill(pid, signal.SIGKILL)  # of the broker: strace would let it live
        self.broker.wait()
        return 0


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(f"/dev/shm/bpbroker-killed-{os.getpid()}")  # noqa: S108 - of this process
    folder.mkdir(mode=0o700)
    made = Place(folder)
    yield made
    made.broker.kill()
    shutil.rmtree(folder)


@pytest.fixture
def used(place: Place) -> str:
    """Put a home there that has a journal and a backup; return the backup's path."""
    text = json.dumps({**SETTINGS, "services": {}})
    subprocess.run(
        place.broker.command("bpbroker", "configure"), env=place.broker.environ, input=text, text=True, check=True
    )
    assert come_up(place.home).problem == ""
    backup = place.broker.bpbroker("backup").stdout.strip()
    place.broker.start()
    assert place.broker.register("kept", '{"v": "1"}').status == 200
    place.broker.kill()
    return backup


COMMANDS: Final = {
    "certificate": ["certificate", "--renew"],
    "restore": ["restore", "BACKUP"],
    "configure": ["configure"],
    "install-extension": ["install-extension", "--script", "MODULE", "--enable"],
    "backup": ["backup"],
    "start": ["start"],
}


@pytest.mark.parametrize("name", ["first start", *COMMANDS])
def test_what_was_killed_can_be_done_again(place: Place, name: str, request: pytest.FixtureRequest) -> None:
    if name == "first start":
        words = ["start"]
    else:
        backup = request.getfixturevalue("used")
        words = [{"BACKUP": backup, "MODULE": str(place.module)}.get(word, word) for word in COMMANDS[name]]
    before = place.tree()
    assert place.run(words, "-y", "-s", "0", "-o", str(place.trace), "-e", f"trace={CALLS}") == 0
    found = sorted(set(targets(place)))
    assert len(found) > 8
    dice = random.Random(name)  # noqa: S311 - not for secrets
    killed = 0
    for target in found if LONG else dice.sample(found, 2):
        put(before, place.home)
        inject = f"inject={target.call}:signal=KILL:when={target.number}"
        code = place.run(words, "-o", "/dev/null", "-e", f"trace={target.call}", "-e", inject)
        if code == 0:
            continue  # another run makes a call less: nothing was killed
        assert code in (-signal.SIGKILL, 128 + signal.SIGKILL), (target, code)
        killed += 1
        left = place.tree()
        problem = come_up(place.home).problem
        assert problem == "" or (name == "restore" and "was cut off; do it again" in problem), (target, problem)
        put(left, place.home)
        assert place.run(words) == 0, target
        again = come_up(place.home)
        assert again.problem == "", (target, again.problem)
        assert again.entries.get("kept") == (None if name in ("restore", "first start") else "1"), target
        with suppress(KeyError):
            assert {"configure": "more", "install-extension": "sums"}[name] in again.sections
    assert killed


def targets(place: Place) -> Iterator[Target]:
    """Yield the calls of a trace that change something in the home folder."""
    counted: Counter[tuple[str, str]] = Counter()
    for line in place.trace.read_text(errors="replace").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        thread, call, rest = match.groups()
        counted[thread, call] += 1
        if f"{place.home}/" in rest and not (call == "openat" and "O_RDONLY" in rest) and ".log>" not in rest:
            yield Target(call, counted[thread, call])

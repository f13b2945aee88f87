"""SIGKILL at the n-th system call of the first start, of every command that changes files, and of clients' commands.

The next start works by itself, or says with exit 78 what to do; and the same
command again works. A lock, a number, what was taken stay what they were, and no
revision comes again. Some calls of each command; all of them with
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.support.coming_up import Found, come_up, state_of
from tests.support.power_cut import Tree, put
from tests.support.power_driver import SETTINGS, BareBroker
from tests.support.running import RunningBroker

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
    for method, parameters in COORDINATING:
        assert place.broker.call(f"/services/{method}", **parameters).status == 200, method
    place.broker.kill()
    return backup


COORDINATING: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("Open", {"session": "c0-s", "ttl": 3600}),
    ("Lock", {"name": "of/c0/lock", "session": "c0-s"}),
    ("Register", {"name": "of/c0/mine", "data": {"v": 1}, "session": "c0-s"}),
    ("Allocate", {"pool": "of/c0/pool", "owner": "o1"}),
    ("Next", {"name": "of/c0/count", "owner": "o1"}),
    ("Register", {"name": "of/c0/secret", "data": {"v": "SECRET"}}),
    ("Take", {"name": "of/c0/secret", "receiver": "r1"}),
    ("Batch", {"id": "c0-b", "operations": [{"method": "Register", "name": "of/c0/x", "data": {"v": 1}}]}),
)
"""What a node has done with the broker before, after the backup."""


def see_what_the_node_had(found: Found, before: Found, *, may_have: bool, may_lack: bool) -> None:
    """See that a node has all that it had, or nothing after a restore; and that no revision comes again."""
    had, has = state_of(before.records, "c0"), state_of(found.records, "c0")
    assert len(had) == 9
    assert (may_have and has == had) or (may_lack and has == {}), has
    assert found.revision >= before.revision


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
    found_before = come_up(place.home) if name != "first start" else Found({})
    put(before, place.home)
    assert place.run(words, "-y", "-s", "0", "-o", str(place.trace), "-e", f"trace={CALLS}") == 0
    found = sorted(set(targets(place)))
    assert len(found) > 8
    dice = random.Random(name)  # noqa: S311 - not for secrets
    killed = 0
    for target in dice.sample(found, len(found)):
        if killed == 2 and not LONG:
            break
        put(before, place.home)
        inject = f"inject={target.call}:signal=KILL:when={target.number}"
        code = place.run(words, "-o", "/dev/null", "-e", f"trace={target.call}", "-e", inject)
        if code == 0:
            continue  # another run makes a call less: nothing was killed
        assert code in (-signal.SIGKILL, 128 + signal.SIGKILL), (target, code)
        killed += 1
        left = place.tree()
        half = come_up(place.home)
        problem = half.problem
        assert problem == "" or (name == "restore" and "was cut off; do it again" in problem), (target, problem)
        if name != "first start" and not problem:
            see_what_the_node_had(half, found_before, may_have=True, may_lack=name == "restore")
        put(left, place.home)
        assert place.run(words) == 0, target
        again = come_up(place.home)
        assert again.problem == "", (target, again.problem)
        if name != "first start":
            see_what_the_node_had(again, found_before, may_have=name != "restore", may_lack=name == "restore")
        assert again.entries.get("kept") == (None if name in ("restore", "first start") else "1"), target
        with suppress(KeyError):
            assert {"configure": "more", "install-extension": "sums"}[name] in again.sections
    assert killed


CLIENT_CALLS: Final = "write,read"


class Killed:
    """A command of ``bpclient`` that is killed at some of its calls, each time with other names."""

    def __init__(self, broker: RunningBroker, folder: Path) -> None:
        self._broker = broker
        self._trace = folder / "trace"
        self.names: list[str] = []

    def run(self, *words: str, strace: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        client = self._broker.command("bpbroker.client", "-q", "-b", f"127.0.0.1:{self._broker.port}")
        return subprocess.run(
            [*(("strace", "-qqq", *strace, "--") if strace else ()), *client, *words],
            env=self._broker.environ, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def each(self, words: Callable[[str], list[str]], prepare: Callable[[str], object]) -> Iterator[tuple[str, str]]:
        """Yield a name and what the killed command printed, for some calls that it makes to the broker and to us."""
        assert self.run(*words(self._new(prepare))).returncode == 0  # it knows the broker's certificate now
        name = self._new(prepare)
        traced = self.run(*words(name), strace=("-o", str(self._trace), "-y", "-s", "0", "-e", f"trace={CLIENT_CALLS}"))
        assert traced.returncode == 0, traced.stderr
        counted: Counter[str] = Counter()
        found: list[Target] = []
        for line in self._trace.read_text(errors="replace").splitlines():
            call, _, rest = line.partition("(")
            counted[call] += 1
            if "<socket:" in rest or rest.startswith("1<"):
                found.append(Target(call, counted[call]))
        assert len(found) > 3, self._trace.read_text()
        killed = 0
        some = found[len(found) * 2 // 3], found[-3], found[-1]  # those before have told the broker nothing yet
        for target in found if LONG else some:
            name = self._new(prepare)
            inject = f"inject={target.call}:signal=KILL:when={target.number}"
            done = self.run(*words(name), strace=("-o", "/dev/null", "-e", f"trace={target.call}", "-e", inject))
            killed += done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
            yield name, done.stdout
        assert killed

    def _new(self, prepare: Callable[[str], object]) -> str:
        self.names.append(f"n{len(self.names)}")
        prepare(self.names[-1])
        return self.names[-1]


@pytest.fixture
def killed(broker: RunningBroker, tmp_path: Path) -> Killed:
    return Killed(broker, tmp_path)


def test_a_killed_number_is_kept_and_given_once(killed: Killed, broker: RunningBroker) -> None:
    def words(name: str) -> list[str]:
        return ["number", "--pool", "p", "--for", name]

    for name, printed in killed.each(words, lambda _: None):
        again = killed.run(*words(name))
        assert again.returncode == 0, again.stderr
        assert printed in ("", again.stdout)
    owners = broker.get("p").json["data"]
    assert sorted(owners[name] for name in killed.names) == list(range(1, len(killed.names) + 1))


def test_what_a_killed_take_did_not_print_is_still_there(killed: Killed, broker: RunningBroker) -> None:
    def words(name: str) -> list[str]:
        return ["service", "take", name, "--for", "me"]

    for name, printed in killed.each(words, lambda name: broker.register(name, json.dumps({"secret": f"of {name}"}))):
        again = killed.run(*words(name))
        assert f"of {name}" in printed + again.stdout
        assert again.returncode == (0 if again.stdout else 3), again.stderr
        assert killed.run(*words(name)).returncode == 3  # destroyed
        assert broker.register(name).status == 200


def test_what_a_killed_once_began_is_done_and_its_output_kept(killed: Killed, tmp_path: Path) -> None:
    def words(name: str) -> list[str]:
        script = f"echo run >> {tmp_path / name}; echo made {name}"
        return ["once", "--name", name, "--ttl", "2s", "--wait", "60s", "--output", "--", "sh", "-c", script]

    for name, _ in killed.each(words, lambda _: None):
        runs = [killed.run(*words(name)) for _ in range(2)]
        assert [(each.returncode, each.stdout) for each in runs] == [(0, f"made {name}\n")] * 2
        assert (tmp_path / name).read_text() in ("run\n", "run\n" * 2)


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

"""The scripts of docs/cookbook.md, as several nodes run them at the same time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.pages import ROOT, blocks, script, with_scripts
from tests.support.running import RunningBroker

PAGE: Final = ROOT / "docs" / "cookbook.md"
TESTED: Final = {"find-the-master", "barrier-of-five", "first-initialises", "agent-key", "roll"}

Node = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def node(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> Node:
    """Return what starts a script of the page as a node does: with a token, in a plain sh."""
    ossec = tmp_path / "ossec"
    for folder in ("etc", "bin"):
        (ossec / folder).mkdir(parents=True)
    control = ossec / "bin" / "ossec-control"
    control.write_text("#!/bin/sh\nexit 0\n")
    control.chmod(0o755)
    broker = make_broker({"ossec": {"ossec_dir": str(ossec)}, "services": {"_access_key": "a key of the test 4711"}})
    shutil.copy(ROOT / "examples" / "ossec.py", broker.lib)
    broker.start()
    token = broker.bpbroker("token").stdout.strip()
    environ = with_scripts(Path(sys.executable).parent, {**broker.environ, "BPBROKER_TOKEN": token})
    del environ["PYTHONWARNINGS"]
    environ.pop("HOSTNAME", None)

    def start(name: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", "-c", script(PAGE, name), name, *words],
            cwd=tmp_path,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out


def test_every_script_has_its_test_and_no_complaint_of_shellcheck(tmp_path: Path) -> None:
    names = {block.note for block in blocks(PAGE) if block.language == "sh"}
    assert names == TESTED
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    for name in names:
        (tmp_path / name).write_text(script(PAGE, name))
    done = subprocess.run(
        ["shellcheck", *sorted(names)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_replicas_find_the_master_in_any_order(node: Node) -> None:
    replicas = [node("find-the-master", "foo", "replica", f"10.0.0.{number}") for number in range(2, 6)]
    master = node("find-the-master", "foo", "master", "10.0.0.9")
    assert {ended(each) for each in (master, *replicas)} == {"10.0.0.9\n"}
    assert ended(node("find-the-master", "foo", "master", "10.0.0.9")) == "10.0.0.9\n"  # run again
    ended(node("find-the-master", "foo", "master", "10.0.0.8"), 4)


def test_five_nodes_meet(node: Node) -> None:
    early = [node("barrier-of-five", "foo", f"node-{number}") for number in range(4)]
    other = node("barrier-of-five", "bar", "node-9")
    with pytest.raises(subprocess.TimeoutExpired):
        early[0].wait(1)
    ended(node("barrier-of-five", "foo", "node-4"))
    for each in early:
        ended(each)
    assert other.poll() is None  # of another cluster
    os.killpg(other.pid, signal.SIGKILL)
    other.communicate()


def test_one_of_six_initialises(node: Node, tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = ("sh", "-c", f"echo once >> {made}; echo id-$$")
    printed = {ended(each) for each in [node("first-initialises", "foo", *command) for _ in range(6)]}
    assert len(printed) == 1
    assert printed.pop().startswith("id-")
    assert made.read_text() == "once\n"


def test_an_agent_gets_its_key(node: Node, tmp_path: Path) -> None:
    ended(node("agent-key", "agent.key", "node-7"))
    assert (tmp_path / "agent.key").read_text().startswith("001 node-7 ")
    assert (tmp_path / "agent.key").stat().st_mode & 0o777 == 0o600
    ended(node("agent-key", "second.key", "node 7"), 2)
    assert not (tmp_path / "second.key").exists()


def test_nodes_roll_in_order(node: Node, tmp_path: Path) -> None:
    rolled = tmp_path / "rolled"
    nodes = [node("roll", "foo", "r2", str(n), "sh", "-c", f"echo {n} >> {rolled}") for n in (5, 4, 3, 2, 1)]
    for each in nodes:
        ended(each)
    assert rolled.read_text().split() == ["1", "2", "3", "4", "5"]

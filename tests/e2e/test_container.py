"""A broker that is the first process of a container, as far as a PID namespace makes one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.running import RunningBroker
from tests.support.witness import eventually

LEAVES = """
import subprocess
def Leave(rh):
    subprocess.Popen(["sh", "-c", "setsid sleep 0.3 & exit 0"]).wait()
    rh.data = "left"
"""
IN_CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

pytestmark = pytest.mark.skipif(
    os.name == "nt" or subprocess.run([*IN_CONTAINER, "true"], capture_output=True, check=False).returncode != 0,
    reason="this user may make no PID namespace",
)


@pytest.fixture
def contained(make_broker: Callable[..., RunningBroker]) -> Iterator[RunningBroker]:
    """Yield a broker in a PID namespace of its own, whose files are seen on the host."""
    broker = make_broker({"leaves": {}})
    (broker.lib / "leaves.py").write_text(LEAVES)
    broker.prefix = IN_CONTAINER
    yield broker.start()
    broker.kill()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_first_process_waits_for_what_others_leave(contained: RunningBroker) -> None:
    (first,) = children(contained.pid)
    assert contained.request("/leaves/Leave").body == b"left"
    eventually(lambda: len(children(first)) == 1)  # the broker; the one that was left has ended and was waited for
    inside = ("nsenter", "-t", str(first), "-p", "-m", *contained.command("bpbroker", "stop"))
    # The command, too, ends with the container, perhaps before it has said all.
    subprocess.run(inside, env=contained.environ, capture_output=True, timeout=60, check=False)
    assert contained.wait() == 0


def test_a_signal_to_the_first_process_stops_the_broker(contained: RunningBroker) -> None:
    (first,) = children(contained.pid)
    os.kill(first, 15)
    assert contained.wait() == 0, contained.text
    assert "Stopped" in contained.text


def test_a_stop_on_the_host_signals_nothing_and_says_why(contained: RunningBroker) -> None:
    done = contained.bpbroker("stop")
    assert done.returncode == 1
    assert "is no process of this system, or of this container" in done.stderr
    assert contained.register("x").status == 200

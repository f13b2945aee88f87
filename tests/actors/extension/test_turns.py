"""Which call runs when: order, queue, workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpbroker.actors.base import wait_for
from bpbroker.errors import (
    Overloaded,
    TimedOut,
)
from tests.support.extension import WAIT_SECS, Made, Make


def test_calls_run_one_at_a_time_and_in_order(demo: Made) -> None:
    replies = [demo.begin("Count") for _ in range(20)]
    assert [wait_for(reply, WAIT_SECS).body for reply in replies] == [b"%d" % number for number in range(1, 21)]
    assert demo.health().figures["processes"] == 1


def test_calls_beyond_the_queue_are_refused(make: Make, tmp_path: Path) -> None:
    demo, gate = make(_queue_max=5), tmp_path / "gate"
    replies = [demo.begin("Wait", data=str(gate)) for _ in range(100)]
    demo.health()  # answered when all of them are queued or refused
    refused = [reply for reply in replies if reply.done()]
    assert len(refused) == 94
    for reply in refused:
        with pytest.raises(Overloaded, match="nothing was done"):
            reply.result(0)
    gate.touch()
    assert sum(wait_for(reply, WAIT_SECS).status for reply in replies if reply not in refused) == 6 * 200


def test_no_queue_at_all(make: Make, tmp_path: Path) -> None:
    demo, gate = make(_queue_max=0), tmp_path / "gate"
    first = demo.begin("Wait", data=str(gate))
    with pytest.raises(Overloaded):
        demo.call("Test")
    gate.touch()
    assert wait_for(first, WAIT_SECS).status == 200
    assert demo.call("Test").status == 200


def test_who_waits_too_long_for_a_turn_hears_that_nothing_was_done(make: Make) -> None:
    demo = make(_timeout_secs=2)
    demo.call("Test")
    replies = [demo.begin("Sleep") for _ in range(4)]
    with pytest.raises(TimedOut, match="stopped"):
        wait_for(replies[0], WAIT_SECS)
    with pytest.raises(TimedOut, match="nothing was done"):
        wait_for(replies[3], WAIT_SECS)
    assert demo.health().figures["calls"] < 5


def test_who_gave_up_is_not_served(demo: Made, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first, second = demo.begin("Wait", data=str(gate)), demo.begin("Count")
    second.cancel()
    gate.touch()
    wait_for(first, WAIT_SECS)
    assert demo.call("Count").body == b"1"


def test_workers_run_calls_at_the_same_time(make: Make, tmp_path: Path) -> None:
    demo, gate = make(_workers=3), tmp_path / "gate"
    replies = [demo.begin("Wait", data=str(gate)) for _ in range(4)]
    demo.until(lambda pong: pong.figures["running"] == 3)
    gate.touch()
    assert len({wait_for(reply, WAIT_SECS).body for reply in replies}) == 3


def test_the_lock_of_the_configuration_excludes_all_workers(make: Make, tmp_path: Path) -> None:
    source = """
import os, time
from pathlib import Path
from bpbroker import config

def Alone(rh):
    note = Path(rh.qs["data"])
    with config.rlock, config.rlock:
        descriptor = os.open(note, os.O_CREAT | os.O_EXCL)  # fails if another one is here
        time.sleep(0.02)
        os.close(descriptor)
        note.unlink()
    rh.data = str(os.getpid())

def Hold(rh):
    while not Path(rh.qs["data"]).exists():
        time.sleep(0.005)
"""
    made, gate = make("alone", source, _workers=4), tmp_path / "gate"
    # One process alone might be through with all of them before the next one is there.
    held = [made.begin("Hold", data=str(gate)) for _ in range(4)]
    made.until(lambda pong: pong.figures["running"] == 4)
    replies = [made.begin("Alone", data=str(tmp_path / "note")) for _ in range(24)]
    gate.touch()
    assert {wait_for(reply, WAIT_SECS).status for reply in held} == {200}
    assert len({wait_for(reply, WAIT_SECS).body for reply in replies}) > 1

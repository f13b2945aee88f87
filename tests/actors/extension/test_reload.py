"""Changed modules, preloading, stopping."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bpbroker.actors.base import wait_for
from bpbroker.errors import (
    Unauthorized,
    Unavailable,
)
from tests.support.extension import MODULE, WAIT_SECS, Made, Make, gone


def test_a_changed_module_takes_effect_at_the_reload_and_drops_no_call(demo: Made, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    before = [demo.begin("Wait", data=str(gate)), demo.begin("Count")]
    demo.until(lambda pong: pong.figures["running"] == 1)
    (demo.lib / "demo.py").write_text(
        MODULE.replace("calls = 0", "calls = 100") + "\ndef New(rh):\n    rh.data = 'new'\n"
    )
    with pytest.raises(Unauthorized):
        demo.call("New")
    demo.reload()
    after = demo.begin("New")
    gate.touch()
    assert [wait_for(reply, WAIT_SECS).status for reply in (*before, after)] == [200, 200, 200]
    assert demo.call("Count").body == b"102"


def test_a_change_of_something_else_ends_no_process(demo: Made) -> None:
    demo.call("Count")
    demo.reload()
    assert demo.call("Count").body == b"2"
    demo.settings["_registry"] = {"password": "secret"}
    demo.reload()
    demo.change(colour="blue")
    assert demo.call("Count").body == b"1"


def test_a_module_that_comes_later(make: Make) -> None:
    made = make("demo", source=None)
    with pytest.raises(Unauthorized):
        made.call("Test")
    (made.lib / "demo.py").write_text(MODULE)
    made.reload()
    assert made.call("Test").status == 200
    assert made.health().ok
    (made.lib / "demo.py").write_text("no python")
    made.reload()
    with pytest.raises(Unauthorized):
        made.call("Test")


def test_preloading_finds_out_at_the_start(make: Make) -> None:
    made = make("demo", "raise ValueError\n", _preload=True)
    assert made.until(lambda pong: not pong.ok).detail == "it cannot be imported: ValueError, line 1"


def test_stopping_ends_every_process(make: Make, tmp_path: Path) -> None:
    demo, note = make(_workers=2), tmp_path / "begun"
    idle = demo.body("Echo")["pid"]
    running = demo.begin("Begin", data=str(note))
    waiting = [demo.begin("Begin", data=str(note)) for _ in range(3)]
    demo.until(lambda pong: pong.figures["running"] == 2)
    begin = time.monotonic()
    assert demo.address.stop(WAIT_SECS)
    assert time.monotonic() - begin < 10
    for reply in (running, *waiting):
        with pytest.raises(Unavailable, match="stopping"):
            reply.result(0)
    assert gone(idle)

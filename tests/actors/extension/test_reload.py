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
    (made.lib / "demo.py").unlink()
    made.reload()  # taken away, it is let go
    with pytest.raises(Unauthorized):
        made.call("Test")


BROKEN = {
    "raises": (
        "def Count(rh): pass\nimport nothing_of_this_name\n",
        "ModuleNotFoundError of nothing_of_this_name, line 2",
    ),
    "exits": ("import sys\nsys.exit(0)\n", "it cannot be imported: SystemExit, line 2"),
    "dies": ("import os\nos._exit(3)\n", "importing it ended its process (exit code 3)"),
    "no python": ("no python", "it does not parse"),
    "is empty": ("", "it has no method for clients"),
    "has helpers only": ("import json\ndef _hidden(rh): pass\n", "it has no method for clients"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_module_that_no_longer_imports_leaves_the_one_before_in_service(make: Make, kind: str) -> None:
    source, reason = BROKEN[kind]
    made = make(_workers=2)
    pid = made.body("Echo")["pid"]
    (made.lib / "demo.py").write_text(source)
    for _ in range(2):
        said = made.reload()
        assert reason in said
        assert "stays in service" in said
    assert made.body("Echo")["pid"] == pid
    made.until(lambda pong: pong.figures["processes"] == 1)  # the one that was tried takes a moment to end
    pong = made.health()
    assert (pong.ok, pong.detail) == (True, said)
    many = [made.begin("Count") for _ in range(6)]  # a second process would import what cannot be imported
    assert {wait_for(reply, WAIT_SECS).status for reply in many} == {200}
    (made.lib / "demo.py").write_text(MODULE.replace("calls = 0", "calls = 100"))
    assert made.reload() == ""
    assert made.call("Count").body == b"101"
    assert made.health().detail == ""


def test_an_import_that_hangs_leaves_the_one_before_in_service(make: Make) -> None:
    made = make(_timeout_secs=5)
    pid = made.body("Echo")["pid"]
    (made.lib / "demo.py").write_text("import time\ntime.sleep(600)\n")
    assert "longer than 5 s" in made.reload()
    assert made.body("Echo")["pid"] == pid


def test_settings_that_no_child_starts_with_leave_the_ones_before_in_force(make: Make) -> None:
    made = make()
    pid = made.body("Echo")["pid"]
    made.settings["demo"] = {"_user": "nobody-of-this-name"}
    assert "_user: there is no" in made.reload()
    assert made.body("Echo")["pid"] == pid


def test_a_module_that_was_never_called_is_tried_as_well(make: Make) -> None:
    made = make()
    (made.lib / "demo.py").write_text("raise OSError\n")
    assert made.reload() == "it cannot be imported: OSError, line 1"
    assert not made.health().ok
    (made.lib / "demo.py").write_text(MODULE)
    assert made.reload() == ""
    assert made.health().ok


def test_a_process_that_cannot_be_put_beside_another_costs_no_call(make: Make, tmp_path: Path) -> None:
    made, gate = make(_workers=2), tmp_path / "gate"
    first = made.begin("Wait", data=str(gate))
    made.until(lambda pong: pong.figures["running"] == 1)
    (made.lib / "demo.py").write_text("raise OSError\n")  # and no reload yet
    second = made.begin("Count")
    made.until(lambda pong: "OSError" in pong.detail)
    gate.touch()
    assert [wait_for(reply, WAIT_SECS).status for reply in (first, second)] == [200, 200]


def test_no_more_calls_than_workers_run_while_a_new_module_takes_over(demo: Made, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = demo.begin("Wait", data=str(gate))
    demo.until(lambda pong: pong.figures["running"] == 1)
    (demo.lib / "demo.py").write_text(MODULE.replace("calls = 0", "calls = 100"))
    assert demo.reload() == ""
    second = demo.begin("Count")
    figures = demo.health().figures
    assert (figures["running"], figures["waiting"]) == (1, 1)
    gate.touch()
    assert wait_for(first, WAIT_SECS).status == 200
    assert wait_for(second, WAIT_SECS).body == b"101"


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

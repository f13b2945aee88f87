"""Calls with an Idempotency-Key."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from bpbroker.actors import extension
from bpbroker.actors.base import wait_for
from bpbroker.errors import (
    BadRequest,
    BpbrokerError,
    NotFound,
    Overloaded,
    RequestError,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from tests.support.extension import WAIT_SECS, Made, Make
from tests.support.systems import is_private


def test_a_repeat_gets_the_first_answer(demo: Made) -> None:
    assert demo.call("Count", key="k1") == demo.call("Count", key="k1")
    assert demo.call("Count", key="k2").body == b"2"
    assert demo.call("Count").body == b"3"


def test_a_repeat_during_the_call_waits_for_the_same_answer(demo: Made, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    replies = [demo.begin("Wait", key="k", data=str(gate)) for _ in range(5)]
    demo.until(lambda pong: pong.figures["running"] == 1)
    assert demo.health().figures["waiting"] == 0
    gate.touch()
    assert len({wait_for(reply, WAIT_SECS).body for reply in replies}) == 1
    assert demo.health().figures["calls"] == 1


def test_a_failure_is_an_answer_too(make: Make) -> None:
    demo = make(_timeout_secs=4)
    kinds: Mapping[str, type[BpbrokerError]] = {"Sleep": TimedOut, "OsExit": RequestError, "Raise": RequestError}
    for method, kind in kinds.items():
        said = set()
        for _ in range(2):
            with pytest.raises(kind) as caught:
                demo.call(method, key=method)
            said.add((caught.value.status, str(caught.value)))
        assert len(said) == 1
    assert demo.health().figures["failures"] == 3


def test_what_was_not_begun_can_be_repeated(make: Make, tmp_path: Path) -> None:
    demo, gate = make(_queue_max=0), tmp_path / "gate"
    first = demo.begin("Wait", data=str(gate))
    with pytest.raises(Overloaded):
        demo.call("Count", key="k")
    gate.touch()
    wait_for(first, WAIT_SECS)
    assert demo.call("Count", key="k").body == b"1"
    with pytest.raises(Unauthorized):
        demo.call("nothing", key="k2")
    assert demo.call("Count", key="k2").body == b"2"


@pytest.mark.parametrize("other", [{"data": "x"}, {"source": "10.0.0.8"}])
def test_a_key_stands_for_one_request_of_one_host(demo: Made, other: dict[str, str]) -> None:
    demo.call("Count", key="k")
    with pytest.raises(BadRequest, match="another request"):
        demo.call("Count", key="k", **other)
    assert demo.call("Count").body == b"2"


@pytest.mark.parametrize("key", ["", " ", "ü", "a\nb", "x" * 256])
def test_keys_that_are_none(demo: Made, key: str) -> None:
    with pytest.raises(BadRequest, match="Idempotency-Key"):
        demo.call("Count", key=key)


def test_answers_outlive_the_actor(make: Make, tmp_path: Path) -> None:
    demo = make(answers=tmp_path / "answers")
    first = demo.call("Echo", key="k")
    assert demo.address.stop(WAIT_SECS)
    assert make(answers=tmp_path / "answers").call("Echo", key="k") == first
    assert is_private(tmp_path / "answers")


def test_a_call_that_was_cut_off_is_not_run_again(make: Make, tmp_path: Path) -> None:
    note = tmp_path / "note"
    demo = make(answers=tmp_path / "answers")
    cut = demo.begin("Begin", key="k", data=str(note))
    demo.until(lambda _: note.exists())
    note.unlink()
    assert demo.address.stop(WAIT_SECS)
    with pytest.raises(Unavailable):
        cut.result(0)
    with pytest.raises(RequestError, match="cut off") as caught:
        make(answers=tmp_path / "answers").call("Begin", key="k", data=str(note))
    assert not caught.value.outcome_known
    assert not note.exists()


def test_without_its_file_no_call_with_a_key_runs(make: Make, tmp_path: Path) -> None:
    demo = make(answers=tmp_path)  # a folder
    with pytest.raises(Unavailable):
        demo.call("Count", key="k")
    assert demo.call("Count").body == b"1"


def test_not_found_is_told_by_its_own_name(demo: Made) -> None:
    (demo.lib / "demo.py").write_text(
        """
from bpbroker.errors import NotFound
def F(rh):
    try:
        rh.registry.get("x")
    except NotFound as error:
        rh.data = str(error)
"""
    )
    demo.reload()
    assert demo.call("F").body == b"Entry 'x' not found"
    assert issubclass(NotFound, RequestError)


def test_nothing_is_left_behind_in_the_lib_folder(demo: Made) -> None:
    demo.call("Test")
    assert [path.name for path in demo.lib.iterdir()] == ["demo.py"]
    shutil.rmtree(demo.lib)
    assert demo.call("Test").status == 200


def test_health_tells_how_many_keys_are_kept_and_warns_early(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpbroker.extensions.idempotency.KEYS_MAX", 5)
    monkeypatch.setattr("bpbroker.extensions.idempotency._PART_OF_ONE_CLIENT", 1)
    monkeypatch.setattr(extension, "_TIDY_SECS", 0.05)
    demo = make(answers=tmp_path / "answers")
    assert demo.health().figures["keys_kept"] == 0
    for number in range(3):
        demo.call("Count", key=f"k{number}")
    assert demo.until(lambda pong: pong.figures["keys_kept"] == 3).ok
    demo.call("Count", key="k3")
    pong = demo.until(lambda pong: pong.figures["keys_kept"] == 4)
    assert (pong.ok, "Idempotency-Key" in pong.detail) == (True, True)  # a warning, no failure
    assert pong.figures["answers_bytes"] > 0
    assert demo.call("Count", key="k4").body == b"5"
    with pytest.raises(Overloaded):
        demo.call("Count", key="k5")
    assert demo.call("Count").body == b"6"

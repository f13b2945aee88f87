"""Work beside an actor: one piece after the other, its steps, its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from bpbroker.actors import worker
from bpbroker.actors.base import wait_for
from bpbroker.actors.worker import Beside, Worker
from bpbroker.errors import Unavailable
from bpbroker.messages import Pong
from tests.support.witness import eventually

REPLACED = "it was replaced"


@pytest.fixture
def beside() -> Iterator[Worker]:
    made = Worker("test")
    yield made
    made.end(Unavailable("over"))
    assert made.join(10)


def test_pieces_are_done_in_their_order_and_a_failure_ends_only_its_own(
    beside: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = Future[Any](), Future[Any](), Future[Any]()
    begun = threading.Event()
    beside.do("first", lambda: begun.wait(10) and 1, first)
    beside.do("second", lambda: 1 / 0, second)
    beside.do("unasked", lambda: 1 / 0)
    beside.do("third", lambda: 3, third)
    assert not first.done()
    begun.set()
    assert wait_for(first, 10) == 1
    with pytest.raises(ZeroDivisionError):
        wait_for(second, 10)
    assert wait_for(third, 10) == 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def test_what_nobody_waits_for_any_more_is_not_done(beside: Worker) -> None:
    go, done = threading.Event(), list[str]()
    beside.do("first", lambda: go.wait(10))
    given_up, last = Future[Any](), Future[Any]()
    beside.do("given up", lambda: done.append("given up"), given_up)
    beside.do("last", lambda: done.append("last"), last)
    given_up.cancel()
    go.set()
    wait_for(last, 10)
    assert done == ["last"]


def test_steps_show_how_far_it_is(beside: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    at, go = threading.Event(), threading.Event()

    def chunks() -> Iterator[bytes]:
        yield b"a"
        at.set()
        assert go.wait(10)
        yield b"b"

    written = Future[Any]()
    beside.do("writing", lambda: b"".join(beside.follow(chunks(), 2)), written)
    assert at.wait(10)
    before, work = beside.steps, beside.at_work
    assert work is not None
    assert work.text == "writing, 0 %"
    stalled = [work.stalled]
    monkeypatch.setattr(worker, "STALLED_SECS", 0.0)
    stalled.append(work.stalled)
    assert stalled == [False, True]
    go.set()
    assert wait_for(written, 10) == b"ab"
    assert beside.steps > before
    eventually(lambda: beside.at_work is None)


def test_its_end_is_heard_at_once_and_takes_effect_at_the_next_step(beside: Worker) -> None:
    at, go, after = threading.Event(), threading.Event(), list[int]()

    def work() -> None:
        at.set()
        assert go.wait(10)
        beside.step()
        after.append(1)

    current, behind, late = Future[Any](), Future[Any](), Future[Any]()
    beside.do("work", work, current)
    beside.do("behind", lambda: after.append(2), behind)
    assert at.wait(10)
    beside.end(Unavailable(REPLACED))
    beside.do("late", lambda: after.append(3), late)
    with pytest.raises(Unavailable, match=r"whether this was done \(work\) is not known") as caught:
        wait_for(current, 0)
    assert not caught.value.outcome_known
    for reply in (behind, late):
        with pytest.raises(Unavailable, match=REPLACED) as caught:
            wait_for(reply, 0)
        assert caught.value.outcome_known
    assert not beside.join(0)
    go.set()
    assert beside.join(10)
    assert after == []


def test_a_probe_beside_never_waits_and_says_when_a_look_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    go, looks = threading.Event(), list[int]()

    def probe() -> Pong:
        looks.append(len(looks))
        assert len(looks) == 1 or go.wait(10)
        return Pong(figures={"look": len(looks)})

    seen = Beside("looking", probe)
    assert seen().figures == {"look": 1}
    eventually(lambda: len(looks) == 2)
    assert seen().figures == {"look": 1}
    monkeypatch.setattr(worker, "STALLED_SECS", 0.0)
    pong = seen()
    assert not pong.ok
    assert pong.detail.startswith("looking has not ended for")
    monkeypatch.setattr(worker, "STALLED_SECS", 60.0)
    go.set()
    eventually(lambda: seen().figures["look"] > 1)

"""An actor that dies or is stuck: nothing of it goes on."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bpbroker.errors import (
    RequestError,
    Unavailable,
)
from bpbroker.messages import CallResult
from tests.support.extension import WAIT_SECS, Made, Make, gone
from tests.support.witness import eventually


class Hold:
    """The message that holds an actor."""


class Fault:
    """Looks like an envelope, and ends the actor's thread without any tidying up."""

    reply_to = None

    @property
    def message(self) -> NoReturn:
        raise RuntimeError("fault")


def actor_of(made: Made) -> Any:
    ref = made.address._ref
    return None if ref is None else ref._actor_weakref()


def refused(reply: Future[CallResult]) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        reply.result(WAIT_SECS)
    return caught.value


@pytest.mark.parametrize("harm", ["dies", "is stuck"])
def test_no_call_and_no_process_outlives_its_actor(make: Make, tmp_path: Path, harm: str) -> None:
    demo = make(answers=tmp_path / "answers")
    child, note, release = tmp_path / "child", tmp_path / "note", threading.Event()
    begun = demo.begin("Grandchild", key="k", data=str(child))
    eventually(lambda: child.exists() and child.read_text() != "")
    waiting = demo.begin("Begin", data=str(note))
    demo.until(lambda pong: pong.figures["waiting"] == 1)
    actor = actor_of(demo)
    (pooled,) = actor._pool
    if harm == "dies":
        actor.actor_inbox._queue.put(Fault())  # past put(), which would open it
        actor.actor_stopped.wait(WAIT_SECS)
        behind = None
    else:
        actor.handlers[Hold] = lambda _: release.wait(WAIT_SECS)
        demo.address.tell(Hold())
        behind = demo.begin("Begin", data=str(note))
        demo.address.abandon()
        demo.address.abandon()  # it does not matter how often
    error = refused(begun)
    assert (error.outcome_known, "Grandchild was begun; what it did is not known" in str(error)) == (False, True)
    for reply in (waiting, behind):
        if reply is not None:
            error = refused(reply)
            assert (error.outcome_known, "nothing was done" in str(error)) == (True, True)
    assert gone(pooled.driver.pid)
    assert gone(int(child.read_text()))
    release.set()
    assert demo.address.stop(WAIT_SECS)
    assert not note.exists()  # whose client was told that nothing was done is not served afterwards
    with pytest.raises(RequestError, match=r"not known|crashed"):  # crashed: it came to itself and saw it
        make(answers=tmp_path / "answers").call("Grandchild", key="k", data=str(child))
    assert actor.status().figures["calls"] == 1

"""The inbox of an actor: one wait for messages and for the next wake."""

from __future__ import annotations

import threading

import pytest

from bpbroker.actors.inbox import Inbox


@pytest.mark.parametrize("moment", [float("inf"), 1e30])
def test_a_wake_that_never_comes_keeps_nothing_else_back(moment: float) -> None:
    inbox = Inbox()
    inbox.wake_at = moment
    threading.Timer(0.05, inbox._queue.put, ["a"]).start()
    assert inbox.get() == "a"

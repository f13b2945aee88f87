"""What is kept for a while goes when that is over, whatever the clock of the day says."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from bpbroker.actors.registry import Registry
from bpbroker.messages import Get, Register
from bpbroker.registry.requests import Batch

if TYPE_CHECKING:
    from tests.actors.conftest import Asked


def test_a_clock_that_jumps_lets_no_batch_happen_twice(registry: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch("b1", (Register("a", {"n": 1}, "i"),))
    first = registry(batch).revision
    actor = registry.address._actor
    assert isinstance(actor, Registry)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 10 * 366 * 86_400)
    actor._sessions.tidy()
    assert registry(batch).revision == first
    ahead = time.monotonic
    monkeypatch.setattr(actor.memory.ages, "_clock", lambda: ahead() + 7200)
    actor._sessions.tidy()
    registry(Get("a"))
    with pytest.raises(Exception, match="already exists"):
        registry(batch)

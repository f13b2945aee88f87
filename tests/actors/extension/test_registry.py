"""``rh.registry`` in a real process: coordination, conditions, and the errors that a method can catch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpbroker.actors.base import ActorAddress
from bpbroker.messages import Get
from bpbroker.registry.requests import Close, Lock, Open
from tests.support import registry_extension
from tests.support.extension import WAIT_SECS, Made, Make

MODULE = Path(registry_extension.__file__).read_text()


@pytest.fixture
def using(make: Make) -> Made:
    return make(source=MODULE)


@pytest.mark.parametrize(("method", "answer"), registry_extension.ANSWERS.items())
def test_what_a_method_can_do(using: Made, method: str, answer: Any) -> None:
    assert using.body(method) == answer


def test_a_refusal_that_a_method_lets_pass_is_the_answer(using: Made) -> None:
    for method, status, said in (("Pass", 412, "not as expected"), ("Own", 404, "no such host")):
        found = using.call(method)
        assert found.status == status
        assert said in found.message
    assert using.call("Unknown").status == 400


def test_a_method_waits_for_a_lock_that_a_client_holds(using: Made, registry: ActorAddress) -> None:
    registry.ask(Open("s", 60.0, "10.0.0.1"), WAIT_SECS).result(WAIT_SECS)
    registry.ask(Lock("held", "s", "10.0.0.1", data="a client"), WAIT_SECS).result(WAIT_SECS)
    refused = using.call("Locked", wait="0")
    assert refused.status == 409
    assert "held by a client" in refused.message
    waiting = using.begin("Locked", wait="20")
    registry.ask(Close("s"), WAIT_SECS).result(WAIT_SECS)
    assert waiting.result(WAIT_SECS).status == 200
    assert b"extension" in registry.ask(Get("by"), WAIT_SECS).result(WAIT_SECS).json

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpbroker.client.cli.session import Session
from bpbroker.errors import Unavailable
from tests.support.fake_broker import FakeBroker, failure, success

AWAY = failure(503, "Overloaded", Retry_After="1")


@pytest.fixture
def session(fake: FakeBroker, known_brokers: Path, quick: list[float]) -> Callable[..., Session]:
    """Return a maker of sessions with a made-up broker; pauses take no time."""
    assert not known_brokers.exists()
    assert not quick

    def make(**given: Any) -> Session:
        return Session({"bpbroker": str(fake.address), "fingerprint": fake.fingerprint, **given}, {})

    return make


def test_four_tries_again_are_enough_where_nobody_said_how_long(
    fake: FakeBroker, session: Callable[..., Session]
) -> None:
    fake.answers = [AWAY]
    with session().client()[0] as client, pytest.raises(Unavailable):
        client.get("n")
    assert len(fake.requests) == 5


def test_a_timeout_that_was_given_is_used_up(fake: FakeBroker, session: Callable[..., Session]) -> None:
    fake.answers = [AWAY] * 20 + [success({"a": 1})]
    with session(timeout="5m").client()[0] as client:
        assert client.get("n") == {"a": 1}
    assert len(fake.requests) == 21


def test_no_retry_means_none_whatever_the_timeout(fake: FakeBroker, session: Callable[..., Session]) -> None:
    fake.answers = [AWAY]
    with session(timeout="5m", retry=0).client()[0] as client, pytest.raises(Unavailable):
        client.get("n")
    assert len(fake.requests) == 1

"""Brokers for those who attack them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.running import RunningBroker
from tests.support.witness import CANARY, Attacked


@pytest.fixture(scope="module")
def keyed_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """Yield a running broker whose registry has the canary as its access key; one for all tests of a module."""
    broker = RunningBroker(tmp_path_factory.mktemp("keyed"), {"services": {"_access_key": CANARY}}).start()
    try:
        yield broker
    finally:
        broker.kill()


@pytest.fixture
def attacked(keyed_broker: RunningBroker) -> Iterator[Attacked]:
    """Yield the module's broker; after the test it must be as if nothing had been."""
    subject = Attacked(keyed_broker)
    yield subject
    subject.unharmed()


@pytest.fixture
def attack(make_broker: Callable[..., RunningBroker]) -> Iterator[Callable[..., Attacked]]:
    """Yield a maker of brokers with settings for ``api``; each is checked after the test in the same way."""
    made: list[Attacked] = []

    def make(**api: Any) -> Attacked:
        made.append(Attacked(make_broker({"api": api, "services": {"_access_key": CANARY}}).start()))
        return made[-1]

    yield make
    for each in made:
        each.unharmed()

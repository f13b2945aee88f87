"""Fixtures that all tests share: hypothesis' profile and real broker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.running import RunningBroker

# Shared machines are up to five times slower from one minute to the next: no test may fail for that.
settings.register_profile("bpbroker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bpbroker")


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., RunningBroker]]:
    """Give a maker of brokers, not started; each has a home of its own. All are gone after the test."""
    made: list[RunningBroker] = []

    def make(configuration: Mapping[str, Any] | None = None, *options: str) -> RunningBroker:
        made.append(RunningBroker(tmp_path / f"home{len(made)}", configuration, *options))
        return made[-1]

    yield make
    for each in made:
        each.kill()


@pytest.fixture
def broker(make_broker: Callable[..., RunningBroker]) -> RunningBroker:
    """Give a running broker with nothing configured."""
    return make_broker().start()

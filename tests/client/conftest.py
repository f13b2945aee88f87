"""Fixtures of the client's tests: a made-up broker, and clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from bpbroker.client import Client
from tests.support.fake_broker import FakeBroker, Identity


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def identity(authority: trustme.CA) -> Identity:
    """Return what :func:`fake` shows; a broker of a test's own shows another one."""
    return Identity.issued(authority)


@pytest.fixture
def fake(identity: Identity) -> Iterator[FakeBroker]:
    broker = FakeBroker(identity)
    yield broker
    broker.close()


@pytest.fixture
def known_brokers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of pins that everything in this test uses."""
    path = tmp_path / "config" / "known_brokers"
    monkeypatch.setenv("BPBROKER_KNOWN_BROKERS", str(path))
    return path


@pytest.fixture
def make_client(fake: FakeBroker, known_brokers: Path) -> Iterator[Callable[..., Client]]:
    assert not known_brokers.exists()
    made: list[Client] = []

    def make(**options: Any) -> Client:
        made.append(Client(fake.address, **{"fingerprint": fake.fingerprint, "timeout_secs": 30, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make pauses between attempts take no time; give how long they would have been."""
    slept: list[float] = []
    monkeypatch.setattr("bpbroker.client.calls.time.sleep", slept.append)
    return slept

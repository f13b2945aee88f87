"""The discovery secret of a shared registry: one for all, kept until it is renewed, never lost for a broken one."""

from __future__ import annotations

import json
import logging

import pytest

from bpbroker.errors import BadRequest
from bpbroker.messages import ShareSecret
from bpbroker.record import Record
from bpbroker.registry.discovery_secret import NAME, DiscoverySecret, secret_of, stored
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.view import Limits

ONE, OTHER = "5e" * 32, "07" * 32
BROKEN = (b"{}", b"[]", b"x", b'{"secret": 7}', b'{"secret": "5e"}', b'{"secret": "%s"}' % (b"5E" * 32))


def held(secret: str) -> bytes:
    return json.dumps(stored(secret, 0.0)).encode()


def shared(message: ShareSecret, current: bytes | None = None) -> str:
    """Return the secret that a registry has after a message."""
    memory = Memory()
    memory.fill([] if current is None else [Record(NAME, current, 77_000)])
    write = PendingWrite(message, None)
    memory.decide(write, 7.0, Limits())
    if isinstance(write.decision, BaseException):
        raise write.decision
    assert write.decision.name == NAME
    return secret_of(write.decision.json)


def test_the_first_one_stays_until_it_is_renewed() -> None:
    assert shared(ShareSecret(ONE)) == ONE
    assert shared(ShareSecret(OTHER), held(ONE)) == ONE
    assert shared(ShareSecret(OTHER, renew=True), held(ONE)) == OTHER


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_one_is_replaced(broken: bytes) -> None:
    assert secret_of(broken) == ""
    assert shared(ShareSecret(ONE), broken) == ONE


@pytest.mark.parametrize("secret", ["", "None", "5e", "5E" * 32, "5e" * 33])
def test_what_is_none_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(BadRequest, match="64 lower-case hexadecimal digits"):
        shared(ShareSecret(secret), held(ONE))
    assert repr(ShareSecret("a" * 64)).count("a" * 64) == 0


def test_the_registry_s_counts_and_not_that_of_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    holder = DiscoverySecret(OTHER)
    assert (holder.value, holder.offered) == ("", OTHER)
    with caplog.at_level(logging.WARNING):
        for value in (held(ONE), held(ONE), None):
            holder.take(value)
    assert (holder.value, holder.offered) == (ONE, ONE)
    assert [record.getMessage() for record in caplog.records] == [
        "_discovery.secret in the settings is not used: the registry has another one, for all its brokers"
    ]
    same = DiscoverySecret(ONE)
    caplog.clear()
    same.take(held(ONE))
    assert not caplog.records


def test_memory_tells_it() -> None:
    memory, holder = Memory(), DiscoverySecret()
    memory.secret = holder
    memory.fill([Record(NAME, held(ONE), 77_000)])
    assert holder.value == ONE
    memory.put(NAME, Record(NAME, held(OTHER), 78_000))
    assert holder.value == OTHER
    memory.put(NAME, None)
    assert holder.value == OTHER  # it is brought back in a moment

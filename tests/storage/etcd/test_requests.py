"""How many requests to etcd a call of a client takes: one, for all that is done all the time."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bpbroker.actors import base
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_shared import SharedBackend
from bpbroker.config import layers
from bpbroker.errors import AlreadyExists, NotFound
from bpbroker.messages import Delete, Get, Register, Replace, Update
from bpbroker.registry.requests import Lock, Open, Renew, Unlock
from bpbroker.storage.etcd.endpoint import Endpoint
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.store import EtcdStore
from tests.support.etcd_cluster import needs_etcd

pytestmark = needs_etcd

IP = "10.0.0.1"


@pytest.fixture
def ask(etcd_section: dict[str, Any]) -> Iterator[Callable[[Any], Any]]:
    """Asks a registry on etcd."""

    def store() -> EtcdStore:
        return EtcdStore(EtcdOptions.of({"_registry": etcd_section}))

    address = base.ActorAddress("registry", base.launch(Registry, SharedBackend(store), layers.freeze(layers.DEFAULTS)))
    yield lambda message: base.wait_for(address.ask(message, 30), 30)
    assert address.stop(10)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What etcd was asked; not whether it is there, nor to tell changes."""
    sent, send = list[str](), Endpoint._send

    def note(endpoint: Endpoint, path: str, content: str, *more: Any) -> socket.socket:
        if path != "/watch" and "count_only" not in content:
            sent.extend([path] * len(content.splitlines()))
        return send(endpoint, path, content, *more)

    monkeypatch.setattr(Endpoint, "_send", note)
    return sent


def test_how_many_requests_a_call_takes(ask: Callable[[Any], Any], requests: list[str]) -> None:
    ask(Register("first", {}, IP))  # connects, and is verified
    ask(Get("first"))
    ask(Open("s", 60, IP))
    ask(Renew("s"))
    for message, paths in (
        (Register("a", {"n": 1}, IP), ["/kv/txn"]),
        (Replace("a", {"n": 2}, IP), ["/kv/txn"]),
        (Update("a", {"m": 3}, IP), ["/kv/txn"]),
        (Get("a"), ["/kv/range"]),
        (Lock("l", "s", IP), ["/kv/txn"]),
        (Unlock("l", "s"), ["/kv/txn"]),
        (Renew("s"), ["/kv/range", "/lease/keepalive"]),
        (Delete("a"), ["/kv/txn"]),
    ):
        requests.clear()
        ask(message)
        assert sorted(requests) == paths, message  # those of a renewal are sent at the same time
    for refused, error in ((Register("first", {}, IP), AlreadyExists), (Get("none"), NotFound)):
        requests.clear()
        with pytest.raises(error):
            ask(refused)
        assert requests == ["/kv/range"], refused

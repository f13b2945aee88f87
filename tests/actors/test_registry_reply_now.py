"""What is replied without the registry's turn: what is durable, whole commits, and renewals that count."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.actors import registry_sessions
from bpbroker.actors.inbox import Envelope
from bpbroker.actors.registry import Flush, Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.config import layers
from bpbroker.errors import NotFound
from bpbroker.messages import Delete, Get, List, Replace
from bpbroker.record import Record
from bpbroker.registry.requests import Batch, Close, Expire, Open, Renew
from tests.actors.conftest import Ledger

if TYPE_CHECKING:
    from tests.actors.conftest import Asked

IP = "10.0.0.1"


def replace(name: str, **data: Any) -> Replace:
    return Replace(name, data, IP)


def actor_of(registry: Asked) -> Registry:
    actor = registry.address._actor
    assert isinstance(actor, Registry)
    return actor


def own(record: Record) -> Any:
    return {name: value for name, value in json.loads(record.json).items() if not name.startswith("last_write_")}


def test_an_entry_is_the_one_that_asking_gives(registry: Asked) -> None:
    written = registry(replace("a", n=1))
    assert registry.address.reply_now(Get("a")) == registry(Get("a")) == written
    registry(Delete("a"))
    assert registry.address.reply_now(Get("a")) is None


@pytest.mark.parametrize("message", [Get("a", 1.0), Get("a", local=True), List(""), replace("a"), Renew("s")])
def test_what_needs_a_turn_has_to_be_asked(registry: Asked, message: Any) -> None:
    registry(replace("a", n=1))
    assert registry.address.reply_now(message) is None


def test_what_is_not_durable_is_not_shown(registry: Asked, ledger: Ledger) -> None:
    registry(replace("a", n=1))
    ledger.hold()
    written = registry.send(replace("a", n=2))
    ledger.await_commit()
    found = registry.address.reply_now(Get("a"))
    assert found is not None
    assert own(found) == {"n": 1}
    ledger.release()
    record = written.result(10)
    assert registry.address.reply_now(Get("a")) == record


def test_of_a_batch_all_is_shown_or_nothing(registry: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    registry(Batch("", (replace("a", n=1), replace("b", n=1)), atomic=True))
    memory, seen = actor_of(registry).memory, []
    put = memory.put

    def looking(name: str, after: Record | None) -> None:
        put(name, after)
        seen.append([registry.address.reply_now(Get(each)) for each in "ab"])

    monkeypatch.setattr(memory, "put", looking)
    registry(Batch("", (replace("a", n=2), replace("b", n=2)), atomic=True))
    assert seen == [[None, None], [None, None]]
    found = [registry.address.reply_now(Get(each)) for each in "ab"]
    assert [own(each) for each in found if each is not None] == [{"n": 2}, {"n": 2}]


def test_on_a_store_with_other_writers_everything_is_asked(shared_registry: Asked) -> None:
    shared_registry(replace("a", n=1))
    shared_registry(Open("s", 60.0, IP))
    assert shared_registry.address.reply_now(Get("a")) is None
    assert shared_registry.address.reply_now(Renew("s")) is None


def test_the_one_that_takes_a_place_is_the_one_that_replies(registry: Asked, run: Callable[..., Asked]) -> None:
    registry(replace("a", n=1))
    other = run(Registry, LocalBackend(Ledger), layers.DEFAULTS)
    assert other.address._ref is not None
    registry.address.replace(other.address._ref)
    assert registry.address.reply_now(Get("a")) is None
    written = other(replace("a", n=2))
    assert registry.address.reply_now(Get("a")) == written


# --- renewals ---


def test_a_renewal_is_the_one_that_asking_gives(registry: Asked) -> None:
    registry(Open("s", 60.0, IP))
    assert registry.address.reply_now(Renew("s")) == registry(Renew("s"))
    registry(Close("s"))
    assert registry.address.reply_now(Renew("s")) is None
    with pytest.raises(NotFound):
        registry(Renew("s"))


@pytest.fixture
def still(ledger: Ledger) -> Iterator[Registry]:
    """A registry without a thread, with the session ``s`` of two seconds."""
    registry = Registry(LocalBackend(lambda: ledger), layers.DEFAULTS)
    registry.started()
    opened = ask(registry, Open("s", 2.0, IP))
    registry.on_receive(Envelope(Flush()))
    assert opened.result(0).data["ttl"] == 2.0
    yield registry
    registry.stopped()


def ask(registry: Registry, message: Any) -> Future[Any]:
    reply: Future[Any] = Future()
    registry.on_receive(Envelope(message, reply))
    return reply


def test_a_session_that_is_renewed_without_a_turn_lives_on(still: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    for after in (2.0, 4.0, 6.0):
        monkeypatch.setattr(registry_sessions, "time", SimpleNamespace(monotonic=lambda at=after: began + at))
        assert still.reply_now(Renew("s")) is not None
        still._sessions.pass_time(began + after + 2.0, 0.0)
        assert not still.memory.batch.writes
    still._sessions.pass_time(began + 8.6, 0.0)
    assert isinstance(still.memory.batch.writes[0].message, Expire)


def test_a_session_that_is_being_ended_is_not_told_that_it_lives(still: Registry) -> None:
    still._sessions.pass_time(time.monotonic() + 2.0 * 1.25, 0.0)  # its end is decided, and not durable yet
    assert isinstance(still.memory.batch.writes[0].message, Expire)
    with pytest.raises(NotFound):
        ask(still, Renew("s")).result(0)
    still.on_receive(Envelope(Flush()))
    assert still.memory.sessions == 0


@pytest.mark.parametrize("closed", [True, False])
def test_a_session_opened_again_in_the_commit_of_its_end_lives(
    still: Registry, monkeypatch: pytest.MonkeyPatch, *, closed: bool
) -> None:
    began = time.monotonic()
    if closed:
        ask(still, Close("s"))
    else:
        still._sessions.pass_time(began + 2.0 * 1.25, 0.0)
    opened = ask(still, Open("s", 60.0, IP))
    still.on_receive(Envelope(Flush()))
    assert opened.result(0).data["ttl"] == 60.0
    assert ask(still, Renew("s")).result(0).data["ttl"] == 60.0
    assert still._sessions.ended == {"closed": int(closed), "lost": int(not closed)}
    monkeypatch.setattr(registry_sessions, "time", SimpleNamespace(monotonic=lambda: began + 59.0))
    found = still.reply_now(Renew("s"))
    assert found is not None
    assert found.data["ttl"] == 60.0

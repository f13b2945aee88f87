from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pykka
import pytest

from bpbroker.actors import base
from bpbroker.errors import BadRequest, Overloaded, TimedOut, Unavailable
from bpbroker.messages import Ping, Pong


@dataclass(frozen=True)
class Do:
    what: Any


class Worker(base.Actor):
    def __init__(self, *, fail_start: bool = False) -> None:
        super().__init__()
        self.handlers = {Do: self.do}
        self.kept: list[Future[Any]] = []
        self.done: list[Any] = []
        self.fail_start = fail_start

    def started(self) -> None:
        if self.fail_start:
            raise BadRequest("no start")

    def do(self, message: Do) -> Any:
        if callable(message.what):
            return message.what(self)
        self.done.append(message.what)
        return message.what


@pytest.fixture
def address() -> Iterator[base.ActorAddress]:
    address = base.ActorAddress("worker", base.launch(Worker))
    yield address
    assert address.stop(5)


def ask(address: base.ActorAddress, what: Any, timeout_secs: float = 5) -> Any:
    return base.wait_for(address.ask(Do(what), timeout_secs), timeout_secs)


def test_a_request_gets_its_reply(address: base.ActorAddress) -> None:
    assert ask(address, 7) == 7
    assert base.wait_for(address.ask(Ping(), 5), 5) == Pong()


@pytest.mark.parametrize("error", [BadRequest("b"), ValueError("v"), SystemExit(0), KeyboardInterrupt()])
def test_an_error_fails_one_message_and_no_actor(address: base.ActorAddress, error: BaseException) -> None:
    other = base.ActorAddress("other", base.launch(Worker))

    def raise_it(_: Worker) -> None:
        raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else RuntimeError):
        ask(address, raise_it)
    address.tell(Do(raise_it))
    assert ask(address, "alive") == "alive"
    assert ask(other, "alive") == "alive"
    assert other.stop(5)


def test_a_late_request_is_dropped_and_says_so(address: base.ActorAddress) -> None:
    gate = threading.Event()
    address.tell(Do(lambda _: gate.wait(5)))
    reply = address.ask(Do("late"), 0.0)
    time.sleep(0.01)
    gate.set()
    with pytest.raises(TimedOut, match="nothing was done"):
        reply.result(5)
    assert ask(address, lambda worker: list(worker.done)) == []


def test_who_gave_up_waiting_is_not_served(address: base.ActorAddress) -> None:
    gate = threading.Event()
    address.tell(Do(lambda _: gate.wait(5)))
    with pytest.raises(TimedOut):
        base.wait_for(address.ask(Do("late"), 60), 0.01)
    gate.set()
    assert ask(address, lambda worker: list(worker.done)) == []


def test_a_full_inbox_refuses_requests_but_takes_news(
    address: base.ActorAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, inside = threading.Event(), threading.Event()

    def hold(_: Worker) -> None:
        inside.set()
        gate.wait(5)

    address.tell(Do(hold))
    assert inside.wait(5)
    monkeypatch.setattr(address._ref.actor_inbox, "_limit", 2)  # type: ignore[union-attr]  # the fixture started it
    replies = [address.ask(Do(number), 5) for number in range(2)]
    with pytest.raises(Overloaded):
        address.ask(Do("too much"), 5)
    address.tell(Do("news"))
    gate.set()
    assert [reply.result(5) for reply in replies] == [0, 1]
    assert ask(address, lambda worker: list(worker.done)) == [0, 1, "news"]


def test_a_handler_may_answer_later(address: base.ActorAddress) -> None:
    def keep(worker: Worker) -> Any:
        assert worker.reply is not None
        worker.kept.append(worker.reply)
        return base.DEFERRED

    reply = address.ask(Do(keep), 5)
    ask(address, lambda worker: worker.kept.pop().set_result("later"))
    assert reply.result(5) == "later"


def test_a_failed_start_raises_its_reason() -> None:
    with pytest.raises(BadRequest, match="no start"):
        base.launch(Worker, fail_start=True)
    assert pykka.ActorRegistry.get_by_class(Worker) == []


def test_stopping_refuses_what_still_waits() -> None:
    address = base.ActorAddress("worker", base.launch(Worker))
    gate = threading.Event()
    address.tell(Do(lambda _: gate.wait(5)))
    stopper = threading.Thread(target=address.stop, args=(5,))
    stopper.start()
    while address._ref.actor_inbox.qsize() < 1:  # type: ignore[union-attr]  # the stop message is on its way
        time.sleep(0.001)
    late = address.ask(Do("behind the stop"), 5)
    gate.set()
    stopper.join(5)
    with pytest.raises(Unavailable, match="stopping"):
        late.result(5)
    with pytest.raises(Unavailable, match="not running"):
        address.ask(Do(1), 5)
    address.tell(Do(1))


def test_a_fresh_actor_takes_the_place_of_a_stopped_one() -> None:
    address = base.ActorAddress("worker", base.launch(Worker))
    assert address.stop(5)
    assert not address.alive
    address.replace(base.launch(Worker))
    assert ask(address, 1) == 1
    assert address.stop(5)


def test_who_asked_it_to_stop_twice_does_not_wait_in_vain() -> None:
    address = base.ActorAddress("worker", base.launch(Worker))
    gate, inside = threading.Event(), threading.Event()

    def hold(_: Worker) -> None:
        inside.set()
        gate.wait(5)

    address.tell(Do(hold))
    assert inside.wait(5)
    assert not address.stop(0.01)
    second: list[bool] = []
    stopping = threading.Thread(target=lambda: second.append(address.stop(60)))
    stopping.start()
    while address._ref is not None and address._ref.is_alive() and address._ref.actor_inbox.qsize() < 2:  # type: ignore[attr-defined]  # the base's own inbox
        time.sleep(0.001)
    begun = time.monotonic()
    gate.set()
    stopping.join(30)
    assert second == [True]
    assert time.monotonic() - begun < 30


def test_what_an_actor_tells_itself_after_its_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of it that goes on, such as one that follows a store, would fill the memory."""
    stopped, failed = (base.ActorAddress(name, base.launch(Worker)) for name in ("stopped", "failed"))
    actors = [actor for actor in (stopped._actor, failed._actor) if actor is not None]
    assert stopped.stop(5)
    let_go = threading.Event()
    monkeypatch.setattr(Worker, "on_receive", lambda *_: 1 / 0)
    monkeypatch.setattr(Worker, "abandoned", lambda _: let_go.set())
    failed.tell(Do(1))
    assert let_go.wait(5)
    for actor in actors:
        actor.tell_self(Do(2))
    assert [actor.actor_inbox.qsize() for actor in actors] == [0, 0]

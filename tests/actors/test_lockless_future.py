"""A future without a lock behaves as the future of the standard library does: each test is of both."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.actors.lockless_future import LocklessFuture

Make = Callable[[], "Future[Any]"]
both = pytest.mark.parametrize("make", [Future, LocklessFuture])
THREADS = 4


@both
def test_a_value(make: Make) -> None:
    reply = make()
    assert (reply.done(), reply.cancelled(), reply.running()) == (False, False, False)
    reply.set_result(None)
    assert (reply.done(), reply.cancelled()) == (True, False)
    assert reply.result() is None
    assert reply.exception() is None
    assert not reply.cancel()


@both
def test_an_error(make: Make) -> None:
    reply = make()
    reply.set_exception(KeyError("a"))
    assert isinstance(reply.exception(0), KeyError)
    for _ in range(2):
        with pytest.raises(KeyError, match="a"):
            reply.result(0)


@both
def test_one_that_is_cancelled(make: Make) -> None:
    reply = make()
    assert reply.cancel()
    assert reply.cancel()
    assert (reply.done(), reply.cancelled()) == (True, True)
    for ask in (reply.result, reply.exception):
        with pytest.raises(CancelledError):
            ask(0)
    assert not reply.set_running_or_notify_cancel()


@both
def test_the_first_outcome_counts(make: Make) -> None:
    reply = make()
    reply.set_result(1)
    with pytest.raises(InvalidStateError):
        reply.set_result(2)
    with pytest.raises(InvalidStateError):
        reply.set_exception(KeyError())
    assert reply.result() == 1


@both
def test_who_waits_is_woken(make: Make) -> None:
    reply = make()
    for ask in (reply.result, reply.exception):
        with pytest.raises(FutureTimeout):
            ask(0)
        with pytest.raises(FutureTimeout):
            ask(0.01)
    found: list[int] = []
    waiting = [threading.Thread(target=lambda: found.append(reply.result(30))) for _ in range(THREADS)]
    for thread in waiting:
        thread.start()
    reply.set_result(7)
    for thread in waiting:
        thread.join()
    assert found == [7] * THREADS


@both
def test_who_waits_does_not_wait_for_what_is_called_back(make: Make) -> None:
    reply, go_on = make(), threading.Event()
    reply.add_done_callback(lambda _: go_on.wait(30))
    waiting = threading.Event()
    found: list[int] = []

    def wait() -> None:
        waiting.set()
        found.append(reply.result(30))

    waiter = threading.Thread(target=wait)
    waiter.start()
    waiting.wait(30)
    setter = threading.Thread(target=reply.set_result, args=(7,))
    setter.start()
    waiter.join(20)
    assert found == [7]
    go_on.set()
    setter.join()


def test_a_wait_that_is_over_leaves_nothing() -> None:
    reply: LocklessFuture[int] = LocklessFuture()
    for _ in range(3):
        with pytest.raises(FutureTimeout):
            reply.result(0)
    assert not reply._callbacks


@both
def test_what_is_called_back_is_called_once_and_in_order(make: Make) -> None:
    reply, called = make(), []
    for number in range(3):
        reply.add_done_callback(lambda done, number=number: called.append((done is reply, number)))  # type: ignore[misc]  # a default keeps the number
    assert called == []
    reply.set_result(None)
    reply.add_done_callback(lambda _: called.append((True, 3)))
    assert called == [(True, number) for number in range(4)]


@both
def test_an_error_in_what_is_called_back_is_logged_and_harms_nobody(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    reply, called = make(), []

    def fail(_: object) -> None:
        raise KeyError("canary")

    reply.add_done_callback(fail)
    reply.add_done_callback(lambda _: called.append(1))
    with caplog.at_level(logging.ERROR):
        reply.set_result(None)
    assert called == [1]
    assert "canary" in caplog.text


@both
def test_an_error_that_is_kept_does_not_keep_the_reply(make: Make) -> None:
    reply = make()
    reply.set_exception(KeyError("a"))
    with pytest.raises(KeyError) as raised:
        reply.result(0)
    trace = raised.value.__traceback__
    while trace is not None:
        inside = trace.tb_frame.f_code.co_name == "result"
        assert not (inside and reply in trace.tb_frame.f_locals.values())
        trace = trace.tb_next


def test_it_can_be_shown() -> None:
    reply: LocklessFuture[int] = LocklessFuture()
    assert repr(reply) == "<LocklessFuture: pending>"
    reply.set_result(1)
    assert repr(reply) == "<LocklessFuture: value>"


def _settle(reply: Future[int], how: int) -> bool:
    if how == 0:
        return reply.cancel()
    try:
        reply.set_result(how)
    except InvalidStateError:
        return False
    return True


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.integers(0, 5))
def test_threads_that_settle_it_at_once_agree_on_one_outcome(hows: list[int], callbacks: int) -> None:
    reply: LocklessFuture[int] = LocklessFuture()
    begin = threading.Barrier(len(hows) + 1)
    won: list[int] = []
    called: list[int] = []

    def settle(how: int) -> None:
        begin.wait(30)
        if _settle(reply, how):
            won.append(how)

    threads = [threading.Thread(target=settle, args=(how,)) for how in hows]
    for thread in threads:
        thread.start()
    begin.wait(30)
    for number in range(callbacks):
        reply.add_done_callback(lambda _, number=number: called.append(number))  # type: ignore[misc]  # a default keeps the number
    for thread in threads:
        thread.join()
    assert sorted(called) == list(range(callbacks))
    assert len({*won}) == 1  # cancelling twice is no conflict, setting twice is
    assert len(won) == 1 or won[0] == 0
    assert reply.cancelled() if won[0] == 0 else reply.result(0) == won[0]

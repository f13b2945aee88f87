"""The threads that make pages: few, bounded, and nothing that a page does ends one."""

from __future__ import annotations

import threading

import pytest

from bpbroker.errors import Overloaded
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.pages import Pages, threads
from bpbroker.frontend.pages.threads import PageThreads
from bpbroker.server.response import Response

WAIT_SECS = 10.0
DONE = Response(200, b"done")


@pytest.mark.parametrize(("workers", "count"), [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4), (64, 32)])
def test_half_as_many_threads_as_workers_make_pages(workers: int, count: int) -> None:
    assert Pages({}, NamedKeys(), workers)._threads._count == count


def test_what_hangs_takes_one_thread_and_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WAITING_MAX", 3)
    made = PageThreads(2)
    let_go, both = threading.Event(), threading.Barrier(3)

    def hang() -> Response:
        both.wait(WAIT_SECS)
        assert let_go.wait(WAIT_SECS)
        return DONE

    hanging = [made.ask(hang) for _ in range(2)]
    both.wait(WAIT_SECS)  # each has a thread, and there is no third
    waiting = [made.ask(lambda: DONE) for _ in range(3)]
    with pytest.raises(Overloaded):
        made.ask(lambda: DONE)
    waiting[0].cancel()
    let_go.set()
    assert [reply.result(WAIT_SECS) for reply in (*hanging, *waiting[1:])] == [DONE] * 4


def test_one_client_does_not_keep_all_others_from_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WAITING_OF_ONE_MAX", 3)
    made = PageThreads(1)
    let_go = threading.Event()

    def hang() -> Response:
        assert let_go.wait(WAIT_SECS)
        return DONE

    first = [made.ask(hang, "10.0.0.1") for _ in range(3)]
    first[-1].cancel()  # it has its place in the queue until it is its turn
    with pytest.raises(Overloaded):
        made.ask(lambda: DONE, "10.0.0.1")
    other = made.ask(lambda: DONE, "10.0.0.2")
    let_go.set()
    assert other.result(WAIT_SECS) == DONE
    assert made.ask(lambda: DONE, "10.0.0.1").result(WAIT_SECS) == DONE


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_a_page_raises_ends_no_thread(error: BaseException) -> None:
    made = PageThreads(1)

    def fail() -> Response:
        raise error

    assert made.ask(fail).exception(WAIT_SECS) is error
    assert made.ask(lambda: DONE).result(WAIT_SECS) == DONE

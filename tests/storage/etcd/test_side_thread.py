"""Calls beside those of the thread that asks for them: one at a time, whatever comes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bpbroker.errors import Unavailable
from bpbroker.storage.etcd.side_thread import SideThread


@pytest.fixture
def side() -> Iterator[SideThread]:
    made = SideThread("side")
    yield made
    made.end()


def test_calls_are_made_one_after_the_other(side: SideThread) -> None:
    go_on = threading.Event()
    first, second = side.call(lambda: go_on.wait(30)), side.call(threading.current_thread)
    assert not first.done()
    assert not second.done()
    go_on.set()
    assert first.result(30)
    assert (second.result(30).name, second.result().daemon) == ("side", True)


def test_an_error_is_the_callers(side: SideThread) -> None:
    def fail() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        side.call(fail).result(30)
    assert side.call(lambda: 1).result(30) == 1


def test_at_the_end_what_was_taken_is_done_and_no_more_is_taken(side: SideThread) -> None:
    go_on = threading.Event()
    taken = side.call(lambda: go_on.wait(30)), side.call(lambda: True)
    side.end()
    with pytest.raises(Unavailable, match="closed"):
        side.call(lambda: None)
    go_on.set()
    assert all(each.result(30) for each in taken)

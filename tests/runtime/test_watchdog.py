"""systemd's watchdog hears of a broker that is busy, and of none that is stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from bpbroker import messages
from bpbroker.runtime.mainloop import MainLoop
from bpbroker.runtime.watchdog import PINGS, Watchdog

LIMIT_SECS = 0.4


class Heard:
    """Counts pings."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._more = threading.Condition()

    def ping(self) -> None:
        with self._more:
            self.times.append(time.monotonic())
            self._more.notify_all()

    def wait_for(self, count: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: len(self.times) >= count, 30.0)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    """Return a main loop; it is stopped afterwards."""
    made = MainLoop()
    yield made
    made.tell(messages.Stop())


def test_a_main_thread_that_is_busy_keeps_nobody_from_pinging(loop: MainLoop, heard: Heard) -> None:
    busy, done = threading.Event(), threading.Event()

    def take(event: object) -> None:
        assert event == "work"
        busy.set()
        assert done.wait(30.0)

    watchdog = Watchdog(lambda: loop.busy_secs() < 60.0, heard.ping, LIMIT_SECS)
    thread = threading.Thread(target=loop.serve, args=(take, lambda: 3600.0))
    thread.start()
    watchdog.start()
    try:
        loop.tell("work")
        assert busy.wait(30.0)
        heard.wait_for(len(heard.times) + 2 * PINGS)  # two limits go by
    finally:
        done.set()
        loop.tell(messages.Stop())
        thread.join()
        watchdog.stop()


def test_who_waits_for_work_is_not_busy(loop: MainLoop) -> None:
    looked = threading.Event()

    def tend() -> float:
        looked.set()
        return 3600.0

    thread = threading.Thread(target=loop.serve, args=(lambda _: None, tend))
    thread.start()
    try:
        assert looked.wait(30.0)
        until = time.monotonic() + 30.0
        while loop.busy_secs() > 0 and time.monotonic() < until:
            time.sleep(0.001)
        assert loop.busy_secs() == 0.0
    finally:
        loop.tell(messages.Stop())
        thread.join()


def test_a_thread_that_does_not_come_back_is_busy_for_longer_and_longer(loop: MainLoop) -> None:
    inside, done = threading.Event(), threading.Event()

    def tend() -> float:
        inside.set()
        assert done.wait(30.0)
        return 3600.0

    thread = threading.Thread(target=loop.serve, args=(lambda _: None, tend))
    thread.start()
    try:
        assert inside.wait(30.0)
        first = loop.busy_secs()
        assert 0.0 < first < loop.busy_secs()
    finally:
        done.set()
        loop.tell(messages.Stop())
        thread.join()


def test_a_broker_that_is_not_well_is_not_pinged_for_but_looked_at_again(heard: Heard) -> None:
    asked, well = threading.Event(), threading.Event()

    def is_well() -> bool:
        asked.set()
        return well.is_set()

    watchdog = Watchdog(is_well, heard.ping, LIMIT_SECS)
    watchdog.start()
    try:
        for _ in range(3):
            asked.clear()
            assert asked.wait(30.0)
        assert not heard.times
        well.set()
        heard.wait_for(1)
    finally:
        watchdog.stop()


def test_where_nobody_watches_there_is_no_thread(heard: Heard) -> None:
    before = threading.active_count()
    watchdog = Watchdog(lambda: True, heard.ping, None)
    watchdog.start()
    assert threading.active_count() == before
    watchdog.stop()
    assert not heard.times

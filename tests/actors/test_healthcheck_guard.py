"""Who watches the healthcheck; times are given, nothing here waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pykka
import pytest

from bpbroker.actors.base import Actor, ActorAddress, launch, wait_for
from bpbroker.actors.healthcheck_guard import STUCK_SECS, HealthcheckGuard
from bpbroker.actors.restart_pauses import RESTARTS_MAX, RESTARTS_WINDOW_SECS
from bpbroker.messages import Ping

WAIT_SECS = 30.0
EVERY_SECS = 5.0


class Watched(Actor):
    def __init__(self, held: threading.Event) -> None:
        super().__init__()
        self.handlers = {threading.Event: lambda begun: (begun.set(), held.wait(60))}


class Post:
    """A guard, what it guards, and the clock that it sees."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.held = threading.Event()
        self.made = 0
        self.broken = False
        self.address = ActorAddress("healthcheck", self.make())
        self.guard = HealthcheckGuard(self.address, self.make)

    def make(self) -> pykka.ActorRef[Watched]:
        if self.broken:
            raise OSError("no thread can be started")
        self.made += 1
        return launch(Watched, self.held)

    def hold(self) -> None:
        begun = threading.Event()
        self.address.tell(begun)
        assert begun.wait(WAIT_SECS)

    def answered(self) -> None:
        """Wait until the pings so far are answered."""
        wait_for(self.address.ask(Ping(), WAIT_SECS), WAIT_SECS)

    def later(self, secs: float) -> float:
        self.now += secs
        return self.guard.look(self.now, EVERY_SECS)


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    post.held.set()
    pykka.ActorRegistry.stop_all(timeout=WAIT_SECS)


def test_who_answers_is_left_alone(post: Post) -> None:
    for _ in range(10):
        assert post.later(EVERY_SECS) == EVERY_SECS
        assert post.later(1.0) == EVERY_SECS - 1.0
        post.answered()
    assert post.made == 1


def test_who_has_died_is_replaced_at_the_next_look(post: Post) -> None:
    post.later(EVERY_SECS)
    assert post.address.stop(WAIT_SECS)
    assert post.later(1.0) == EVERY_SECS - 1.0
    assert post.made == 1
    post.later(EVERY_SECS - 1.0)
    assert post.made == 2
    assert post.address.alive


def test_who_is_stuck_is_replaced_after_a_while(post: Post) -> None:
    post.hold()
    post.later(EVERY_SECS)
    post.later(STUCK_SECS - 1.0)
    assert post.made == 1
    post.later(EVERY_SECS)
    assert post.made == 2
    for _ in range(5):
        post.later(STUCK_SECS)
        post.answered()
    assert post.made == 2


def test_a_failed_restart_is_tried_again_and_not_all_the_time(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    assert post.address.stop(WAIT_SECS)
    post.broken = True
    for _ in range(100):
        post.later(EVERY_SECS)
    assert caplog.text.count("could not be started again") == RESTARTS_MAX
    post.broken = False
    while not post.address.alive:
        post.later(EVERY_SECS)
    assert post.now < 1000.0 + 2 * RESTARTS_WINDOW_SECS
    assert post.made == 2

"""When sessions are over: not while nobody could be heard, and not much later than they should."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.registry.sessions import Times


@given(
    ttl_secs=st.floats(2, 300),
    heard=st.floats(0, 1),
    stopped=st.floats(0, 1000),
    late=st.lists(st.floats(0, 0.2), max_size=3),
)
def test_a_registry_that_stood_still_hears_of_no_end(
    ttl_secs: float, heard: float, stopped: float, late: list[float]
) -> None:
    """It ticks; some ticks come a little late, then one very late: in that time no renewal could come through."""
    times, now = Times(), 100.0
    times.begin("s", ttl_secs, now)
    listening = 0.0
    for each in (*late, heard * ttl_secs / 8 + stopped):
        alarm = now + times.tick_secs
        before, now = now, max(alarm, now + each)
        listening += min(now - before, times.tick_secs)
        if now - alarm > times.tick_secs:
            times.delay(now - alarm)
        over = list(times.over(now))
        assert not over or listening + times.tick_secs * (1 + len(late)) >= ttl_secs * 0.99


def test_the_tick_fits_the_shortest_ttl() -> None:
    times = Times()
    assert times.tick_secs == float("inf")
    times.begin("long", 80, 0)
    assert times.tick_secs == 10
    times.begin("short", 2, 0)
    assert times.tick_secs == 0.25
    times.end("long")
    times.end("short")
    assert times.tick_secs == float("inf")


def test_a_session_that_was_heard_of_in_time_is_not_over() -> None:
    times = Times()
    times.begin("s", 8, 0)
    assert times.hear("s", lambda: 9.0) == 8
    assert list(times.over(10.0)) == []
    assert list(times.over(18.9)) == []
    assert list(times.over(19.0)) == ["s"]


@pytest.mark.parametrize("moments", [(10.0, 10.0), (9.9, 10.0), (9.9, 500.0)])
def test_who_is_heard_of_too_late_has_to_ask(moments: tuple[float, float]) -> None:
    """The second look at the clock is for a thread that stood still before it could make its note."""
    times = Times()
    times.begin("s", 8, 0)
    assert times.hear("s", itertools.chain(moments).__next__) is None


def test_no_session_no_note() -> None:
    times = Times()
    assert times.hear("s", lambda: 0.0) is None
    times.begin("s", 8, 0)
    times.end("s")
    assert times.hear("s", lambda: 0.0) is None
    assert not times._heard


def test_a_note_that_came_too_late_is_forgotten() -> None:
    times = Times()
    times.begin("s", 8, 0)
    times._heard["gone"] = times._heard["s"] = 1.0
    times.tidy()
    assert list(times._heard) == ["s"]


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("hear"), st.floats(0, 5)),
            st.tuples(st.just("renew"), st.floats(0, 5)),
            st.tuples(st.just("delay"), st.floats(0, 5)),
            st.tuples(st.just("look"), st.floats(0, 5)),
        ),
        max_size=30,
    )
)
def test_hearing_and_renewing_are_the_same(steps: list[tuple[str, float]]) -> None:
    """One hears what the other renews: they are over at the same moment."""
    heard, renewed, now = Times(), Times(), 0.0
    heard.begin("s", 8, now)
    renewed.begin("s", 8, now)
    for what, secs in steps:
        now += secs
        if what == "delay":
            heard.delay(secs)
            renewed.delay(secs)
        elif what == "look":
            over = list(renewed.over(now))
            assert list(heard.over(now)) == over
            if over:
                return
        elif what == "renew" or heard.hear("s", itertools.repeat(now).__next__) is None:
            heard.renew("s", now)
            renewed.renew("s", now)
        else:
            renewed.renew("s", now)


def test_a_note_that_came_too_late_lets_nobody_be_told_that_it_lives() -> None:
    times = Times()
    over: list[str] = []
    times.begin("s", 8, 0)

    def clock() -> float:
        """Stand still between the look at the clock and the note, and let the session end meanwhile."""
        if over:
            return 10.0
        over.extend(times.over(10.0))
        return 9.9

    assert times.hear("s", clock) is None
    assert over == ["s"]
    assert times.hear("s", lambda: 10.1) is None
    assert list(times.over(11.0)) == ["s"]
    times.ending.discard("s")  # it could not be ended
    assert times.hear("s", lambda: 11.1) == 8


def test_a_session_that_was_opened_again_is_over_once() -> None:
    times = Times()
    for began in range(3):
        times.begin("s", 8, began)
        times.end("s")
    times.begin("s", 8, 3)
    assert list(times.over(12.9)) == []
    assert list(times.over(13.0)) == ["s"]
    assert len(times._heap) == 1

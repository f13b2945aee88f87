"""When sessions are over: not while nobody could be heard, and not much later than they should."""

from __future__ import annotations

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

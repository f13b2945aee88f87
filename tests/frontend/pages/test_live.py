"""Changes for pages: one watch for all, waits without a thread, catching up, and who sees what."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bpbroker.errors import Unavailable
from bpbroker.frontend.pages import live
from bpbroker.frontend.pages.live import Feed, News
from bpbroker.messages import Delete
from bpbroker.registry.browsing import Recent
from bpbroker.registry.requests import Watch
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse
from tests.support.people import KEY, PORT, People

WAIT_SECS = 10.0


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> Iterator[People]:
    monkeypatch.setattr(live, "GATHER_SECS", 0.01)
    monkeypatch.setattr(live, "_AGAIN_SECS", 0.01)
    monkeypatch.setattr(live, "_ASLEEP_SECS", -1.0)  # the watch ends with the last one that waits
    made = People()
    yield made
    made.registry.is_gone = False
    made.put("end", a=1)  # for the thread that waits for something to happen
    made.registry.is_gone = True
    for thread in threading.enumerate():
        if thread.name == "live-pages":
            thread.join(WAIT_SECS)


@pytest.fixture
def feed(people: People) -> Feed:
    return Feed(lambda: people.registry)


def cursor(people: People) -> str:
    return str(people.registry.ask(Recent(), 1.0).result(1).cursor)


def everything(_name: str) -> bool:
    return True


def names(news: News) -> list[str]:
    return [event.name for event in news.events]


def test_a_change_is_told_to_all_that_wait(people: People, feed: Feed) -> None:
    start = cursor(people)
    waiting = [feed.ask(start, everything) for _ in range(20)]
    assert not any(reply.done() for reply in waiting)
    people.put("foo", a="x" * 1000)
    for reply in waiting:
        news = reply.result(WAIT_SECS)
        assert names(news) == ["foo"]
        (event,) = news.events
        assert (event.type, event.source) == ("put", "10.0.0.7")
    watches = [message for message in people.registry.asked if isinstance(message, Watch)]
    assert len(watches) <= 3  # not one for each


def test_the_next_request_is_told_what_came_meanwhile(people: People, feed: Feed) -> None:
    first = feed.ask(cursor(people), everything)
    people.put("one", a=1)
    keep = feed.ask(cursor(people), lambda name: name == "end")  # so that the watch goes on
    news = first.result(WAIT_SECS)
    people.put("two", a=1)
    people.registry.ask(Delete("one"), 1.0)
    found: list[str] = []
    while len(found) < 2:
        news = feed.ask(news.cursor, everything).result(WAIT_SECS)
        found += [f"{event.type} {event.name}" for event in news.events]
    assert found == ["put two", "delete one"]
    assert not keep.done()
    keep.cancel()


def test_a_page_that_was_asleep_catches_up(people: People, feed: Feed) -> None:
    old = cursor(people)
    for number in range(300):
        people.put(f"n{number}", a=number)
    keep = feed.ask(cursor(people), everything)  # the watch begins behind all these
    news = feed.ask(old, everything).result(WAIT_SECS)
    assert len(news.events) == live.TOLD_MAX
    assert news.left_out == 300 - live.TOLD_MAX
    assert names(news)[-1] == "n299"
    assert not news.missed
    assert news.cursor == cursor(people)
    keep.cancel()


def test_a_cursor_that_is_forgotten_is_told_to_be(people: People, feed: Feed) -> None:
    keep = feed.ask(cursor(people), everything)
    for odd in (
        "",
        ":",
        "x:1",
        "0" * 32 + ":1",
        "0" * 32 + ":-1",
        "\u0661",
        "a" * 200,
        f"{cursor(people)}9" + "9" * 30,
    ):
        news = feed.ask(odd, everything).result(WAIT_SECS)
        assert (news.events, news.missed) == ((), True), odd
        assert news.cursor == cursor(people)
    keep.cancel()


def test_a_first_cursor_that_is_forgotten_is_told_to_be(people: People, feed: Feed) -> None:
    news = feed.ask("x:1", everything).result(WAIT_SECS)
    assert news.missed
    assert news.cursor == cursor(people)


def test_what_may_not_be_seen_is_not_told(people: People, feed: Feed) -> None:
    waiting = feed.ask(cursor(people), lambda name: name.startswith("a/"))
    people.put("b/1", a=1)
    people.put("a/1", a=1)
    assert names(waiting.result(WAIT_SECS)) == ["a/1"]


def test_a_cursor_ahead_of_the_watch_waits(people: People, feed: Feed) -> None:
    keep = feed.ask(cursor(people), lambda name: name == "end")
    people.node("s", "node-1")
    people.registry.ask(Delete("node-1"), 1.0)
    reply = feed.ask(cursor(people), everything)
    people.put("later", a=1)
    assert names(reply.result(WAIT_SECS)) == ["later"]
    keep.cancel()


def test_what_a_cursor_has_behind_it_is_not_told_again(
    people: People, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = threading.Event()
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: gathered.wait()))
    monkeypatch.setattr(live, "_AT_ONCE", 1)  # the watch comes nearer change by change
    keep = feed.ask(cursor(people), lambda name: name == "end")
    for name in ("first", "second", "third"):
        people.put(name, a=1)
    reply = feed.ask(cursor(people), everything)
    gathered.set()
    people.put("later", a=1)
    assert names(reply.result(WAIT_SECS)) == ["later"]
    keep.cancel()


def test_a_registry_that_is_away_fails_what_waits(people: People, feed: Feed) -> None:
    start = cursor(people)
    people.registry.is_gone = True
    with pytest.raises(Unavailable):
        feed.ask(start, everything).result(WAIT_SECS)


# --- through the application ---


def ask(people: People, after: str) -> PendingResponse:
    fields = {"host": f"broker:{PORT}", "cookie": people.cookie, "sec-fetch-site": "same-origin"}
    result = people.application(Request("GET", "/ui/live/events", f"after={after}", fields, "10.0.0.9"))
    assert isinstance(result, PendingResponse)
    result.ask()
    return result


def end(pending: PendingResponse) -> tuple[int, dict[str, object]]:
    assert pending.reply is not None
    pending.reply.exception(WAIT_SECS)
    response = pending.response()
    return response.status, json.loads(response.body)


def test_events_over_http(people: People) -> None:
    assert people.send("/ui/live/events?after=x").status == 401
    people.sign_in()
    pending = ask(people, cursor(people))
    assert pending.patient
    assert not pending.done
    people.put("<b>", a=1)
    status, told = end(pending)
    assert status == 200
    assert [(event["type"], event["name"]) for event in told["events"]] == [("put", "<b>")]  # type: ignore[attr-defined]  # JSON
    pending = ask(people, str(told["cursor"]))
    pending.give_up()
    response = pending.response()
    assert json.loads(response.body) == {"cursor": told["cursor"], "left_out": 0, "missed": False, "events": []}


def test_a_wait_ends_when_its_key_is_revoked(people: People) -> None:
    people.sign_in(people.give("ci", "services:watch@a/"))
    pending = ask(people, cursor(people))
    people.give("ci", "services:watch@a/", revoked="2026-01-01T00:00:00Z")
    assert end(pending)[0] == 401
    assert people.send("/ui/live/events").status == 401


def test_no_thread_waits_for_what_happens(people: People) -> None:
    people.sign_in()
    people.put("foo", a=1)
    start = cursor(people)
    waiting = [ask(people, start) for _ in range(50)]
    assert "foo" in people.get("entries")  # the pages' one thread is free
    answer = people.send("/services/Get?name=foo", "POST", X_ACCESS_KEY=KEY)
    assert answer.status == 200
    people.put("bar", a=1)
    for pending in waiting:
        assert end(pending)[0] == 200


def test_cursors_that_nobody_has_leave_nothing_behind(people: People, feed: Feed) -> None:
    start = cursor(people)
    registry_id, _, number = start.rpartition(":")
    waiting = feed.ask(start, everything)
    for ahead in range(1, 2000):
        feed.ask(f"{registry_id}:{int(number) + ahead}", everything, "alike").cancel()
    assert len(feed._known) <= 1
    assert list(feed._waiting) == [waiting]
    for each in range(300):
        people.put(f"n{each}", a=1)
    for behind in range(300):
        feed.ask(f"{registry_id}:{feed._upto - 1 - behind}", lambda _: False, "blind").cancel()
    assert len(feed._known) <= live._KNOWN_MAX


def test_a_change_is_looked_at_once_for_each_that_waits(people: People, feed: Feed) -> None:
    looked: list[str] = []

    def sees(name: str) -> bool:
        looked.append(name)
        return name == "seen"

    start = cursor(people)
    waiting = [feed.ask(start, sees) for _ in range(10)]
    for number in range(30):
        people.put(f"n{number}", a=1)
        deadline = time.monotonic() + WAIT_SECS
        while len(looked) < 10 * (number + 1):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    people.put("seen", a=1)
    assert [names(reply.result(WAIT_SECS)) for reply in waiting] == [["seen"]] * 10
    assert len(looked) == 10 * 31

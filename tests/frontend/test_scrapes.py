"""``/metrics`` through the frontend: who may read it, what it is when a part is stuck, what scrapes share."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from typing import Any

import pytest

from bpbroker import messages
from bpbroker.errors import Unavailable
from bpbroker.frontend import access_log, application, metrics, scrapes
from bpbroker.frontend.scrapes import Scrapes
from bpbroker.messages import HealthReport, Measure, Measured, PartHealth
from bpbroker.registry import named_keys
from bpbroker.registry.named_keys import digest_of
from tests.support.application import SETTINGS, TOKEN, Answer, Broker

SECRET = "0123456789abcdef0123456789abcdef"
WELL = Measured(HealthReport(True, (PartHealth("registry", True, 0.0, figures={"entries": 5}),)), {})


def broker_with(shown: str | None, **sections: Any) -> Broker:
    api = {} if shown is None else {"metrics": shown}
    broker = Broker({**SETTINGS, "api": api, **sections})
    broker.healthcheck.outcome = WELL
    return broker


def scrape(broker: Broker, method: str = "GET", **fields: str) -> Answer:
    return broker.call("/metrics", method, b"", **fields)


def give(broker: Broker, *allow: str, **members: Any) -> str:
    stored = {"sha256": digest_of(SECRET).hex(), "allow": allow, **members}
    broker.keys.take(named_keys.stored_name("prometheus"), json.dumps(stored).encode())
    return f"Bearer prometheus.{SECRET}"


def test_open_metrics_need_no_key() -> None:
    answer = scrape(broker_with("open"))
    assert (answer.status, answer.content_type) == (200, metrics.TEXT_TYPE)
    assert b"\nbpbroker_entries 5.0\n" in answer.body
    answer = scrape(broker_with("open"), ACCEPT="application/openmetrics-text;version=1.0.0")
    assert (answer.status, answer.content_type) == (200, metrics.OPENMETRICS_TYPE)
    assert answer.body.endswith(b"# EOF\n")
    assert answer.headers["Cache-Control"] == "no-store"


def test_metrics_that_are_off_are_not_there() -> None:
    broker = broker_with("off")
    for method in ("GET", "HEAD", "POST"):
        assert scrape(broker, method).status == 404
    assert not broker.healthcheck.asked


def test_without_a_word_metrics_need_a_key() -> None:
    broker = broker_with(None)
    refused = scrape(broker)
    assert refused.status == 401
    assert "bpbroker key add NAME --allow metrics" in refused.message
    assert scrape(broker, AUTHORIZATION="Bearer wrong").message == "Incorrect access key"
    assert scrape(broker, AUTHORIZATION=give(broker, "metrics")).status == 200
    assert scrape(broker, X_ACCESS_KEY=f"prometheus.{SECRET}").status == 200
    assert scrape(broker, AUTHORIZATION=give(broker, "metrics.Read")).status == 200
    other = scrape(broker, AUTHORIZATION=give(broker, "services:*", "ping"))
    assert (other.status, other.message) == (403, "The access key 'prometheus' lacks the right metrics.Read")
    over = scrape(broker, AUTHORIZATION=give(broker, "metrics", until="2020-01-01T00:00:00Z"))
    assert over.status == 401
    assert not broker.registry.asked or isinstance(broker.registry.asked[-1], messages.ChangeKey)


def test_the_key_of_the_registry_opens_metrics_and_others_do_not() -> None:
    broker = broker_with("keyed", services={"_access_key": "registry-key"}, ping={"_access_key": "ping-key"})
    assert scrape(broker, AUTHORIZATION="Bearer registry-key").status == 200
    for key in ("ping-key", "secret", "", "registry-key "):
        assert scrape(broker, AUTHORIZATION=f"Bearer {key}x").status == 401
    assert scrape(broker, AUTHORIZATION="Bearer ping-key").status == 401


def test_a_key_in_the_query_opens_nothing() -> None:
    broker = broker_with("keyed", services={"_access_key": "registry-key"})
    assert broker.call("/metrics?access_key=registry-key", "GET").status == 401


def test_a_use_of_a_key_is_counted_before_anything_is_shown() -> None:
    broker = broker_with("keyed")
    key = give(broker, "metrics", uses=1)
    broker.registry.outcome = Unavailable("no store")
    assert scrape(broker, AUTHORIZATION=key).status == 503
    assert not broker.healthcheck.asked


def test_wrong_keys_count_with_all_others() -> None:
    broker = broker_with("keyed", api={"metrics": "keyed", "wrong_keys_per_minute": 3})
    for _ in range(3):
        assert scrape(broker, AUTHORIZATION="Bearer wrong").status == 401
    held_back = scrape(broker, AUTHORIZATION="Bearer wrong")
    assert held_back.status == 429
    allowed = scrape(broker, AUTHORIZATION=give(broker, "metrics"))
    assert b'bpbroker_wrong_keys_total{via="https"} 4.0' in allowed.body


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics//", "//metrics", "/metrics///"])
def test_no_spelling_of_the_path_goes_round_the_key(path: str) -> None:
    for broker in (broker_with("keyed"), broker_with("keyed", metrics={})):
        answer = broker.call(path, "GET")
        assert answer.status in (401, 404)


def test_other_methods_are_refused_and_a_page_of_another_origin_too() -> None:
    broker = broker_with("open")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = scrape(broker, method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert scrape(broker, ORIGIN="https://evil.example").status == 403
    assert scrape(broker, USER_AGENT="Mozilla/5.0", HOST="evil.example").status == 421
    assert not broker.healthcheck.asked


def test_a_reload_changes_who_may_read() -> None:
    broker = broker_with("open")
    assert scrape(broker).status == 200
    broker.application.settings_changed({**SETTINGS, "api": {"metrics": "off"}})
    assert scrape(broker).status == 404


@pytest.mark.parametrize("outcome", [..., Unavailable("it died"), ValueError("broken")])
def test_a_healthcheck_that_does_not_answer_is_told_and_the_rest_is_there(
    outcome: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "SCRAPE_SECS", 0.05)
    broker = broker_with("open")
    broker.healthcheck.outcome = outcome
    answer = scrape(broker)
    assert answer.status == 200
    assert b'bpbroker_part_ok{part="healthcheck"} 0.0' in answer.body
    assert b"bpbroker_uptime_seconds " in answer.body
    assert b"\nbpbroker_entries " not in answer.body


def test_requests_count_up_to_the_scrape_itself() -> None:
    broker = broker_with("open")
    access_log.flush()
    access_log.count_with(broker.application.request_counts.take)
    try:
        broker.call("/services/Get/?name=foo", "GET")
        broker.call("/services/Nope/?name=foo", "GET")
        broker.call("/live", "GET")
        body = scrape(broker).body
    finally:
        access_log.count_with(None)
    assert b'bpbroker_requests_total{method="Get",namespace="services",status="200"} 1.0' in body
    assert b'bpbroker_requests_total{method="(unknown)",namespace="services",status="401"} 1.0' in body
    assert b'bpbroker_requests_total{method="(none)",namespace="(none)",status="200"} 1.0' in body
    assert b"foo" not in body


def test_the_local_command_reads_them_whatever_the_setting() -> None:
    broker = broker_with("off")
    answer = broker.call("/_control/Metrics", AUTHORIZATION=f"Bearer {TOKEN}")
    assert answer.status == 200
    assert answer.json["data"]["bpbroker_entries"] == [[{}, 5.0]]
    assert broker.call("/_control/Metrics", AUTHORIZATION="Bearer wrong").status == 401
    assert broker.call("/_control/Metrics", "GET", AUTHORIZATION=f"Bearer {TOKEN}").status == 405


# --- sharing ---


class Slow:
    """A healthcheck that answers when it is told to."""

    name = "healthcheck"

    def __init__(self) -> None:
        self.replies: list[Future[Any]] = []

    def tell(self, message: Any) -> None:
        raise AssertionError(message)

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:
        assert isinstance(message, Measure)
        assert timeout_secs > 0
        self.replies.append(Future())
        return self.replies[-1]

    def reply_now(self, message: Any) -> Any:
        raise AssertionError(message)


@pytest.fixture
def made() -> list[Measured | None]:
    return []


@pytest.fixture
def place(made: list[Measured | None]) -> Scrapes:
    def look(measured: Measured | None) -> metrics.Seen:
        made.append(measured)
        return metrics.Seen(measured, Broker().application.request_counts.counted(), {}, 0, 0, 1.0)

    return Scrapes(look)


def test_scrapes_that_come_together_share_one(place: Scrapes, made: list[Measured | None]) -> None:
    healthcheck = Slow()
    shared = [place.current() for _ in range(50)]
    waiting = [each.ask(healthcheck) for each in shared]
    waiting[0].cancel()  # a client that leaves disturbs no other
    assert len(healthcheck.replies) == 1
    assert not any(each.done() for each in waiting[1:])
    healthcheck.replies[0].set_result(WELL)
    assert all(each.done() for each in waiting)
    texts = {each.text(metrics.TEXT_TYPE) for each in shared}
    assert len(texts) == 1
    assert made == [WELL]
    shared[0].text(metrics.OPENMETRICS_TYPE)
    assert made == [WELL, WELL]


def test_a_stuck_healthcheck_is_not_asked_again_by_each_scrape(place: Scrapes, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    healthcheck = Slow()
    for _ in range(10):
        place.current().ask(healthcheck)
        now[0] += scrapes.SCRAPE_SECS / 5
    assert len(healthcheck.replies) == 2


def test_a_scrape_is_not_kept_for_long_unless_it_is_dear(place: Scrapes, monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = [100.0], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: used[0])
    healthcheck = Slow()
    first = place.current()
    first.ask(healthcheck)
    healthcheck.replies[0].set_result(WELL)
    assert place.current() is first
    now[0] += scrapes.KEPT_SECS
    second = place.current()
    assert second is not first
    second.ask(healthcheck)
    healthcheck.replies[1].set_result(WELL)

    def dear(*_: object) -> bytes:
        used[0] += 0.1
        return b""

    monkeypatch.setattr(metrics, "text", dear)
    second.text(metrics.TEXT_TYPE)
    now[0] += 1.9
    assert place.current() is second
    now[0] += 0.2
    assert place.current() is not second

from __future__ import annotations

import json
import logging
import time

import pytest

from bpbroker.frontend import access_log
from bpbroker.frontend.access_log import Line
from bpbroker.runtime.logs import JournalFormatter, JsonFormatter, TextFormatter
from tests.support.application import Broker

LINE = Line("10.0.0.7", 200, 123, "id-1", "services", "Get", "foo", started=5.0)


def test_a_line_has_what_an_operator_asks_for() -> None:
    assert json.loads(access_log.as_json(1420068290.25, 5.0123, LINE)) == {
        "time": "2014-12-31T23:24:50.250Z",
        "logger": "bpbroker.access",
        "id": "id-1",
        "address": "10.0.0.7",
        "namespace": "services",
        "method": "Get",
        "name": "foo",
        "status": 200,
        "ms": 12.3,
        "bytes": 123,
    }


def test_the_line_of_a_change_has_its_revision_and_the_name_of_the_key() -> None:
    line = LINE._replace(method="Register", key="ci", revision=5001)
    found = json.loads(access_log.as_json(0.0, 5.0, line))
    assert (found["key"], found["revision"], found["status"]) == ("ci", 5001, 200)
    assert " status=200 revision=5001 " in access_log.as_text(5.0, line)


@pytest.mark.parametrize("name", ['a"b\\', "a\nb\u2028", "\ud800", "ü", "x" * 10_000])
def test_what_a_client_sends_stays_within_its_line(name: str) -> None:
    text = access_log.as_json(0.0, 0.0, Line("::1", 400, 0, "id", name, name, name))
    assert text.isascii()
    assert "\n" not in text
    found = json.loads(text)
    assert found["name"] == found["method"] == found["namespace"] == name[:256]


def test_what_is_kept_of_a_line_is_what_is_shown_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bpbroker.access")
    broker = Broker()
    for _ in range(3):  # no key is needed for that
        broker.post("/ping/Ping", name="x" * 900_000, data="y")
        broker.call(f"/{'n' * 15_000}/{'m' * 15_000}", "GET")
    kept = [line for _, _, line in access_log._book._lines]
    access_log.flush()
    kept += [line for _, line in access_log.recent() or ()]
    assert len(kept) >= 12
    assert max(len(text or "") for line in kept for text in (line.name, line.namespace, line.method)) == 256


def test_every_line_gets_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    access_log.flush()  # what other tests left
    caplog.set_level(logging.INFO, "bpbroker.access")
    for number in range(100):
        access_log.write(LINE._replace(request_id=f"r{number}"))
    access_log.flush()
    lines = [json.loads(line) for record in caplog.records for line in record.getMessage().splitlines()]
    assert [line["id"] for line in lines] == [f"r{number}" for number in range(100)]


def test_lines_come_soon_without_being_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bpbroker.access")
    access_log.write(LINE)
    deadline = time.monotonic() + 10
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "id-1" in caplog.text


def test_a_log_that_is_off_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "bpbroker.access")
    access_log.write(LINE)
    access_log.flush()
    assert not caplog.records


def record(*answered: tuple[float, float, Line]) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"levelno": logging.INFO, "levelname": "INFO", "name": "bpbroker.access", "lines": access_log.Lines(answered)}
    )


def test_in_a_json_log_each_line_is_one_json_object() -> None:
    lines = [access_log.as_json(0.0, 5.0, LINE), access_log.as_json(1.0, 5.0, LINE)]
    assert JsonFormatter().format(record((0.0, 5.0, LINE), (1.0, 5.0, LINE))).splitlines() == lines


@pytest.mark.parametrize(
    ("formatter", "first"),
    [
        (TextFormatter(), "1970-01-01T00:00:00.000Z INFO    bpbroker.access: "),
        (JournalFormatter(), "<6>bpbroker.access: "),
    ],
)
def test_in_a_text_log_each_line_is_text(formatter: logging.Formatter, first: str) -> None:
    lines = formatter.format(record((0.0, 5.0123, LINE), (1.0, 5.0, LINE))).splitlines()
    text = "address=10.0.0.7 method=services.Get name=foo status=200 ms=12.30 bytes=123 id=id-1"
    assert lines[0] == first + text
    assert len(lines) == 2


@pytest.mark.parametrize("name", ['a"b\\', "a\nb\u2028", "\ud800", "a b status=500", "x" * 10_000])
def test_what_a_client_sends_stays_within_its_word(name: str) -> None:
    text = access_log.as_text(0.0, Line("::1", 400, 0, "id", name, "m", name))
    assert text.isascii()
    assert "\n" not in text
    assert " status=500 " not in text.replace(json.dumps(name), "")
    assert len(text) < 5000

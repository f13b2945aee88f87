"""Counting requests: each by its labels, and no client decides how many labels there are."""

from __future__ import annotations

import threading

import pytest

from bpbroker.frontend import access_log
from bpbroker.frontend.access_log import Line
from bpbroker.frontend.request_counts import LABELS_MAX, METHODS_MAX, RequestCounts
from tests.support.own_logging import faults


def line(namespace: str = "", method: str = "", status: int = 200, request_id: str = "id", took: float = 0.1) -> Line:
    return Line("10.0.0.7", status, 10, request_id, namespace, method, "entry", 100.0 - took)


def count(*lines: Line, namespaces: tuple[str, ...] = ("services", "ossec")) -> RequestCounts:
    counts = RequestCounts(namespaces)
    counts.take([(0.0, 100.0, each) for each in lines])
    return counts


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (line("services", "Get"), ("services", "Get", "200")),
        (line("services", "Get", 404), ("services", "Get", "404")),
        (line("services", "Nope", 401), ("services", "(unknown)", "401")),
        (line("nope", "Get", 401), ("(unknown)", "(unknown)", "401")),
        (line("ossec", "AddAgent"), ("ossec", "AddAgent", "200")),
        (line("ossec", "AddAgent", 500), ("ossec", "AddAgent", "500")),
        (line("ossec", "Nope", 401), ("ossec", "(unknown)", "401")),
        (line("ossec", "Nope", 503), ("ossec", "(unknown)", "503")),
        (line("ossec", "AddAgent", 299), ("ossec", "(unknown)", "other")),
        (line("_control", "Status"), ("_control", "Status", "200")),
        (line("_control", "Nope", 401), ("_control", "(unknown)", "401")),
        (line("metrics", "", 401), ("metrics", "(none)", "401")),
        (line("ui", "entries/made-up"), ("ui", "(none)", "200")),
        (line(), ("(none)", "(none)", "200")),
        (line(request_id="", status=400), ("(rejected)", "(none)", "400")),
    ],
)
def test_each_request_counts_once(given: Line, labels: tuple[str, str, str]) -> None:
    counted = count(given).counted()
    assert counted.requests == {labels: 1}
    assert [(where, sum(each.counts)) for where, each in counted.durations.items()] == [(labels[:2], 1)]


def test_a_method_that_is_known_counts_by_its_name_whatever_the_status() -> None:
    counted = count(line("ossec", "AddAgent"), line("ossec", "AddAgent", 503)).counted()
    assert counted.requests == {("ossec", "AddAgent", "200"): 1, ("ossec", "AddAgent", "503"): 1}


def test_what_never_was_a_request_has_no_duration() -> None:
    assert not count(Line("10.0.0.7", 408, 10)).counted().durations


def test_made_up_names_do_not_add_up() -> None:
    counts = count(*(line(f"n{number}", f"m{number}", 401) for number in range(1000)))
    counts.take([(0.0, 100.0, line("services", f"m{number}", 401)) for number in range(1000)])
    counts.take([(0.0, 100.0, line("ossec", f"m{number}", 401)) for number in range(1000)])
    assert len(counts.counted().requests) == 3


def test_even_methods_that_there_are_do_not_add_up() -> None:
    namespaces = tuple(f"n{number}" for number in range(20))
    lines = [line(name, f"m{number}") for name in namespaces for number in range(METHODS_MAX + 10)]
    counted = count(*lines, namespaces=namespaces).counted()
    assert sum(counted.requests.values()) == len(lines)
    of_one = [labels for labels in counted.requests if labels[0] == "n0"]
    assert len(of_one) == METHODS_MAX + 1
    assert len(counted.requests) <= LABELS_MAX + len(namespaces)


def write(number: int) -> None:
    for _ in range(number):
        access_log.write(line("services", "Get"))


def test_the_access_log_counts_each_line_once_also_when_it_is_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "bpbroker.access")
    counts = RequestCounts(("services",))
    access_log.flush()
    access_log.count_with(counts.take)
    try:
        threads = [threading.Thread(target=write, args=(500,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            access_log.collect()
        access_log.collect()
        assert counts.counted().requests == {("services", "Get", "200"): 2000}
    finally:
        access_log.count_with(None)
    assert not faults(caplog)


def test_a_log_that_cannot_be_written_holds_up_no_count(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bpbroker.access")
    counts, stuck, may_go_on = RequestCounts(("services",)), threading.Event(), threading.Event()

    class Stuck(threading.Thread):
        def run(self) -> None:
            access_log.flush()

    def emit(_record: object) -> bool:
        stuck.set()
        return not may_go_on.wait(10)

    access_log.flush()
    access_log.count_with(counts.take)
    access_log.logger.addFilter(emit)
    writer = Stuck()
    try:
        access_log.write(line("services", "Get"))
        writer.start()
        assert stuck.wait(10)
        access_log.write(line("services", "Get"))
        access_log.collect()
        assert counts.counted().requests == {("services", "Get", "200"): 2}
    finally:
        may_go_on.set()
        writer.join(10)
        access_log.logger.removeFilter(emit)
        access_log.count_with(None)
        access_log.flush()


def test_a_count_that_fails_does_not_end_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_answered: object) -> None:
        raise ValueError("broken")

    caplog.set_level("INFO")
    access_log.flush()
    access_log.count_with(fail)
    try:
        access_log.write(line("services", "Get", request_id="id-77"))
        access_log.flush()
    finally:
        access_log.count_with(None)
    assert "id-77" in caplog.text
    assert "not counted" in caplog.text

"""``bpbroker top``: what it makes of the metrics, how that fits into a terminal, how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from bpbroker.commands import top_figures, top_screen
from bpbroker.commands.top_figures import Reading
from tests.support.running import RunningBroker
from tests.support.systems import posix_only
from tests.support.terminal import Terminal

SECONDS = "bpbroker_request_duration_seconds_bucket"
GET = {"namespace": "services", "method": "Get"}


def reading(at: float, uptime: float, requests: dict[str, float], buckets: dict[str, float]) -> Reading:
    return Reading(
        at,
        {
            "bpbroker_build_info": [({"version": "1.0.0"}, 1.0)],
            "bpbroker_uptime_seconds": [({}, uptime)],
            "bpbroker_health_ok": [({}, 0.0)],
            "bpbroker_entries": [({}, 5.0)],
            "bpbroker_requests_total": [
                *(({**GET, "status": status}, number) for status, number in requests.items()),
                ({"namespace": "_control", "method": "Metrics", "status": "200"}, 77.0),
                ({"namespace": "ossec", "method": "A" * 60, "status": "500"}, 4.0),
            ],
            SECONDS: [({**GET, "le": bound}, number) for bound, number in buckets.items()],
            "bpbroker_part_ok": [({"part": "backup"}, 1.0), ({"part": "regi\x1bstry"}, 0.0)],
            "bpbroker_extension_running_calls": [({"namespace": "ossec"}, 1.0)],
            "bpbroker_extension_calls_total": [({"namespace": "ossec", "outcome": "failed"}, 3.0)],
            "bpbroker_certificate_not_after_timestamp_seconds": [({}, 1000.0)],
        },
    )


BEFORE = reading(100.0, 50.0, {"200": 10.0}, {"0.001": 10.0, "0.01": 10.0, "+Inf": 10.0})
AFTER = reading(102.0, 52.0, {"200": 30.0, "404": 2.0}, {"0.001": 20.0, "0.01": 30.0, "+Inf": 30.0})


def the(found: dict[str, Any], namespace: str) -> dict[str, Any]:
    (one,) = [each for each in found["requests"] if each["namespace"] == namespace]
    assert isinstance(one, dict)
    return one


def test_what_is_counted_becomes_so_much_per_second() -> None:
    found = top_figures.figures(BEFORE, AFTER, 400.0)
    get = the(found, "services")
    assert (get["per_sec"], get["refused_per_sec"], get["failed_per_sec"], get["total"]) == (11.0, 1.0, 0.0, 32)
    assert get["median_secs"] == pytest.approx(0.001)
    assert get["p99_secs"] == pytest.approx(0.00982)
    assert found["requests_per_sec"] == 11.0
    assert [each["namespace"] for each in found["requests"]] == ["services", "ossec"]
    assert found["certificate_left_secs"] == 600.0
    assert found["ok"] is False
    assert found["storage"]["ok"] is None
    assert found["extensions"][0]["outcomes"] == {"failed": 3}


def test_nothing_is_negative_when_another_broker_counts_from_zero() -> None:
    fresh = reading(102.0, 1.0, {"200": 4.0}, {"0.001": 4.0, "0.01": 4.0, "+Inf": 4.0})
    found = top_figures.figures(AFTER, fresh, 0.0)
    assert the(found, "services")["per_sec"] > 0
    one_part = reading(104.0, 54.0, {"200": 6.0, "404": 2.0}, {"0.001": 1.0, "0.01": 1.0, "+Inf": 1.0})
    found = top_figures.figures(AFTER, one_part, 0.0)
    assert the(found, "services")["per_sec"] == 3.0


def test_without_any_request_there_is_no_time() -> None:
    get = the(top_figures.figures(AFTER, AFTER, 0.0), "services")
    assert (get["per_sec"], get["median_secs"], get["p99_secs"]) == (0.0, None, None)


def test_times_beyond_the_last_bucket_are_shown_as_its_start() -> None:
    late = reading(103.0, 53.0, {"200": 31.0}, {"0.001": 20.0, "0.01": 30.0, "+Inf": 90.0})
    assert the(top_figures.figures(AFTER, late, 0.0), "services")["p99_secs"] == 0.01


@pytest.mark.parametrize("width", [20, 33, 40, 80, 200])
@pytest.mark.parametrize("height", [5, 23, None])
def test_the_picture_fits(width: int, height: int | None) -> None:
    found = top_figures.figures(BEFORE, AFTER, 400.0)
    lines = top_screen.picture(found, "bpbroker 1.0.0", ["registry: the disk is full"], width, height, colour=False)
    assert all(len(line) <= width for line in lines), lines
    assert height is None or len(lines) <= height
    assert all(line.isprintable() for line in lines)
    assert lines[1].startswith("not well: registry"[:width])


def test_what_is_not_well_is_above_all_and_red() -> None:
    found = top_figures.figures(BEFORE, AFTER, 400.0)
    lines = top_screen.picture(found, "bpbroker", ["registry: full"], 100, None, colour=True)
    assert lines[1] == "\x1b[1;31mnot well: registry: full\x1b[0m"
    part = next(line for line in lines if "regi?stry" in line)
    assert part.startswith("\x1b[1;31m")
    assert lines.index(part) < next(number for number, line in enumerate(lines) if line.startswith("backup "))


def test_a_low_terminal_shows_some_of_each_table() -> None:
    found = top_figures.figures(BEFORE, AFTER, 400.0)
    found["requests"] *= 30
    lines = top_screen.picture(found, "bpbroker", [], 100, 30, colour=False)
    assert len(lines) <= 30
    assert any(line.startswith("PART") for line in lines)
    assert any(re.fullmatch(r"… \d+ more", line) for line in lines)


def test_what_a_small_terminal_leaves_out_is_said() -> None:
    found = top_figures.figures(BEFORE, AFTER, 400.0)
    whole = top_screen.picture(found, "bpbroker", [], 23, None, colour=False)
    for height in range(2, len(whole) + 3):
        lines = top_screen.picture(found, "bpbroker", [], 23, height, colour=False)
        assert len(lines) <= height
        shown = sum(line in whole for line in lines)
        assert shown >= len(whole) or any(re.fullmatch(r"… \d+ more( lines)?", line) for line in lines), lines
    low = top_screen.picture(found, "bpbroker", [], 23, 5, colour=False)
    assert low[-1] == f"… {len(whole) - 4} more lines"
    # Columns, too: at 80 all are there.
    for width, there in ((23, False), (80, True)):
        (heading,) = (
            line for line in top_screen.picture(found, "bpbroker", [], width, None, colour=False) if line[:5] == "REQUE"
        )
        assert heading.endswith("…") != there
        assert ("TOTAL" in heading) == there


# --- with a broker ---

at_terminals = posix_only("pseudo terminals")


@pytest.fixture
def running(make_broker: Callable[..., RunningBroker]) -> RunningBroker:
    broker = make_broker().start()
    broker.register("foo")
    return broker


def at_terminal(broker: RunningBroker, *arguments: str, columns: int = 80, **environ: str) -> Terminal:
    command = broker.command("bpbroker", "top", "--interval", "0.2", *arguments)
    return Terminal(command, {**broker.environ, **environ}, columns=columns)


def test_once_is_for_scripts_and_json_too(running: RunningBroker) -> None:
    shown = running.bpbroker("top", "--once", "--interval", "0.2")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "entries 1" in shown.stdout
    assert "\x1b" not in shown.stdout
    found = json.loads(running.bpbroker("top", "--once", "--json", "--interval", "0.2").stdout)
    assert (found["registry"]["entries"], found["ok"], found["troubles"]) == (1, True, [])
    assert found["pid"] == running.pid
    assert the(found, "services")["total"] == 1
    assert found["interval_secs"] >= 0.2
    wrong = running.bpbroker("top", "--json")
    assert wrong.returncode == 2
    assert "--once" in wrong.stderr


@at_terminals
def test_where_there_is_no_terminal_it_shows_them_once(running: RunningBroker) -> None:
    shown = running.bpbroker("top", "--interval", "0.2")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "entries 1" in shown.stdout
    with at_terminal(running, TERM="dumb") as dumb:
        assert dumb.ended() == 0
        assert "entries 1" in dumb.written
        assert "\x1b" not in dumb.written


@at_terminals
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_it_goes_on_until_it_is_ended_and_leaves_the_terminal_as_it_was(running: RunningBroker, how: str) -> None:
    with at_terminal(running, columns=30) as screen:
        screen.until("entries 1")
        running.register("bar")
        screen.until("entries 2")
        screen.until(lambda text: text.count("\x1b[H") >= 4)
        if how == "Ctrl-C":
            screen.type("\x03")
        else:
            screen.signal(signal.SIGTERM)
        assert screen.ended() == 0
    assert screen.written.endswith("\x1b[?25h")
    assert "Traceback" not in screen.written
    pictures = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", screen.written.replace("^C", ""))
    assert max(map(len, pictures.splitlines())) < 30


@at_terminals
def test_it_says_so_and_ends_when_the_broker_has_ended(running: RunningBroker) -> None:
    with at_terminal(running) as screen:
        screen.until("entries 1")
        running.kill()
        assert screen.ended() == 1
    last = screen.written.rpartition("\x1b[?25h")[2]
    assert re.search(r"No broker runs on|has ended", last), last


@at_terminals
def test_it_goes_on_with_the_broker_that_is_started_next(running: RunningBroker) -> None:
    with at_terminal(running) as screen:
        screen.until("entries 1")
        first = running.pid
        screen.signal(signal.SIGSTOP)  # so that it does not see that there is none for a moment
        running.restart()
        screen.signal(signal.SIGCONT)
        screen.until(f"process {running.pid}")
        assert running.pid != first


@at_terminals
def test_a_broker_that_does_not_answer_is_told_of(running: RunningBroker) -> None:
    with at_terminal(running, NO_COLOR="1") as screen:
        screen.until("entries 1")
        assert "\x1b[1m" not in screen.written
        running.signal(signal.SIGSTOP)
        try:
            screen.until("does not answer")
        finally:
            running.signal(signal.SIGCONT)
        screen.written = ""
        screen.until("entries 1")


def test_without_a_broker_it_says_how_to_start_one(make_broker: Callable[..., RunningBroker]) -> None:
    ended: subprocess.CompletedProcess[str] = make_broker().bpbroker("top", "--once")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "No broker runs on" in ended.stderr
    assert "bpbroker start" in ended.stderr

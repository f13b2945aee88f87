"""What a method is given, and what becomes of its result."""

from __future__ import annotations

import json
import logging
import os
import time

import pytest

from bpbroker.actors.base import ActorAddress, wait_for
from bpbroker.errors import (
    ExtensionFailed,
)
from bpbroker.messages import CallResult, Get, Register
from tests.support.extension import WAIT_SECS, Made, Make


def test_a_module_written_for_022_runs_as_it_is(demo: Made) -> None:
    result = demo.call("Test", data="hello", other="x")
    assert result == CallResult(200, "OK", "application/json", b'{"data": "hello", "other": "x"}')
    result = demo.call("Old")
    assert (result.status, result.message, result.body) == (409, "In use", b"")


def test_a_method_knows_who_asks(demo: Made) -> None:
    answer = demo.body("Echo", source="fe80::1", data="x")
    assert answer["qs"] == {"data": "x"}
    assert answer["from"] == "fe80::1"
    assert answer["id"] == "id-of-Echo"
    assert answer["pid"] != os.getpid()


def test_calls_share_one_process(demo: Made) -> None:
    assert [demo.call("Count").body for _ in range(3)] == [b"1", b"2", b"3"]


def test_the_configuration_is_read_only_and_without_the_secrets_of_others(make: Make) -> None:
    demo = make(_access_key="mine", colour={"deep": [1]})
    demo.settings["other"] = {"_access_key": "theirs", "x": 1}
    demo.reload()
    seen = demo.body("Config")
    assert seen["own"] == {"_access_key": "mine", "colour": {"deep": [1]}}
    assert seen["all"]["other"] == {"x": 1}
    assert seen["all"]["demo"] == seen["own"]


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ("None", b""),
        ("'ü'", "ü".encode()),
        ("b'\\xff\\x00'", b"\xff\x00"),
        ("bytearray(b'x')", b"x"),
        ("{'a': [1, None]}", b'{"a": [1, null]}'),
        ("['ü']", '["ü"]'.encode()),
        ("'x' * (1 << 20)", b"x" * (1 << 20)),
    ],
)
def test_data_that_can_be_sent(demo: Made, value: str, body: bytes) -> None:
    assert demo.call("Set", value=value).body == body


@pytest.mark.parametrize(
    "value",
    ["7", "object()", "{'a': object()}", "[float('nan')]", "'\\ud800'", "b'x' * (100 << 20)", "{1, 2}"],
)
def test_data_that_cannot_be_sent_is_an_error_and_no_end(demo: Made, value: str) -> None:
    pid = demo.body("Echo")["pid"]
    with pytest.raises(ExtensionFailed, match="id-of-Set"):
        demo.call("Set", value=value)
    assert demo.body("Echo")["pid"] == pid


@pytest.mark.parametrize("value", ["'x'", "None", "99", "1000", "True", "2.5", "'2²0'"])
def test_a_status_that_is_none(demo: Made, value: str) -> None:
    with pytest.raises(ExtensionFailed):
        demo.call("Status", value=value)


def test_a_message_is_one_line(demo: Made) -> None:
    assert demo.call("Status", value="'404'") == CallResult(404, "one X-Bad: two", "application/json", b"")
    assert demo.call("Refuse") == CallResult(418, "No X-Bad: tea", "application/json", b"")


@pytest.mark.parametrize(
    "value", ["'text/plain\\r\\nX-Bad: 1'", "None", "''", "'text'", "'text/ü'", "'a/' + 'b' * 999"]
)
def test_a_content_type_that_is_none(demo: Made, value: str) -> None:
    with pytest.raises(ExtensionFailed):
        demo.call("Type", value=value)


def test_a_content_type_with_parameters(demo: Made) -> None:
    assert demo.call("Type", value="'text/plain; charset=utf-8'").content_type == "text/plain; charset=utf-8"


def test_the_registry_is_within_reach(demo: Made, registry: ActorAddress) -> None:
    seen = demo.body("Entries")
    assert seen["made"]["a"] == 1
    assert seen["made"]["last_write_ip"] == "10.0.0.7"
    assert {"a": 1, "b": 2}.items() <= seen["got"].items()
    assert seen["got"] == seen["changed"]
    assert seen["all"] == ["one", "two"]
    record = wait_for(registry.ask(Get("two"), WAIT_SECS), WAIT_SECS)
    assert json.loads(record.json)["_str"] == "text"
    wait_for(registry.ask(Register("three", {}, "10.0.0.8"), WAIT_SECS), WAIT_SECS)


def test_what_the_registry_refuses_is_the_answer(demo: Made) -> None:
    assert demo.call("Missing") == CallResult(404, "Entry 'nobody' not found", "application/json", b"")
    assert demo.call("Bad").status == 400
    demo.body("Entries")
    assert demo.call("Entries").message == "Entry 'one' already exists"


def test_what_is_printed_and_logged_goes_to_the_log(demo: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert demo.call("Noise").body == b"done"
    wanted = [
        ("INFO", "printed"),
        ("INFO", "complained"),
        ("INFO", "written"),
        ("INFO", "echoed"),
        ("WARNING", "logged 7"),
        ("WARNING", "in two lines"),
    ]
    deadline = time.monotonic() + WAIT_SECS
    while True:
        seen = [(each.levelname, each.message) for each in caplog.records if each.name == "bpbroker.extension.demo"]
        if sorted(seen) == sorted(wanted):
            break
        assert time.monotonic() < deadline, seen
        time.sleep(0.01)


def test_standard_input_is_empty(demo: Made) -> None:
    assert demo.body("Read") == {"input": ""}


def test_the_environment_is_extended_and_without_the_brokers_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPBROKER_ACCESS_KEY", "secret")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("KEPT", "1")
    seen = make(_env={"EXTRA": "2"}).body("Environment")
    assert (seen["KEPT"], seen["EXTRA"]) == ("1", "2")
    assert not {"BPBROKER_ACCESS_KEY", "NOTIFY_SOCKET"} & set(seen)

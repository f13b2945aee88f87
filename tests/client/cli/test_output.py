from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from typing import Any

import pytest

from bpbroker.client.address import BrokerAddress, parse_address
from bpbroker.client.cli import output
from bpbroker.client.cli.output import FORMATS, render
from bpbroker.client.responders import Broker
from bpbroker.errors import NotShown
from bpbroker.recipes.coordination import Entry

STAMP = {"last_write_ip": "127.0.0.1", "last_write_ts": 1420068290}
TEXT = {"_str": "bar", **STAMP}
OBJECT = {"key": "x", "n": {"a": [1, 2]}, "u": "é", "none": None, "yes": True, **STAMP}
AWKWARD = 'it\'s "x" $(touch /tmp/x) `y` \\ \u2019 é\n second\tline'


def text(value: Any, form: str = "text", cols: tuple[str, ...] = ()) -> str:
    return render(value, form, cols).decode()


def test_text_alone_prints_as_that_text() -> None:
    assert text(output.of_entry(TEXT)) == "bar\n"
    assert text(output.of_entry({"_str": "é\nx", **STAMP})) == "é\nx\n"


def test_an_object_prints_as_0_22_printed_it() -> None:
    assert text(output.of_entry({"key": "x", "u": "é", **STAMP})) == (
        '{"key": "x", "u": "\\u00e9", "last_write_ip": "127.0.0.1", "last_write_ts": 1420068290}\n'
    )
    assert text(output.of_entry({"_str": "a", "b": 1})) == '{"_str": "a", "b": 1}\n'
    assert text(output.of_entry({"_str": 5})) == '{"_str": 5}\n'


def test_a_ping_prints_its_echo() -> None:
    assert text(output.of_ping({"src": "1.2.3.4", "data": {"_str": "foo"}})) == "foo\n"
    assert text(output.of_ping({"src": "1.2.3.4", "data": {"a": 1}})) == '{"a": 1}\n'
    assert text(output.of_ping({"src": "1.2.3.4", "data": {"a": 1}}), "csv") == "src,a\n1.2.3.4,1\n"


OUTPUTS = {
    "entry": output.of_entry(OBJECT),
    "text": output.of_entry(TEXT),
    "ping": output.of_ping({"src": "1.2.3.4", "data": {"_str": "foo"}}),
    "field": output.of_value("role", "master"),
    "nothing": output.of_value("role", None),
    "list": output.of_entries({"a": Entry(TEXT), "b c": Entry(OBJECT)}),
    "empty list": output.of_entries({}),
    "names": output.of_names(["a", "b c"]),
    "broker": output.of_broker(Broker("10.0.0.5", 20443)),
    "brokers": output.of_brokers([Broker("10.0.0.5", 20443), Broker("::1", 1, "ab", "cd", authentic=True)]),
    "delete": output.of_response({"success": True, "message": "Success"}, b""),
    "raw": output.of_raw({"success": True, "data": OBJECT}),
    "body": output.of_body(b"001 h 10.0.0.7 k"),
    "body object": output.of_body(b'{"a": 1}'),
    "body list": output.of_body(b'[{"a": 1}, {"b": 2}]'),
    "body no JSON": output.of_body(b'{"a": NaN}'),
    "body infinite": output.of_body(b"[1e999]"),
    "half a pair": output.of_entry(Entry({"_str": "\ud800"})),
    "half a pair in an object": output.of_entry(Entry({"a": "\ud800"})),
    "half a pair in a name": output.of_names(["\ud800"]),
    "body binary": output.of_body(b"\xff\x00"),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("cols", [(), ("key", "nope")])
def test_json_is_json_on_one_line_for_everything(name: str, cols: tuple[str, ...]) -> None:
    shown = text(OUTPUTS[name], "json", cols)
    assert shown.endswith("\n")
    assert "\n" not in shown[:-1]
    json.loads(shown, parse_constant=pytest.fail)


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "body binary"])
@pytest.mark.parametrize("form", FORMATS)
def test_everything_has_every_form(name: str, form: str) -> None:
    shown = text(OUTPUTS[name], form)
    assert shown == "" or shown.endswith("\n") or name.startswith("body")


def test_an_extensions_body_is_given_as_it_came() -> None:
    assert render(output.of_body(b"a\xff\r\n"), "text") == b"a\xff\r\n"
    assert render(output.of_body(b""), "text") == b""


def test_a_list_has_a_line_for_each_whatever_is_in_it() -> None:
    entries = {"a": Entry(TEXT), "b": Entry({"_str": AWKWARD, **STAMP}), "c": Entry(OBJECT)}
    lines = text(output.of_entries(entries)).splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a", "b", "c"]
    assert lines[0] == "a\tbar"
    assert json.loads(lines[1].split("\t")[1]) == AWKWARD


def test_columns_choose_and_order() -> None:
    assert text(output.of_entry(OBJECT), "json", ("u", "key")) == '{"u": "\\u00e9", "key": "x"}\n'
    assert text(output.of_entry(OBJECT), "text", ("key",)) == '{"key": "x"}\n'
    assert text(output.of_entry(OBJECT), "csv", ("u", "nope", "key")) == "u,nope,key\né,,x\n"
    assert text(output.of_entries({"a": Entry(OBJECT)}), "json", ("key",)) == '{"a": {"key": "x"}}\n'
    assert text(output.of_entries({"a": Entry(OBJECT)}), "csv", ("name", "key")) == "name,key\na,x\n"


def test_csv_can_be_read_back() -> None:
    entries = {"a": Entry({"x": AWKWARD}), "b,c": Entry({"y": [1, "é"]})}
    shown = text(output.of_entries(entries), "csv")
    assert list(csv.reader(io.StringIO(shown, newline=""))) == [
        ["name", "x", "y"],
        ["a", AWKWARD, ""],
        ["b,c", "", '[1, "é"]'],
    ]
    assert text(output.of_entries(entries), "csv-noheader") == shown.split("\n", 1)[1]


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_a_shell_gets_back_exactly_what_is_there(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    shown = text(output.of_entry({"key": AWKWARD, "a-b.c": "2", "_str": "3", "PATH": "/evil", "n": None}), "shell")
    script = (
        f'{shown}printf "%s|%s|%s|%s|%s" "$bp_key" "$bp_a_b_c" "$bp_str" "$bp_PATH" "$bp_n"; command -v ls >/dev/null'
    )
    done = subprocess.run([program, "-eu", "-c", script], capture_output=True, check=True, timeout=30)
    assert done.stdout.decode() == f"{AWKWARD}|2|3|/evil|"
    assert done.stderr == b""


def test_a_shell_counts_through_a_list() -> None:
    shown = text(output.of_entries({"a": Entry({"x": "1"}), "b": Entry({"x": "2"})}), "shell")
    assert shown == "bp_count='2'\nbp_1_name='a'\nbp_1_x='1'\nbp_2_name='b'\nbp_2_x='2'\n"


def test_powershells_other_quotes_are_doubled_too() -> None:
    shown = text(output.of_entry({"key": "a'b\u2018c\u2019d\u201ae\u201bf$x`n"}), "powershell")
    assert shown == "$bp_key = 'a''b\u2018\u2018c\u2019\u2019d\u201a\u201ae\u201b\u201bf$x`n'\n"


@pytest.mark.parametrize("form", ["shell", "powershell"])
@pytest.mark.parametrize("entry", [{"a-b": 1, "a_b": 2}, {"x": "a\0b"}])
def test_what_a_shell_cannot_hold_is_refused(form: str, entry: dict[str, Any]) -> None:
    with pytest.raises(NotShown, match="json"):
        render(output.of_entry(entry), form)


def test_powershells_variables_know_no_case() -> None:
    entry = output.of_entry({"Role": 1, "role": 2})
    assert text(entry, "shell") == "bp_Role='1'\nbp_role='2'\n"
    with pytest.raises(NotShown, match="bp_role"):
        render(entry, "powershell")


def test_half_a_surrogate_pair_is_a_question_mark_where_there_is_text() -> None:
    for form, shown in (("text", "a?b\n"), ("csv-noheader", "a?b\n"), ("shell", "bp_str='a?b'\n")):
        assert text(output.of_entry({"_str": "a\ud800b"}), form) == shown


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_never_has_a_number_that_is_none(number: float) -> None:
    with pytest.raises(NotShown, match="NaN"):
        render(output.of_entry({"a": number}), "json")


@pytest.mark.parametrize(
    ("address", "port", "shown"),
    [
        ("10.0.0.1", 20443, "10.0.0.1"),
        ("10.0.0.1", 5, "10.0.0.1:5"),
        ("fe80::1%eth0", 20443, "fe80::1%eth0"),
        ("fe80::1%eth0", 5, "[fe80::1%eth0]:5"),
        ("2001:db8::1", 5, "[2001:db8::1]:5"),
    ],
)
def test_a_broker_is_shown_as_the_option_takes_it(address: str, port: int, shown: str) -> None:
    broker = Broker(address, port)
    for result in (output.of_broker(broker), output.of_brokers([broker])):
        assert render(result, "text").decode() == f"{shown}\n"
    assert parse_address(shown) == BrokerAddress(address, port)
    assert json.loads(render(output.of_broker(broker), "json"))["address"] == address

"""What commands of ``bpclient`` say beside their result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpbroker.client.cli.main import _run
from tests.support.fake_broker import FakeBroker, answer

ENTRY = {"role": "master"}


def old(data: Any, age_secs: float) -> bytes:
    return answer(200, {"success": True, "message": "Success", "data": data, "age_secs": age_secs})


@pytest.fixture
def run(fake: FakeBroker, known_brokers: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command against the made-up broker; gives exit code, standard output and standard error."""
    known_brokers.parent.mkdir()
    known_brokers.write_text(f"{fake.address} SHA256:{fake.fingerprint}\n")

    def run_it(*words: str) -> tuple[int, str, str]:
        code = _run(["-b", fake.address, *words])
        out, err = capfd.readouterr()
        return code, out, err

    return run_it


GET = ("service", "get", "--name", "db", "--consistency", "local")


def test_what_is_old_is_said_beside_the_value(fake: FakeBroker, run: Any) -> None:
    fake.answers = [old(ENTRY, 12.34)]
    assert run(*GET) == (0, '{"role": "master"}\n', "This was so 12 s ago\n")
    assert run(*GET, "--field", "role") == (0, "master\n", "This was so 12 s ago\n")
    assert run("-q", *GET) == (0, '{"role": "master"}\n', "")
    code, out, _ = run(*GET, "--raw")
    assert (code, '"age_secs": 12.34' in out) == (0, True)
    assert [request.json["consistency"] for request in fake.requests] == ["local"] * 4


def test_a_list_says_it_too(fake: FakeBroker, run: Any) -> None:
    fake.answers = [old({}, 90.0)]
    assert run("service", "list", "--consistency=local") == (0, "", "This was so 90 s ago\n")
    assert run("service", "list", "--consistency=local", "--keys", "-q") == (0, "", "")
    assert {request.json["consistency"] for request in fake.requests} == {"local"}


def test_what_is_fresh_needs_no_word(fake: FakeBroker, run: Any) -> None:
    fake.answers = [old(ENTRY, 1.0), answer(200, {"success": True, "message": "Success", "data": ENTRY})]
    for words in (GET, GET[:-2]):
        assert run(*words) == (0, '{"role": "master"}\n', "")
    assert "consistency" not in fake.requests[1].json


@pytest.mark.parametrize("age", ["12", None, True, {"secs": 12}])
def test_an_age_that_is_none_is_not_said(fake: FakeBroker, run: Any, age: Any) -> None:
    fake.answers = [old(ENTRY, age)]
    assert run(*GET) == (0, '{"role": "master"}\n', "")


# --- what cannot be shown ---

CLASH = '{"a-b": 1, "a_b": 2}'


def stored(data: Any) -> bytes:
    return answer(200, {"success": True, "message": "Success", "data": data})


@pytest.mark.parametrize("method", ["register", "replace", "update"])
@pytest.mark.parametrize(
    ("form", "data", "why"),
    [
        ("shell", CLASH, "bp_a_b"),
        ("powershell", '{"Role": 1, "role": 2}', "bp_role"),
        ("shell", '{"last-write-ip": 1}', "bp_last_write_ip"),
        ("shell", '{"a": "\\u0000"}', "NUL"),
    ],
)
def test_a_write_whose_answer_no_shell_could_hold_is_not_sent(
    fake: FakeBroker, run: Any, method: str, form: str, data: str, why: str
) -> None:
    code, out, err = run("-f", form, "service", method, "--name", "n", "--data", data)
    assert (code, out) == (2, "")
    assert why in err
    assert "nothing was sent" in err
    assert not fake.requests


@pytest.mark.parametrize("more", [("--cols", "a-b"), ("--etag",), ("--raw",)])
def test_a_write_whose_answer_can_be_shown_in_part_is_sent(fake: FakeBroker, run: Any, more: tuple[str, ...]) -> None:
    fake.answers = [stored({"a-b": 1, "a_b": 2})]
    assert run("service", "register", "--name", "n", "--data", CLASH, "-f", "shell", *more)[0] == 0


@pytest.mark.parametrize("data", ['{"a": NaN}', '{"last_write_ip": 1}', '{"a": 1, "a": 2}'])
def test_data_that_is_wrong_is_the_brokers_to_refuse(fake: FakeBroker, run: Any, data: str) -> None:
    fake.answers = [answer(400, {"success": False, "message": "No good", "data": {}})]
    code, _, err = run("-f", "shell", "service", "register", "--name", "n", "--data", data)
    assert (code, err) == (1, "Fatal error: No good\n")


@pytest.mark.parametrize(
    ("words", "form", "body"),
    [
        (("service", "update", "--name", "n", "--data", '{"a_b": 2}'), "shell", stored({"a-b": 1, "a_b": 2})),
        (("service", "register", "--name", "n", "--data", "x"), "json", stored({"_str": float("nan")})),
        (("service", "delete", "--name", "n"), "json", stored({"a": float("inf")})),
        (("execute", "--method", "m.F"), "shell", answer(200, {"a-b": 1, "a_b": 2})),
    ],
)
def test_a_call_that_was_carried_out_but_cannot_be_shown_says_both(
    fake: FakeBroker, run: Any, words: tuple[str, ...], form: str, body: bytes
) -> None:
    fake.answers = [body]
    code, out, err = run("-f", form, *words)
    assert (code, out) == (1, "")
    assert err.startswith("Fatal error: The call was carried out, but its answer cannot be shown: ")


def test_a_read_that_cannot_be_shown_has_nothing_to_add(fake: FakeBroker, run: Any) -> None:
    fake.answers = [stored({"a-b": 1, "a_b": 2})]
    code, out, err = run("-f", "shell", "service", "get", "--name", "n")
    assert (code, out) == (1, "")
    assert err.startswith("Fatal error: Two keys would both be the variable bp_a_b; ")


# --- words without their option ---


@pytest.mark.parametrize(
    "words", [("foo",), ("foo", "--wait", "1s"), ("--wait", "1s", "foo"), ("--wait=1s", "foo", "-q"), ("--name", "foo")]
)
def test_a_name_may_stand_alone(fake: FakeBroker, run: Any, words: tuple[str, ...]) -> None:
    fake.answers = [stored(ENTRY)]
    assert run("service", "get", *words)[0] == 0
    assert fake.requests[0].json["name"] == "foo"


def test_so_may_a_method(fake: FakeBroker, run: Any) -> None:
    fake.answers = [answer(200, {"a": 1})]
    assert run("execute", "ossec.AddAgent", "--data", "h")[0] == 0
    assert fake.requests[0].path == "/ossec/AddAgent/"


@pytest.mark.parametrize("words", [("foo", "--name", "foo"), ("--name", "x", "foo"), ("foo", "bar"), ()])
def test_two_names_or_none_are_refused(fake: FakeBroker, run: Any, words: tuple[str, ...]) -> None:
    code, out, err = run("service", "get", *words)
    assert (code, out) == (2, "")
    assert err.startswith("Fatal error: ")
    assert not fake.requests


# --- trust ---


def test_pins_are_listed_and_forgotten(fake: FakeBroker, run: Any) -> None:
    code, out, _ = run("trust", "list")
    assert (code, out.split("\t")[0]) == (0, fake.address)
    assert out.count(":") == 32
    assert run("trust", "forget", "127.0.0.1") == (0, f"{fake.address}\n", "")
    assert run("trust", "list")[:2] == (0, "")
    code, out, err = run("trust", "forget", "--host", "127.0.0.1")
    assert (code, out) == (3, "")
    assert "no certificate of 127.0.0.1" in err

"""What commands of ``bpclient`` say beside their result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpbroker.client.cli.main import _run
from bpbroker.client.cli.session import Session
from tests.support.fake_broker import FakeBroker, answer, failure, success
from tests.support.ports import refusing_port
from tests.support.systems import is_private

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


def test_a_list_of_those_that_fit_or_that_are_lost(fake: FakeBroker, run: Any) -> None:
    fake.answers = [success({"n1": {"state": "ready"}})]
    assert run("service", "list", "--prefix", "n", "--where", "state=ready", "--where=a.b=1", "--keys")[:2] == (
        0,
        "n1\n",
    )
    assert fake.requests[-1].json == {"prefix": "n", "where": ["state=ready", "a.b=1"]}
    assert run("service", "list", "--where", "state")[0] == 2
    fake.answers = [success({"n2": {"entry": {"step": "x"}, "when": 1795521812, "session": "s"}})]
    lost = ("service", "list", "--prefix", "n", "--lost")
    shown = '{"step": "x", "lost_ts": 1795521812, "lost_session": "s"}'
    assert run(*lost)[:2] == (0, f"n2\t{shown}\n")
    assert run(*lost, "--keys")[:2] == (0, "n2\n")
    assert json.loads(run(*lost, "--raw")[1])["data"]["n2"]["when"] == 1795521812
    assert run(*lost, "-f", "csv", "--cols", "name", "step")[1].split() == ["name,step", "n2,x"]
    assert run(*lost, "--where", "a=b")[0] == 2


def test_a_pool_may_stand_without_its_option(fake: FakeBroker, run: Any) -> None:
    fake.answers = [success({"number": 7})]
    for words in (("number", "foo/id", "--for", "me"), ("number", "--for", "me", "--pool", "foo/id")):
        assert run(*words)[:2] == (0, "7\n")
        assert fake.requests[-1].json == {"pool": "foo/id", "owner": "me", "from": 1, "to": 255}
    assert run("number", "foo/id", "--counter", "c")[0] == 2


def test_who_waits_until_it_is_gone_asks_for_nothing_else(fake: FakeBroker, run: Any) -> None:
    for more in (("--field", "a"), ("--raw",), ("--etag",), ("--changed-from", "1"), ("--consistency", "local")):
        assert run("service", "get", "db", "--gone", *more)[0] == 2
    assert not fake.requests


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
    assert (code, err) == (2, "Fatal error: No good\n")


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


# --- data that was meant as JSON ---

BROKEN = ['{"broken', "{'role': 'x'}", ' {"a": 1,}', "{a: 1}"]


def test_a_pin_that_was_spoilt_by_hand_is_listed_and_can_be_forgotten(run: Any, known_brokers: Path) -> None:
    known_brokers.write_text("other:1 SHA256:aa\n")
    assert run("trust", "list") == (0, "other:1\t'aa'\n", "")
    assert run("trust", "forget", "other") == (0, "other:1\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ("service", "register", "node-", "--data", "x"),
        ("service", "replace", "node-", "--data", "x"),
        ("service", "update", "node-", "--data", "x"),
        ("service", "take", "secret", "--for", "node-"),
        ("number", "--pool", "ids", "--for", "node-"),
        ("session", "run", "--name", "node-", "--data", "x", "--", "true"),
    ],
)
def test_a_name_that_ends_in_a_dash_is_warned_of(
    fake: FakeBroker, run: Any, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpbroker.client.cli.session_lock_once.end_orderly", lambda: None)
    fake.answers = [failure(400, "enough")]
    code, _, err = run(*words)
    assert code == 2
    assert "'node-' ends in a dash; was $HOSTNAME empty? Use $(hostname)" in err


@pytest.mark.parametrize("words", [("lock", "--name", "x"), ("once", "--name", "x")])
def test_what_waits_for_others_keeps_to_the_timeout(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpbroker.client.cli.session_lock_once.end_orderly", lambda: None)
    with refusing_port() as port:
        assert _run(["-b", f"127.0.0.1:{port}", "--timeout", "1s", *words, "--", "true"]) == 6


def test_data_that_is_too_large_is_data_that_is_refused(fake: FakeBroker, run: Any) -> None:
    fake.answers = [failure(413, "The body is larger than 1048576 bytes (api.max_body_bytes)")]
    assert run("service", "register", "x", "--data", "y")[0] == 2


def test_a_barrier_that_fails_names_the_time_that_was_given(fake: FakeBroker, run: Any) -> None:
    fake.answers = [answer(200, {"success": True, "message": "Success", "data": {}})]
    code, _, err = run("--timeout", "0.1s", "service", "wait", "--prefix", "n-", "--count", "1")
    assert code == 124
    assert err.startswith("Fatal error: There were fewer than 1 entries 'n-…' within 0.1 s: none of 1")


@pytest.mark.parametrize("method", ["register", "replace", "update"])
@pytest.mark.parametrize("data", BROKEN)
def test_what_looks_like_json_and_is_none_is_stored_with_a_warning(
    fake: FakeBroker, run: Any, method: str, data: str
) -> None:
    fake.answers = [stored({"_str": data})]
    code, out, err = run("service", method, "n", "--data", data)
    assert (code, out) == (0, f"{data}\n")
    assert err.startswith("Warning: the data looks like JSON and is not, so it is stored as text: Expecting") or (
        "Unterminated string" in err or "Illegal trailing comma" in err
    )
    assert " at line 1 column " in err
    assert fake.requests[0].json["data"] == data
    assert ("; keys and texts are in double quotes" in err) == ("'" in data)
    assert run("-q", "service", method, "n", "--data", data)[2] == ""


@pytest.mark.parametrize("data", [*BROKEN, "text", "", "[1]", "5"])
def test_json_refuses_anything_but_an_object(fake: FakeBroker, run: Any, data: str) -> None:
    code, out, err = run("service", "register", "n", "--json", f"--data={data}")
    assert (code, out) == (2, "")
    assert "no JSON object" in err
    assert not fake.requests


@pytest.mark.parametrize("data", ["text", '{"a": 1}', "[INFO] x", ""])
def test_other_data_needs_no_word(fake: FakeBroker, run: Any, data: str) -> None:
    fake.answers = [stored(ENTRY)]
    assert run("service", "register", "n", f"--data={data}")[2] == ""


def test_update_removes_keys(fake: FakeBroker, run: Any) -> None:
    fake.answers = [stored(ENTRY), stored(ENTRY)]
    assert run("service", "update", "n", "--unset", "a.b", "--unset", "c")[::2] == (0, "")
    assert fake.requests[0].json == {"name": "n", "data": "{}", "unset": ["a.b", "c"]}
    assert run("service", "update", "n", "--data", '{"x": 1}')[0] == 0
    assert "unset" not in fake.requests[1].json
    said = run("service", "update", "n")[2]
    assert "--data" in said
    assert "--unset" in said


@pytest.mark.parametrize(
    ("words", "data", "said"),
    [
        (("--cols", "a"), {"_str": "bar"}, "--cols chooses nothing"),
        (("--cols", "a", "--etag"), {"a": 1}, "--cols chooses nothing"),
        (("--cols", "a", "--raw"), {"a": 1}, "--cols chooses nothing"),
        (("--etag", "--raw"), {"a": 1}, "--etag does nothing beside --raw"),
        (("--cols", "a"), {"a": 1, "b": 2}, ""),
        (("--cols", "a", "-f", "csv"), {"_str": "bar"}, ""),
        (("--cols", "a", "-q"), {"_str": "bar"}, ""),
        (("--etag",), {"_str": "bar"}, ""),
    ],
)
def test_an_option_that_does_nothing_says_so(
    fake: FakeBroker, run: Any, words: tuple[str, ...], data: dict[str, Any], said: str
) -> None:
    fake.answers = [stored({**data, "last_write_ip": "10.0.0.1", "last_write_ts": 1})]
    code, out, err = run("service", "get", "n", *words)
    assert (code, bool(out)) == (0, True)
    assert (said in err) if said else err == ""


# --- the own address ---


def pong(src: str) -> bytes:
    return answer(200, {"src": src, "data": {"_str": ""}})


def test_the_address_that_the_broker_sees_goes_into_the_data(
    fake: FakeBroker, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpbroker.discovery.interfaces.own_address", lambda: "")
    fake.answers = [pong("10.0.0.7"), stored(ENTRY), pong("127.0.0.1"), stored(ENTRY)]
    assert run("service", "register", "n", "--own-ip", "--data", '{"role": "x"}')[::2] == (0, "")
    assert json.loads(fake.requests[1].json["data"]) == {"role": "x", "ip": "10.0.0.7"}
    code, _, err = run("service", "update", "n", "--own-ip")
    assert code == 0
    assert "sees this host as 127.0.0.1, which is of no use" in err
    assert json.loads(fake.requests[3].json["data"]) == {"ip": "127.0.0.1"}


def test_on_the_brokers_own_host_it_is_the_hosts_address_on_the_network(
    fake: FakeBroker, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpbroker.discovery.interfaces.own_address", lambda: "10.0.0.5")
    fake.answers = [pong("::1"), stored(ENTRY)]
    assert run("service", "register", "n", "--own-ip")[::2] == (0, "")
    assert json.loads(fake.requests[1].json["data"]) == {"ip": "10.0.0.5"}


@pytest.mark.parametrize("data", ["text", '{"ip": "10.0.0.1"}', "[]"])
def test_only_an_object_without_an_address_can_take_one(fake: FakeBroker, run: Any, data: str) -> None:
    assert run("service", "register", "n", "--own-ip", "--data", data)[0] == 2
    assert not fake.requests


def test_a_name_that_ends_in_a_dash_is_doubted(fake: FakeBroker, run: Any) -> None:
    fake.answers = [stored(ENTRY)]
    assert "was $HOSTNAME empty?" in run("service", "register", "node-", "--data", "x")[2]
    assert run("service", "register", "node-1", "--data", "x")[2] == ""


# --- one value, several values ---


@pytest.mark.parametrize(
    ("field", "shown"),
    [("a.b", "1"), ("a.c.d", "x"), ("a.c", '{"d": "x"}'), ("e.f", "2"), ("e.f.g", ""), ("a.x", ""), ("a.b.c", "")],
)
def test_a_field_may_lie_deeper(fake: FakeBroker, run: Any, field: str, shown: str) -> None:
    fake.answers = [answer(200, {"success": True, "message": "", "data": {"a": {"b": 1, "c": {"d": "x"}}, "e.f": 2}})]
    assert run("service", "get", "n", "--field", field)[:2] == ((0, f"{shown}\n") if shown else (3, ""))


def test_tag_and_field_are_printed_together(fake: FakeBroker, run: Any) -> None:
    fake.answers = [success(ENTRY, ETag='"e1"')]
    assert run("service", "get", "n", "--etag", "--field", "role")[1] == "e1\tmaster\n"
    assert json.loads(run("-f", "json", "service", "get", "n", "--etag", "--field", "role")[1]) == {
        "etag": "e1",
        "role": "master",
    }


def test_register_or_get_prints_what_is_there(fake: FakeBroker, run: Any) -> None:
    taken = failure(409, "Entry 'n' already exists")
    fake.answers = [taken, failure(404, "Entry 'n' not found"), taken, stored(ENTRY)]
    assert run("service", "register", "n", "--data", "x", "--or-get")[:2] == (0, '{"role": "master"}\n')
    assert [request.path.split("/")[2] for request in fake.requests] == ["Register", "Get"] * 2
    assert run("service", "register", "n", "--data", "x", "--or-get", "--idempotent")[0] == 2


# --- execute ---


def test_further_parameters_are_sent(fake: FakeBroker, run: Any) -> None:
    fake.answers = [answer(200, {"a": {"b": "x"}})]
    words = ("execute", "m.F", "--param", "k=v=w", "--param=l=", "--data", "d", "--field", "a.b")
    assert run(*words)[:2] == (0, "x\n")
    assert fake.requests[0].json == {"k": "v=w", "l": "", "data": "d"}
    for bad in ("k", "=v", "data=x", "self=x"):
        assert run("execute", "m.F", "--param", bad)[0] == 2
    assert len(fake.requests) == 1


def test_an_answer_goes_into_a_file_whole_or_not_at_all(fake: FakeBroker, run: Any, tmp_path: Path) -> None:
    fake.answers = [answer(200, b"\x00key"), failure(500, "no"), answer(200, {"a": 1})]
    path = tmp_path / "key"
    assert run("execute", "m.F", "--output", str(path)) == (0, "", "")
    assert path.read_bytes() == b"\x00key"
    assert is_private(path)
    assert run("execute", "m.F", "--output", str(path))[0] == 1
    assert path.read_bytes() == b"\x00key"
    assert run("-f", "json", "execute", "m.F", "--output", str(path))[:2] == (0, "")
    assert path.read_bytes() == b'{"a": 1}\n'
    for bad in (tmp_path, tmp_path / "nowhere" / "key"):
        code, _, err = run("execute", "m.F", "--output", str(bad))
        assert code == 2
        assert "nothing was sent" in err
    assert len(fake.requests) == 3


@pytest.mark.parametrize(("body", "shown"), [(b"key", b"key\n"), (b"key\n", b"key\n"), (b"", b"")])
def test_on_a_terminal_an_answer_ends_its_line(
    fake: FakeBroker, run: Any, monkeypatch: pytest.MonkeyPatch, body: bytes, shown: bytes
) -> None:
    fake.answers = [answer(200, body)]
    assert run("execute", "m.F")[1].encode() == body
    monkeypatch.setattr(Session, "at_terminal", lambda _: True)
    assert run("execute", "m.F")[1].encode() == shown


# --- refusals ---


@pytest.mark.parametrize(
    ("said", "key", "shown"),
    [
        ("Incorrect access key", (), "No access key was given; services needs one"),
        ("Incorrect access key", ("-a", "k"), "Fatal error: Incorrect access key\n"),
        ("Unauthorized package", ("-a", "k"), "the broker has no namespace services"),
        ("Unauthorized method", ("-a", "k"), "services has no method Get on this broker"),
    ],
)
def test_why_access_is_refused_is_told_apart(
    fake: FakeBroker, run: Any, said: str, key: tuple[str, ...], shown: str
) -> None:
    fake.answers = [failure(401, said)]
    code, out, err = run(*key, "service", "get", "n")
    assert (code, out) == (5, "")
    assert shown in err
    assert said in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("servce", "get", "n"), "service"),
        (("service", "gte", "n"), "get"),
        (("service", "get", "--nmae", "n"), "--name"),
        (("discver", "n"), "discover"),
    ],
)
def test_a_word_that_is_mistyped_is_answered_with_what_was_meant(run: Any, words: tuple[str, ...], meant: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "did you mean" in err.lower()
    assert meant in err


@pytest.mark.parametrize(
    "words",
    [
        ("service", "register", "n", "--data", "x"),
        ("service", "replace", "n", "--data", "x"),
        ("service", "update", "n", "--data", "x"),
        ("service", "delete", "n"),
        ("number", "p", "--for", "o"),
        ("number", "p", "--for", "o", "--release"),
        ("number", "--counter", "c"),
        ("service", "take", "n", "--for", "r"),
        ("batch", "--file", "ops.json"),
    ],
)
def test_what_is_written_under_a_lock_names_it(
    fake: FakeBroker, run: Any, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    methods = ["Register", "Replace", "Update", "Delete", "Allocate", "Release", "Next", "Take", "Ack"]
    operations = [{"method": method, "name": "n"} for method in (*methods, "Get", "List", "Check", "CheckEmpty")]
    Path("ops.json").write_text(json.dumps(operations))
    monkeypatch.setenv("BPBROKER_LOCK", "l:7")
    monkeypatch.setenv("BPBROKER_SESSION", "s")
    fake.answers = [success({"number": 1, "results": []})]
    assert run(*words)[0] == 0
    sent = fake.requests[0].json
    if words[0] != "batch":
        assert all(request.json["lock"] == "l:7" for request in fake.requests)
        run(*words, "--lock", "m:8")
        assert fake.requests[-1].json["lock"] == "m:8"
        run(*words, "--lock", "")
        assert "lock" not in fake.requests[-1].json
        return
    assert [each["method"] for each in sent["operations"] if each.get("lock") == "l:7"] == methods
    assert [each["method"] for each in sent["operations"] if each.get("session") == "s"] == methods[:3]


def listed(revision: int) -> bytes:
    return answer(200, {"success": True, "message": "Success", "data": {}, "revisions": {}, "revision": revision})


def watched(cursor: str, *events: dict[str, Any]) -> bytes:
    return success({"events": list(events), "cursor": cursor})


@pytest.mark.parametrize(("newest", "since"), [(0, "r:9"), (5, "r:9"), (12, "r:12")])
def test_a_watch_never_goes_back_behind_its_list(fake: FakeBroker, run: Any, newest: int, since: str) -> None:
    put = {"type": "put", "name": "a", "revision": 20, "entry": {}}
    fake.answers = [watched("r:9"), listed(newest), watched("r:20", put)]
    assert run("watch", "--prefix", "a", "--initial", "--count", "1")[0] == 0
    assert [each.json.get("since") for each in fake.requests] == [None, None, since]


@pytest.mark.parametrize(("newest", "since"), [(0, "r:9"), (5, "r:9"), (12, "r:12")])
def test_a_file_is_made_anew_only_after_a_change(
    fake: FakeBroker, run: Any, newest: int, since: str, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    template = tmp_path / "t"
    template.write_text("{{ entry('a') }}")
    fake.answers = [watched("r:9"), listed(newest), watched("r:30")]
    words = ("render", "--template", str(template), "--out", str(tmp_path / "out"), "--wait", "1s")
    assert run(*words)[0] == 124
    assert fake.requests[2].json["since"] == since

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from bpbroker import messages
from bpbroker.config import layers
from bpbroker.errors import AlreadyExists, NotFound, Overloaded, PreconditionFailed
from bpbroker.frontend import access_log, application
from bpbroker.frontend.extension_calls import understand
from bpbroker.messages import Condition
from bpbroker.record import Record
from bpbroker.registry.requests import BatchDone
from bpbroker.server import response
from bpbroker.server.request import Request, plain_address
from tests.support.application import RECORD, SETTINGS, TOKEN, Broker


@pytest.fixture
def broker() -> Broker:
    return Broker()


# --- the registry ---


@pytest.mark.parametrize("kind", [messages.Register, messages.Replace, messages.Update])
def test_a_write_is_one_message_and_the_answer_is_the_entry_as_stored(broker: Broker, kind: type[Any]) -> None:
    expected = kind("foo", {"_str": "bar"}, "10.0.0.7")
    for answer in (
        broker.call(f"/services/{kind.__name__}/?access_key=&data=bar&name=foo"),
        broker.call(
            f"/services/{kind.__name__}", body=b"name=foo&data=bar", CONTENT_TYPE="application/x-www-form-urlencoded"
        ),
        broker.post(f"/services/{kind.__name__}/", name="foo", data="bar"),
    ):
        assert (answer.status, answer.reason) == (200, "OK")
        assert answer.json == {
            "success": True,
            "message": "Success",
            "data": json.loads(RECORD.json),
            "revision": RECORD.revision,
        }
        assert answer.headers["ETag"] == RECORD.etag
        assert answer.content_type == "application/json"
    assert broker.registry.asked == [expected] * 3


@pytest.mark.parametrize(
    ("api", "source", "writer"),
    [
        ({}, "127.0.0.1", "10.0.0.5"),
        ({}, "::1", "10.0.0.5"),
        ({}, "10.0.0.7", "10.0.0.7"),
        ({"loopback_as": "off"}, "127.0.0.1", "127.0.0.1"),
        ({"loopback_as": "203.0.113.7"}, "::1", "203.0.113.7"),
        ({"listen_ip": "127.0.0.1"}, "127.0.0.1", "127.0.0.1"),
    ],
)
def test_who_writes_over_loopback_is_noted_by_the_hosts_address(
    monkeypatch: pytest.MonkeyPatch, api: dict[str, str], source: str, writer: str
) -> None:
    monkeypatch.setattr("bpbroker.discovery.interfaces.own_address", lambda: "10.0.0.5")
    broker = Broker({**SETTINGS, "api": api})
    broker.call("/services/Register?name=n&data=x", source=source)
    assert broker.registry.asked[-1].source == writer
    asked = understand("Register", {"name": "n", "data": "x"}, {}, source, {**SETTINGS, "api": api})
    assert asked.message.source == writer
    assert broker.call("/ping/Ping", source=source).json["src"] == source


def test_an_update_may_remove_keys_and_needs_no_data_then(broker: Broker) -> None:
    assert broker.post("/services/Update", name="n", unset=["a", "b.c"]).status == 200
    assert (broker.registry.asked[-1].unset, broker.registry.asked[-1].data) == (("a", "b.c"), {})
    assert broker.call("/services/Update?name=n&unset=a&unset=b&data=%7B%22x%22%3A1%7D").status == 200
    assert (broker.registry.asked[-1].unset, broker.registry.asked[-1].data) == (("a", "b"), {"x": 1})
    batch = [{"method": "Update", "name": "n", "unset": ["a"]}]
    broker.registry.outcome = BatchDone((RECORD,), 1)
    assert broker.post("/services/Batch", operations=batch).status == 200
    assert broker.registry.asked[-1].operations[0].unset == ("a",)


@pytest.mark.parametrize("unset", [[1], [""], ["a", "last_write_ip"], [], None])
def test_what_cannot_be_removed_is_refused(broker: Broker, unset: Any) -> None:
    assert broker.post("/services/Update", name="n", unset=unset).status == 400


def test_the_query_is_read_before_the_body(broker: Broker) -> None:
    broker.call("/services/Get/?name=query", body=b"name=body", CONTENT_TYPE="application/x-www-form-urlencoded")
    assert broker.registry.asked == [messages.Get("query")]


def test_get_and_delete_and_list(broker: Broker) -> None:
    assert broker.call("/services/Get/?name=foo", "GET").json["data"]["_str"] == "bar"
    broker.registry.outcome = messages.Deleted()
    for method in ("POST", "DELETE"):
        assert broker.call("/services/Delete/?name=foo", method).json == {"success": True, "message": "Success"}
    broker.registry.outcome = (RECORD,)
    answer = broker.call("/services/List/?prefix=f&count=2&wait=3", "GET")
    assert answer.json["data"] == {"foo": json.loads(RECORD.json)}
    assert broker.registry.asked == [
        messages.Get("foo"),
        messages.Delete("foo"),
        messages.Delete("foo"),
        messages.List("f", 2, 3.0),
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AlreadyExists("Entry 'foo' already exists"), 409),
        (NotFound("Entry 'nope' not found"), 404),
        (PreconditionFailed("Entry 'foo' is not as expected"), 412),
        (Overloaded("Full"), 503),
    ],
)
def test_what_the_registry_refuses_is_said_in_body_and_reason(broker: Broker, error: Exception, status: int) -> None:
    broker.registry.outcome = error
    answer = broker.call("/services/Register/?name=foo&data=x")
    assert (answer.status, answer.reason, answer.message) == (status, str(error), str(error))


def test_what_nobody_foresaw_shows_an_id_and_nothing_else(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    broker.registry.outcome = ValueError("canary")
    answer = broker.call("/services/Get/?name=foo")
    assert answer.status == 500
    assert "canary" not in repr(answer)
    assert answer.headers["X-Request-Id"] in answer.message
    assert "canary" in caplog.text


@pytest.mark.parametrize("method", ["Register", "Replace", "Update"])
def test_a_change_is_made_with_post_alone(broker: Broker, method: str) -> None:
    for verb in ("GET", "HEAD", "DELETE", "PUT", "OPTIONS"):
        answer = broker.call(f"/services/{method}/?name=a&data=b", verb)
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert broker.call("/services/Delete/?name=a", "GET").headers["Allow"] == "POST, DELETE"
    assert not broker.registry.asked


# --- conditions ---


def header(field: str, value: str) -> dict[str, Any]:
    """Return a header field as an argument of :meth:`Broker.call`."""
    return {field: value}


@pytest.mark.parametrize(
    ("field", "value", "condition"),
    [
        ("IF_MATCH", '"a"', Condition(match=('"a"',))),
        ("IF_MATCH", ' "a" ,"b,c"', Condition(match=('"a"', '"b,c"'))),
        ("IF_MATCH", "*", Condition(match=("*",))),
        ("IF_MATCH", 'W/"a"', Condition(match=('W/"a"',))),
        ("IF_NONE_MATCH", "*", Condition(none_match=("*",))),
        ("IF_NONE_MATCH", '"a"', Condition(none_match=('"a"',))),
    ],
)
def test_a_write_takes_its_condition_along(broker: Broker, field: str, value: str, condition: Condition) -> None:
    for action in ("Replace", "Delete"):
        broker.call(f"/services/{action}/?name=foo&data=x", **header(field, value))
    replaced, deleted = broker.registry.asked
    assert replaced.condition == deleted.condition == condition


@pytest.mark.parametrize("value", ["", "a", '"a', '"a" "b"', '"a",,"b"', '*, "a"', ","])
def test_a_condition_that_cannot_be_read_is_never_dropped(broker: Broker, value: str) -> None:
    for field in ("IF_MATCH", "IF_NONE_MATCH"):
        answer = broker.call("/services/Replace/?name=foo&data=x", **header(field, value))
        assert answer.status == 400
        assert "entity tags" in answer.message
    assert not broker.registry.asked


@pytest.mark.parametrize(("tags", "status"), [('"123000"', 304), ('W/"123000"', 304), ("*", 304), ('"x"', 200)])
def test_a_read_of_what_the_client_has_is_not_modified(broker: Broker, tags: str, status: int) -> None:
    answer = broker.call("/services/Get/?name=foo", "GET", IF_NONE_MATCH=tags)
    assert (answer.status, answer.headers["ETag"]) == (status, RECORD.etag)
    assert (answer.body == b"") is (status == 304)


def test_a_read_waits_for_another_state_than_the_one_it_knows(broker: Broker) -> None:
    broker.call("/services/Get/?name=foo&wait=2.5", "GET", IF_NONE_MATCH='"x"')
    assert broker.registry.asked == [messages.Get("foo", 2.5, '"x"')]
    assert broker.call("/services/Get/?name=foo&wait=2", "GET", IF_NONE_MATCH='"x", "y"').status == 400


def test_only_reads_that_wait_are_patient_and_only_lists_are_heavy(broker: Broker) -> None:
    def owed(target: str) -> response.PendingResponse:
        path, _, query = target.partition("?")
        later = broker.application(Request("GET", path, query, {"host": "broker"}))
        assert isinstance(later, response.PendingResponse)
        return later

    for target, heavy, patient in (
        ("/services/Get/?name=a", False, False),
        ("/services/Get/?name=a&wait=1", False, True),
        ("/services/List/", True, False),
        ("/services/List/?wait=1&count=1", True, True),
    ):
        later = owed(target)
        assert (later.heavy, later.patient) == (heavy, patient)
        assert later.timeout_secs >= 30
    assert not broker.registry.asked


def test_a_list_for_which_there_is_no_room_says_what_to_do(broker: Broker) -> None:
    for outcome, target in (
        ((RECORD,) * 1000, "/services/List/"),
        (messages.Known((RECORD,) * 1000, 0.5), "/services/List/?consistency=local"),
    ):
        broker.registry.outcome = outcome
        assert broker.call(target).status == 200
        broker.memory.change(broker.memory.limit_bytes - 100_000)
        answer = broker.call(target)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "prefix" in answer.message
        broker.memory.change(100_000 - broker.memory.limit_bytes)
    broker.registry.outcome = (RECORD,)
    broker.memory.change(broker.memory.limit_bytes)
    assert broker.call("/services/List/").status == 200  # a small one always has room


# --- extensions ---


def test_an_extension_gets_texts_and_its_answer_goes_out_as_it_is(broker: Broker) -> None:
    answer = broker.post("/ossec/AddAgent/", access_key="secret", data={"a": [1]}, n=5, s="x")
    assert (answer.status, answer.content_type, answer.body) == (200, "text/plain", b"done")
    (message,) = broker.ossec.asked
    assert message == messages.Call(
        "AddAgent", {"data": '{"a": [1]}', "n": "5", "s": "x"}, "10.0.0.7", answer.headers["X-Request-Id"], None
    )


def test_an_extension_that_refuses_says_so_like_everybody(broker: Broker) -> None:
    broker.ossec.outcome = messages.CallResult(500, "Invalid source\r\nX: y", "text/html", b"<html>")
    answer = broker.call("/ossec/AddAgent/?access_key=secret", "GET")
    assert (answer.status, answer.reason) == (500, "Invalid source X: y")
    assert answer.message == "Invalid source\r\nX: y"


def test_an_extension_is_called_with_the_protocols_three_methods(broker: Broker) -> None:
    for verb in ("GET", "POST", "DELETE"):
        assert broker.call("/pkg.sub/F", verb).body == b"sub"
    assert broker.call("/pkg.sub/F", "PUT").status == 405


def test_a_call_takes_its_idempotency_key_along(broker: Broker) -> None:
    broker.call("/ossec/AddAgent/?access_key=secret", IDEMPOTENCY_KEY="once")
    assert broker.ossec.asked[0].idempotency_key == "once"
    assert broker.call("/ossec/AddAgent/?access_key=secret", IDEMPOTENCY_KEY="x" * 256).status == 400


def test_an_extension_whose_actor_is_not_there_yet_has_no_methods(broker: Broker) -> None:
    broker.application.settings_changed(layers.freeze({**SETTINGS, "fresh": {}}))
    assert broker.call("/fresh/F").message == "Unauthorized method"


# --- ping, health, control ---


@pytest.mark.parametrize(
    ("query", "echoed"),
    [
        ("data=X", {"_str": "X"}),
        ('data={"a":%201}', {"a": 1}),
        ("data=[1]", {"_str": "[1]"}),
        ("data={broken", {"_str": "{broken"}),
        ("data=", {"_str": ""}),
        ("", {"_str": ""}),
    ],
)
def test_ping_echoes(broker: Broker, query: str, echoed: Any) -> None:
    answer = broker.call(f"/ping/Ping/?{query}", "GET", source="10.0.0.9")
    assert answer.json == {"src": "10.0.0.9", "data": echoed}


def test_ping_echoes_an_object_in_json_and_refuses_what_cannot_be_given_back(broker: Broker) -> None:
    assert broker.post("/ping/Ping/", data={"a": {"b": 1}}).json["data"] == {"a": {"b": 1}}
    assert broker.call('/ping/Ping/?data={"a":NaN}').status == 400


@pytest.mark.parametrize(
    ("address", "plain"), [("::ffff:10.0.0.7", "10.0.0.7"), ("::1", "::1"), ("10.0.0.7", "10.0.0.7"), ("", "")]
)
def test_an_address_is_shown_as_clients_know_it(address: str, plain: str) -> None:
    assert plain_address(address) == plain


def test_health_is_for_everybody_and_says_what_is_wrong(broker: Broker) -> None:
    part = messages.PartHealth("registry", ok=False, since=1.0, detail="the disk is full")
    broker.healthcheck.outcome = messages.HealthReport(ok=False, parts=(part,))
    answer = broker.call("/health", "GET")
    assert (answer.status, answer.json["success"]) == (503, False)
    assert answer.json["data"]["parts"][0]["detail"] == "the disk is full"
    assert broker.call("/ready", "GET").status == 503
    broker.healthcheck.outcome = messages.HealthReport(ok=True, parts=())
    for path in ("/health", "/health/", "/ready", "/live"):
        for verb in ("GET", "HEAD"):
            assert broker.call(path, verb).status == 200
    assert broker.call("/health", "POST").status == 405


@pytest.mark.parametrize("page", ["/health", "/ready"])
def test_without_a_healthcheck_nothing_is_well(broker: Broker, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setattr(application, "HEALTH_SECS", 0.01)
    broker.healthcheck.outcome = ...
    answer = broker.call(page, "GET")
    assert (answer.status, answer.message) == (503, "The broker's healthcheck does not answer")
    assert broker.call("/live", "GET").status == 200


def test_only_the_local_command_asks_for_folders(broker: Broker) -> None:
    broker.healthcheck.outcome = messages.HealthReport(ok=True, parts=())
    broker.call("/health", "GET")
    broker.call("/ready", "GET")
    broker.call("/_control/Status", AUTHORIZATION=f"Bearer {TOKEN}")
    assert broker.healthcheck.asked == [messages.Health(), messages.Health(), messages.Health(folders=True)]


def test_the_local_command_is_let_in_by_its_token_alone(broker: Broker) -> None:
    broker.backup.outcome = ()
    assert broker.call("/_control/Backups", AUTHORIZATION=f"Bearer {TOKEN}").json["data"] == []
    for field, value in (
        ("X", "x"),
        ("AUTHORIZATION", "Bearer wrong"),
        ("AUTHORIZATION", f"Basic {TOKEN}"),
        ("X_ACCESS_KEY", TOKEN),
    ):
        answer = broker.call("/_control/Backups", **header(field, value))
        assert (answer.status, answer.message) == (401, "Unauthorized package")
    assert broker.call("/_control/Nope", AUTHORIZATION=f"Bearer {TOKEN}").message == "Unauthorized method"
    assert broker.call("/_control/Backups", "GET", AUTHORIZATION=f"Bearer {TOKEN}").status == 405


def test_a_document_is_handed_to_the_main_loop(broker: Broker) -> None:
    broker.loop.outcome = messages.Applied(("a.b",), ())
    answer = broker.call("/_control/ApplyConfiguration", body=b'{"a": {"b": 1}}', AUTHORIZATION=f"Bearer {TOKEN}")
    assert answer.json["data"] == {"added": ["a.b"], "kept": []}
    assert broker.loop.asked == [messages.ApplyConfiguration({"a": {"b": 1}})]
    for body in (b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}'):
        assert broker.call("/_control/ApplyConfiguration", body=body, AUTHORIZATION=f"Bearer {TOKEN}").status == 400


@pytest.mark.parametrize("local", [False, True])
def test_a_list_that_does_not_wait_is_filtered_beside_the_registry(broker: Broker, *, local: bool) -> None:
    records = tuple(Record(name, b'{"state": "%s"}' % name.encode(), 1) for name in ("up", "down", "odd"))
    broker.registry.outcome = messages.Known(records, 1.5) if local else records
    query = "where=state=up&fail_where=state=down" + ("&consistency=local" if local else "")
    found = broker.call(f"/services/List/?{query}", "GET").json
    assert list(found["data"]) == ["up", "down"]
    assert ("age_secs" in found) == local
    asked = broker.registry.asked[-1]
    assert (asked.where, asked.fail_where) == ((), ())  # all entries are parsed for that: not in the registry's thread


def test_the_description_is_not_written_for_each_request(broker: Broker) -> None:
    one, other = (broker.call("/openapi.json", "GET").body for _ in range(2))
    assert one is other  # 190 KB that take 4 ms, for a request of 40 bytes without a key


def test_the_description_names_every_method(broker: Broker) -> None:
    found = broker.call("/openapi.json", "GET").json
    assert found["openapi"].startswith("3.1")
    assert {"/services/Register/", "/services/List/", "/ping/Ping/"} <= set(found["paths"])


def test_nothing_at_the_root(broker: Broker) -> None:
    assert broker.call("/", "GET").status == 404


# --- ids and the access log ---


def test_a_request_has_an_id_of_its_own_unless_it_brings_one(broker: Broker) -> None:
    ids = {broker.call("/live", "GET").headers["X-Request-Id"] for _ in range(50)}
    assert len(ids) == 50
    assert broker.call("/live", "GET", X_REQUEST_ID="abc-1.2_3").headers["X-Request-Id"] == "abc-1.2_3"
    for bad in ("a b", "x" * 65, 'a"', "ä"):
        assert broker.call("/live", "GET", X_REQUEST_ID=bad).headers["X-Request-Id"] != bad


def test_the_access_log_has_each_request_and_no_secret(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bpbroker.access")
    access_log.flush()
    caplog.clear()
    answers = [
        broker.call("/services/Register/?name=foo&data=canary-data&access_key=canary-key", X_REQUEST_ID="r1"),
        broker.call("/ossec/AddAgent?access_key=canary-key", X_REQUEST_ID="r2"),
        broker.call("/live", "GET", X_REQUEST_ID="r3"),
        broker.call("/services/Get/?name=%ff", X_REQUEST_ID="r4"),
    ]
    access_log.flush()
    lines = [json.loads(line) for record in caplog.records for line in record.getMessage().splitlines()]
    assert [(line["id"], line["status"], line["bytes"]) for line in lines] == [
        (f"r{number}", answer.status, len(answer.body)) for number, answer in enumerate(answers, 1)
    ]
    assert (lines[0]["namespace"], lines[0]["method"], lines[0]["name"]) == ("services", "Register", "foo")
    assert all(line["address"] == "10.0.0.7" for line in lines)
    assert "canary" not in caplog.text

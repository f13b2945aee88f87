from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import pytest

from bpbroker import accesslog, config, messages, responses
from bpbroker.errors import AlreadyExists, NotFound, Overloaded, PreconditionFailed
from bpbroker.frontend import Application, plain_address
from bpbroker.messages import Condition, Record

RECORD = Record("foo", b'{"_str": "bar", "last_write_ip": "10.0.0.7", "last_write_ts": 1420068290}', '"0123"')
TOKEN = "control-token"
SETTINGS = {
    "services": {},
    "ping": {},
    "ossec": {"_access_key": "secret"},
    "pkg.sub": {},
    "_config": {},
    "api": {},
    "worker": {},
}


class Address:
    """An actor that answers what it is told to, at once, and remembers what it was asked."""

    def __init__(self, name: str, outcome: Any = None) -> None:
        self.name = name
        self.outcome = outcome
        self.asked: list[Any] = []

    def tell(self, message: Any) -> None:
        self.asked.append(message)

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:
        assert timeout_secs > 0
        self.asked.append(message)
        reply: Future[Any] = Future()
        if isinstance(self.outcome, BaseException):
            reply.set_exception(self.outcome)
        elif self.outcome is not Ellipsis:
            reply.set_result(self.outcome)
        return reply


class Answer(NamedTuple):
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        found = self.json
        assert (found["success"], found["data"]) == (False, {})
        message: str = found["message"]
        return message


class Broker:
    """The application with actors that do what a test wants."""

    def __init__(self, settings: Mapping[str, Any] = SETTINGS) -> None:
        self.registry = Address("registry", RECORD)
        self.ossec = Address("extension ossec", messages.CallResult(200, "", "text/plain", b"done"))
        self.healthcheck = Address("healthcheck")
        self.backup = Address("backup")
        self.store = Address("config store")
        named = {
            "registry": self.registry,
            "extension ossec": self.ossec,
            "extension pkg.sub": Address("extension pkg.sub", messages.CallResult(200, "", "text/plain", b"sub")),
            "healthcheck": self.healthcheck,
            "backup": self.backup,
            "config store": self.store,
        }
        self.application = Application(config.freeze(settings), named, TOKEN)

    def call(
        self, target: str, method: str = "POST", body: bytes = b"", *, source: str = "10.0.0.7", **headers: str
    ) -> Answer:
        path, _, query = target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_ADDR": source,
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_HOST": "broker:20443",
            "wsgi.input": io.BytesIO(body),
            **({"CONTENT_TYPE": headers.pop("CONTENT_TYPE")} if "CONTENT_TYPE" in headers else {}),
            **{f"HTTP_{name}": value for name, value in headers.items()},
        }
        started: list[tuple[str, list[tuple[str, str]]]] = []
        body = b"".join(self.application(environ, lambda status, headers: started.append((status, headers))))
        ((status, given),) = started
        code, _, reason = status.partition(" ")
        assert len({name for name, _ in given}) == len(given)
        return Answer(int(code), reason, dict(given), body)

    def post(self, target: str, **parameters: Any) -> Answer:
        return self.call(target, body=json.dumps(parameters).encode(), CONTENT_TYPE="application/json")


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
        assert answer.json == {"success": True, "message": "Success", "data": json.loads(RECORD.json)}
        assert answer.headers["ETag"] == RECORD.etag
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Content-Length"] == str(len(answer.body))
    assert broker.registry.asked == [expected] * 3


def test_the_query_is_read_before_the_body(broker: Broker) -> None:
    broker.call("/services/Get/?name=query", body=b"name=body", CONTENT_TYPE="application/x-www-form-urlencoded")
    assert broker.registry.asked == [messages.Get("query")]


def test_get_and_delete_and_list(broker: Broker) -> None:
    assert broker.call("/services/Get/?name=foo", "GET").json["data"]["_str"] == "bar"
    broker.registry.outcome = None
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
    """Give a header field as an argument of :meth:`Broker.call`."""
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


@pytest.mark.parametrize(("tags", "status"), [('"0123"', 304), ('W/"0123"', 304), ("*", 304), ('"x"', 200)])
def test_a_read_of_what_the_client_has_is_not_modified(broker: Broker, tags: str, status: int) -> None:
    answer = broker.call("/services/Get/?name=foo", "GET", IF_NONE_MATCH=tags)
    assert (answer.status, answer.headers["ETag"]) == (status, RECORD.etag)
    assert (answer.body == b"") is (status == 304)


def test_a_read_waits_for_another_state_than_the_one_it_knows(broker: Broker) -> None:
    broker.call("/services/Get/?name=foo&wait=2.5", "GET", IF_NONE_MATCH='"x"')
    assert broker.registry.asked == [messages.Get("foo", 2.5, '"x"')]
    assert broker.call("/services/Get/?name=foo&wait=2", "GET", IF_NONE_MATCH='"x", "y"').status == 400


def test_only_reads_that_wait_are_patient_and_only_lists_are_heavy(broker: Broker) -> None:
    def owed(target: str) -> responses.Later:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": target.partition("?")[0]}
        later = broker.application({**environ, "QUERY_STRING": target.partition("?")[2]}, lambda *_: None)
        assert isinstance(later, responses.Later)
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


# --- who may call what ---


@pytest.mark.parametrize(
    "path",
    ["/_config/X", "/_global/X", "/api/X", "/worker/X", "/os/system", "/subprocess/run", "/pkg/sub.F", "/pkg/X", "/a/"],
)
def test_only_enabled_sections_are_namespaces(broker: Broker, path: str) -> None:
    answer = broker.call(path)
    assert (answer.status, answer.message) == (401, "Unauthorized package")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "method", ["", "_x", "__class__", "a.b", "..%2Fx", "/", "Get//", "get", "Snapshot", "Get/x", "\xff"]
)
def test_only_methods_are_called(broker: Broker, method: str) -> None:
    for namespace in ("services", "ping", "pkg.sub"):
        if namespace == "pkg.sub" and method in ("get", "Snapshot"):
            continue  # that is for the module to say
        answer = broker.call(f"/{namespace}/{method}")
        assert (answer.status, answer.message) == (401, "Unauthorized method")


def test_a_section_is_looked_at_before_the_key_and_the_key_before_the_method(broker: Broker) -> None:
    assert broker.call("/nope/_x").message == "Unauthorized package"
    assert broker.call("/ossec/_x").message == "Incorrect access key"
    assert broker.call("/ossec/_x?access_key=secret").message == "Unauthorized method"


def keyed() -> Iterator[Callable[[Broker, str], Answer]]:
    yield lambda broker, key: broker.call("/ossec/AddAgent/", AUTHORIZATION=f"Bearer {key}")
    yield lambda broker, key: broker.call("/ossec/AddAgent/", AUTHORIZATION=f"bearer  {key}")
    yield lambda broker, key: broker.call("/ossec/AddAgent/", X_ACCESS_KEY=key)
    yield lambda broker, key: broker.call(f"/ossec/AddAgent/?access_key={key}")
    yield lambda broker, key: broker.call(f"/ossec/AddAgent/?access-key={key}&access_key=")
    yield lambda broker, key: broker.post("/ossec/AddAgent/", access_key=key)
    yield lambda broker, key: broker.post("/ossec/AddAgent/", **{"access-key": key})
    yield lambda broker, key: broker.call(
        "/ossec/AddAgent/", body=f"access_key={key}".encode(), CONTENT_TYPE="application/x-www-form-urlencoded"
    )


@pytest.mark.parametrize("call", list(keyed()))
def test_a_key_is_taken_from_anywhere(broker: Broker, call: Callable[[Broker, str], Answer]) -> None:
    assert call(broker, "secret").body == b"done"
    (message,) = broker.ossec.asked
    assert message.qs == {}
    for wrong in ("Secret", "secret ", "secre", "", "x" * 2000, "None"):
        answer = call(broker, wrong) if wrong != "secret " else call(broker, "secretx")
        assert (answer.status, answer.message) == (401, "Incorrect access key")
    assert len(broker.ossec.asked) == 1


@pytest.mark.parametrize("key", [["secret"], {"secret": 1}, 1, True, False, 0, [], {}])
def test_a_key_that_is_no_text_is_wrong(broker: Broker, key: Any) -> None:
    assert broker.post("/ossec/AddAgent/", access_key=key).status == 401


def test_a_key_given_twice_is_wrong_even_if_both_are_right(broker: Broker) -> None:
    assert broker.call("/ossec/AddAgent/?access_key=secret&access_key=secret").status == 401
    assert broker.call("/ossec/AddAgent/?access_key=secret", X_ACCESS_KEY="secret").status == 401
    assert broker.post("/ossec/AddAgent/", **{"access_key": "secret", "access-key": "secret"}).status == 401
    assert not broker.ossec.asked


def test_any_of_several_keys_is_right_and_a_header_is_utf_8() -> None:
    broker = Broker({**SETTINGS, "ossec": {"_access_key": ["old", "schlüssel"]}})
    for key in ("old", "schlüssel".encode().decode("latin-1")):
        assert broker.call("/ossec/AddAgent/", X_ACCESS_KEY=key).status == 200
    # Another normal form looks the same but is not.
    assert broker.call("/ossec/AddAgent/", X_ACCESS_KEY="schlu\u0308ssel".encode().decode("latin-1")).status == 401


def test_an_open_namespace_takes_any_key(broker: Broker) -> None:
    assert broker.call("/services/Get/?name=foo&access_key=whatever&access_key=x").status == 200


def test_guessing_is_slowed_down_for_who_guesses(broker: Broker) -> None:
    for _ in range(100):
        assert broker.call("/ossec/AddAgent/?access_key=guess").status == 401
    answer = broker.call("/ossec/AddAgent/?access_key=secret")
    assert answer.status == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert broker.call("/ossec/AddAgent/?access_key=secret", source="10.0.0.8").status == 200
    assert broker.call("/services/Get/?name=foo").status == 200
    broker.application.settings_changed(config.freeze({**SETTINGS, "api": {"wrong_keys_per_minute": 1000}}))
    assert broker.call("/ossec/AddAgent/?access_key=secret").status == 200


def test_a_missing_key_is_no_guess(broker: Broker) -> None:
    for _ in range(101):
        assert broker.call("/ossec/AddAgent/").status == 401
    assert broker.call("/ossec/AddAgent/?access_key=secret").status == 200


def test_settings_that_change_are_in_force_at_once(broker: Broker) -> None:
    broker.application.settings_changed(config.freeze({**SETTINGS, "services": {"_access_key": "new"}}))
    assert broker.call("/services/Get/?name=foo").status == 401
    assert broker.call("/services/Get/?name=foo", X_ACCESS_KEY="new").status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://broker:20443", "https://broker"])
def test_a_page_of_another_origin_is_not_served(broker: Broker, origin: str) -> None:
    for target in ("/services/Replace/?name=a&data=b", "/health", "/nope", "/_control/Stop"):
        assert broker.call(target, ORIGIN=origin).status == 403
    assert broker.call("/services/Get/?name=foo", ORIGIN="https://broker:20443").status == 200


# --- extensions ---


def test_an_extension_gets_texts_and_its_answer_goes_out_as_it_is(broker: Broker) -> None:
    answer = broker.post("/ossec/AddAgent/", access_key="secret", data={"a": [1]}, n=5, s="x")
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/plain", b"done")
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
    broker.application.settings_changed(config.freeze({**SETTINGS, "fresh": {}}))
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
    answer = broker.call(f"/ping/Ping/?{query}", "GET", source="::ffff:10.0.0.9")
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


def test_a_document_is_handed_to_the_config_store(broker: Broker) -> None:
    broker.store.outcome = messages.Applied(("a.b",), ())
    answer = broker.call("/_control/ApplyConfiguration", body=b'{"a": {"b": 1}}', AUTHORIZATION=f"Bearer {TOKEN}")
    assert answer.json["data"] == {"added": ["a.b"], "kept": []}
    assert broker.store.asked == [messages.ApplyConfiguration({"a": {"b": 1}})]
    for body in (b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}'):
        assert broker.call("/_control/ApplyConfiguration", body=body, AUTHORIZATION=f"Bearer {TOKEN}").status == 400


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
    accesslog.flush()
    caplog.clear()
    answers = [
        broker.call("/services/Register/?name=foo&data=canary-data&access_key=canary-key", X_REQUEST_ID="r1"),
        broker.call("/ossec/AddAgent?access_key=canary-key", X_REQUEST_ID="r2"),
        broker.call("/live", "GET", X_REQUEST_ID="r3"),
        broker.call("/services/Get/?name=%ff", X_REQUEST_ID="r4"),
    ]
    accesslog.flush()
    lines = [json.loads(line) for record in caplog.records for line in record.getMessage().splitlines()]
    assert [(line["id"], line["status"], line["bytes"]) for line in lines] == [
        (f"r{number}", answer.status, len(answer.body)) for number, answer in enumerate(answers, 1)
    ]
    assert (lines[0]["namespace"], lines[0]["method"], lines[0]["name"]) == ("services", "Register", "foo")
    assert all(line["address"] == "10.0.0.7" for line in lines)
    assert "canary" not in caplog.text

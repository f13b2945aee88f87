from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import AlreadyExists, MethodNotAllowed, Overloaded, RequestError, Unauthorized, Unavailable
from bpbroker.record import Record
from bpbroker.server import response
from bpbroker.server.response import PendingResponse, Response


def test_an_entry_is_spliced_into_the_answer_with_its_tag() -> None:
    answer = response.entry(Record("foo", b'{"_str": "bar"}', 5000))
    assert json.loads(answer.body) == {"success": True, "message": "Success", "data": {"_str": "bar"}, "revision": 5000}
    assert answer.headers == (("ETag", '"5000"'),)
    assert answer.status_line == "200 OK"


def test_several_entries_keep_their_order() -> None:
    names = ["b", 'quo"te', "ü", "a"]
    answer = response.entries(tuple(Record(name, b'{"n": 1}', 5001) for name in names))
    assert list(json.loads(answer.body)["data"]) == names
    assert json.loads(response.entries(()).body)["data"] == {}


def test_what_may_be_old_says_how_old() -> None:
    record = Record("n", b'{"n": 1}', 5002, age_secs=1.5)
    assert json.loads(response.entry(record).body)["age_secs"] == 1.5
    assert json.loads(response.entries((record,), 2.0).body)["age_secs"] == 2.0
    assert json.loads(response.entries((), 0.25).body)["age_secs"] == 0.25
    assert "age_secs" not in json.loads(response.entries((record,)).body)


@given(st.text())
def test_a_reason_phrase_is_always_one_safe_short_line(text: str) -> None:
    phrase = response.reason_phrase(text)
    assert 0 < len(phrase) <= 200
    assert all(" " <= character <= "~" or "\xa0" <= character <= "\xff" for character in phrase)


@given(st.text())
def test_every_failure_has_the_same_shape(message: str) -> None:
    answer = response.failure(400, message)
    found = json.loads(answer.body)
    assert (found["success"], found["data"]) == (False, {})
    assert found["message"] == message.encode("utf-8", "replace").decode()
    answer.status_line.encode("latin-1")


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (AlreadyExists("Entry 'a' already exists"), 409, ()),
        (Overloaded("full"), 503, (("Retry-After", "1"),)),
        (MethodNotAllowed("no", ("GET", "POST")), 405, (("Allow", "GET, POST"),)),
        (Unauthorized("Incorrect access key"), 401, (("WWW-Authenticate", "Bearer"),)),
    ],
)
def test_an_error_becomes_its_status_and_headers(
    error: RequestError, status: int, headers: tuple[tuple[str, str], ...]
) -> None:
    answer = response.of_error(error)
    assert (answer.status, answer.headers, answer.reason) == (status, headers, str(error))


def test_a_status_that_has_no_phrase() -> None:
    assert Response(299, b"").status_line == "299 Unknown"


def later(reply: Future[Any], **options: Any) -> PendingResponse:
    def finish(reply: Future[Any]) -> Response:
        return response.rendered(reply, lambda value: Response(200, value), lambda _: Response(500, b"broken"))

    return PendingResponse(lambda: reply, finish, 0.05, **options)


def test_no_actor_is_asked_before_the_server_says_so() -> None:
    asked: list[bool] = []
    reply: Future[bytes] = Future()

    def ask() -> Future[bytes]:
        asked.append(True)
        return reply

    owed = PendingResponse(ask, lambda _: Response(200, b""), 1)
    owed.give_up()
    owed.stop()
    assert not asked
    assert not owed.done
    called: list[object] = []
    owed.ask(called.append)
    assert (asked, called) == ([True], [])
    reply.set_result(b"")
    assert called == [reply]
    assert owed.done


def test_an_actor_that_cannot_be_asked_is_the_answer() -> None:
    def ask() -> Future[bytes]:
        raise Overloaded("The inbox is full")

    def finish(reply: Future[Any]) -> Response:
        return response.rendered(reply, lambda _: Response(200, b""), lambda _: Response(500, b""))

    owed = PendingResponse(ask, finish, 1)
    owed.ask()
    assert json.loads(owed.response().body)["message"] == "The inbox is full"


def test_only_who_means_to_wait_is_sent_away_when_the_broker_stops() -> None:
    patient: Future[bytes] = Future()
    quick: Future[bytes] = Future()
    for reply, is_patient in ((patient, True), (quick, False)):
        owed = later(reply, patient=is_patient)
        owed.ask()
        owed.stop()
    assert isinstance(patient.exception(0), Unavailable)
    assert not quick.done()


def test_what_nobody_foresaw_is_shown_by_the_caller() -> None:
    reply: Future[bytes] = Future()
    reply.set_exception(ValueError("secret"))
    owed = later(reply)
    owed.ask()
    assert owed.response().body == b"broken"


@dataclass(frozen=True)
class _Part:
    name: str
    figures: Any


def test_messages_become_plain_json() -> None:
    value = _Part("x", MappingProxyType({"a": (1, _Part("y", ()))}))
    assert response.plain(value) == {"name": "x", "figures": {"a": [1, {"name": "y", "figures": []}]}}


# --- on the wire ---


def encoded(answer: Response, **options: Any) -> tuple[str, dict[str, str], bytes]:
    head, _, body = response.encode(answer, **options).partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


def test_a_response_is_complete() -> None:
    status, headers, body = encoded(Response(200, b"hello", headers=(("X", "y"),)), keep_alive=True)
    assert (status, body) == ("HTTP/1.1 200 OK", b"hello")
    assert headers.pop("Date").endswith("GMT")
    assert headers == {"Content-Type": "application/json", "Content-Length": "5", "Server": "bpbroker", "X": "y"}


@pytest.mark.parametrize(
    ("keep_alive", "old", "connection"),
    [(True, False, None), (False, False, "close"), (False, True, "close"), (True, True, "keep-alive")],
)
def test_it_says_what_becomes_of_the_connection(keep_alive: bool, old: bool, connection: str | None) -> None:
    _, headers, _ = encoded(Response(200, b""), keep_alive=keep_alive, old=old)
    assert headers.get("Connection") == connection


def test_head_gets_everything_but_the_body() -> None:
    _, headers, body = encoded(Response(200, b"hello"), with_body=False)
    assert (headers["Content-Length"], body) == ("5", b"")


@pytest.mark.parametrize("status", [204, 304])
def test_some_statuses_have_no_body(status: int) -> None:
    _, headers, body = encoded(Response(status, b"never"))
    assert body == b""
    assert not {"Content-Length", "Content-Type"} & set(headers)


@pytest.mark.parametrize(
    "answer",
    [
        Response(200, b"", headers=(("X", "a\r\nSet-Cookie: b"),)),
        Response(200, b"", headers=(("X", "a\nb"),)),
        Response(200, b"", headers=(("X", "a\rb"),)),
        Response(200, b"", headers=(("X\r\nY", "a"),)),
        Response(200, b"", headers=(("X", "\u2028"),)),
        Response(200, b"", content_type="text/plain\r\nSet-Cookie: b"),
        Response(200, b"", content_type="text/plain\n"),
    ],
)
def test_no_header_is_more_than_one_line(answer: Response) -> None:
    with pytest.raises(ValueError):  # UnicodeEncodeError is one too, and each will do
        response.encode(answer)


def test_a_reason_cannot_become_a_header() -> None:
    status, headers, _ = encoded(response.failure(400, "bad\r\nSet-Cookie: x"))
    assert status == "HTTP/1.1 400 bad Set-Cookie: x"
    assert "Set-Cookie" not in headers

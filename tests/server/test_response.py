from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import AlreadyExists, MethodNotAllowed, Overloaded, RequestError, Unauthorized, Unavailable
from bpbroker.messages import Record
from bpbroker.server import response
from bpbroker.server.response import PendingResponse, Response


def test_an_entry_is_spliced_into_the_answer_with_its_tag() -> None:
    answer = response.entry(Record("foo", b'{"_str": "bar"}', '"abc"'))
    assert json.loads(answer.body) == {"success": True, "message": "Success", "data": {"_str": "bar"}}
    assert answer.headers == (("ETag", '"abc"'),)
    assert answer.status_line == "200 OK"


def test_several_entries_keep_their_order() -> None:
    names = ["b", 'quo"te', "ü", "a"]
    answer = response.entries(tuple(Record(name, b'{"n": 1}', '"t"') for name in names))
    assert list(json.loads(answer.body)["data"]) == names
    assert json.loads(response.entries(()).body)["data"] == {}


def test_what_may_be_old_says_how_old() -> None:
    record = Record("n", b'{"n": 1}', '"t"', age_secs=1.5)
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
    def complete(reply: Future[Any]) -> bytes:
        return response.rendered(reply, lambda value: Response(200, value), lambda _: Response(500, b"broken")).body

    return PendingResponse(lambda: reply, complete, 0.05, **options)


def test_an_ordinary_server_waits_for_what_is_owed() -> None:
    reply: Future[bytes] = Future()
    timer = threading.Timer(0.01, reply.set_result, (b"late",))
    timer.start()
    assert list(later(reply)) == [b"late"]
    timer.join()


def test_an_ordinary_server_does_not_wait_for_ever() -> None:
    reply: Future[bytes] = Future()
    (body,) = later(reply)
    assert reply.cancelled()
    assert b"did not answer in time" in body


def test_nothing_is_asked_before_the_server_begins() -> None:
    asked: list[bool] = []
    reply: Future[bytes] = Future()

    def ask() -> Future[bytes]:
        asked.append(True)
        return reply

    owed = PendingResponse(ask, lambda _: b"", 1)
    owed.give_up()
    owed.stop()
    assert not asked
    assert not owed.done
    called: list[object] = []
    owed.begin(called.append)
    assert (asked, called) == ([True], [])
    reply.set_result(b"")
    assert called == [reply]
    assert owed.done


def test_an_actor_that_cannot_be_asked_is_the_answer() -> None:
    def ask() -> Future[bytes]:
        raise Overloaded("The inbox is full")

    def complete(reply: Future[Any]) -> bytes:
        return response.rendered(reply, lambda _: Response(200, b""), lambda _: Response(500, b"")).body

    (body,) = PendingResponse(ask, complete, 1)
    assert json.loads(body)["message"] == "The inbox is full"


def test_only_who_means_to_wait_is_sent_away_when_the_broker_stops() -> None:
    patient: Future[bytes] = Future()
    quick: Future[bytes] = Future()
    for reply, is_patient in ((patient, True), (quick, False)):
        owed = later(reply, patient=is_patient)
        owed.begin()
        owed.stop()
    assert isinstance(patient.exception(0), Unavailable)
    assert not quick.done()


def test_what_nobody_foresaw_is_shown_by_the_caller() -> None:
    reply: Future[bytes] = Future()
    reply.set_exception(ValueError("secret"))
    assert list(later(reply)) == [b"broken"]


@dataclass(frozen=True)
class _Part:
    name: str
    figures: Any


def test_messages_become_plain_json() -> None:
    value = _Part("x", MappingProxyType({"a": (1, _Part("y", ()))}))
    assert response.plain(value) == {"name": "x", "figures": {"a": [1, {"name": "y", "figures": []}]}}

"""A write that found another state: its refusal says which, so that who tries again need not ask."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bpbroker.client import answers
from bpbroker.client.http1 import Response as ClientResponse
from bpbroker.errors import RequestError, from_status
from bpbroker.extensions import refusals, registry_calls
from bpbroker.server import response
from bpbroker.server.response import Response
from tests.support.people import KEY, People


@pytest.fixture
def people() -> People:
    made = People()
    made.put("x", n=1)
    return made


def call(people: People, method: str, body: dict[str, Any], **headers: str) -> Response:
    typed = {"CONTENT_TYPE": "application/json", "X_ACCESS_KEY": KEY}
    return people.send(f"/services/{method}/", "POST", json.dumps(body).encode(), **typed, **headers)


def tag_of(answer: Response) -> str:
    return dict(answer.headers)["ETag"]


def test_a_condition_that_does_not_hold_tells_the_entry_s_tag_and_revision(people: People) -> None:
    there = tag_of(call(people, "Replace", {"name": "x", "data": "new"}))
    for condition in ({"IF_MATCH": '"5"'}, {"IF_NONE_MATCH": "*"}):
        for method in ("Replace", "Update", "Delete"):
            answer = call(people, method, {"name": "x", "data": "y"}, **condition)
            body = json.loads(answer.body)
            assert (answer.status, tag_of(answer), body["data"]) == (412, there, {})
            assert f'"{body["revision"]}"' == there
    assert call(people, "Replace", {"name": "x", "data": "y"}, IF_MATCH=there).status == 200


def test_without_an_entry_there_is_no_tag(people: People) -> None:
    answer = call(people, "Replace", {"name": "none", "data": "y"}, IF_MATCH='"5"')
    assert answer.status == 412
    assert "ETag" not in dict(answer.headers)
    assert set(json.loads(answer.body)) == {"success", "message", "data"}


def test_a_name_that_is_taken_tells_the_entry_s_tag_beside_the_body_of_0_22(people: People) -> None:
    answer = call(people, "Register", {"name": "x", "data": "y"})
    assert answer.status == 409
    assert json.loads(answer.body) == {"success": False, "message": "Entry 'x' already exists", "data": {}}
    assert call(people, "Replace", {"name": "x", "data": "y"}, IF_MATCH=tag_of(answer)).status == 200


def test_an_operation_of_a_batch_tells_it_too(people: People) -> None:
    there = tag_of(call(people, "Replace", {"name": "x", "data": "new"}))
    operations = [
        {"method": "Register", "name": "x", "data": "y"},
        {"method": "Replace", "name": "z", "data": "y"},
    ]
    answer = call(people, "Batch", {"operations": operations})
    body = json.loads(answer.body)
    assert (answer.status, body["failed"], f'"{body["revision"]}"', tag_of(answer)) == (409, 0, there, there)
    alone = json.loads(call(people, "Batch", {"operations": operations, "atomic": False}).body)["data"]["results"]
    assert f'"{alone[0]["revision"]}"' == there
    assert alone[1]["status"] == 200


@pytest.mark.parametrize("status", [409, 412])
def test_the_client_and_an_extension_have_the_revision(status: int) -> None:
    error = from_status(status, "Entry 'x' is not as expected")
    error.entry_revision = 12345
    sent = response.of_error(error)
    headers = {name.lower(): value for name, value in sent.headers}
    assert answers.refusal(ClientResponse(sent.status, "", headers, sent.body, keep_alive=True)).entry_revision == 12345
    frame = registry_calls.refused(error)
    told = refusals.refusal_of(frame["status"], frame["message"], frame["data"], frame["failed"], frame["revision"])
    assert isinstance(told, RequestError)
    assert told.entry_revision == 12345


@pytest.mark.parametrize("etag", ["", '"t"', 'W/"5"', '"' + "9" * 5000 + '"', '"-5"'])
def test_a_tag_of_another_kind_is_no_revision(etag: str) -> None:
    assert answers.refusal(ClientResponse(409, "", {"etag": etag}, b"{}", keep_alive=True)).entry_revision is None

from __future__ import annotations

import io
from concurrent.futures import Future
from typing import Any

import pytest

from bpbroker.server import response
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse, Response
from bpbroker.server.wsgi import as_wsgi


def call(application: Any, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    started: list[tuple[str, list[tuple[str, str]]]] = []
    given = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.input": io.BytesIO(), **environ}
    body = b"".join(as_wsgi(application)(given, lambda *what: started.append(what)))
    ((status, headers),) = started
    return status, dict(headers), body


def test_an_environ_becomes_a_request_and_a_response_what_wsgi_says() -> None:
    seen: list[Request] = []

    def application(request: Request) -> Response:
        seen.append(request)
        return Response(201, b"done", content_type="text/plain", headers=(("X", "y"),))

    status, headers, body = call(
        application, REQUEST_METHOD="POST", PATH_INFO="/a b", QUERY_STRING="c=d", REMOTE_ADDR="::ffff:10.0.0.7",
        CONTENT_TYPE="text/x", CONTENT_LENGTH="4", HTTP_X_TWO="1, 2", **{"wsgi.input": io.BytesIO(b"bodymore")},
    )  # fmt: skip
    fields = {"content-type": "text/x", "content-length": "4", "x-two": "1, 2"}
    assert seen == [Request("POST", "/a b", "c=d", fields, "10.0.0.7", b"body")]
    assert (status, body) == ("201 Created", b"done")
    assert headers == {"X": "y", "Content-Type": "text/plain", "Content-Length": "4"}


def test_the_calling_thread_waits_for_an_actor_but_not_for_ever() -> None:
    prompt: Future[bytes] = Future()
    prompt.set_result(b"here")
    never: Future[bytes] = Future()

    def application(request: Request) -> PendingResponse:
        def finish(reply: Future[Any]) -> Response:
            return response.rendered(reply, lambda value: Response(200, value), lambda _: Response(500, b""))

        return PendingResponse(lambda: prompt if request.path == "/prompt" else never, finish, 0.05)

    assert call(application, PATH_INFO="/prompt")[2] == b"here"
    assert call(application, PATH_INFO="/never")[0].startswith("504 ")
    assert never.cancelled()


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304)])
def test_there_is_no_body_where_none_may_be(method: str, status: int) -> None:
    assert call(lambda _: Response(status, b"" if status == 304 else b"x"), REQUEST_METHOD=method)[2] == b""

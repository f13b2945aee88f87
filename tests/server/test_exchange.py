from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.server import exchange, response
from bpbroker.server.exchange import Exchange
from bpbroker.server.framing import Framer, Limits
from bpbroker.server.response import Response

HEADERS = [("Content-Type", "text/plain")]


def exchange_of(request: bytes) -> Exchange:
    complete = Framer(Limits()).feed(request)
    assert complete is not None
    head, body = complete
    return Exchange(exchange.environ_of(head.fields, ("10.0.0.7", 1234), 20443), head, body)


def served(request: bytes, application: Callable[..., Any]) -> tuple[str, dict[str, str], bytes, bool]:
    current = exchange_of(request)
    content = current.serve(application)
    assert isinstance(content, bytes)
    head, _, body = content.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body, current.keeps_alive


def environ_of(request: bytes) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ, body=environ["wsgi.input"].read())
        start_response("200 OK", HEADERS)
        return []

    served(request, application)
    return seen


def hello(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", HEADERS)
    return [b"hel", b"lo"]


def test_the_environ_is_what_pep_3333_says() -> None:
    seen = environ_of(
        b"POST /a%20b/%2fc?d=e%20f HTTP/1.1\r\nHost: x\r\nContent-Type: text/x\r\nContent-Length: 4\r\n"
        b"X-Two: 1\r\nX-Two: 2\r\n\r\nbody"
    )
    expected = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/a b/%2Fc",
        "QUERY_STRING": "d=e%20f",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "4",
        "HTTP_HOST": "x",
        "HTTP_X_TWO": "1, 2",
        "REMOTE_ADDR": "10.0.0.7",
        "REMOTE_PORT": "1234",
        "SERVER_PORT": "20443",
        "wsgi.url_scheme": "https",
        "body": b"body",
    }
    assert {key: seen[key] for key in expected} == expected


def test_a_field_with_an_underscore_cannot_pose_as_another() -> None:
    seen = environ_of(b"GET / HTTP/1.1\r\nX_Access_Key: evil\r\nContent_Length: 5\r\n\r\n")
    assert "HTTP_X_ACCESS_KEY" not in seen
    assert "CONTENT_LENGTH" not in seen


@given(st.binary(max_size=30))
def test_any_path_is_unquoted_to_its_bytes(path: bytes) -> None:
    quoted = "/" + "".join(f"%{byte:02x}" for byte in path)
    unquoted = exchange.unquoted(quoted).encode("latin-1")
    assert unquoted == b"/" + path.replace(b"/", b"%2F")


def test_an_answer_is_complete() -> None:
    status, headers, body, kept = served(b"GET / HTTP/1.1\r\n\r\n", hello)
    assert (status, body, kept) == ("HTTP/1.1 200 OK", b"hello", True)
    assert headers["Content-Length"] == "5"
    assert headers["Server"] == "bpbroker"
    assert headers["Date"].endswith("GMT")
    assert "Connection" not in headers


@pytest.mark.parametrize(
    ("request_line", "field", "connection"),
    [
        (b"GET / HTTP/1.1", b"Connection: close\r\n", "close"),
        (b"GET / HTTP/1.0", b"", "close"),
        (b"GET / HTTP/1.0", b"Connection: Keep-Alive\r\n", "keep-alive"),
    ],
)
def test_it_says_what_becomes_of_the_connection(request_line: bytes, field: bytes, connection: str) -> None:
    _, headers, _, kept = served(request_line + b"\r\n" + field + b"\r\n", hello)
    assert headers["Connection"] == connection
    assert kept is (connection == "keep-alive")


def test_an_answer_can_be_made_the_last() -> None:
    current = exchange_of(b"GET / HTTP/1.1\r\n\r\n")
    current.close_after()
    content = current.serve(hello)
    assert isinstance(content, bytes)
    assert b"\r\nConnection: close\r\n" in content


def test_head_gets_everything_but_the_body() -> None:
    _, headers, body, _ = served(b"HEAD / HTTP/1.1\r\n\r\n", hello)
    assert (headers["Content-Length"], body) == ("5", b"")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_statuses_have_no_body(status: str) -> None:
    def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [])
        return [b"never"]

    _, headers, body, _ = served(b"GET / HTTP/1.1\r\n\r\n", application)
    assert body == b""
    assert "Content-Length" not in headers


def test_what_is_written_the_old_way_comes_first() -> None:
    def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", HEADERS)
        write(b"one ")
        return [b"two"]

    assert served(b"GET / HTTP/1.1\r\n\r\n", application)[2] == b"one two"


@pytest.mark.parametrize(
    ("status", "header"),
    [
        ("200 OK", ("X", "a\r\nSet-Cookie: b")),
        ("200 OK", ("X", "a\nb")),
        ("200 OK", ("X", "a\rb")),
        ("200 OK", ("X\r\nY", "a")),
        ("200 OK\r\nX: y", ("X", "a")),
        ("200 OK", ("X", "\u2028")),
        ("", ("X", "a")),
    ],
)
def test_an_application_cannot_send_a_header_of_its_own_making(status: str, header: tuple[str, str]) -> None:
    def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [header])
        return []

    with pytest.raises(ValueError):  # UnicodeEncodeError is one too, and each will do
        served(b"GET / HTTP/1.1\r\n\r\n", application)


def test_an_answer_to_no_request_ends_its_connection() -> None:
    content = exchange.whole(response.failure(400, "bad\r\nSet-Cookie: x"))
    head = content.partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 400 bad Set-Cookie: x\r\n")
    assert b"\r\nConnection: close" in head
    assert b"\r\nSet-Cookie" not in head
    assert exchange.whole(Response(200, b"x")).endswith(b"\r\n\r\nx")

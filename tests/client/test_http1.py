from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.client.http1 import HEAD_MAX_BYTES, CutOff, NotHttp, Response, ResponseReader, request_bytes


def receive(content: bytes, step: int = 7) -> Callable[[int], bytes]:
    rest = bytearray(content)

    def more(size: int) -> bytes:
        part = bytes(rest[: min(step, size)])
        del rest[: len(part)]
        return part

    return more


def read(content: bytes, step: int = 7) -> Response:
    return ResponseReader(receive(content, step)).answer()


def test_a_request_is_whole() -> None:
    assert request_bytes("POST", "/a/b/", "h:1", {"X": b"y"}, b"body") == (
        b"POST /a/b/ HTTP/1.1\r\nHost: h:1\r\nX: y\r\nContent-Length: 4\r\n\r\nbody"
    )
    assert request_bytes("GET", "/", "h:1", {}, None) == b"GET / HTTP/1.1\r\nHost: h:1\r\n\r\n"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_answer_with_a_length(step: int) -> None:
    found = read(b'HTTP/1.1 404 Not Found at all\r\nContent-Length: 3\r\nETag: "x"\r\n\r\nabcMORE', step)
    assert (found.status, found.reason, found.body, found.keep_alive) == (404, "Not Found at all", b"abc", True)
    assert found.headers == {"content-length": "3", "etag": '"x"'}


def test_chunks() -> None:
    content = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0a\r\n0123456789\r\n0\r\nT: v\r\n\r\n"
    )
    assert read(content).body == b"abc0123456789"
    assert read(content).keep_alive


def test_without_a_length_the_end_is_the_end() -> None:
    found = read(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert (found.body, found.keep_alive) == (b"abc", False)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_whether_the_connection_may_be_kept(head: bytes, keep_alive: bool) -> None:
    assert read(head + b"Content-Length: 0\r\n\r\n").keep_alive is keep_alive


def test_not_modified_has_no_body_and_interim_answers_are_passed_over() -> None:
    found = read(b"HTTP/1.1 103 Early\r\nX: y\r\n\r\nHTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n")
    assert (found.status, found.body, found.keep_alive) == (304, b"", True)


@pytest.mark.parametrize(
    "content",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        b"x" * (HEAD_MAX_BYTES + 100_000),
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    ],
)
def test_what_is_no_http_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(NotHttp):
        read(content, 65536)


def test_every_cut_is_noticed() -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    for end in range(len(whole)):
        with pytest.raises(CutOff):
            read(whole[:end])
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
    for end in range(len(whole)):
        with pytest.raises(CutOff):
            read(whole[:end])


@given(st.binary(max_size=500))
def test_rubbish_ends_in_one_of_two_ways(content: bytes) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n"):
        try:
            read(start + content)
        except (NotHttp, CutOff):
            pass

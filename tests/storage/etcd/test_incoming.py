"""A response as it comes over the wire: whole, in pieces, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.storage.etcd.incoming import BrokeOff, Incoming


def fed(*pieces: bytes) -> Incoming:
    response = Incoming()
    for piece in pieces:
        response.feed(piece)
    return response


def chunks(*bodies: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in (*bodies, b""))


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@given(
    whole=st.sampled_from(
        [
            OK + b"content-LENGTH:5\r\nDate: today\r\n\r\n12345",
            CHUNKED + chunks(b"1234", b"5"),
            CHUNKED + b"0005;name=value\r\n12345\r\n0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\n12345",
        ]
    ),
    cuts=st.lists(st.integers(0, 120)),
)
def test_pieces_of_any_size(whole: bytes, cuts: list[int]) -> None:
    ends = sorted({cut for cut in cuts if 0 < cut < len(whole)})
    pieces = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]
    response = Incoming()
    body = b""
    for piece in pieces:
        assert not response.whole
        response.feed(piece)
        body += response.take()
    assert (response.whole, response.status, response.keep_alive, body) == (True, 200, True, b"12345")


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (OK + b"Content-Length: 0\r\n\r\n", True),
        (OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (OK + b"Content-Length: 1\r\n\r\nab", False),  # one byte too many belongs to no response
        (CHUNKED + chunks(b"a") + b"x", False),
    ],
)
def test_whether_the_connection_can_be_used_again(head: bytes, *, kept: bool) -> None:
    response = fed(head)
    assert response.whole
    assert response.keep_alive is kept


def test_a_body_that_ends_with_the_connection() -> None:
    response = fed(OK + b"\r\nab", b"c")
    assert not response.whole
    response.feed(b"")
    assert (response.whole, response.keep_alive, response.take()) == (True, False, b"abc")


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (b"SSH-2.0-OpenSSH_9.2\r\n",),
        (b"HTTP/1.1 2000 OK\r\n\r\n", b""),
        (b"HTTP/1.1 abc\r\n\r\n",),
        (b"HTTP/1.1 200", b""),
        (b"HTTP/1.1 200 " + b"x" * 70_000,),
        (OK + b"Content-Length: 3\r\n\r\nab", b""),
        (OK + b"Content-Length: -1\r\n\r\n",),
        (OK + b"Content-Length: 1_0\r\n\r\n",),
        (OK + b"Content-Length: \r\n\r\n",),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",),
        (CHUNKED + b"1\r\na\r\n", b""),
        (CHUNKED + b"no length\r\n",),
        (CHUNKED + b"0x1\r\n",),
        (CHUNKED + b"1" * 2000,),
        (CHUNKED + b"1\r\nab\r\n",),
        (CHUNKED + b"0\r\nTrailer: x\r\n\r\n",),
    ],
)
def test_what_is_no_response(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(BrokeOff):
        fed(*pieces)

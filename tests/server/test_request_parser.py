from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.server.request import Request
from bpbroker.server.request_parser import Framer, Limits, Rejected, unquoted

LIMITS = Limits(head_bytes=1024, fields=20, body_bytes=1000)
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"


def feed_all(content: bytes, limits: Limits = LIMITS) -> Request | None:
    return Framer(limits).feed(content)


def test_a_request_without_a_body_ends_at_the_blank_line() -> None:
    framer = Framer(LIMITS)
    assert not framer.begun
    found = framer.feed(GET + b"GET /next")
    assert found is not None
    assert (found.method, found.path, found.query, found.version) == ("GET", "/a", "b=c", (1, 1))
    assert found.fields == {"host": "x"}
    assert found.body == b""
    assert found.keeps_alive
    assert framer.held_bytes == len(b"GET /next")
    assert framer.feed(b"") is None
    second = framer.feed(b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert second is not None
    assert second.path == "/next"
    assert not framer.begun


def test_the_same_fields_again_are_not_parsed_again() -> None:
    framer = Framer(LIMITS)
    first, second, third = framer.feed(GET), framer.feed(GET), framer.feed(GET.replace(b"Host: x", b"Host: y"))
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.fields is second.fields
    assert third.fields == {"host": "y"}


def test_a_request_kept_for_later_is_found_then() -> None:
    framer = Framer(LIMITS)
    framer.keep(GET)
    assert framer.held_bytes == len(GET)
    assert framer.feed(b"") is not None
    assert framer.held_bytes == 0


@given(st.lists(st.integers(1, 60), max_size=20))
def test_it_does_not_matter_how_the_bytes_are_cut(cuts: list[int]) -> None:
    content = (
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n1;ext=1\r\n \r\n5\r\nworld\r\n0\r\nTrailer: y\r\n\r\n"
    )
    framer, position = Framer(LIMITS), 0
    for cut in [*cuts, len(content)]:
        complete = framer.feed(content[position : position + cut])
        position += cut
        if complete is not None:
            assert complete.body == b"hello world"
            assert not framer.begun
            return
    raise AssertionError("never complete")


def test_a_body_of_known_length_is_waited_for() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
    framer = Framer(LIMITS)
    assert framer.feed(head + b"hell") is None
    found = framer.feed(b"o!")
    assert found is not None
    assert found.body == b"hello"
    assert framer.held_bytes == 1


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +1_0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\nc: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\n\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n", 400),
        (b"\x16\x03\x01", 400),
        (b"\r\n" * 10, 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 300, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 2000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 2000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 30 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX-Host: x\r\n\r\n", 400),
        (CHUNKED + b"0\r\nA: b\nc: d\r\n\r\n", 400),
        (CHUNKED + b"0\r\nA: b\n", 400),
        (CHUNKED + b"0\r\nA: b\0c\r\n\r\n", 400),
        (CHUNKED + b"0\r\nno colon\r\n\r\n", 400),
        (CHUNKED + b"0\r\n folded: x\r\n\r\n", 400),
        (CHUNKED + b"0\r\n" + b"A: b\r\n" * 30 + b"\r\n", 431),
        (CHUNKED + b"0\r\nA: " + b"x" * 2000 + b"\r\n\r\n", 431),
        (CHUNKED + b"0\r\nA: " + b"x" * 2000, 431),
        (CHUNKED + b"1;" + b"x" * 200 + b"\r\nx\r\n" + 6 * (b"1;" + b"x" * 200 + b"\r\nx\r\n"), 400),
    ],
)
def test_what_cannot_be_trusted_is_rejected(content: bytes, status: int) -> None:
    with pytest.raises(Rejected) as rejected:
        feed_all(content)
    assert rejected.value.status == status
    assert str(rejected.value)


def test_endless_tiny_chunks_do_not_pile_up() -> None:
    framer = Framer(LIMITS)
    assert framer.feed(CHUNKED) is None
    largest = 0
    with pytest.raises(Rejected, match="too many small chunks"):
        for _ in range(2000):
            assert framer.feed(b"1\r\nx\r\n") is None
            largest = max(largest, framer.held_bytes)
    assert largest < 1100


def test_chunks_that_came_together_are_followed_a_few_at_a_time() -> None:
    framer = Framer(LIMITS)
    rounds = 1
    found = framer.feed(CHUNKED + b"2\r\nab\r\n" * 400 + b"0\r\n\r\n")
    while found is None:
        assert framer.more
        before = framer.held_bytes
        found = framer.feed(b"")
        rounds += 1
        assert before - framer.held_bytes < 1500
    assert rounds > 3
    assert found.body == b"ab" * 400
    assert not framer.more
    again = framer.feed(CHUNKED + b"2\r\nab\r\n0\r\n\r\n")  # each body is counted for itself
    assert again is not None


def test_a_large_body_may_have_many_chunks() -> None:
    framer = Framer(Limits())
    found = framer.feed(CHUNKED + (b"100\r\n" + b"x" * 256 + b"\r\n") * 4000 + b"0\r\n\r\n")
    while found is None:
        assert framer.more
        found = framer.feed(b"")
    assert len(found.body) == 256 * 4000


def test_an_old_client_need_not_name_the_host() -> None:
    assert feed_all(b"GET / HTTP/1.0\r\n\r\n") is not None


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nA:" + b" " * 900_000 + b"\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 150_000 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 150_000,
        b"GET /" + b"%" * 900_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_the_time_it_takes_grows_with_the_bytes_and_no_faster(content: bytes) -> None:
    limits = Limits(head_bytes=1 << 20, fields=1000, body_bytes=1 << 20)
    before = time.thread_time()
    try:
        Framer(limits).feed(content)
    except Rejected:
        pass
    assert time.thread_time() - before < 5  # quadratic, each would take minutes


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_head_that_trickles_in_is_searched_once(size: int) -> None:
    framer = Framer(Limits(head_bytes=200_000))
    content = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 98 + b"B: " + b"x" * 100_000 + b"\r\n\r\n"
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    assert [framer.feed(piece) for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert framer.feed(pieces[-1]) is not None


def test_a_client_that_waits_for_a_go_ahead_gets_it_once() -> None:
    framer = Framer(LIMITS)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n"
    for _ in range(2):
        assert not framer.wants_go_ahead()
        assert framer.feed(head) is None
        assert framer.wants_go_ahead()
        assert not framer.wants_go_ahead()
        assert framer.feed(b"ab") is not None
    assert framer.feed(head + b"a") is None
    assert not framer.wants_go_ahead()


def test_a_blank_line_before_a_request_is_passed_over_even_in_pieces() -> None:
    framer = Framer(LIMITS)
    assert framer.feed(b"\r") is None
    assert framer.feed(b"\n") is None
    assert framer.feed(GET) is not None


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_rejected_or_waited_for(content: bytes) -> None:
    try:
        feed_all(content)
    except Rejected as rejected:
        assert 400 <= rejected.status < 600


@pytest.mark.parametrize(
    ("line", "connection", "kept"),
    [
        (b"HTTP/1.1", b"", True),
        (b"HTTP/1.1", b"Connection: close\r\n", False),
        (b"HTTP/1.0", b"", False),
        (b"HTTP/1.0", b"Connection: keep-alive\r\n", True),
    ],
)
def test_who_keeps_the_connection(line: bytes, connection: bytes, kept: bool) -> None:
    found = feed_all(b"GET / " + line + b"\r\nHost: x\r\n" + connection + b"\r\n")
    assert found is not None
    assert found.keeps_alive is kept


@given(st.binary(max_size=30))
def test_any_path_is_unquoted_to_its_bytes(path: bytes) -> None:
    quoted = "/" + "".join(f"%{byte:02x}" for byte in path)
    assert unquoted(quoted).encode("latin-1") == b"/" + path.replace(b"/", b"%2F")
    found = feed_all(b"GET " + quoted.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert found is not None
    assert found.path == unquoted(quoted)


def test_a_field_with_an_underscore_cannot_pose_as_another() -> None:
    found = feed_all(b"GET / HTTP/1.1\r\nHost: x\r\nX_Access_Key: evil\r\nContent_Length: 5\r\n\r\n")
    assert found is not None
    assert found.fields == {"host": "x", "x_access_key": "evil", "content_length": "5"}
    assert found.body == b""


def test_a_trailer_that_trickles_in_is_looked_at_once() -> None:
    framer = Framer(Limits(head_bytes=16 * 1024))
    assert framer.feed(CHUNKED + b"0\r\n") is None
    begun = time.process_time()
    for _ in range(5000):
        for byte in (b"x", b"\r", b"\n"):
            assert framer.feed(byte) is None
    assert time.process_time() - begun < 1.0  # it was four seconds
    with pytest.raises(Rejected, match="more than 100"):
        framer.feed(b"\r\n")


@pytest.mark.parametrize("cut", range(1, 8))
def test_the_end_of_a_trailer_is_found_wherever_it_is_cut(cut: int) -> None:
    framer = Framer(LIMITS)
    content = b"0\r\nA: b\r\n\r\n"
    assert framer.feed(CHUNKED + content[:-cut]) is None
    assert framer.feed(content[-cut:]) is not None
    assert framer.feed(CHUNKED + content) is not None
    with pytest.raises(Rejected, match="without a carriage return"):
        framer.feed(CHUNKED + b"0\r\nA: b\n")

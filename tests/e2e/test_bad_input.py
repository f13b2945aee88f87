"""Bad requests of every kind: refused with a reason, nothing changed, no other client harmed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from tests.support.running import Answer
from tests.support.witness import CANARY, KEY, Attacked, Witness

HOST = b"Host: x\r\nX-Access-Key: " + CANARY.encode() + b"\r\n"
GET = b"GET /services/Get/?name=a HTTP/1.1\r\n" + HOST
POST = b"POST /services/Replace/?name=smuggled&data=x HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
WRITES = ("Register", "Replace", "Update")
METHODS = (*WRITES, "Delete", "Get")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /services/Get/?name=a HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00",
        b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10",  # a ClientHello of SSL 2
    ],
    ids=["http/1.1", "http/1.0", "with a body", "ssh", "nul", "ssl2"],
)
def test_what_is_not_tls_is_told_to_use_https_and_closed(attacked: Attacked, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", attacked.broker.port), 30) as client:
        client.sendall(sent)
        received = b""
        while part := client.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"HTTPS" in received


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x00\x05hello", b"\x16" * 1000, b"\x16\x03\x03\xff\xff" + b"\x01" * 70000],
)
def test_broken_tls_is_closed(attacked: Attacked, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", attacked.broker.port), 30) as client:
        client.sendall(sent)
        try:
            while client.recv(65536):
                pass
        except ConnectionResetError:
            pass


@pytest.mark.parametrize("length", ["2147483648", "1048577", "999999999999999999"])
def test_a_body_that_is_announced_too_large(attacked: Attacked, length: str) -> None:
    answer = attacked.raw(POST + f"Content-Length: {length}\r\n\r\n".encode() + b"x" * 1000)
    assert (answer.status, "max_body_bytes" in answer.message) == (413, True)


@pytest.mark.parametrize(
    ("size", "status", "says"),
    [(1, 400, "small chunks"), (1000, 413, "max_body_bytes"), (65536, 413, "max_body_bytes")],
)
def test_chunks_without_end(attacked: Attacked, size: int, status: int, says: str) -> None:
    process = psutil.Process(attacked.broker.pid)
    before = process.memory_info().rss
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    count = max(1, 65536 // len(chunk))

    def without_end() -> Iterator[bytes]:
        yield CHUNKED
        for _ in range(64 * 1024 * 1024 // (count * size)):
            yield chunk * count

    with Witness(attacked.broker):
        answer = attacked.raw(without_end())
    assert (answer.status, says in answer.message) == (status, True)
    assert process.memory_info().rss < before + 32 * 1024 * 1024


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (GET + b"X: " + b"x" * 1024 * 1024 + b"\r\n\r\n", "max_header_bytes"),
        (GET + b"x" * 1024 * 1024, "max_header_bytes"),
        (b"GET /" + b"x" * 1024 * 1024 + b" HTTP/1.1\r\n\r\n", "max_header_bytes"),
        (GET + b"".join(b"A%d: b\r\n" % number for number in range(1000)) + b"\r\n", "max_headers"),
        (GET + b"a: b\r\n" * 1000 + b"\r\n", "max_headers"),
        (GET + b"a:\r\n" * 100_000 + b"\r\n", "max_header_bytes"),
        (CHUNKED + b"0\r\nX: " + b"x" * 1024 * 1024, "trailer"),
    ],
    ids=["one field", "no colon", "target", "1000 fields", "1000 times one", "100000 fields", "trailer"],
)
def test_a_head_that_is_too_large(attacked: Attacked, sent: bytes, says: str) -> None:
    answer = attacked.raw(sent)
    assert answer.status == 431
    assert says in answer.message


@pytest.mark.parametrize(
    "sent",
    [
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: +1\r\n\r\nx",
        POST + b"Content-Length: 1_0\r\n\r\nxxxxxxxxxx",
        POST + b"Content-Length: 0x1\r\n\r\nx",
        POST + b"Content-Length: 1, 1\r\n\r\nx",
        POST + b"Content-Length: \r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length : 1\r\n\r\nx",
        POST + b"X: a\r\n Content-Length: 1\r\n\r\nx",
        POST + b"X: a\x00b\r\n\r\n",
        POST + b"X: a\rContent-Length: 1\r\n\r\n",
        POST + b"X: a\nContent-Length: 1\r\n\r\n",
        POST + b"\x00: a\r\n\r\n",
        POST + b": a\r\n\r\n",
        POST + b"no colon\r\n\r\n",
        CHUNKED + b"-1\r\nx\r\n0\r\n\r\n",
        CHUNKED + b"0x1\r\nx\r\n0\r\n\r\n",
        CHUNKED + b"\r\n\r\n",
        CHUNKED + b"1\r\nxx0\r\n\r\n",
        CHUNKED + b"1;" + b"e" * 300 + b"\r\nx\r\n0\r\n\r\n",
        CHUNKED + b"1\nx\n0\n\n" + b"\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / \r\n\r\n",
        b"GET /\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"\r\n" * 100 + GET + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"{}\r\n\r\n",
    ],
)
def test_framing_that_two_parties_could_read_differently(attacked: Attacked, sent: bytes) -> None:
    before = attacked.entries()
    assert attacked.raw(sent).status == 400
    assert attacked.entries() == before


@pytest.mark.parametrize("version", ["2.0", "0.9", "9.9"])
def test_another_version_of_http(attacked: Attacked, version: str) -> None:
    assert attacked.raw(f"GET / HTTP/{version}\r\n\r\n".encode()).status == 505


BAD_NAMES = {
    "": "empty",
    "   ": "empty",
    "a" * 257: "256 bytes",
    "é" * 129: "256 bytes",
    "..": "'..'",
    "a\0b": "control",
    "a\nb": "control",
    "\x7f": "control",
    " a": "white space",
    "_access_key": "_",
    "_x": "_",
    "__class__": "_",
}


def refused(answer: Answer, *statuses: int) -> str:
    """See that an answer is one of these errors, in the shape of all errors; give its message."""
    assert answer.status in statuses, answer
    assert answer.json["success"] is False
    assert answer.json["data"] == {}
    message: str = answer.json["message"]
    assert message
    return message


@pytest.mark.parametrize("method", METHODS)
def test_names_that_are_none(attacked: Attacked, method: str) -> None:
    broker = attacked.broker
    before = attacked.entries()
    for name, says in BAD_NAMES.items():
        answers = (
            broker.request(f"/services/{method}/?name={quote(name)}&data=x", headers=KEY),
            broker.request(
                f"/services/{method}/",
                body=f"name={quote(name)}&data=x",
                headers={**KEY, "Content-Type": "application/x-www-form-urlencoded"},
            ),
            attacked.call(method, name=name, data="x"),
        )
        for answer in answers:
            assert says in refused(answer, 400)
    for target in ("%FF", "%ED%A0%80", "a%C3", "%C0%AF"):  # no UTF-8, a lone surrogate, cut, overlong
        assert "UTF-8" in refused(broker.request(f"/services/{method}/?name={target}&data=x", headers=KEY), 400)
    for value in ('"\\ud800"', "1", "null", "true", '["a"]', '{"a": 1}'):
        body = f'{{"name": {value}, "data": "x"}}'
        refused(broker.request(f"/services/{method}/", "POST", body, {**KEY, "Content-Type": "application/json"}), 400)
    assert attacked.entries() == before


# As a value of a JSON body, data is one deeper than as text: the limit in the message is 33 then.
BAD_DATA: dict[str, tuple[str, str]] = {
    "deep": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested deeper than 3"),
    "deep objects": ('{"a":' * 40_000 + "1" + "}" * 40_000, "nested deeper than 3"),
    "33 deep": ('{"a": ' + "[" * 32 + "]" * 32 + "}", "nested deeper than 3"),
    "long integer": ('{"a": ' + "9" * 5000 + "}", "digits"),
    "NaN": ('{"a": NaN}', "NaN"),
    "Infinity": ('{"a": [-Infinity]}', "-Infinity"),
    "1e999": ('{"a": 1e999}', "too large"),
    "duplicate keys": ('{"a": 1, "b": {"c": 1, "c": 2}}', "twice"),
    "lone surrogate": ('{"a": "\\ud800"}', "surrogate"),
    "lone surrogate as a key": ('{"\\udfff": 1}', "surrogate"),
    "too large": ('{"a": "' + "x" * (512 * 1024 - 8) + '"}', "524288 bytes"),
    "reserved": ('{"last_write_ip": "1.2.3.4"}', "Used reserved data name last_write_ip"),
    "reserved too": ('{"last_write_ts": 1}', "Used reserved data name last_write_ts"),
}


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_could_not_be_given_back(attacked: Attacked, case: str, method: str) -> None:
    data, says = BAD_DATA[case]
    before = attacked.entries()
    as_json = {**KEY, "Content-Type": "application/json"}
    as_form = {**KEY, "Content-Type": "application/x-www-form-urlencoded"}
    path = f"/services/{method}/"
    for name in ("bad-data", "witness"):
        for answer in (
            attacked.broker.request(path, "POST", f"name={name}&data={quote(data)}", as_form),
            attacked.broker.request(path, "POST", json.dumps({"name": name, "data": data}), as_json),
            attacked.broker.request(path, "POST", f'{{"name": "{name}", "data": {data}}}', as_json),
        ):
            assert says in refused(answer, 400, 413)
    assert attacked.entries() == before


@pytest.mark.parametrize(
    "data", ["1", "-0.5", "null", "true", '"text"', "[1, {}]", "{not json", "NaN", "9" * 5000, "", "  ", "\u2028 é 🎉"]
)
def test_what_is_no_object_is_text(attacked: Attacked, data: str) -> None:
    stored = attacked.call("Replace", name="text", data=data)
    assert (stored.status, stored.json["data"]["_str"]) == (200, data)
    assert attacked.call("Get", name="text").json["data"]["_str"] == data


@pytest.mark.parametrize("size", [512 * 1024])
def test_the_largest_data_there_is(attacked: Attacked, size: int) -> None:
    assert attacked.call("Replace", name="large", data="x" * size).status == 200
    assert attacked.call("Get", name="large").json["data"]["_str"] == "x" * size
    assert "524288 bytes" in refused(attacked.call("Replace", name="large", data="x" * (size + 1)), 413)
    assert attacked.call("Get", name="large").json["data"]["_str"] == "x" * size
    assert attacked.call("Delete", name="large").status == 200


def test_parameters_that_are_missing(attacked: Attacked) -> None:
    before = attacked.entries()
    for method in METHODS:
        assert refused(attacked.call(method, data="x"), 400) == "Missing name parameter"
        assert refused(attacked.broker.request(f"/services/{method}/", headers=KEY), 400) == "Missing name parameter"
    for method in WRITES:
        assert refused(attacked.call(method, name="a"), 400) == "Missing data parameter"
    assert attacked.entries() == before


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[]", "application/json"),
        (b'"name"', "application/json"),
        (b"{", "application/json"),
        (b"\xff\xfe{\x00}\x00", "application/json"),
        (b'{"name": "a", "name": "b", "data": "x"}', "application/json"),
        (b"[" * 500_000, "application/json"),
        (b"<name>a</name>", "text/xml"),
        (b"--b\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b"),
        (b"name=\xff&data=x", "application/x-www-form-urlencoded"),
        (b"&".join(b"p%d=" % number for number in range(10_000)), "application/x-www-form-urlencoded"),
    ],
    ids=["list", "text", "cut", "utf-16", "name twice", "deep", "xml", "multipart", "latin-1", "10000 fields"],
)
def test_bodies_that_hold_no_parameters(attacked: Attacked, body: bytes, kind: str) -> None:
    before = attacked.entries()
    answer = attacked.broker.request("/services/Replace/", "POST", body, {**KEY, "Content-Type": kind})
    refused(answer, 400)
    assert attacked.entries() == before


@pytest.mark.parametrize(("parameter", "value"), [("wait", "x"), ("wait", "-1"), ("wait", "601"), ("wait", "nan")])
def test_a_wait_that_is_no_number_of_seconds(attacked: Attacked, parameter: str, value: str) -> None:
    parameters: dict[str, Any] = {"name": "nobody", parameter: value}
    assert "wait" in refused(attacked.call("Get", **parameters), 400)


@pytest.mark.parametrize("parameter", ["wait", "count", "prefix"])
@pytest.mark.parametrize("value", [None, True, [], {}])
def test_a_parameter_of_another_kind(attacked: Attacked, parameter: str, value: Any) -> None:
    assert refused(attacked.call("List", **{parameter: value}), 400) == f"The parameter {parameter} must be text"


@pytest.mark.parametrize(
    ("data", "echo"), [(None, "null"), (1, "1"), ([1, "\u00e9"], '[1, "\u00e9"]'), ("", ""), ("{", "{"), ("[1]", "[1]")]
)
def test_ping_echoes_what_is_no_object_as_text(attacked: Attacked, data: Any, echo: str) -> None:
    answer = attacked.broker.call("/ping/Ping/", data=data)
    assert (answer.status, answer.json["data"]) == (200, {"_str": echo})


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "OPTIONS", "BREW"])
def test_a_change_needs_post(attacked: Attacked, method: str) -> None:
    before = attacked.entries()
    for action in (*WRITES, "Delete"):
        answer = attacked.broker.request(f"/services/{action}/", method, None, KEY, name="witness", data="y")
        assert answer.status == 405
        assert "POST" in answer.headers["Allow"]
        assert method == "HEAD" or refused(answer, 405)
    assert attacked.entries() == before


def test_a_precondition_that_fails_changes_nothing(attacked: Attacked) -> None:
    tag = attacked.call("Get", name="witness").headers["ETag"]
    before = attacked.entries()
    conditions = ({"If-Match": '"stale"'}, {"If-None-Match": "*"}, {"If-None-Match": tag})
    for action in (*WRITES, "Delete"):
        for condition in conditions:
            answer = attacked.broker.call(f"/services/{action}/", {**KEY, **condition}, name="witness", data="y")
            assert "witness" in refused(answer, 412)
        answer = attacked.broker.call(f"/services/{action}/", {**KEY, "If-Match": "*"}, name="absent", data="y")
        assert "absent" in refused(answer, 412)
    assert attacked.entries() == before
    assert attacked.broker.call("/services/Replace/", {**KEY, "If-Match": tag}, name="witness", data="x").status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://127.0.0.1", "https://127.0.0.1"])
def test_a_web_page_of_another_origin_is_refused(attacked: Attacked, origin: str) -> None:
    before = attacked.entries()
    for path, method in (
        ("/services/Replace/?name=witness&data=y", "POST"),
        ("/services/Get/?name=witness", "GET"),
        ("/ping/Ping/?data=x", "OPTIONS"),
        ("/health", "GET"),
        ("/metrics", "GET"),
        ("/openapi.json", "GET"),
        ("/nothing", "GET"),
    ):
        answer = attacked.broker.request(path, method, None, {**KEY, "Origin": origin})
        refused(answer, 403)
        assert not any(name.lower().startswith("access-control-") for name in answer.headers)
    assert attacked.entries() == before


def test_its_own_origin_is_served(attacked: Attacked) -> None:
    own = {**KEY, "Origin": f"https://127.0.0.1:{attacked.broker.port}"}
    assert attacked.broker.request("/services/Get/", "GET", None, own, name="witness").status == 200


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/services", "/services/", "/services//", "/services/Nope", "/services/get", "/%00/x", "/a%0d%0aX:1/y"],
)
def test_paths_that_lead_nowhere(attacked: Attacked, path: str) -> None:
    message = refused(attacked.broker.request(path, "POST", None, KEY), 401, 404)
    assert "\n" not in message

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bpbroker.errors import BadRequest, TooLarge
from bpbroker.frontend.parameters import Parameters, parse, split

JSON = "application/json; charset=utf-8"
FORM = "application/x-www-form-urlencoded"


def of(query: str = "", kind: str = "", body: bytes = b"") -> Parameters:
    return parse(query, kind, body, 32)


def of_json(value: Any) -> Parameters:
    return of("", JSON, json.dumps(value).encode())


def test_the_query_string_wins_then_the_form_then_json() -> None:
    assert of("name=a", FORM, b"name=b").values == {"name": "a"}
    assert of("", FORM, b"name=b&data=%7B%7D").values == {"name": "b", "data": "{}"}
    assert of_json({"name": "c"}).values == {"name": "c"}
    assert of().values == {}


@given(st.lists(st.sampled_from([*"&=+;%a7Fß\x80 ", "%C3%9F", "%C3", "%26", "%3d"])).map("".join))
@example("a=1&&b&=c&a=%zz%4")
@example("%C3ß")
def test_a_query_is_read_as_the_standard_library_reads_it(text: str) -> None:
    try:
        expected: object = parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        expected = UnicodeDecodeError
    try:
        found: object = split(text)
    except UnicodeDecodeError:
        found = UnicodeDecodeError
    assert found == expected


def test_keys_are_kept_apart_in_every_spelling() -> None:
    found = of("access_key=a&access-key=b&access_key=&name=n&name=m")
    assert found.keys == ("a", "b")
    assert found.values == {"name": "n"}
    assert of_json({"access_key": ["a"], "name": "n"}).keys == (["a"],)
    assert of("access_key=").keys == ()


@pytest.mark.parametrize(
    ("query", "kind", "body", "says"),
    [
        ("name=%ff", "", b"", "UTF-8"),
        ("&".join(f"a{n}=1" for n in range(300)), "", b"", "200"),
        ("", FORM, b"name=\xff", "UTF-8"),
        ("", "text/plain", b"x", "application/json"),
        ("", JSON, b"{", "line 1, column 2"),
        ("", JSON, b"[]", "object"),
        ("", JSON, b"\xff", "UTF-8"),
        ("", JSON, b'{"a": 1, "a": 2}', "twice"),
        ("", JSON, b'{"a": NaN}', "NaN"),
        ("", JSON, b'{"a":' * 50_000, "nested"),
    ],
)
def test_what_cannot_be_read_is_a_bad_request(query: str, kind: str, body: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        of(query, kind, body)


@pytest.mark.parametrize(
    ("value", "own"),
    [
        ("bar", {"_str": "bar"}),
        ('{"a": 1}', {"a": 1}),
        ({"a": {"b": 1}}, {"a": {"b": 1}}),
        (7, {"_str": "7"}),
        ([1, "x"], {"_str": '[1, "x"]'}),
        (None, {"_str": "null"}),
        (True, {"_str": "true"}),
    ],
)
def test_data_in_json_may_be_an_object_or_anything(value: Any, own: dict[str, Any]) -> None:
    assert of_json({"data": value}).data(1000, 32) == own


def test_missing_and_impossible_parameters_are_named() -> None:
    with pytest.raises(BadRequest, match="Missing name parameter"):
        of().name(256)
    with pytest.raises(BadRequest, match="Missing data parameter"):
        of("name=x").data(100, 32)
    with pytest.raises(BadRequest, match="reserved data name last_write_ip"):
        of_json({"data": {"last_write_ip": 1}}).data(100, 32)
    with pytest.raises(TooLarge):
        of_json({"data": {"a": "x" * 100}}).data(100, 32)
    with pytest.raises(BadRequest, match="deeper than 2"):
        of_json({"data": {"a": {"b": {"c": 1}}}}).data(100, 2)
    with pytest.raises(BadRequest, match="text"):
        of_json({"name": ["x"]}).name(256)


@pytest.mark.parametrize("text", ["-1", "601", "x", "nan", "inf", "1e9"])
def test_seconds_are_bounded(text: str) -> None:
    with pytest.raises(BadRequest, match="600"):
        of(f"wait={text}").seconds("wait")


def test_numbers_are_read() -> None:
    assert of("wait=1.5&count=3").seconds("wait") == 1.5
    assert of_json({"wait": 2}).seconds("wait") == 2.0
    assert of("").seconds("wait") == 0.0
    assert of("count=3").count("count") == 3
    for wrong in ("-1", "x", "9" * 20):
        with pytest.raises(BadRequest):
            of(f"count={wrong}").count("count")


def test_an_extension_sees_texts() -> None:
    assert of_json({"a": "x", "b": {"c": 1}, "access_key": "k"}).texts() == {"a": "x", "b": '{"c": 1}'}

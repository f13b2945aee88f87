from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import BadRequest, TooLarge
from bpbroker.registry import entry_values

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)  # fmt: skip
objects = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=4).filter(lambda key: key not in entry_values.STAMP_KEYS),
    json_values,
    max_size=4,
)


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("a", {"a.b": 2, "c": {"d.e": {"f": 3}, "g": [1]}}),
        ("a.b", {"a": {"b": 1}, "c": {"d.e": {"f": 3}, "g": [1]}}),
        ("c.d.e.f", {"a": {"b": 1}, "a.b": 2, "c": {"d.e": {}, "g": [1]}}),
        ("c.d.e", {"a": {"b": 1}, "a.b": 2, "c": {"g": [1]}}),
        ("c.g.0", {"a": {"b": 1}, "a.b": 2, "c": {"d.e": {"f": 3}, "g": [1]}}),
        ("..", {"a": {"b": 1}, "a.b": 2, "c": {"d.e": {"f": 3}, "g": [1]}}),
    ],
)
def test_a_key_or_a_path_is_removed(path: str, left: dict[str, Any]) -> None:
    whole = {"a": {"b": 1}, "a.b": 2, "c": {"d.e": {"f": 3}, "g": [1]}}
    before = copy.deepcopy(whole)
    assert entry_values.unset(whole, path) == (whole != before)
    assert whole == left


@pytest.mark.parametrize(
    "paths", [["x." * 513], ["." * 1_000_000], ["z"] * 1001, ["a", "x" * 1025]], ids=["path", "dots", "many", "long"]
)
def test_what_is_to_be_removed_is_bounded(paths: list[str]) -> None:
    with pytest.raises(BadRequest, match="at most"):
        entry_values.check_unset(paths)


def test_all_that_may_be_removed_is_removed_quickly() -> None:
    whole: dict[str, Any] = {f"k{number}": number for number in range(30_000)}
    paths = entry_values.check_unset([f"{number}{'.x' * 510}" for number in range(entry_values.UNSET_MAX)])
    begun = time.process_time()
    for path in paths:
        assert not entry_values.unset(whole, path)
    # The registry's thread does nothing else meanwhile; a path of a megabyte took it more than a minute.
    assert time.process_time() - begun < 2.0


class TestNames:
    @pytest.mark.parametrize("name", ["foo", "node-7", "a.b", "ünïcode", "with space", "x" * 256, "...", "a_b", "%"])
    def test_fit(self, name: str) -> None:
        assert entry_values.check_name(name) == name

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("", "empty"),
            ("   ", "empty"),
            ("x" * 257, "256"),
            ("ü" * 129, "256"),
            ("..", ".."),
            (".", "."),
            ("a\0b", "control"),
            ("a\nb", "control"),
            ("a\x7f", "control"),
            ("\ud800", "UTF-8"),
            ("_access_key", "_"),
            ("_x", "_"),
            (" x", "white space"),
            (None, "text"),
            (7, "text"),
        ],
    )
    def test_do_not_fit(self, name: object, says: str) -> None:
        with pytest.raises(BadRequest, match=says.replace(".", r"\.")):
            entry_values.check_name(name)


class TestParse:
    @pytest.mark.parametrize(
        ("data", "parsed"),
        [
            ("bar", {"_str": "bar"}),
            ('{"key": "x"}', {"key": "x"}),
            ("{}", {}),
            ("7", {"_str": "7"}),
            ("null", {"_str": "null"}),
            ('"quoted"', {"_str": '"quoted"'}),
            ("[1, 2]", {"_str": "[1, 2]"}),
            ("{broken", {"_str": "{broken"}),
            ("", {"_str": ""}),
            ("NaN", {"_str": "NaN"}),
            ("9" * 5000, {"_str": "9" * 5000}),
            (' {"a": 1} ', {"a": 1}),
        ],
    )
    def test_objects_are_entries_and_all_else_is_text(self, data: str, parsed: dict[str, Any]) -> None:
        assert entry_values.parse(data) == parsed

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            ('{"a":' * 80_000 + "1" + "}" * 80_000, "nested deeper than 32"),
            ("[" * 100_000 + "]" * 100_000, "nested deeper than 32"),
            ('{"a":' * 33 + "1" + "}" * 33, "nested deeper than 32"),
            ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
            ('{"a": NaN}', "NaN"),
            ('{"a": -Infinity}', "Infinity"),
            ('{"a": 1e999}', "too large"),
            ('{"a": 1, "a": 2}', "'a' is there twice"),
            ('{"a": "\\ud800"}', "surrogate"),
            ('{"\\udc00": 1}', "surrogate"),
            ("\ud800", "surrogate"),
            ('{"last_write_ip": "x"}', "Used reserved data name last_write_ip"),
            ('{"last_write_ts": 1}', "Used reserved data name last_write_ts"),
        ],
        ids=range(13),
    )
    def test_faults_are_named(self, data: str, says: str) -> None:
        with pytest.raises(BadRequest, match=says):
            entry_values.parse(data)

    def test_depth_of_32_is_fine(self) -> None:
        assert entry_values.parse('{"a":' * 32 + "1" + "}" * 32)

    def test_size_is_counted_in_bytes(self) -> None:
        assert entry_values.parse("x" * entry_values.DATA_MAX_BYTES)
        with pytest.raises(TooLarge, match="524288"):
            entry_values.parse("ü" * (entry_values.DATA_MAX_BYTES // 2) + "x")

    @given(objects)
    def test_any_object_survives(self, value: dict[str, Any]) -> None:
        assert entry_values.parse(json.dumps(value)) == value


class TestMerge:
    def test_is_deep_and_replaces_lists_and_scalars_whole(self) -> None:
        old = {"a": {"b": 1, "c": [1]}, "d": 1}
        assert entry_values.deep_merge(old, {"a": {"c": [2], "e": 3}, "d": {"x": 1}}) == {
            "a": {"b": 1, "c": [2], "e": 3},
            "d": {"x": 1},
        }
        assert old == {"a": {"b": 1, "c": [1]}, "d": 1}

    @given(objects, objects)
    def test_new_values_win_and_nothing_is_lost(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        merged = entry_values.deep_merge(old, new)
        assert merged.keys() == old.keys() | new.keys()
        assert entry_values.deep_merge(merged, new) == merged
        for key, value in new.items():
            if not isinstance(value, dict):
                assert merged[key] == value


class TestStamp:
    def test_goes_last_and_replaces_an_older_one(self) -> None:
        first = entry_values.stamp({"b": 1}, "10.0.0.1", 1420068290.9)
        assert list(first.items()) == [("b", 1), ("last_write_ip", "10.0.0.1"), ("last_write_ts", 1420068290)]
        second = entry_values.stamp(entry_values.deep_merge(first, {"c": 2}), "10.0.0.2", 1420068300)
        assert list(second) == ["b", "c", "last_write_ip", "last_write_ts"]
        assert second["last_write_ip"] == "10.0.0.2"
        assert entry_values.without_stamp(second) == {"b": 1, "c": 2}


def test_names_of_many_are_cut_short() -> None:
    assert entry_values.shown_names(list("abcdefghijk")) == "a, b, c, d, e, f, g, h, i, j, …"
    assert entry_values.shown_names(("a", "b")) == "a, b"


@pytest.mark.parametrize("own", [{}, {"a": 1}, {"ä": ["\u2028", None]}, {"last_write_ts": 1}])
@pytest.mark.parametrize("source", ["192.0.2.1", 'a "host"'])
def test_what_is_stored_is_the_own_part_and_the_stamp(own: dict[str, Any], source: str) -> None:
    stored = entry_values.encode(entry_values.stamp(own, source, 1420068290.9))
    assert entry_values.stamped(own, source, 1420068290.9) == stored
    if "last_write_ts" not in own:
        assert entry_values.stamped(entry_values.check_object(own), source, 1420068290.9) == stored

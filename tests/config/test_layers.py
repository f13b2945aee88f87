from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.config import layers

documents = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda children: st.dictionaries(st.sampled_from("abcd"), children, max_size=3),
    max_leaves=10,
).filter(lambda value: isinstance(value, dict))


def test_defaults_are_the_documented_ones() -> None:
    defaults = layers.thaw(layers.DEFAULTS)
    for key, file in (("ssl_cert", "dummy_api.crt"), ("ssl_key", "dummy_api.key")):
        assert Path(defaults["api"].pop(key)).parts[-2:] == ("bpbroker", file)
    assert defaults == {
        "api": {"listen_port": 20443, "listen_ip": ""},
        "worker": {},
        "_global": {"healthcheck_freq_sec": 10},
        "_config": {"backup_freq_secs": 3600, "backup_retain_n": 24},
        "ping": {},
        "services": {},
    }


def test_later_layers_win_at_every_depth() -> None:
    merged = layers.layered({"a": {"x": 1, "y": 1}}, {"a": {"y": 2}, "b": {}}, {"a": {"y": 3}})
    assert merged == {"a": {"x": 1, "y": 3}, "b": {}}


def test_split_separates_entries_from_settings() -> None:
    document: dict[str, Any] = {"services": {"_access_key": "k", "foo": {"_str": "bar"}}, "ossec": {"x": 1}}
    settings, entries = layers.split(document)
    assert settings == {"services": {"_access_key": "k"}, "ossec": {"x": 1}}
    assert entries == {"foo": {"_str": "bar"}}
    assert "foo" in document["services"]


class TestAdd:
    def test_existing_values_are_untouched_at_every_depth(self) -> None:
        base = {"a": {"x": {"deep": 1}}, "l": [1]}
        merged, added, kept = layers.add(base, {"a": {"x": {"deep": 2, "new": 3}}, "l": [1, 2], "b": {"c": 1}})
        assert merged == {"a": {"x": {"deep": 1, "new": 3}}, "l": [1], "b": {"c": 1}}
        assert added == ("a.x.new", "b")
        assert kept == ("a.x.deep", "l")

    @given(documents, documents)
    def test_is_idempotent_and_only_adds(self, base: dict[str, Any], extra: dict[str, Any]) -> None:
        once, _, _ = layers.add(base, extra)
        twice, added, _ = layers.add(once, extra)
        assert twice == once
        assert added == ()
        assert layers.layered(once, base) == once  # whatever base had is there still


def test_freeze_cannot_be_changed_and_thaw_gives_a_copy() -> None:
    original: dict[str, Any] = {"a": {"b": [1, {"c": 2}]}}
    frozen = layers.freeze(original)
    with pytest.raises(TypeError):
        frozen["a"]["b"] = 1
    with pytest.raises(TypeError):
        frozen["a"]["b"][1]["c"] = 1
    thawed = layers.thaw(frozen)
    assert thawed == original
    thawed["a"]["b"].append(3)
    assert original == {"a": {"b": [1, {"c": 2}]}}
    json.dumps(thawed)


def test_namespaces_are_the_sections_that_enable_extensions() -> None:
    settings = {**layers.DEFAULTS, "_registry": {}, "ossec": {}, "pkg.sub": {}}
    assert list(layers.namespaces(settings)) == ["ossec", "pkg.sub"]


@pytest.mark.parametrize(
    ("section", "keys"),
    [({}, ()), ({"_access_key": ""}, ()), ({"_access_key": "k"}, ("k",)), ({"_access_key": ("k", "l")}, ("k", "l"))],
)
def test_access_keys(section: dict[str, Any], keys: tuple[str, ...]) -> None:
    assert layers.access_keys({"services": section}, "services") == keys


def test_override_replaces_single_values() -> None:
    assert layers.override({"api": {"listen_port": 1, "x": 2}}, {"api.listen_port": 0, "new.key": 1}) == {
        "api": {"listen_port": 0, "x": 2},
        "new": {"key": 1},
    }

"""The configuration file: strict reading with line and column, atomic writing."""

from __future__ import annotations

import json
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.config import layers
from bpbroker.errors import BadRequest, ConfigurationError, DamagedFile
from bpbroker.registry import entry_values, named_keys
from bpbroker.storage import config_file
from tests.support.systems import is_private

OWN_SECTIONS = {"services", "_state", "_identity", "_objects", named_keys.SECTION}
"""What is in the file and not among the settings."""
SETTINGS = {"api": {"listen_port": 1}, "_config": {"backup_retain_n": 3}, "services": {"_access_key": "k"}}
ENTRIES = {"b": b'{"x": 1}', "a": b'{"_str": "\xc3\xa4", "last_write_ts": 1}'}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bpbroker.json"


def text_of(settings: dict[str, Any], entries: dict[str, bytes]) -> str:
    return b"".join(config_file.chunks(settings, entries)).decode()


def test_what_is_written_is_read(file: Path) -> None:
    config_file.write(file, layers.freeze(SETTINGS), ENTRIES)
    assert config_file.read(file) == (SETTINGS, ENTRIES)
    assert is_private(file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_is_not_there_is_empty(file: Path) -> None:
    assert config_file.read(file) == ({}, {})


def test_the_layout_is_for_people() -> None:
    assert (
        text_of(SETTINGS, ENTRIES)
        == """{
  "api": {
    "listen_port": 1
  },
  "_config": {
    "backup_retain_n": 3
  },
  "services": {
    "_access_key": "k",
    "a": {"_str": "ä", "last_write_ts": 1},
    "b": {"x": 1}
  }
}
"""
    )
    assert text_of({}, {}) == '{\n  "services": {}\n}\n'


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=3)


def encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_name(name: str) -> bool:
    try:
        entry_values.check_name(name)
    except BadRequest:
        return False
    return True


@given(
    st.dictionaries(st.text().filter(lambda name: name not in OWN_SECTIONS), OBJECTS, max_size=3).filter(encodable),
    st.dictionaries(st.text().filter(is_name), OBJECTS, max_size=450).filter(encodable),
)
def test_any_state_comes_back_byte_by_byte(settings: dict[str, Any], objects: dict[str, Any]) -> None:
    entries = {name: entry_values.encode(value) for name, value in objects.items()}
    assert config_file.parse(text_of(settings, entries).encode(), "it") == ({**settings, "services": {}}, entries)


@pytest.mark.parametrize("name", ["", " ", " a", "a\\u0000", "..", "x" * 4097])
def test_a_name_that_no_call_can_reach_is_refused_with_its_line(name: str) -> None:
    with pytest.raises(DamagedFile, match=r"it: line 2, column \d+: services\.") as caught:
        config_file.parse(f'{{"services": {{\n"{name}": {{}}}}}}'.encode(), "it")
    assert "give the entry another name" in str(caught.value)


def test_a_byte_order_mark_does_no_harm() -> None:
    assert config_file.parse(b'\xef\xbb\xbf{"a": {}}', "it") == ({"a": {}}, {})


def test_an_entry_that_a_person_spread_over_lines_becomes_one_line() -> None:
    assert config_file.parse(b'{"services": {"a": {\n "x":\t1\n}}}', "it")[1] == {"a": b'{"x": 1}'}
    assert config_file.parse(b'{"services": {"a": {"x": "\\u00e4"}}}', "it")[1] == {"a": '{"x": "ä"}'.encode()}


BAD = [
    ("", "line 1, column 1: the file is empty"),
    (" \n ", "line 1, column 1: there is only white space"),
    ("[]", "line 1, column 1: a document must be an object, { … }"),
    ("null", "line 1, column 1: a document must be an object, { … }"),
    ("{", "line 1, column 2: a key in double quotes must be here"),
    ('{"api"}', "line 1, column 7: a colon must be here"),
    ('{"api": }', "line 1, column 9: there must be a value here"),
    ('{\n "api": {},\n}', "line 3, column 1: a key in double quotes must be here"),
    ('{"api": {} "x": 1}', "line 1, column 12: a comma or the object's end must be here"),
    ('{"api": {}}\n}', "line 2, column 1: there is something behind the end of the document"),
    ('{"api": {},\n "api": {}}', 'line 2, column 2: the key "api" is there twice'),
    (
        '{"api": {"a": 1,\n "a": 2}}',
        "line 1, column 9: what begins here cannot be used: the key 'a' is there twice",
    ),
    ('{"services": {"a": {},\n  "a": {}}}', 'line 2, column 3: the key "a" is there twice'),
    ('{"services": {"a": {},\n  "b": []}}', "line 2, column 8: services.b is no object; an entry must be one"),
    ('{"services": {"a": {"x": NaN}}}', "line 1, column 20: what begins here cannot be used: NaN is not JSON"),
    ('{"api": {"x": "\\ud800"}}', "line 1, column 9: a lone surrogate is no character"),
    ('{"services": {"a": {"x": "\\ud800"}}}', "line 1, column 20: a lone surrogate in services.a is no character"),
    ('{"api": "\x01"}', "line 1, column 10: invalid control character"),
    ('{"api": ' + '{"a":' * 251 + "1" + "}" * 251 + "}", "nested deeper than 250"),
    ("[" * 100_000, "nested deeper than 250"),
    ('{"api": ' + "1" * 5000 + "}", "more than 4300 digits"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_and_where_is_said_and_the_file_left_alone(file: Path, text: str, message: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DamagedFile) as caught:
        config_file.read(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert file.read_text(encoding="utf-8") == text


def test_bytes_that_are_no_text_are_located(file: Path) -> None:
    file.write_bytes(b'{\n  "a": "\xff"}')
    with pytest.raises(DamagedFile, match="line 2, column 9: this is not UTF-8"):
        config_file.read(file)


def test_a_file_cut_at_any_offset_is_damaged_or_whole() -> None:
    whole = text_of(SETTINGS, ENTRIES).encode()
    for size in range(len(whole)):
        if size == len(whole) - 1:  # only the last line break is gone
            assert config_file.parse(whole[:size], "it") == (SETTINGS, ENTRIES)
            continue
        with pytest.raises(DamagedFile):
            config_file.parse(whole[:size], "it")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot read .*(Is a directory|Permission denied)"):
        config_file.read(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="Unix")
def test_a_device_is_no_configuration() -> None:
    with pytest.raises(ConfigurationError, match="Cannot read /dev/zero: it is no regular file"):
        config_file.read(Path("/dev/zero"))


def test_a_file_of_a_later_version_is_refused_with_words(file: Path) -> None:
    state = {"format": config_file.FORMAT, "registry": "a" * 32, "commit": 1, "digest": ""}
    file.write_text(json.dumps({"services": {}, "_state": state}))
    assert config_file.read_content(file).origin is not None
    file.write_text(json.dumps({"services": {}, "_state": {**state, "format": config_file.FORMAT + 1}}))
    with pytest.raises(DamagedFile, match=r"bpbroker.json was written by a later version of bpbroker \(format 2\)"):
        config_file.read(file)


class Counted(UserDict[str, bytes]):
    """Entries that count how often one of them is looked up."""

    looked = 0

    def __getitem__(self, name: str) -> bytes:
        self.looked += 1
        return super().__getitem__(name)


def test_between_two_chunks_no_more_is_done_than_a_chunk_holds() -> None:
    """Else the requests of clients wait while a backup looks at a million entries."""
    entries = Counted({f"{prefix}{n:05}": b"{}" for prefix in ("B-", "_lock/", "node-") for n in range(3000)})
    entries.looked = before = 0
    for _ in config_file.chunks({}, entries):
        assert entries.looked - before <= config_file.CHUNK_ENTRIES
        before = entries.looked
    assert entries.looked == len(entries)

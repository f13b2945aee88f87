"""The configuration file: strict reading with line and column, atomic writing."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker import config, document, durable, entry, snapshot
from bpbroker.errors import ConfigurationError, DamagedFile, StorageFailed, StorageFull

SETTINGS = {"api": {"listen_port": 1}, "_config": {"backup_retain_n": 3}, "services": {"_access_key": "k"}}
ENTRIES = {"b": b'{"x": 1}', "a": b'{"_str": "\xc3\xa4", "last_write_ts": 1}'}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bpbroker.json"


def text_of(settings: dict[str, Any], entries: dict[str, bytes]) -> str:
    return b"".join(document.chunks(settings, entries)).decode()


def test_what_is_written_is_read(file: Path) -> None:
    snapshot.write(file, config.freeze(SETTINGS), ENTRIES)
    assert snapshot.read(file) == (SETTINGS, ENTRIES)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_is_not_there_is_empty(file: Path) -> None:
    assert snapshot.read(file) == ({}, {})


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


@given(
    st.dictionaries(st.text().filter(lambda name: name != "services"), OBJECTS, max_size=3).filter(encodable),
    st.dictionaries(st.text().filter(lambda name: not name.startswith("_")), OBJECTS, max_size=450).filter(encodable),
)
def test_any_state_comes_back_byte_by_byte(settings: dict[str, Any], objects: dict[str, Any]) -> None:
    entries = {name: entry.encode(value) for name, value in objects.items()}
    assert document.parse(text_of(settings, entries).encode()) == ({**settings, "services": {}}, entries)


def test_a_byte_order_mark_does_no_harm() -> None:
    assert document.parse(b'\xef\xbb\xbf{"a": {}}') == ({"a": {}}, {})


def test_an_entry_that_a_person_spread_over_lines_becomes_one_line() -> None:
    assert document.parse(b'{"services": {"a": {\n "x":\t1\n}}}')[1] == {"a": b'{"x": 1}'}
    assert document.parse(b'{"services": {"a": {"x": "\\u00e4"}}}')[1] == {"a": '{"x": "ä"}'.encode()}


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
    ('{"api": "\x01"}', "line 1, column 10: invalid control character at"),
    ('{"api": ' + '{"a":' * 251 + "1" + "}" * 251 + "}", "nested deeper than 250"),
    ("[" * 100_000, "nested deeper than 250"),
    ('{"api": ' + "1" * 5000 + "}", "more than 4300 digits"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_and_where_is_said_and_the_file_left_alone(file: Path, text: str, message: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DamagedFile) as caught:
        snapshot.read(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert file.read_text(encoding="utf-8") == text


def test_bytes_that_are_no_text_are_located(file: Path) -> None:
    file.write_bytes(b'{\n  "a": "\xff"}')
    with pytest.raises(DamagedFile, match="line 2, column 9: this is not UTF-8"):
        snapshot.read(file)


def test_a_file_cut_at_any_offset_is_damaged_or_whole() -> None:
    whole = text_of(SETTINGS, ENTRIES).encode()
    for size in range(len(whole)):
        if size == len(whole) - 1:  # only the last line break is gone
            assert document.parse(whole[:size]) == (SETTINGS, ENTRIES)
            continue
        with pytest.raises(document.Fault):
            document.parse(whole[:size])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot read .*Is a directory"):
        snapshot.read(tmp_path)


# --- durable ---


@pytest.mark.parametrize(
    ("call", "number", "kind"),
    [
        ("open", errno.EACCES, StorageFailed),
        ("open", errno.ENOSPC, StorageFull),
        ("fsync", errno.ENOSPC, StorageFull),
        ("fsync", errno.EIO, StorageFailed),
        ("replace", errno.EROFS, StorageFailed),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[Exception]
) -> None:
    snapshot.write(file, SETTINGS, ENTRIES)
    before = file.read_bytes()

    def failing(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(kind, match="Cannot write") as caught:
        snapshot.write(file, {}, {})
    monkeypatch.undo()
    assert isinstance(caught.value, (StorageFull, StorageFailed))
    assert caught.value.outcome_known
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_after_the_rename_the_outcome_is_not_known(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(durable, "sync_folder", failing)
    with pytest.raises(StorageFailed) as caught:
        snapshot.write(file, SETTINGS, {})
    assert not caught.value.outcome_known


def test_what_a_crash_left_half_written_is_replaced(file: Path) -> None:
    file.with_name("bpbroker.json.tmp").write_bytes(b"half")
    snapshot.write(file, SETTINGS, ENTRIES)
    assert snapshot.read(file) == (SETTINGS, ENTRIES)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "bpbroker.json"
    link.symlink_to(tmp_path / "real" / "b.json")
    snapshot.write(link, SETTINGS, ENTRIES)
    assert link.is_symlink()
    assert snapshot.read(tmp_path / "real" / "b.json") == (SETTINGS, ENTRIES)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_the_file_to_its_owner(file: Path, tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    snapshot.write(file, SETTINGS, {})
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 1234)
    os.chown(file, 4321, 1234)
    snapshot.write(file, SETTINGS, {})
    assert (file.stat().st_uid, file.stat().st_gid) == (4321, 1234)

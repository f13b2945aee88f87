"""What editors and shells of all systems write is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.text import decode, heard, said


@pytest.mark.parametrize(
    "data",
    ["ä".encode(), b"\xef\xbb\xbf" + "ä".encode(), "\ufeffä".encode("utf-16-le"), "\ufeffä".encode("utf-16-be")],
)
def test_marks_and_encodings(data: bytes) -> None:
    assert decode(data) == "ä"


@pytest.mark.parametrize("data", [b"\xff", b"a\xe4", b"\xff\xfea"])
def test_what_is_no_text(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode(data)


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["latin-1", "ascii", "utf-8", "cp1252", "koi8-r"]),
)
def test_what_is_said_is_heard_again(text: str, encoding: str) -> None:
    assert heard(said(text, encoding), encoding) == text


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("b\u00e4r", b"b\xe4r"),
        ("\u65e5", "\u65e5".encode()),
        ("\u00c3\u00a4", "\u00c3\u00a4".encode()),
        ("\ud800", b"?"),
    ],
)
def test_latin_1_is_written_where_that_is_clear(text: str, data: bytes) -> None:
    assert said(text, "latin-1") == data


def test_bytes_that_are_no_text_come_back_as_they_were() -> None:
    assert said(heard(b"a\xe4", "utf-8"), "utf-8") == b"a\xe4"

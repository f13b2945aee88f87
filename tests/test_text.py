"""What editors and shells of all systems write is read."""

from __future__ import annotations

import pytest

from bpbroker.text import decode


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

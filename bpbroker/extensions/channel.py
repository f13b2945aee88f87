"""Frames between the broker and the child process of an extension: a small JSON object, then raw bytes.

Both sides are pipes. What comes from the child is as little to be trusted as
the module that it runs, so each frame's size is checked before it is read.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

_SIZES: Final = struct.Struct(">II")

HEAD_MAX_BYTES: Final = 32 * 1024 * 1024
"""Largest JSON part; the longest are a call's parameters and a list of entries."""


class ChannelBroken(Exception):
    """The other side ended in the middle of a frame, or sent something that is none."""


def pack(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Return one frame as it is sent.

    Raises:
        ValueError: the head is larger than :data:`HEAD_MAX_BYTES`.
    """
    encoded = json.dumps(head).encode()
    if len(encoded) > HEAD_MAX_BYTES:
        raise ValueError(f"More than {HEAD_MAX_BYTES} bytes cannot be exchanged with an extension at once")
    return b"".join((_SIZES.pack(len(encoded), len(body)), encoded, body))


def write(descriptor: int, frame: bytes) -> None:
    """Write a whole frame.

    Raises:
        OSError: the other end is closed.
    """
    rest = memoryview(frame)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read(some: Callable[[int], bytes], body_max_bytes: int) -> tuple[dict[str, Any], bytes] | None:
    """Read one frame; ``some(n)`` returns 1 to n bytes, or none at the end. Return None when there is no further frame.

    Raises:
        ChannelBroken: it is not a whole frame within the limits.
    """
    first = some(_SIZES.size)
    if not first:
        return None
    head_bytes, body_bytes = _SIZES.unpack(first + _exactly(some, _SIZES.size - len(first)))
    if head_bytes > HEAD_MAX_BYTES or body_bytes > body_max_bytes:
        raise ChannelBroken("a frame larger than its limit")
    encoded = _exactly(some, head_bytes)
    body = _exactly(some, body_bytes)
    try:
        head = json.loads(encoded)
    except (ValueError, RecursionError):
        raise ChannelBroken("a frame that is not JSON") from None
    if not isinstance(head, dict):
        raise ChannelBroken("a frame that is no object")
    return head, body


def _exactly(some: Callable[[int], bytes], count: int) -> bytes:
    parts = []
    while count:
        part = some(min(count, 1 << 20))
        if not part:
            raise ChannelBroken("the end in the middle of a frame")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)

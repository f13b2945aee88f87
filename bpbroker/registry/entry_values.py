"""Functions on the name and the value of an entry: check, parse, stamp, merge, encode. No state.

An entry is a JSON object. Two of its keys are the broker's: ``last_write_ip``
(the requesting address) and ``last_write_ts`` (Unix seconds).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from bpbroker.errors import BadRequest, TooLarge

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any, Final

# dumps() makes one at each call. A value that was read as JSON has no circle.
_as_json: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
_quoted: Final = json.encoder.encode_basestring
NAME_MAX_BYTES: Final = 256
DATA_MAX_BYTES: Final = 512 * 1024
DEPTH_MAX: Final = 32
DIGITS_MAX: Final = 4300
"""Longest integer, in digits: Python's own limit."""
UNSET_MAX: Final = 1000
"""How many keys one update may remove."""
UNSET_PATH_MAX: Final = 1024
"""Characters of a path: it may be cut at each of its dots, so its cost grows with the square of its length."""

STAMP_KEYS: Final = ("last_write_ip", "last_write_ts")
STORED_KEYS: Final = ("last_write_revision", "last_write_index", "last_write_session")
"""Keys that only the stored form of an entry has; see :mod:`bpbroker.registry.stored`."""
_RESERVED_KEYS: Final = frozenset((*STAMP_KEYS, *STORED_KEYS))
TEXT_KEY: Final = "_str"
"""The one own key of an entry whose data is no JSON object."""


RESERVED_NAMES: Final = ("Key Exists",)
"""Names that no entry may have: the texts of discovery answers. A broker with such an entry would answer to answers.

The other forms of answers begin with ``_`` and so are no names.
"""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def check_name(name: object, *, max_bytes: int = NAME_MAX_BYTES) -> str:
    """Return ``name`` if an entry may have it.

    Raises:
        BadRequest: it may not; the message says why.
    """
    if not isinstance(name, str):
        raise BadRequest("The name must be text")
    if not name.strip():
        raise BadRequest("The name is empty")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadRequest("The name is not valid UTF-8") from None
    if size > max_bytes:
        raise BadRequest(f"The name is longer than {max_bytes} bytes")
    if name.startswith("_"):
        raise BadRequest("Names that begin with _ are the broker's own")
    if name in (".", ".."):
        raise BadRequest(f"'{name}' cannot be a name")
    if _CONTROL.search(name):
        raise BadRequest("The name has a control character in it")
    if name != name.strip():
        raise BadRequest("The name begins or ends with white space")
    return name


def number_of(names: Iterable[str]) -> int:
    """Return how many of these names are entries; the registry's own records, such as named keys, do not count."""
    return sum(not name.startswith("_") for name in names)


def shown_names(names: Sequence[str], most: int = 10) -> str:
    """Return the first ``most`` names for a message, and an ellipsis if there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def check_new_name(name: str) -> None:
    """Check that a write may create or change an entry of this name; reading and removing it is always allowed.

    Raises:
        BadRequest: it may not.
    """
    if name in RESERVED_NAMES:
        raise BadRequest(f"'{name}' cannot be a name: it is the text of a reply of discovery")


class Own(dict[str, "Any"]):
    """The checked own part of an entry, and its JSON, which is made once."""

    __slots__ = ("json",)
    json: bytes


_JSON_SPACE: Final = " \t\n\r"


class _Fault(ValueError):
    """A value that Python's parser accepts but JSON, or this broker, does not."""


def _no_constant(text: str) -> Any:
    raise _Fault(f"{text} is not JSON")


def _bounded_int(text: str) -> int:
    if len(text) > DIGITS_MAX:
        raise _Fault(f"an integer has more than {DIGITS_MAX} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Fault(f"the number {text[:32]} is too large")
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Fault(f"the key {key[:64]!r} is there twice")
            seen.add(key)
    return result


_DECODER = json.JSONDecoder(
    parse_constant=_no_constant, parse_int=_bounded_int, parse_float=_finite_float, object_pairs_hook=_unique_pairs
)


def strict_json(text: str, *, what: str = "The data", max_depth: int = DEPTH_MAX) -> Any:
    """Parse JSON; refuse what Python's parser allows: NaN, duplicate keys, lone surrogates, endless nesting.

    Raises:
        BadRequest: the text is JSON-like but has one of those faults; the message names it.
        json.JSONDecodeError: the text is not JSON at all.
    """
    start = len(text) - len(text.lstrip(_JSON_SPACE))
    value, end = strict_json_at(text, start, what=what, max_depth=max_depth)
    rest = text[end:].lstrip(_JSON_SPACE)
    if rest:
        raise json.JSONDecodeError("Extra data", text, len(text) - len(rest))
    return value


def strict_json_at(text: str, at: int, *, what: str, max_depth: int) -> tuple[Any, int]:
    """Parse one JSON value that begins exactly at ``at``. Return it and its end. Errors as of :func:`strict_json`."""
    try:
        value, end = _DECODER.raw_decode(text, at)
        # Few brackets cannot be nested deep; counting them is much cheaper than a walk through the value.
        if text.count("{", at, end) + text.count("[", at, end) > max_depth and too_deep(value, max_depth):
            raise _Fault(f"it is nested deeper than {max_depth}")
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise BadRequest(f"{what} cannot be used: it is nested deeper than {max_depth}") from None
    except _Fault as fault:
        raise BadRequest(f"{what} cannot be used: {fault}") from None
    return value, end


def too_deep(value: object, limit: int = DEPTH_MAX) -> bool:
    """Whether objects and lists are nested deeper than ``limit``."""
    level = [value] if isinstance(value, (dict, list)) else []
    depth = 0
    while level:
        depth += 1
        if depth > limit:
            return True
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, (dict, list))
        ]
    return False


def parse(data: str, *, max_bytes: int = DATA_MAX_BYTES, max_depth: int = DEPTH_MAX) -> Own:
    """Return the own part of an entry for what a client sent as ``data``.

    A JSON object is the entry; anything else, valid JSON or not, is kept as
    text under ``_str``. Text that begins as an object or a list is refused if it could not be returned unchanged.

    Raises:
        BadRequest: a fault in it, or a reserved key.
        TooLarge: more than ``max_bytes`` in UTF-8.
    """
    try:
        size = len(data.encode())
    except UnicodeEncodeError:
        raise BadRequest("The data cannot be used: it is not valid Unicode (a lone surrogate)") from None
    if size > max_bytes:
        raise TooLarge(f"The data is larger than {max_bytes} bytes")
    if data.lstrip()[:1] in ("{", "["):
        try:
            value = strict_json(data, max_depth=max_depth)
        except json.JSONDecodeError:
            return check_object({TEXT_KEY: data})
        if isinstance(value, dict):
            return check_object(value)
    return check_object({TEXT_KEY: data})


def check_object(value: Mapping[str, Any]) -> Own:
    """Return the object if it may be stored as an entry's own part.

    Raises:
        BadRequest: it has one of the broker's own keys, or a lone surrogate somewhere.
    """
    if not _RESERVED_KEYS.isdisjoint(value):
        key = next(key for key in (*STAMP_KEYS, *STORED_KEYS) if key in value)
        raise BadRequest(f"Used reserved data name {key}")
    own = Own(value)
    try:
        own.json = encode(own)
    except UnicodeEncodeError:
        raise BadRequest("The data cannot be used: it has a lone surrogate") from None
    return own


def stamped(own: Mapping[str, Any], source: str, now: float) -> bytes:
    """Return the JSON of what :func:`stamp` returns."""
    json = own.json if isinstance(own, Own) else encode(without_stamp(own))
    lead = b"" if json == b"{}" else b", "
    return b'%b%b"last_write_ip": %b, "last_write_ts": %d}' % (json[:-1], lead, _quoted(source).encode(), now)


def stamp(own: Mapping[str, Any], source: str, now: float) -> dict[str, Any]:
    """Return the entry to store: its own keys, then the address that wrote it and the time (``now``, Unix seconds)."""
    result = {key: value for key, value in own.items() if key not in STAMP_KEYS}
    result["last_write_ip"] = source
    result["last_write_ts"] = int(now)
    return result


def without_stamp(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry's own keys and their values."""
    return {key: value for key, value in entry.items() if key not in STAMP_KEYS}


def unset(value: dict[str, Any], path: str) -> bool:
    """Remove the value at a path of keys joined by dots, in place. Return whether it was there.

    A path that is not there is no error. A key may have dots itself. A list has no keys.
    """
    if path in value:
        del value[path]
        return True
    begin, dot, rest = path.partition(".")
    while dot:
        below = value.get(begin)
        if isinstance(below, dict) and unset(below, rest):
            return True
        more, dot, rest = rest.partition(".")
        begin = f"{begin}.{more}"
    return False


def check_unset(paths: Sequence[object]) -> tuple[str, ...]:
    """Return paths of keys that may be removed from an entry.

    Raises:
        BadRequest: one is no text, empty, too long, or one of the broker's own keys; or there are too many.
    """
    if len(paths) > UNSET_MAX:
        raise BadRequest(f"unset removes at most {UNSET_MAX} keys; these are {len(paths)}")
    result = []
    for path in paths:
        if not isinstance(path, str) or not path:
            raise BadRequest("What unset removes must be a key, or a path such as a.b")
        if len(path) > UNSET_PATH_MAX:
            raise BadRequest(f"A path of unset has at most {UNSET_PATH_MAX} characters")
        if path in STAMP_KEYS:
            raise BadRequest(f"Used reserved data name {path}")
        result.append(path)
    return tuple(result)


def deep_merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two objects at every depth; ``new`` wins, lists and scalars are replaced whole."""
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = deep_merge(before, value)
        else:
            result[key] = value
    return result


def encode(entry: Mapping[str, Any]) -> bytes:
    """Return an entry as one line of JSON in UTF-8.

    Raises:
        UnicodeEncodeError: it has a lone surrogate.
        ValueError: it has NaN or an infinity.
    """
    return _as_json(entry).encode()

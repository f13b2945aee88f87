"""How values are shown to people: ages, sizes, texts with invisible characters, entries as trees. Pure."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from markupsafe import Markup, escape

TEXT_MAX: Final = 32 * 1024
"""Characters shown of one text in an entry; the whole entry is one link away."""
NODES_MAX: Final = 2000
"""Lines of one entry's tree."""
SHORT_MAX: Final = 120
"""Characters of an entry shown in a list."""

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of characters that cannot be seen, or that change how others are seen."""
_JOINERS: Final = frozenset("\u200d\ufe0f")
_JOINED: Final = frozenset({"So", "Sk", "Mn"})
"""Categories after which a zero-width joiner is allowed: parts of an emoji."""
_STEPS: Final = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_KEYWORDS: Final = {None: "null", True: "true", False: "false"}


def text(value: object, most: int = TEXT_MAX) -> Markup:
    """Return a text as HTML that shows each character of it as it is.

    Control characters, marks of direction and other invisible characters are shown by their number, so that they can
    neither change what is around the text nor make two names look alike.
    """
    whole = str(value)
    shown = whole[:most]
    shown = str(escape(shown)) if shown.isprintable() else "".join(_visible(shown))
    if len(whole) > most:
        shown += f'<span class="odd">… {len(whole) - most:,} more characters</span>'
    return Markup(shown)  # noqa: S704 - each part was escaped


def _visible(whole: str) -> Iterator[str]:
    """Yield the parts of a text as HTML."""
    plain: list[str] = []
    before = ""
    for character in whole:
        category = unicodedata.category(character)
        joins = character in _JOINERS and before and unicodedata.category(before) in _JOINED
        before = character
        if character in "\n\t" or category not in _HIDDEN or joins:
            plain.append(character)
            continue
        yield escape("".join(plain))
        plain.clear()
        yield f'<span class="odd">U+{ord(character):04X}</span>'
    yield escape("".join(plain))


def duration(secs: float) -> str:
    """Return a number of seconds in its largest unit, such as ``3 min``."""
    if not math.isfinite(secs):
        return "for ever"
    for size, unit in _STEPS:
        if secs >= size:
            return f"{int(secs // size)} {unit}"
    return "0 s"


def moment(seconds: float | None, now: float) -> Markup:
    """Return a Unix time as its age, with the exact time on hover."""
    if seconds is None or not math.isfinite(seconds):
        return Markup('<span class="none">never</span>')
    try:
        exact = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return escape(seconds)
    past = now - seconds
    words = "now" if abs(past) < 1 else f"{duration(past)} ago" if past > 0 else f"in {duration(-past)}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        exact.strftime("%Y-%m-%dT%H:%M:%SZ"), exact.strftime("%Y-%m-%d %H:%M:%S UTC"), words
    )


def size(count: float) -> str:
    """Return a number of bytes in a unit that people read."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def figure(name: str, value: Any, now: float) -> Markup:
    """Return a figure of health; its name's end says its unit."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name.endswith("_at") and number:
        return moment(float(value), now)
    if number and name.endswith("_secs"):
        return escape(duration(float(value)))
    if number and name.endswith("_bytes"):
        return escape(size(float(value)))
    if isinstance(value, bool) or value is None:
        return escape({True: "yes", False: "no", None: "none yet"}[value])
    if isinstance(value, int):
        return escape(f"{value:,}")
    if isinstance(value, (Mapping, list, tuple)):
        return text(json.dumps(_plain(value), ensure_ascii=False), 1000)
    return text(value, 1000)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def named(name: str) -> str:
    """Return the name of a figure in words: without the unit, which its value has."""
    for ending in ("_secs", "_bytes"):
        name = name.removesuffix(ending)
    return name.replace("_", " ")


class Node(NamedTuple):
    """One line of an entry's tree."""

    kind: str
    """``open`` and ``close`` of an object or list, a ``leaf``, or ``more`` for lines that are left out."""
    key: str = ""
    """The member's name, or the index in a list."""
    value: Any = None
    """A leaf's value as text; the length of an object or list; of ``more`` the number of lines."""
    type: str = ""
    """``text``, ``number`` or ``word`` for a leaf; ``object`` or ``list`` for others."""


def tree(value: Mapping[str, Any], most: int = NODES_MAX) -> Iterator[Node]:
    """Yield an entry's lines in order, without recursion: an entry may be nested deep."""
    stack: list[Iterator[tuple[str, Any]]] = [iter(value.items())]
    lines = left_out = 0
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
            if stack:
                yield Node("close")
            continue
        key, item = found
        lines += 1
        if lines > most:
            left_out += 1
            continue
        if isinstance(item, Mapping):
            yield Node("open", key, len(item), "object")
            stack.append(iter(item.items()))
        elif isinstance(item, (list, tuple)):
            yield Node("open", key, len(item), "list")
            stack.append((str(number), part) for number, part in enumerate(item))
        else:
            yield _leaf(key, item)
    if left_out:
        yield Node("more", "", left_out)


def _leaf(key: str, item: Any) -> Node:
    if isinstance(item, str):
        return Node("leaf", key, item, "text")
    if isinstance(item, bool) or item is None:
        return Node("leaf", key, _KEYWORDS[item], "word")
    return Node("leaf", key, str(item), "number")


def short(own: bytes, most: int = SHORT_MAX) -> str:
    """Return the beginning of an entry's JSON, for a list."""
    text = own[: 4 * most].decode("utf-8", "ignore")
    return text if len(text) <= most and len(own) <= 4 * most else f"{text[:most]}…"

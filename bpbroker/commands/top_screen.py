"""The picture of ``bpbroker top``: lines of text that fit into a terminal. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from bpbroker.commands.tables import shown_age, shown_size

NARROWEST: Final = 20
_BAD: Final = "\x1b[1;31m"
_HEADING: Final = "\x1b[1m"
_PLAIN: Final = "\x1b[0m"
_GAP: Final = "  "


class _Line(NamedTuple):
    """A line, and its colour where there are colours."""

    text: str
    colour: str = ""


def picture(
    figures: Mapping[str, Any], heading: str, troubles: Sequence[str], width: int, height: int | None, *, colour: bool
) -> list[str]:
    """Return the lines of a picture.

    Args:
        figures: from :func:`bpbroker.commands.top_figures.figures`.
        heading: the first line.
        troubles: what is not well, a sentence each.
        width: columns; no line is longer.
        height: lines at most; None for as many as there are.
        colour: whether the terminal has colours.
    """
    width = max(width, NARROWEST)
    top = [_Line(heading, _HEADING), *_summary(figures, troubles, width), _Line("")]
    tables = [table for table in (_requests(figures), _extensions(figures), _parts(figures)) if len(table) > 1]
    aligned = [_aligned(table, width) for table in tables]
    lines = [*top, *_stacked(aligned, None if height is None else height - len(top))]
    if height is not None and len(lines) > height > 1:  # not even a little of each
        lines = [*top, *_stacked(aligned, None)]
        lines[height - 1 :] = [_Line(f"… {len(lines) - height + 1} more lines")]
    return [_painted(line, width, colour=colour) for line in lines[:height]]


def _painted(line: _Line, width: int, *, colour: bool) -> str:
    text = "".join(character if character.isprintable() else "?" for character in line.text)
    if len(text) > width:
        text = f"{text[: width - 1]}…"
    return f"{line.colour}{text}{_PLAIN}" if colour and line.colour else text


def _summary(figures: Mapping[str, Any], troubles: Sequence[str], width: int) -> list[_Line]:
    """Return the figures in words, each group on lines of its own."""
    registry, storage, server = figures["registry"], figures["storage"], figures["server"]
    process, backup = figures["process"], figures["backup"]
    waiting = registry["waiting"]
    refused = sum(server["refused_per_sec"].values())
    handshakes = server["handshakes"]
    failed = sum(number for outcome, number in handshakes.items() if outcome != "done")
    groups = {
        "registry": [
            _said("entries", registry["entries"]),
            _of("sessions", registry["sessions"], registry["sessions_max"]),
            _said("lost", registry["ended_sessions"].get("lost")),
            _said("locks held", registry["locks"]),
            _of("waiting", sum(waiting.values()) if waiting else None, registry["waiting_max"]),
            *(f"{kind} {number}" for kind, number in waiting.items() if number),
        ],
        "commits": [
            f"{_rate(storage['commits_per_sec'])}/s",
            *_spans("", storage["commit"]),
            *_spans("fsync ", storage["fsync"]),
            _said("failed", storage["failed_commits"]),
            _said("journal", storage["journal_bytes"], shown_size),
            _said("disk free", storage["free_disk_bytes"], shown_size),
            _said("etcd known for", storage["age_secs"], _span),
        ],
        "server": [
            f"requests {_rate(figures['requests_per_sec'])}/s",
            _of("connections", server["connections"], server["connections_max"]),
            f"new {_rate(server['accepted_per_sec'])}/s",
            f"refused {_rate(refused)}/s" if refused else "",
            _said("handshakes failed", failed or None),
            _said("held for clients", server["client_memory_bytes"], shown_size),
            _said("cpu", process["cpu_ratio"], lambda ratio: f"{100 * ratio:.0f} %"),
            _said("memory", process["resident_bytes"], shown_size),
            _said("files", process["open_fds"]),
        ],
        "keys": [
            f"wrong {_rate(sum(figures['wrong_keys_per_sec'].values()))}/s",
            *(f"{number} by {via} since the start" for via, number in figures["wrong_keys"].items() if number),
        ],
        "discovery": [
            f"{outcome.replace('_', ' ')} {_rate(rate)}/s"
            for outcome, rate in figures["discovery_per_sec"].items()
            if rate or outcome == "answered"
        ],
        "lasting": [
            _said("backup", backup["age_secs"], lambda secs: f"{shown_age(secs)} old"),
            _said("all in it", backup["current_age_secs"], lambda secs: f"{shown_age(secs)} ago"),
            _said("failed backups", backup["failures"] or None),
            _said("certificate for", figures["certificate_left_secs"], shown_age),
        ],
    }
    lines = [_Line(f"not well: {trouble}", _BAD) for trouble in troubles]
    for name, said in groups.items():
        lines += map(_Line, _wrapped(name, [each for each in said if each], width))
    return lines


def _wrapped(name: str, said: Sequence[str], width: int) -> list[str]:
    """Return the words of a group on as few lines as they need."""
    lines, line = [], f"{name:<10}"
    for each in said:
        if len(line) > len(name) + 10 and len(line) + len(each) > width:
            lines.append(line.rstrip())
            line = " " * 10
        line += each + _GAP
    return [*lines, line.rstrip()]


def _requests(figures: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("REQUESTS", "PER S", "HALF", "99 %", "4xx/S", "5xx/S", "TOTAL")]
    for each in figures["requests"]:
        name = ".".join(word for word in (each["namespace"], each["method"]) if word != "(none)") or "(none)"
        rows.append(
            (
                name,
                _rate(each["per_sec"]),
                _span(each["median_secs"]),
                _span(each["p99_secs"]),
                _rate(each["refused_per_sec"]),
                _rate(each["failed_per_sec"]),
                str(each["total"]),
            )
        )
    return rows


def _extensions(figures: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("EXTENSION", "PER S", "RUN", "WAIT", "OF", "PROC", "FAILED", "CRASHED", "LATE", "REFUSED")
    ]
    for each in figures["extensions"]:
        numbers = (each["running"], each["waiting"], each["waiting_max"], each["processes"])
        outcomes = (each["outcomes"].get(outcome) for outcome in ("failed", "crashed", "late", "refused"))
        rows.append((each["namespace"], _rate(each["per_sec"]), *map(_number, (*numbers, *outcomes))))
    return rows


def _parts(figures: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("PART", "OK", "INBOX", "RESTARTS", "SILENT", "AGE")]
    for each in figures["parts"]:
        silent, age = each["silent_secs"], each["age_secs"]
        rows.append(
            (
                each["name"],
                "yes" if each["ok"] else "NO",
                _number(each["inbox"]),
                _number(each["restarts"]),
                _span(silent) if silent else "-",
                "-" if age is None else shown_age(age),
            )
        )
    return rows


def _aligned(table: Sequence[Sequence[str]], width: int) -> list[_Line]:
    """Return a table whose first column is shortened, and whose last ones are left out, until it fits."""
    columns = len(table[0])
    while columns > 2:
        widths = [max(len(row[column]) for row in table) for column in range(columns)]
        rest = sum(widths[1:]) + len(_GAP) * (columns - 1)
        if rest + min(widths[0], 12) <= width:
            break
        columns -= 1
    widths = [max(len(row[column]) for row in table) for column in range(columns)]
    first = min(widths[0], max(4, width - sum(widths[1:]) - len(_GAP) * (columns - 1)))
    lines = []
    for number, row in enumerate(table):
        name = row[0] if len(row[0]) <= first else f"{row[0][: first - 1]}…"
        cells = [f"{cell:>{size}}" for cell, size in zip(row[1:columns], widths[1:], strict=True)]
        text = _GAP.join([f"{name:<{first}}", *cells])
        if not number and columns < len(row):
            text += f"{_GAP}…"  # there are more columns
        lines.append(_Line(text, _HEADING if not number else _BAD if "NO" in row[1:2] else ""))
    return lines


def _stacked(tables: Sequence[list[_Line]], room: int | None) -> list[_Line]:
    """Return tables below each other; when there is not room for all of their rows, each is shortened in turn."""
    kept = [len(table) for table in tables]
    gaps = max(0, len(tables) - 1)
    if room is not None:
        while sum(kept) + gaps > room and max(kept, default=0) > 2:
            longest = max(range(len(kept)), key=kept.__getitem__)
            kept[longest] -= 1
    lines: list[_Line] = []
    for table, number in zip(tables, kept, strict=True):
        if lines:
            lines.append(_Line(""))
        if number < len(table):
            lines += [*table[: number - 1], _Line(f"… {len(table) - number + 1} more")]
        else:
            lines += table
    return lines


def _said(name: str, value: Any, show: Any = str) -> str:
    """Return a name with its value; nothing if that is not known."""
    return "" if value is None else f"{name} {show(value)}"


def _of(name: str, value: int | None, most: int | None) -> str:
    return "" if value is None else f"{name} {value}" + ("" if most is None else f" of {most}")


def _spans(name: str, times: Mapping[str, float | None]) -> list[str]:
    if times["median_secs"] is None:
        return []
    return [f"{name}half {_span(times['median_secs'])}", f"{name}99 % {_span(times['p99_secs'])}"]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _rate(per_sec: float) -> str:
    """Return a number per second with as many digits as tell something."""
    if not per_sec:
        return "0"
    return f"{per_sec:.0f}" if per_sec >= 99.5 else f"{per_sec:.1f}"


def _span(secs: float | None) -> str:
    """Return a short time in the unit that suits it."""
    if secs is None:
        return "-"
    if secs < 0.9995:
        return f"{1000 * secs:.1f} ms" if secs < 0.0995 else f"{1000 * secs:.0f} ms"
    return f"{secs:.1f} s" if secs < 60 else shown_age(secs)

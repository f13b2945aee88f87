"""How results look on standard output. Pure: values to text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bpbroker.entry import STAMP_KEYS, TEXT_KEY

FORMATS = ("json", "text", "csv", "csv-noheader", "shell", "powershell")


def show(value: Any, form: str, cols: Sequence[str] = ()) -> str:
    """Give one result, with the newline at its end.

    Args:
        value: an entry, or another JSON value.
        form: one of :data:`FORMATS`.
        cols: only these keys, in this order.
    """
    if not isinstance(value, Mapping):
        return f"{json.dumps(value)}\n" if form == "json" else f"{_cell(value)}\n"
    if form == "text":
        if cols:
            return "\t".join(_cell(value.get(col, "")) for col in cols) + "\n"
        return f"{text_of(value)}\n"
    chosen = {col: value.get(col) for col in cols} if cols else dict(value)
    if form == "json":
        return f"{json.dumps(chosen)}\n"
    if form in ("shell", "powershell"):
        quote = _shell if form == "shell" else _powershell
        return "".join(f"{quote(key, item)}\n" for key, item in chosen.items())
    return table([chosen], list(chosen), header=form == "csv")


def show_many(entries: Mapping[str, Mapping[str, Any]], form: str, cols: Sequence[str] = ()) -> str:
    """Give several entries by name, one a line."""
    if form == "json":
        chosen = {name: {col: item.get(col) for col in cols} if cols else dict(item) for name, item in entries.items()}
        return f"{json.dumps(chosen)}\n"
    if form == "text":
        return "".join(f"{name}\t{show(item, 'text', cols)}" for name, item in entries.items())
    if form in ("shell", "powershell"):
        quote = _shell if form == "shell" else _powershell
        return "".join(f"{quote(name, text_of(item))}\n" for name, item in entries.items())
    columns = list(cols) or list(dict.fromkeys(key for item in entries.values() for key in item))
    rows = [{"name": name, **item} for name, item in entries.items()]
    return table(rows, ["name", *columns], header=form == "csv")


def text_of(value: Mapping[str, Any]) -> str:
    """Give an entry as text: the text itself if that is all it holds, else JSON on one line."""
    own = [key for key in value if key not in STAMP_KEYS]
    if own == [TEXT_KEY] and isinstance(value[TEXT_KEY], str):
        return str(value[TEXT_KEY])
    return json.dumps(value)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, header: bool) -> str:
    """Give rows as CSV (RFC 4180, with newlines as on this system)."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def _name(key: str) -> str:
    """Give a variable's name: what a registry holds must not be able to set PATH."""
    return "bp_" + re.sub(r"[^A-Za-z0-9_]", "_", key)


def _shell(key: str, value: Any) -> str:
    quoted = _cell(value).replace("'", "'\\''")
    return f"{_name(key)}='{quoted}'"


def _powershell(key: str, value: Any) -> str:
    quoted = _cell(value).replace("'", "''")
    return f"${_name(key)} = '{quoted}'"

"""Output of commands that list something: aligned columns for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_option(function: F) -> F:
    """Add ``--format`` to a command."""
    option = click.option(
        "--format", "-f", "form", type=click.Choice(("table", "json")), default="table", show_default=True,
        help="Columns for people, or JSON on one line.",
    )  # fmt: skip
    return option(function)


def echo_table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns as wide as they need to be; the last one is as long as it is."""
    lines = [list(map(str, row)) for row in (heading, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading) - 1)]
    for line in lines:
        click.echo("  ".join([*(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)), line[-1]]))


def echo_json(value: Any) -> None:
    """Print a value as JSON on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def shown_time(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown_size(size_bytes: float) -> str:
    """Return a size in the unit that suits it."""
    for unit in _UNITS:
        if size_bytes < 1024 or unit == _UNITS[-1]:
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"


def shown_age(seconds: float) -> str:
    """Return a duration in its two largest units, such as ``3d 4h``."""
    left = max(0, int(seconds))
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number:
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2]) or "0s"

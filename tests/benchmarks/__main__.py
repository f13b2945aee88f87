"""``python -m tests.benchmarks``: our broker beside its peers, in one run.

``storm`` lets many nodes boot, ``growth`` takes what a call costs with many entries.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from tests.benchmarks import arguments, growth, report, rows, storm
from tests.benchmarks.page import page

PAGE: Final = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def main() -> None:
    """Measure, print figures as they come and the table in the end, keep and publish them if asked to."""
    if sys.argv[1:2] == ["storm"]:
        storm.main(sys.argv[2:])
    if sys.argv[1:2] == ["growth"]:
        growth.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--json", type=arguments.new_file, metavar="FILE", help="keep all figures there")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds; its figures mean nothing")
    parser.add_argument(
        "--rows", default="", metavar="PART", help="only rows that have this in their name, in any case"
    )
    parser.add_argument(
        "--folder", type=arguments.folder, help="where all servers keep their data: on the disk that counts"
    )
    parser.add_argument(
        "--bpclient",
        type=arguments.kept_file,
        metavar="FILE",
        help="time this one: an editable install starts slower than a wheel",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each figure is taken (3)")
    parser.add_argument("--secs", type=float, metavar="S", help="how long for one figure (2)")
    parser.add_argument("--table", action="store_true", help="write docs/benchmarks.md, too")
    parser.add_argument(
        "--from", dest="kept", type=arguments.kept_file, metavar="FILE", help="measure nothing: take kept figures"
    )
    parser.add_argument(
        "--section", action="append", nargs=2, default=[], metavar=("TITLE", "FILE"),
        help="with --table: a section more, such as what storm or growth printed; may be given again",
    )  # fmt: skip
    chosen = parser.parse_args()
    extent = _extent(chosen)
    if not chosen.kept and not any(map(extent.takes, rows.names(extent))):
        parser.error(f"--rows {chosen.rows!r} is in no row's name; the rows are\n  " + "\n  ".join(rows.names(extent)))
    try:
        sections = [(title, arguments.kept_file(file).read_text()) for title, file in chosen.section]
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --section: {error}")
    document = json.loads(chosen.kept.read_text()) if chosen.kept else _measured(chosen, extent)
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=1) + "\n")
    if chosen.table:
        PAGE.write_text(page(document, sections))


def _extent(chosen: argparse.Namespace) -> rows.Extent:
    extent = rows.QUICK if chosen.quick else rows.FULL
    return replace(
        extent, part=chosen.rows, bpclient=chosen.bpclient, rounds=chosen.rounds or extent.rounds,
        secs=chosen.secs or extent.secs,
    )  # fmt: skip


def _measured(chosen: argparse.Namespace, extent: rows.Extent) -> dict[str, Any]:
    """Measure, print the table, and return all figures."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=chosen.folder) as folder:
        of = report.machine(Path(folder))
        results = rows.measure(Path(folder), extent, lambda text: _line(sys.stderr, text))
    _line(sys.stdout, report.table(results, of))
    how = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(["python -m tests.benchmarks", *_asked(chosen)]),
        "rounds": extent.rounds,
        "secs": extent.secs,
    }
    return {**how, **report.document(results, of)}


def _asked(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the options that the figures depend on."""
    if chosen.quick:
        yield "--quick"
    for name in ("rounds", "secs", "rows"):
        if getattr(chosen, name):
            yield f"--{name} {getattr(chosen, name)}"
    if chosen.table:
        yield "--table"


def _line(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()


if __name__ == "__main__":
    main()

"""``python -m tests.benchmarks``: our broker beside its peers, in one run; ``storm`` lets many nodes boot."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from tests.benchmarks import report, rows, storm


def main() -> None:
    """Measure, print the table, keep the figures if asked to."""
    if sys.argv[1:2] == ["storm"]:
        storm.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures there")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds; its figures mean nothing")
    parser.add_argument("--rows", default="", metavar="PART", help="only rows that have this in their name")
    parser.add_argument("--folder", type=Path, help="where all servers keep their data: on the disk that counts")
    parser.add_argument(
        "--bpclient", type=Path, metavar="FILE", help="time this one: an editable install starts slower than a wheel"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=chosen.folder) as folder:
        of = report.machine(Path(folder))
        extent = replace(rows.QUICK if chosen.quick else rows.FULL, part=chosen.rows, bpclient=chosen.bpclient)
        results = rows.measure(Path(folder), extent, lambda text: _line(sys.stderr, text))
    _line(sys.stdout, report.table(results, of))
    if chosen.json:
        chosen.json.write_text(json.dumps(report.document(results, of), indent=1) + "\n")


def _line(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()


if __name__ == "__main__":
    main()

"""A quick smoke of ``python -m tests.benchmarks``: it runs and its figures are there; what they are does not matter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import __main__ as program
from tests.benchmarks import coordination, growth, rows
from tests.benchmarks.client import (
    Failed,
    http_complete,
    pipeline_complete,
    pyro_complete,
    redis_complete,
)
from tests.benchmarks.page import page
from tests.benchmarks.storm_driver import STEPS

ROOT = Path(__file__).parents[2]
OWN = ("bpbroker", "bpbroker on etcd", "hello on ours", "hello on cheroot")


def test_quick_run_fills_every_row_of_ours(tmp_path: Path) -> None:
    kept = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", "--json", str(kept), "--folder", "."],
        cwd=tmp_path,  # servers run in folders of their own: --folder is relative to this one
        env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(kept.read_text())
    assert [failure for failure in document["failures"] if failure["peer"] in OWN] == []
    measured = {cell["row"] for cell in document["cells"] if cell["peer"] == "bpbroker"}
    assert measured == set(rows.names(rows.QUICK))
    assert measured == {
        "durable writes, keep-alive",
        "reads, keep-alive",
        "one read per new TLS connection",
        "calls of a trivial extension, keep-alive",
        "reads, no extension hangs",
        "reads, an extension hangs",
        "one read as a whole process",
        "discovery round trips",
        "durable writes at 10 entries",
        "durable writes at 1,000 entries",
        *coordination.AGAINST_EACH_OTHER,
        *coordination.BESIDE,
    }
    for row in measured:
        assert row in done.stdout
        assert f"{row}, " in done.stderr  # as soon as it was taken
    assert all(cell["median"]["per_second"] > 0 for cell in document["cells"])
    assert document["memory_mib"]["bpbroker"] > 1
    if shutil.which("etcd"):
        held = {cell["row"]: cell["ours_to_it"] for cell in document["cells"] if cell["peer"] == "bpbroker on etcd"}
        assert {"durable writes, keep-alive", "reads, keep-alive"} <= held.keys()
        assert all(held.values())
    assert any(each["what"] == "reads, keep-alive, 1 at a time, against hello on cheroot" for each in document["reach"])
    shown = page(document)
    for cell in document["cells"]:
        assert f"## {cell['row'][0].upper()}{cell['row'][1:]}" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--folder", "absent"], "argument --folder: there is no folder {here}/absent"),
        (["storm", "--folder", "absent"], "argument --folder: there is no folder {here}/absent"),
        (["growth", "--folder", "absent"], "argument --folder: there is no folder {here}/absent"),
        (["--json", "absent/figures.json"], "argument --json: there is no folder {here}/absent"),
        (["storm", "--json", "."], "argument --json: . is a folder"),
        (["--from", "absent.json"], "argument --from: there is no file absent.json"),
        (["--bpclient", "absent"], "argument --bpclient: there is no file absent"),
        (["--table", "--section", "Title", "absent.txt"], "argument --section: there is no file absent.txt"),
        (["--rows", "wriets"], "--rows 'wriets' is in no row's name; the rows are\n  durable writes, keep-alive\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_said_before_anything_is(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tests.benchmarks", *words])
    monkeypatch.setattr(rows, "measure", None)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert f"error: {expected.format(here=tmp_path)}" in capsys.readouterr().err


def test_a_part_of_a_rows_name_is_taken_in_any_case() -> None:
    extent = replace(rows.FULL, part="Durable WRITES at")
    assert [name for name in rows.names(extent) if extent.takes(name)] == [
        *(f"durable writes at {entries} entries" for entries in ("10", "1,000", "100,000")),
    ]


def test_growth_tells_each_calls_cost_and_what_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "CALLS", 20)
    found = growth.measure(tmp_path, (10, 30), 1, lambda _text: None)
    assert [each.what for each in found] == [*growth.CALLS_OF, growth.EVENT]
    assert all(value > 0 for each in found for value in each.p50_ms.values())
    shown = "\n".join(growth.table([growth.Growth("Get", {10: 1.0, 20: 1.2, 40: 3.0})]))
    assert "| Get | 1.00 | 1.20 | 3.00 | 1.20, 2.50 |" in shown
    assert "- reached: from 10 to 20 entries at most 1.3 times as much (Get: 1.20)" in shown
    assert "- NOT reached: from 20 to 40 entries at most 2.0 times as much (Get: 2.50)" in shown


def test_the_page_names_where_we_lose_and_why() -> None:
    def cell(row: str, peer: str, ratio: float | None) -> dict[str, Any]:
        found = {
            "per_second": 1234.5,
            "p50_ms": 1.0,
            "p99_ms": 2.345,
            "client_cpu": 0.5,
            "max_ms": 3.0,
            "server_cpu_us": 55.0,
        }
        return {"row": row, "peer": peer, "clients": 16, "median": found, "rounds": [found], "ours_to_it": ratio}

    shown = page(
        {
            "date": "2026-11-27",
            "command": "python -m tests.benchmarks --table",
            "rounds": 3,
            "secs": 2.0,
            "machine": {"cores": 2, "load": 3.5, "fdatasync_us": 250},
            "peers": {"bpbroker": "1.0.0", "redis": "7.0.15"},
            "memory_mib": {},
            "failures": [],
            "cells": [cell("a row", "bpbroker", 1.0), cell("a row", "redis", 0.31), cell("a row", "etcd", 1.4)],
            "reach": [{"what": "a row", "wanted": 0.35, "found": 0.31, "at_most": False, "met": False}],
        },
        [("A storm", "| step |\n")],
    )
    assert "\n## A storm\n\n| step |\n" in shown
    assert "| redis | 1,234 (2.35 ms, 55 µs), ours **0.31** |" in shown
    assert "* **A row**, against redis: 0.31 at 16. Redis is one C program" in shown
    assert "against etcd" not in shown
    assert "| a row | 0.31 | ≥ 0.35 | **missed** |" in shown
    assert "| fdatasync us | 250 |" in shown
    assert "at a load of 3.5" in shown


HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
BULK = b"$2\r\nok\r\n"
PYRO = b"PYRO" + bytes(8) + (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes(20) + b"aok"


@pytest.mark.parametrize(
    ("complete", "answer"),
    [
        (http_complete, HTTP),
        (http_complete, CHUNKED),
        (redis_complete, BULK),
        (pyro_complete, PYRO),
        (pipeline_complete, b"+OK\r\n" * 100),
    ],
    ids=["http", "chunked", "redis", "pyro", "pipeline"],
)
def test_an_answer_is_complete_at_its_last_byte_only(complete: Callable[[bytes], bool], answer: bytes) -> None:
    assert [size for size in range(len(answer) + 1) if complete(answer[:size])] == [len(answer)]


@pytest.mark.parametrize(
    ("complete", "answer"),
    [
        (http_complete, HTTP.replace(b"200", b"503")),
        (redis_complete, b"-ERR no\r\n"),
        (redis_complete, b"$-1\r\n"),
        (pipeline_complete, b"+OK\r\n-ERR no\r\n"),
        (pyro_complete, PYRO[:9] + b"\x01" + PYRO[10:]),
    ],
    ids=["http", "redis", "redis nil", "pipeline", "pyro"],
)
def test_an_answer_that_is_no_success_ends_the_run(complete: Callable[[bytes], bool], answer: bytes) -> None:
    with pytest.raises(Failed):
        complete(answer)


def test_a_small_storm_passes_and_breaks_no_promise(tmp_path: Path) -> None:
    kept = tmp_path / "storm.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "storm", "--nodes", "20", "--json", str(kept)],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = json.loads(kept.read_text())["storms"][0]
    assert ours["failures"] == ours["broken"] == []
    assert {step: len(secs) for step, secs in ours["steps"].items()} == dict.fromkeys(STEPS, 20)

"""What a run has found, as a table for people and as a document to keep."""

from __future__ import annotations

import os
import platform
import re
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.benchmarks import coordination, rows
from tests.benchmarks.client import Outcome
from tests.benchmarks.peers import Etcd, OnEtcd, Ours, Redis, StockHello
from tests.benchmarks.rows import Cell, Results

_BOTTLENECK: Final = 0.9
"""Share of a core from which on the client itself may have been the limit."""


@dataclass(frozen=True, slots=True)
class Reach:
    """One thing that we want to reach, and what came of it."""

    what: str
    wanted: float
    found: float
    at_most: bool = False
    """Whether it is reached by being no more than ``wanted``, not by being no less."""

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def machine(folder: Path) -> dict[str, Any]:
    """Return what the figures depend on: the processors, the versions, what one sync of the disk costs."""
    costs = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            costs.append(time.perf_counter() - began)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "fdatasync_us": round(statistics.median(costs) * 1e6),
    }


def _processor() -> str:
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[0] if names else platform.machine()


def median(outcomes: list[Outcome]) -> Outcome:
    """Return the median of each figure over the rounds."""
    rounds = [asdict(outcome) for outcome in outcomes]
    return Outcome(**{name: statistics.median(each[name] for each in rounds) for name in rounds[0]})


def compared(results: Results, cell: Cell, to: Cell, by: Callable[[Outcome, Outcome], float]) -> float | None:
    """Return the median of the rounds' own comparisons of two cells; None where there is nothing to compare.

    Taken round by round because a shared machine's speed drifts from one to the next.
    """
    pairs = list(zip(results.outcomes.get(cell, ()), results.outcomes.get(to, ()), strict=False))
    return statistics.median(by(ours, theirs) for ours, theirs in pairs) if pairs else None


def ratio(results: Results, cell: Cell, to: Cell) -> float | None:
    """Return the ratio of calls per second."""
    return compared(results, cell, to, lambda ours, theirs: ours.per_second / theirs.per_second)


def ours_to(results: Results, cell: Cell) -> float | None:
    """Return the ratio of our broker to a peer; a broker that is on etcd is held against etcd itself."""
    if cell.peer == OnEtcd.name:
        return ratio(results, cell, cell._replace(peer=Etcd.name))
    return ratio(results, cell._replace(peer=Ours.name), cell)


def reach(results: Results) -> Iterator[Reach]:
    """Yield what we want to reach, as far as this run can tell."""
    ours = Ours.name
    clients = sorted({cell.clients for cell in results.outcomes})
    wanted = [
        (row, number, Etcd.name, 1.0 if number == 1 else 0.8) for row in (rows.READS, rows.WRITES) for number in clients
    ]
    wanted += [(rows.CONNECTIONS, number, Etcd.name, 1.0) for number in clients]
    wanted += [(rows.READS, number, StockHello.name, 0.7) for number in clients]
    wanted += [(rows.ONE_SHOT, 1, Etcd.name, 1 / 2.0)]
    for row, number, peer, at_least in wanted:
        found = ratio(results, Cell(row, ours, number), Cell(row, peer, number))
        if found is not None:
            yield Reach(f"{row}, {number} at a time, against {peer}", at_least, found)
    few, many = rows.at_entries(10), rows.at_entries(100_000)
    for number in clients:
        found = ratio(results, Cell(many, ours, number), Cell(few, ours, number))
        if found is not None:
            yield Reach(f"{many}, {number} at a time, against 10 entries", 1 / 1.2, found)
        calm, hanging = Cell(rows.CALM, ours, number), Cell(rows.HANGING, ours, number)
        found = compared(results, hanging, calm, lambda hanging, calm: hanging.p99_ms / calm.p99_ms)
        if found is not None:
            yield Reach(f"p99 of {rows.HANGING}, {number} at a time, against calm ones", 1.5, found, at_most=True)
    yield from _coordination(results, clients)
    call, read = Cell(rows.EXTENSION, ours, 1), Cell(rows.READS, ours, 1)
    found = compared(results, call, read, lambda call, read: call.p50_ms - read.p50_ms)
    if found is not None:
        yield Reach(f"p50 of {rows.EXTENSION}, above a read's, in ms", 1.0, found, at_most=True)


def _coordination(results: Results, clients: list[int]) -> Iterator[Reach]:
    """Yield what coordination is to reach."""
    ours, of = Ours.name, coordination

    def rates(row: str, number: int, to: str, peer: str, wanted: float) -> Iterator[Reach]:
        found = ratio(results, Cell(row, ours, number), Cell(to, peer, number))
        if found is not None:
            against = f"against {peer}" if row == to else f"against {to} of {peer}"
            yield Reach(f"{row}, {number} at a time, {against}", wanted, found)

    for number in clients:
        yield from rates(of.RENEWALS, number, rows.READS, ours, 1.0)
        yield from rates(of.RENEWING_READS, number, of.CALM_READS, ours, 0.9)
        yield from rates(of.RENEWING_WRITES, number, of.CALM_WRITES, ours, 0.9)
        yield from rates(of.LOADED, number, of.BARE, ours, 1 / 1.3)
    for number in (1, 16):
        yield from rates(of.LOCKS, number, of.LOCKS, Etcd.name, 1.0)
    yield from rates(of.BATCHES, 16, rows.WRITES, Redis.name, 1.0)
    for cell, events in results.outcomes.items():
        if cell.row == of.WATCHED:
            found = compared(
                results, cell, cell._replace(row=of.UNWATCHED), lambda watched, alone: watched.p99_ms / alone.p99_ms
            )
            if found is not None:
                yield Reach(f"p99 of {cell.row}, against nobody", 3.0, found, at_most=True)
        if cell.row == of.EVENTS:
            oldest = statistics.median(outcome.max_ms for outcome in events)
            yield Reach(f"oldest event at {cell.clients:,} who watch, in ms", 1000.0, oldest, at_most=True)


def document(results: Results, of: dict[str, Any]) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "machine": of,
        "peers": results.peers,
        "memory_mib": results.memory_mib,
        "cells": [
            {
                **cell._asdict(),
                "median": asdict(median(outcomes)),
                "rounds": [asdict(outcome) for outcome in outcomes],
                "ours_to_it": ours_to(results, cell),
            }
            for cell, outcomes in results.outcomes.items()
            if outcomes
        ],
        "failures": [{**cell._asdict(), "error": error} for cell, error in results.failures.items()],
        "reach": [{**asdict(each), "met": each.met} for each in reach(results)],
    }


def table(results: Results, of: dict[str, Any]) -> str:
    """Return the table: a block for each row, a line for each peer, a column for each number of clients."""
    lines = [", ".join(f"{name} {value}" for name, value in of.items()), ""]
    lines += [f"{name}: {version}" for name, version in results.peers.items()]
    for row in dict.fromkeys(cell.row for cell in results.outcomes):
        cells = [cell for cell in results.outcomes if cell.row == row]
        clients = list(dict.fromkeys(cell.clients for cell in cells))
        lines += ["", f"{row}: calls/s (p50 / p99 ms) ours:it"]
        lines.append(" " * 20 + "".join(f"{f'{number} at a time':<36}" for number in clients).rstrip())
        for peer in dict.fromkeys(cell.peer for cell in cells):
            figures = [_figure(results, Cell(row, peer, number)) for number in clients]
            lines.append(f"  {peer:<18}" + "".join(f"{figure:<36}" for figure in figures).rstrip())
    lines += ["", "memory: " + ", ".join(f"{name} {size:.0f} MiB" for name, size in results.memory_mib.items()), ""]
    lines += [f"failed: {cell}: {error}" for cell, error in results.failures.items()]
    for each in reach(results):
        sign = "<=" if each.at_most else ">="
        lines.append(f"{'met   ' if each.met else 'MISSED'} {each.found:6.2f} {sign} {each.wanted:.2f}  {each.what}")
    return "\n".join(lines)


def _figure(results: Results, cell: Cell) -> str:
    outcomes = results.outcomes.get(cell)
    if not outcomes:
        return "-"
    found = median(outcomes)
    text = f"{found.per_second:,.0f} ({found.p50_ms:.2f} / {found.p99_ms:.2f})"
    against = ours_to(results, cell)
    if cell.peer != Ours.name and against is not None:
        text += f" {against:.2f}"
    return text + (" client-bound" if found.client_cpu > _BOTTLENECK else "")

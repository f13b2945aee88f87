"""``python -m tests.benchmarks storm``: a thousand nodes boot at once, on our broker and on etcd in one run."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import psutil

from bpbroker.discovery.jointoken import parse_token
from tests.benchmarks import arguments, report
from tests.benchmarks.peers import ROOT, Absent, Etcd
from tests.benchmarks.storm_driver import STEPS, Storm
from tests.support.running import RunningBroker

_PROCESSES: Final = 4
_HEAD_START_SECS: Final = 3.0
_MORE_SECS: Final = 600.0
WANTED_RATIO: Final = 0.8
WANTED_RSS_MIB: Final = 300
WANTED_RSS_NODES: Final = 1000
"""Of a storm of so many nodes at most that is wanted."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the nodes turn to."""

    kind: str
    port: int
    pid: int
    key: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a storm."""

    kind: str
    nodes: int
    secs: float
    """From its begin until the last node had left."""
    steps: dict[str, list[float]]
    """Step to what it took each node, in seconds."""
    failures: list[str]
    retries: int
    """Connections that were cut off and made again."""
    rss_mib: float
    """The most that the server had."""
    server_cpu_secs: float
    drivers_cpu_secs: float
    broken: list[str]
    """What must never be: two winners, a number twice."""


@contextmanager
def _broker(folder: Path, nodes: int) -> Iterator[Target]:
    limit = max(1000, 2 * nodes)
    settings: dict[str, Any] = {"services": {"_access_key": "a key of the storm", "seed": {"x": 1}}}
    if nodes > 1000:  # more than the defaults allow at one time
        settings["api"] = {"max_connections": 2 * limit, "max_waiting": 2 * limit}
        settings["_registry"] = {"max_sessions": limit, "max_places": limit, "max_numbers": limit}
    folder.mkdir()
    broker = RunningBroker(folder, settings)
    del broker.environ["PYTHONWARNINGS"]
    try:
        broker.start()
        token = parse_token(broker.token())
        yield Target("bpbroker", broker.port, broker.pid, token.key, token.secret)
    finally:
        broker.kill()


@contextmanager
def _etcd(folder: Path, _nodes: int) -> Iterator[Target]:
    folder.mkdir()
    etcd = Etcd(folder)
    try:
        etcd.start()
        assert etcd.process is not None
        yield Target("etcd", etcd.port, etcd.process.pid)
    finally:
        etcd.stop()


class _Watched:
    """Looks how much memory a process has, ten times a second."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self.most = 0
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, self._process.memory_info().rss)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_secs(self) -> float:
        used = self._process.cpu_times()
        return float(used.user + used.system)


def run(target: Target, nodes: int, arrival_secs: float) -> Outcome:
    """Let the nodes come, and wait until all of them have left."""
    begin = time.time() + _HEAD_START_SECS
    share = -(-nodes // _PROCESSES)
    with _Watched(target.pid) as server:
        used_before = server.cpu_secs()
        drivers = []
        for first in range(0, nodes, share):
            part = Storm(
                target.kind, target.port, first, min(share, nodes - first), nodes, arrival_secs, begin, target.key,
                target.secret,
            )  # fmt: skip
            drivers.append(_driver(part))
        courses = []
        for driver in drivers:
            said, _ = driver.communicate(timeout=arrival_secs + _MORE_SECS)
            if driver.returncode:
                raise SystemExit(f"A driver of the storm ended with {driver.returncode}")
            courses.append(json.loads(said))
        used = server.cpu_secs() - used_before
        most = server.most
    steps: dict[str, list[float]] = {}
    for course in courses:
        for step, secs in course["steps"].items():
            steps.setdefault(step, []).extend(secs)
    numbers = [number for course in courses for number in course["numbers"]]
    won = sum(course["won"] for course in courses)
    failures = [failure for course in courses for failure in course["failures"]]
    broken = [] if len(set(numbers)) == len(numbers) else ["a number was given twice"]
    if won != 1 and not failures:
        broken.append(f"{won} nodes did what one had to do")
    return Outcome(
        kind=target.kind,
        nodes=nodes,
        secs=max(course["ended"] for course in courses) - begin,
        steps=steps,
        failures=failures,
        retries=sum(course["retries"] for course in courses),
        rss_mib=most / 2**20,
        server_cpu_secs=used,
        drivers_cpu_secs=sum(course["cpu_secs"] for course in courses),
        broken=broken,
    )


def _driver(part: Storm) -> subprocess.Popen[str]:
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.storm_driver"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stdin is not None
    driver.stdin.write(json.dumps(asdict(part)))
    driver.stdin.close()
    driver.stdin = None  # communicate() must not flush it
    return driver


def p99(secs: Sequence[float]) -> float:
    """Return what 99 of 100 took at most."""
    return sorted(secs)[max(0, -(-len(secs) * 99 // 100) - 1)]


def table(ours: Outcome, theirs: Outcome | None) -> str:
    """Return what happened, a line for each step."""
    columns = [ours, *([theirs] if theirs else [])]
    lines = [
        f"{ours.nodes:,} nodes, p50 / p99 of a step in ms",
        "",
        "| step | " + " | ".join(each.kind for each in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for step in STEPS:
        cells = [
            f"{statistics.median(each.steps[step]) * 1e3:.0f} / {p99(each.steps[step]) * 1e3:.0f}"
            if step in each.steps
            else "-"
            for each in columns
        ]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    for what, shown in (
        ("all done, s", lambda each: f"{each.secs:.1f}"),
        ("refused or failed", lambda each: f"{len(each.failures)}"),
        ("connected again", lambda each: f"{each.retries}"),
        ("server's memory, MiB", lambda each: f"{each.rss_mib:.0f}"),
        ("server's CPU, s", lambda each: f"{each.server_cpu_secs:.1f}"),
        ("drivers' CPU, s", lambda each: f"{each.drivers_cpu_secs:.1f}"),
    ):
        lines.append(f"| {what} | " + " | ".join(map(shown, columns)) + " |")
    lines.append("")
    if theirs is not None:
        ratio = ours.secs / theirs.secs
        lines.append(f"- {_met(ratio <= WANTED_RATIO)} time of etcd's: {ratio:.2f} (wanted: at most {WANTED_RATIO})")
    lines.append(f"- {_met(not ours.failures)} nothing is refused")
    if ours.nodes <= WANTED_RSS_NODES:
        met = _met(ours.rss_mib <= WANTED_RSS_MIB)
        lines.append(f"- {met} memory: {ours.rss_mib:.0f} MiB (at most {WANTED_RSS_MIB})")
    lines += [f"- BROKEN by {each.kind}: {what}" for each in columns for what in each.broken]
    lines += [f"- {each.kind}: {failure}" for each in columns for failure in sorted(set(each.failures))[:5]]
    return "\n".join(lines)


def _met(reached: bool) -> str:
    return "reached:" if reached else "NOT reached:"


def main(words: Sequence[str]) -> None:
    """Let a storm come over our broker, then over etcd; print what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks storm", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--arrival", type=float, default=0.0, metavar="SECS", help="time over which they come")
    parser.add_argument("--only-ours", action="store_true", help="leave etcd out")
    parser.add_argument("--json", type=arguments.new_file, metavar="FILE", help="keep all figures there")
    parser.add_argument(
        "--folder", type=arguments.folder, help="where the servers keep their data: on the disk that counts"
    )
    chosen = parser.parse_args(words)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft != hard else (soft, hard))
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="storm-", dir=chosen.folder) as name:
        folder = Path(name)
        of = report.machine(folder)
        for kind in (_broker,) if chosen.only_ours else (_broker, _etcd):
            try:
                with kind(folder / kind.__name__, chosen.nodes) as target:
                    outcomes.append(run(target, chosen.nodes, chosen.arrival))
                    sys.stderr.write(f"{target.kind}: {outcomes[-1].secs:.1f} s\n")
            except Absent as why:
                sys.stderr.write(f"left out: {why}\n")
    sys.stdout.write(f"{table(outcomes[0], outcomes[1] if len(outcomes) > 1 else None)}\n")
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": of, "storms": [asdict(each) for each in outcomes]}) + "\n")
    sys.exit(1 if any(each.broken for each in outcomes) else os.EX_OK)

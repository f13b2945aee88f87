"""What is measured: the rows of the table, and the rounds in which they are taken in turn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from bpbroker.discovery import datagram
from tests.benchmarks import coordination, peers
from tests.benchmarks.client import Failed, Job, Outcome, outcome_of
from tests.benchmarks.peers import NAMES, Absent, Etcd, Ours, Peer

WRITES: Final = "durable writes, keep-alive"
READS: Final = "reads, keep-alive"
CONNECTIONS: Final = "one read per new TLS connection"
EXTENSION: Final = "calls of a trivial extension, keep-alive"
CALM: Final = "reads, no extension hangs"
HANGING: Final = "reads, an extension hangs"
ONE_SHOT: Final = "one read as a whole process"
DISCOVERY: Final = "discovery round trips"


@dataclass(frozen=True, slots=True)
class Row:
    """Requests that are sent to every peer that takes them."""

    name: str
    requests: Callable[[Peer], Sequence[bytes]]
    reconnect: bool = False


ROWS: Final = (
    Row(WRITES, lambda peer: peer.writes),
    Row(READS, lambda peer: peer.reads),
    Row(CONNECTIONS, lambda peer: peer.reads, reconnect=True),
    Row(EXTENSION, lambda peer: peer.calls),
)


class Cell(NamedTuple):
    """One figure's place in the table."""

    row: str
    peer: str
    clients: int


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    rounds: int
    secs: float
    """For one cell in one round."""
    clients: Sequence[int]
    entries: Sequence[int]
    """Numbers of entries at which a write's cost is taken."""
    processes: int
    """How many whole processes make one figure."""
    sessions: int = 10_000
    watches: int = 1000
    pace_secs: float = 2.0
    """How long one of the watched writers waits between two writes."""
    part: str = ""
    """Only rows whose name has this in it, in any case, are taken."""
    bpclient: Path | None = None
    """The client of the shell that is timed; by default the one beside this Python."""

    def takes(self, row: str) -> bool:
        """Whether a row is to be taken."""
        return self.part.lower() in row.lower()


FULL: Final = Extent(3, 2.0, (1, 16, 64), (10, 1_000, 100_000), 15)
QUICK: Final = Extent(1, 0.2, (1, 4), (10, 1_000), 2, 50, 20, 0.2)


@dataclass(slots=True)
class Results:
    """Everything that a run has found."""

    peers: dict[str, str] = field(default_factory=dict)
    """Version of each that took part, or why it did not."""
    outcomes: dict[Cell, list[Outcome]] = field(default_factory=dict)
    failures: dict[Cell, str] = field(default_factory=dict)
    memory_mib: dict[str, float] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None
    """Told each figure as soon as it is there."""

    def take(self, cell: Cell, measure: Callable[[], Outcome]) -> None:
        """Measure a cell once more; a failure is noted and does not end the run."""
        what = f"{cell.row}, {cell.clients} at a time, {cell.peer}"
        try:
            found = measure()
        except Failed as error:
            self.failures[cell] = str(error)
            self.say(f"{what}: failed: {error}")
            return
        self.outcomes.setdefault(cell, []).append(found)
        self.say(
            f"{what}: {found.per_second:,.0f} calls/s ({found.p50_ms:.2f} / {found.p99_ms:.2f} ms)"
            + (f", {found.server_cpu_us:.0f} us CPU" if found.server_cpu_us else "")
        )


def at_entries(entries: int) -> str:
    """Return the name of the row of writes with so many entries."""
    return f"durable writes at {entries:,} entries"


def names(extent: Extent) -> list[str]:
    """Return the names of all rows of a run of this extent, in its order."""
    return [
        *(row.name for row in ROWS),
        *coordination.AGAINST_EACH_OTHER,
        *(CALM, HANGING, ONE_SHOT, DISCOVERY),
        *map(at_entries, extent.entries),
        *coordination.BESIDE,
    ]


def measure(folder: Path, extent: Extent, say: Callable[[str], None]) -> Results:
    """Measure everything; ``say`` is told what is under way."""
    results = Results(say=say)
    with _running((kind(folder) for kind in peers.ALL), results, say) as running:
        for number in range(extent.rounds):
            say(f"round {number + 1} of {extent.rounds}")
            _against_each_other(running, extent, results)
            _coordinating(running, extent, results, prepare=number == 0)
            _beside_a_hang(running, extent, results)
            if extent.takes(ONE_SHOT):
                _one_shots(running, extent, results)
            if extent.takes(DISCOVERY):
                _discovery(running, extent, results)
        results.memory_mib = {peer.name: peer.memory_mib() for peer in running}
    if any(extent.takes(at_entries(entries)) for entries in extent.entries):
        _cost_of_entries(folder, extent, results, say)
    if any(extent.takes(row) for row in coordination.BESIDE):
        _cost_of_others(folder, extent, results, say)
    return results


@contextmanager
def _running(candidates: Iterable[Peer], results: Results, say: Callable[[str], None]) -> Iterator[list[Peer]]:
    """Start the peers that are there; all are stopped in the end."""
    started: list[Peer] = []
    try:
        for peer in candidates:
            try:
                started.append(peer)
                peer.start()
                results.peers[peer.name] = peer.version()
            except Absent as why:
                peer.stop()
                started.remove(peer)
                results.peers[peer.name] = f"left out: {why}"
            say(f"{peer.name}: {results.peers[peer.name]}")
        yield started
    finally:
        for peer in started:
            peer.stop()


def _against_each_other(running: Sequence[Peer], extent: Extent, results: Results) -> None:
    """Take each row of each peer once, the peers in turn so that a noisy minute hits all of them."""
    for row in ROWS:
        if not extent.takes(row.name):
            continue
        for clients in extent.clients:
            for peer in running:
                requests = row.requests(peer)
                if requests:
                    job = peer.job(requests, clients, extent.secs, reconnect=row.reconnect)
                    results.take(Cell(row.name, peer.name, clients), partial(peer.measured, job))


def _coordinating(running: Sequence[Peer], extent: Extent, results: Results, *, prepare: bool) -> None:
    """Take the rows of coordination, the peers in turn."""
    rows = [row for row in coordination.AGAINST_EACH_OTHER if extent.takes(row)]
    if rows and prepare:
        for peer in running:
            coordination.prepare(peer)
    for row in rows:
        for clients in extent.clients:
            for peer in running:
                job = coordination.job_of(peer, row, clients, extent.secs)
                if job is not None:
                    results.take(Cell(row, peer.name, clients), partial(peer.measured, job))


def _cost_of_others(folder: Path, extent: Extent, results: Results, say: Callable[[str], None]) -> None:
    """Take what sessions and watches cost all others, on brokers of their own."""
    entries = extent.entries[-1]
    say(f"a broker with {entries:,} entries, {extent.sessions:,} sessions, {extent.watches:,} watches; and one without")

    def take(row: str, peer: str, clients: int, measure: Callable[[], Outcome]) -> None:
        results.take(Cell(row, peer, clients), measure)

    with coordination.brokers(folder, entries, extent.sessions) as pair:
        for _ in range(extent.rounds):
            size = (extent.clients[1:2], extent.secs, extent.pace_secs, extent.sessions, extent.watches)
            coordination.beside_others(pair, size, extent.takes, take)


def _beside_a_hang(running: Sequence[Peer], extent: Extent, results: Results) -> None:
    """Read while an extension hangs, just after reading while none does."""
    for peer in running:
        if isinstance(peer, Ours) and (extent.takes(CALM) or extent.takes(HANGING)):
            for clients in extent.clients:
                job = peer.job(peer.reads, clients, extent.secs)
                results.take(Cell(CALM, peer.name, clients), partial(peer.measured, job))
                results.take(Cell(HANGING, peer.name, clients), partial(_hanging, peer, job))


def _hanging(peer: Ours, job: Job) -> Outcome:
    with peer.hanging():
        return peer.measured(job)


def _one_shots(running: Sequence[Peer], extent: Extent, results: Results) -> None:
    """Time the client of the shell, start and end of its process included, beside a Python that does nothing."""
    commands: dict[str, tuple[list[str], Mapping[str, str]]] = {}
    for peer in running:
        if isinstance(peer, Ours):
            script = extent.bpclient or Path(sys.executable).with_name("bpclient")
            client = [str(script)] if script.exists() else peer.broker.command("bpbroker.client")
            call = [*client, "-b", f"127.0.0.1:{peer.port}", "service", "get", "--name", NAMES[0]]
            commands[peer.name] = call, peer.broker.environ
            commands["python -c pass"] = [sys.executable, "-c", "pass"], os.environ
        elif isinstance(peer, Etcd) and (etcdctl := shutil.which("etcdctl")):
            call = [etcdctl, f"--endpoints=https://127.0.0.1:{peer.port}", f"--cacert={peer.cert}", "get", NAMES[0]]
            commands[peer.name] = call, {**os.environ, "ETCDCTL_API": "3"}
    for name, (command, environ) in commands.items():
        results.take(Cell(ONE_SHOT, name, 1), partial(_whole_processes, command, environ, extent.processes))


def _whole_processes(command: Sequence[str], environ: Mapping[str, str], count: int) -> Outcome:
    latencies = []
    for _ in range(count + 1):
        began = time.perf_counter()
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        latencies.append(time.perf_counter() - began)
        if done.returncode:
            raise Failed(f"exit code {done.returncode}: {done.stderr.strip()}")
    del latencies[0]  # its files came from the disk; ours also learnt the certificate's fingerprint
    return outcome_of(latencies, sum(latencies), 0.0)


def _discovery(running: Sequence[Peer], extent: Extent, results: Results) -> None:
    questions = [datagram.plain_question(name) for name in NAMES]
    for peer in running:
        if isinstance(peer, Ours):
            for clients in extent.clients:
                job = Job(peer.port, "datagram", questions, clients, extent.secs)
                results.take(Cell(DISCOVERY, peer.name, clients), partial(peer.measured, job))


def _cost_of_entries(folder: Path, extent: Extent, results: Results, say: Callable[[str], None]) -> None:
    """Write to brokers that hold few and many entries, in turn."""
    folders = {entries: folder / f"at-{entries}" for entries in extent.entries}
    for each in folders.values():
        each.mkdir()
    say(f"brokers with {', '.join(f'{entries:,}' for entries in folders)} entries")
    brokers = {entries: Ours(each, entries) for entries, each in folders.items()}
    with _running(brokers.values(), results, lambda _text: None):
        for _ in range(extent.rounds):
            for clients in extent.clients:
                for entries, broker in brokers.items():
                    job = broker.job(broker.writes[:10], clients, extent.secs)
                    results.take(Cell(at_entries(entries), broker.name, clients), partial(broker.measured, job))

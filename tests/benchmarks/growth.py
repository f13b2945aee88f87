"""``python -m tests.benchmarks growth``: what a call costs with few and with many entries, on brokers in turn."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TextIO

from tests.benchmarks import arguments
from tests.benchmarks.client import Beside, Job, Outcome, outcome_of, run
from tests.benchmarks.coordination import TIMED_WRITES, watching
from tests.benchmarks.peers import DATA, Ours, https_post

SIZES: Final = (1_000, 100_000, 1_000_000)
WANTED: Final = (1.3, 2.0)
"""How many times as much a call may cost from one size to the next."""
CALLS: Final = 1000
_ROUNDS: Final = 3
_PACE_SECS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Growth:
    """What one kind of call costs at each size."""

    what: str
    p50_ms: Mapping[int, float]

    @property
    def steps(self) -> list[float]:
        """How many times as much it costs at each size as at the one before."""
        found = list(self.p50_ms.values())
        return [after / before for before, after in pairwise(found)]


def _register(prefix: str) -> Callable[[int], Sequence[bytes]]:
    """Return what makes the requests of a round that register names with a prefix, each once."""
    return lambda number: [
        https_post("/services/Register/", {"name": f"{prefix}{number}-{n:05}", "data": DATA}) for n in range(CALLS)
    ]


def _all(requests: Sequence[bytes]) -> Callable[[int], Sequence[bytes]]:
    return lambda _number: [requests[n % len(requests)] for n in range(CALLS)]


# The entries that are there are called other-000000 and so on.
CALLS_OF: Final[Mapping[str, Callable[[int], Sequence[bytes]]]] = {
    "Get": _all(Ours.reads),
    "Replace": _all(Ours.writes),
    "Register in front": _register("a-"),
    "Register in the middle": _register("other-000500-"),
    "Register behind": _register("z-"),
    "List of ten": _all([https_post("/services/List/", {"prefix": f"other-0000{n}"}) for n in range(10)]),
}
EVENT: Final = "event at a watch"


def measure(folder: Path, sizes: Sequence[int], rounds: int, say: Callable[[str], None]) -> list[Growth]:
    """Measure all calls at all sizes; ``say`` is told what is under way."""
    found: dict[str, dict[int, list[float]]] = {what: {size: [] for size in sizes} for what in (*CALLS_OF, EVENT)}
    with ExitStack() as stack:
        brokers = {}
        for size in sizes:
            say(f"a broker with {size:,} entries")
            (folder / str(size)).mkdir()
            brokers[size] = broker = Ours(folder / str(size), size)
            stack.callback(broker.stop)
            broker.start()
            run(broker.job(Ours.writes, 16))
        for number in range(rounds):
            for what, requests in CALLS_OF.items():
                for size, broker in brokers.items():
                    found[what][size].append(run(broker.job(requests(number), 1)).p50_ms)
            for size, broker in brokers.items():
                found[EVENT][size].append(_event(broker).p50_ms)
            say(f"round {number + 1} of {rounds}")
    return [Growth(what, {size: statistics.median(each) for size, each in of.items()}) for what, of in found.items()]


def _event(broker: Ours) -> Outcome:
    """Return how old events are where somebody watches."""
    with Beside(watching(broker, "node-", 1)) as beside:
        run(Job(broker.port, "http", TIMED_WRITES[:200], 1, pace_secs=_PACE_SECS))
    return beside.outcome or outcome_of([], 1.0, 0.0)


def table(found: Sequence[Growth]) -> Iterator[str]:
    """Yield the lines of a table for the page."""
    sizes = list(found[0].p50_ms)
    yield f"| p50 in ms, at so many entries | {' | '.join(f'{size:,}' for size in sizes)} | times as much |"
    yield f"|---|{'---|' * (len(sizes) + 1)}"
    for each in found:
        figures = " | ".join(f"{value:.2f}" for value in each.p50_ms.values())
        yield f"| {each.what} | {figures} | {', '.join(f'{step:.2f}' for step in each.steps)} |"
    yield ""
    for number, most in enumerate(WANTED[: len(sizes) - 1]):
        worst = max(found, key=lambda each: each.steps[number])
        met = "reached" if worst.steps[number] <= most else "NOT reached"
        step = f"from {sizes[number]:,} to {sizes[number + 1]:,} entries"
        yield f"- {met}: {step} at most {most} times as much ({worst.what}: {worst.steps[number]:.2f})"


def main(words: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks growth", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N")
    parser.add_argument(
        "--folder", type=arguments.folder, help="where the brokers keep their data: on the disk that counts"
    )
    chosen: Any = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=chosen.folder) as folder:
        found = measure(Path(folder), chosen.sizes, chosen.rounds, lambda text: _line(sys.stderr, text))
    for line in table(found):
        _line(sys.stdout, line)
    sys.exit(0)


def _line(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()

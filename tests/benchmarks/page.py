"""``docs/benchmarks.md``, made of what a run has kept: what was measured, on what, and where we lose. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tests.benchmarks import coordination, rows
from tests.benchmarks.peers import Etcd, OnEtcd, Ours, Redis

Document = Mapping[str, Any]
"""What :func:`tests.benchmarks.report.document` returns."""

_REAL: Final = (Etcd.name, OnEtcd.name, Redis.name)
"""Peers that do our work; the others only show where time goes."""

_REDIS: Final = (
    "Redis is one C program that reads a few bytes of a protocol of its own. A request of ours is HTTP and JSON, "
    "and is read, decided and logged in Python; what that costs without the registry, *hello on ours* shows, and that "
    "alone is slower than Redis. Of a read's CPU time about half is TLS by pyOpenSSL, system calls and the loop, two "
    "fifths are the parsing, the application and the response, the rest is the log. Of a durable write's, with 16 at a "
    "time, a fifth is the registry and SQLite."
)
_ON_ETCD: Final = (
    "Each call is one call of the same gateway, and TLS, HTTP and JSON of our own besides. A write is a transaction: "
    "it compares the version that it rests on, and says which commit it is, so that it happens once. That alone takes "
    "etcd a quarter longer than the plain put that it is compared with, and etcd tells each change to every broker: "
    "from one Python thread a put takes 1.2 ms, our transaction 1.45 ms, and 1.75 ms while a watch is open. The rest "
    "is our own TLS and HTTP, and three threads that wake each other. Calls that wait together share requests, so with "
    "more clients we lose less."
)
WHY: Final[Mapping[tuple[str, str], str]] = {
    (rows.ONE_SHOT, Etcd.name): (
        "`etcdctl` is a compiled program; *python -c pass* shows what starting Python alone takes."
    ),
    (rows.CONNECTIONS, Redis.name): "The handshake is OpenSSL's on both sides; what drives it here is Python.",
    (coordination.BATCHES, Redis.name): (
        "Each entry is checked, encoded and handed to SQLite in Python: 26 µs, of which decoding takes 9, the registry "
        "8, SQLite 5, the response and the log 4. Redis takes its pipeline in C."
    ),
    (coordination.BATCHES, Etcd.name): "As against Redis: etcd decodes its transaction of 100 puts in compiled code.",
}
"""Why we lose a row against a peer; for a whole peer in :data:`WHY_PEER`."""
WHY_PEER: Final[Mapping[str, str]] = {Redis.name: _REDIS, OnEtcd.name: _ON_ETCD}


def page(document: Document, sections: Sequence[tuple[str, str]] = ()) -> str:
    """Return the page for a run.

    Args:
        document: what it has found.
        sections: titles and texts of what other runs have printed.
    """
    more = (line for title, text in sections for line in (f"\n## {title}\n", text.strip()))
    return "\n".join([*_head(document), *_rows(document), *more, *_lost(document), *_reach(document)]) + "\n"


def _head(document: Document) -> Iterator[str]:
    machine = document["machine"]
    yield "# Benchmarks\n"
    yield f"Measured on {document['date']} by `{document['command']}`, which writes this page. Not all of it is"
    yield "good news: see [where we lose](#where-we-lose-and-why). Client, broker and peers share one machine, so"
    yield "compare figures of one row with each other, not with those of other machines.\n"
    yield f"A figure is the median of {document['rounds']} rounds of {document['secs']:g} s, in which the peers take"
    yield "turns. All speak TLS, and answer a write when it is on disk. *Ours* is our rate divided by theirs, round by"
    yield "round: above 1 we are faster. In brackets are the time that one call in a hundred takes longer than (p99),"
    yield "and the CPU time of the server's processes for one call.\n"
    if machine["load"] > 1:
        yield f"**The machine was busy with other work, at a load of {machine['load']}.** Rates and times are worse"
        yield "than on a calm one, and scatter. CPU times do so least.\n"
    yield "| machine | |\n|---|---|"
    for name, value in machine.items():
        yield f"| {name.replace('_', ' ')} | {value} |"
    yield "\n| peer | version, or what it is |\n|---|---|"
    for name, version in document["peers"].items():
        yield f"| {name} | {version} |"


def _rows(document: Document) -> Iterator[str]:
    cells = document["cells"]
    for row in dict.fromkeys(cell["row"] for cell in cells):
        mine = [cell for cell in cells if cell["row"] == row]
        clients = sorted({cell["clients"] for cell in mine})
        yield f"\n## {row[0].upper()}{row[1:]}\n"
        yield f"| calls/s (p99, CPU a call) | {' | '.join(f'{number:,} at a time' for number in clients)} |"
        yield f"|---|{'---|' * len(clients)}"
        for peer in dict.fromkeys(cell["peer"] for cell in mine):
            found = {cell["clients"]: cell for cell in mine if cell["peer"] == peer}
            yield f"| {peer} | {' | '.join(_figure(found.get(number)) for number in clients)} |"


def _figure(cell: Document | None) -> str:
    if cell is None:
        return "-"
    median, ratio = cell["median"], cell["ours_to_it"]
    against = f", ours **{ratio:.2f}**" if ratio is not None and cell["peer"] != Ours.name else ""
    cpu = f", {median['server_cpu_us']:.0f} µs" if median["server_cpu_us"] else ""
    return f"{median['per_second']:,.0f} ({median['p99_ms']:.3g} ms{cpu}){against}"


def losses(document: Document) -> Iterator[tuple[str, str, Sequence[tuple[int, float]]]]:
    """Yield row, peer, and with how many clients which ratio, where we are slower."""
    for row in dict.fromkeys(cell["row"] for cell in document["cells"]):
        for peer in _REAL:
            found = [
                (cell["clients"], cell["ours_to_it"])
                for cell in document["cells"]
                if (cell["row"], cell["peer"]) == (row, peer) and cell["ours_to_it"] is not None
            ]
            lost = [(clients, ratio) for clients, ratio in found if ratio < 1]
            if lost:
                yield row, peer, lost


def _lost(document: Document) -> Iterator[str]:
    yield "\n## Where we lose, and why\n"
    yield "The reasons are from profiles of one process, and from the CPU times of its threads.\n"
    for row, peer, found in losses(document):
        against = f"{peer} against etcd itself" if peer == OnEtcd.name else f"against {peer}"
        ratios = ", ".join(f"{ratio:.2f} at {clients}" for clients, ratio in found)
        why = WHY.get((row, peer)) or WHY_PEER.get(peer) or "Not looked into yet."
        yield f"* **{row[0].upper()}{row[1:]}**, {against}: {ratios}. {why}"
    for failure in document["failures"]:
        yield f"* {failure['row']}, {failure['clients']} at a time, {failure['peer']}: failed: {failure['error']}"


def _reach(document: Document) -> Iterator[str]:
    yield "\n## What is to be reached\n"
    yield "| | found | wanted | |\n|---|---|---|---|"
    for each in document["reach"]:
        sign = "≤" if each["at_most"] else "≥"
        met = "met" if each["met"] else "**missed**"
        yield f"| {each['what']} | {each['found']:.2f} | {sign} {each['wanted']:.2f} | {met} |"

"""What coordination costs: renewals, locks, batches, watches, and what sessions and watches cost all others."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.client import PIPELINE, WHEN, Beside, Failed, Job, Outcome, run
from tests.benchmarks.peers import DATA, NAMES, Etcd, OnEtcd, Ours, Peer, Redis, https_post

RENEWALS: Final = "renewals of a session, keep-alive"
LOCKS: Final = "lock and unlock, uncontended, keep-alive"
BATCHES: Final = "durable writes, 100 in one request"
UNWATCHED: Final = "durable writes of 16 clients at a pace, nobody watches"
WATCHED: Final = "durable writes of 16 clients at a pace, all are watched"
EVENTS: Final = "how old an event is at who watches"
CALM_READS: Final = "reads, sessions are not renewed"
RENEWING_READS: Final = "reads, sessions are renewed every 20 s"
CALM_WRITES: Final = "durable writes, sessions are not renewed"
RENEWING_WRITES: Final = "durable writes, sessions are renewed every 20 s"
BARE: Final = "durable writes, nothing else is there"
LOADED: Final = "durable writes, entries, sessions and watches are there"

AGAINST_EACH_OTHER: Final = (RENEWALS, LOCKS, BATCHES)
BESIDE: Final = (
    *(BARE, LOADED, CALM_READS, RENEWING_READS, CALM_WRITES, RENEWING_WRITES),
    *(UNWATCHED, WATCHED, EVENTS),
)

_TTL_SECS: Final = 86_400
_SESSIONS: Final = 1000
"""Of each peer, for renewals and locks."""
_RENEW_SECS: Final = 20.0
_WRITERS: Final = 16
_SETTINGS: Final = {"_registry": {"max_sessions": 20_000}}


def _text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _session(number: int) -> str:
    return f"bench-{number}"


def opens(count: int) -> list[bytes]:
    """Return the requests that open so many sessions."""
    return [https_post("/services/Open/", {"session": _session(n), "ttl": _TTL_SECS}) for n in range(count)]


def renewals(count: int) -> list[bytes]:
    """Return the requests that renew them."""
    return [https_post("/services/Renew/", {"session": _session(n)}) for n in range(count)]


def prepare(peer: Peer) -> None:
    """Give a peer the sessions that renewals and locks need."""
    if isinstance(peer, (Ours, OnEtcd)):
        run(peer.job(opens(_SESSIONS), 16))
    elif isinstance(peer, Etcd):
        # Etcd chooses no id that is as small as these.
        run(peer.job([https_post("/v3/lease/grant", {"ID": n + 1, "TTL": _TTL_SECS}) for n in range(_SESSIONS)], 16))


def job_of(peer: Peer, row: str, clients: int, secs: float) -> Job | None:
    """Return the job of a row for a peer; None if it does not take part."""
    if row == RENEWALS and isinstance(peer, (Ours, OnEtcd)):
        return peer.job(renewals(_SESSIONS), clients, secs)
    if row == RENEWALS and isinstance(peer, Etcd):
        requests = [https_post("/v3/lease/keepalive", {"ID": n + 1}) for n in range(_SESSIONS)]
        return peer.job(requests, clients, secs)
    if row == LOCKS and isinstance(peer, (Ours, OnEtcd)):
        return _pairs(peer, _our_locks, clients, secs)
    if row == LOCKS and isinstance(peer, Etcd):
        return _pairs(peer, _etcd_locks, clients, secs)
    if row == BATCHES and isinstance(peer, (Ours, OnEtcd)):
        return peer.job(_our_batches(), clients, secs, units=PIPELINE)
    if row == BATCHES and isinstance(peer, Etcd):
        return peer.job(_etcd_batches(), clients, secs, units=PIPELINE)
    if row == BATCHES and isinstance(peer, Redis):
        requests = [b"".join(each) for each in _hundreds(peer.writes)]
        return replace(peer.job(requests, clients, secs, units=PIPELINE), protocol="redis pipeline")
    return None


def _pairs(peer: Peer, make: Callable[[int], Sequence[bytes]], clients: int, secs: float) -> Job:
    """Return a job in which each connection has a lock of its own; a pair of requests counts as one call."""
    return peer.job([request for n in range(clients) for request in make(n)], clients, secs, own=2, units=0.5)


def _our_locks(number: int) -> Sequence[bytes]:
    asked = {"name": f"lock-{number}", "session": _session(number)}
    return https_post("/services/Lock/", asked), https_post("/services/Unlock/", asked)


def _etcd_locks(number: int) -> Sequence[bytes]:
    name, lease = f"lock-{number}", number + 1
    return (
        https_post("/v3/lock/lock", {"name": _text(name), "lease": lease}),
        https_post("/v3/lock/unlock", {"key": _text(f"{name}/{lease:x}")}),
    )


def _hundreds(requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(requests), PIPELINE):
        yield requests[at : at + PIPELINE]


def _our_batches() -> list[bytes]:
    operations = [{"method": "Replace", "name": name, "data": DATA} for name in NAMES]
    return [
        https_post("/services/Batch/", {"operations": list(each), "atomic": False}) for each in _hundreds(operations)
    ]


def _etcd_batches() -> list[bytes]:
    puts = [{"request_put": {"key": _text(name), "value": _text(DATA)}} for name in NAMES]
    return [https_post("/v3/kv/txn", {"success": list(each)}) for each in _hundreds(puts)]


Take = Callable[[str, str, int, Callable[[], Outcome]], None]
"""Function of row, peer, clients and what measures them."""


Size = tuple[Sequence[int], float, float, int, int]
"""Numbers of clients, seconds for a cell, seconds between two writes that are watched, sessions, watches."""


@contextmanager
def brokers(folder: Path, entries: int, sessions: int) -> Iterator[tuple[Ours, Ours]]:
    """Yield a broker that has nothing but what it is asked, and one with entries and sessions."""
    with ExitStack() as stack:
        made = []
        for name, count in (("bare", 0), ("loaded", entries)):
            (folder / name).mkdir()
            made.append(Ours(folder / name, count, _SETTINGS))
            stack.callback(made[-1].stop)
            made[-1].start()
        bare, loaded = made
        run(loaded.job(opens(sessions), 16))
        yield bare, loaded


def beside_others(
    pair: tuple[Ours, Ours],
    extent: Size,
    wanted: Callable[[str], bool],
    take: Take,
) -> None:
    """Take once what sessions and watches cost others.

    Args:
        pair: of :func:`brokers`.
        extent: how much is measured.
        wanted: whether a row is to be taken.
        take: notes what a cell shows.
    """
    for measure, rows in (
        (_beside_much, (BARE, LOADED)),
        (_beside_renewals, (CALM_READS, RENEWING_READS, CALM_WRITES, RENEWING_WRITES)),
        (_beside_watches, (UNWATCHED, WATCHED, EVENTS)),
    ):
        if any(map(wanted, rows)):
            try:
                measure(pair, extent, take)
            except Failed as error:  # what runs beside did not begin, or ended badly
                for row in rows:
                    take(row, pair[0].name, extent[0][0], partial(_fail, error))


def _beside_much(pair: tuple[Ours, Ours], extent: Size, take: Take) -> None:
    bare, loaded = pair
    clients, secs, _, _, watches = extent
    with Beside(watching(loaded, "nothing/", watches)):
        for number in clients:
            for row, broker in ((BARE, bare), (LOADED, loaded)):
                take(row, bare.name, number, partial(broker.measured, broker.job(broker.writes, number, secs)))


def _beside_renewals(pair: tuple[Ours, Ours], extent: Size, take: Take) -> None:
    _, loaded = pair
    clients, secs, _, sessions, _ = extent
    renewing = loaded.job(renewals(sessions), _WRITERS, pace_secs=_RENEW_SECS * _WRITERS / sessions)
    for calm, busy, requests in (
        (CALM_READS, RENEWING_READS, loaded.reads),
        (CALM_WRITES, RENEWING_WRITES, loaded.writes),
    ):
        for number in clients:
            job = loaded.job(requests, number, secs)
            take(calm, loaded.name, number, partial(loaded.measured, job))
            with Beside(renewing):
                take(busy, loaded.name, number, partial(loaded.measured, job))


def _beside_watches(pair: tuple[Ours, Ours], extent: Size, take: Take) -> None:
    bare, _ = pair
    _, _, pace, _, watches = extent
    # Every write is told to every watch: all of them at full speed would measure nothing but that.
    paced = bare.job(TIMED_WRITES, _WRITERS, 8 * pace, pace_secs=pace)
    take(UNWATCHED, bare.name, _WRITERS, partial(bare.measured, paced))
    with Beside(watching(bare, "node-", watches)) as beside:
        take(WATCHED, bare.name, _WRITERS, partial(bare.measured, paced))
    take(EVENTS, bare.name, watches, partial(_outcome, beside))


def _fail(error: Failed) -> Outcome:
    raise error


TIMED_WRITES: Final = tuple(
    https_post("/services/Replace/", {"name": name, "data": {**json.loads(DATA), "when": WHEN}}) for name in NAMES
)
"""Writes that tell who watches when they were sent."""


def watching(broker: Ours, prefix: str, watches: int) -> Job:
    """Return the job of so many who watch a prefix; its outcome is how old events of :data:`TIMED_WRITES` are."""
    return Job(broker.port, "watch", (json.dumps({"prefix": prefix}).encode(),), watches)


def _outcome(beside: Beside) -> Outcome:
    if beside.outcome is None:
        raise Failed("no event came")
    return beside.outcome

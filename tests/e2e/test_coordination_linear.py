"""Locks, sessions, numbers, taking, batches by several clients at once: some order of all calls explains all answers.

Clients also wait for locks, and watches follow what is written: each change comes once, in order.
Once against one broker that is killed in between, once against three brokers on one etcd cluster, whose members are
killed too; once against three whose hosts are cut off, and that stand still. Many times as many calls with
``BPBROKER_LONG=1``. Faults that no single answer shows are put in, to see that the check finds them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.coordinating import Coordinating
from tests.support.crowd import BLIND
from tests.support.etcd_cluster import PREFIX, EtcdCluster, needs_etcd
from tests.support.etcd_network import EtcdNetwork
from tests.support.network import needs_namespaces
from tests.support.running import RunningBroker

LONG = os.environ.get("BPBROKER_LONG") == "1"
Make = Callable[..., RunningBroker]


def again(broker: RunningBroker) -> None:
    broker.kill()
    broker.port = 0  # the old one may have been taken meanwhile
    broker.start()


def check(crowd: Coordinating) -> None:
    print(crowd)  # noqa: T201 - for -s
    assert not [answer for answer in crowd.answers if answer[1] not in (0, 200, 404, 409, 412, 503)], crowd.answers
    problems = crowd.problems()
    assert not problems, "\n".join(problems)


@pytest.mark.timeout(1800 if LONG else 300)
def test_one_broker_that_is_killed(broker: RunningBroker) -> None:
    crowd = Coordinating([broker], 40_000 if LONG else 3000)
    with crowd.at_work():
        for _ in range(8 if LONG else 3):
            crowd.await_progress(answers=300)
            broker.kill()
            crowd.died()
            again(broker)
        crowd.await_end()
    check(crowd)
    assert broker.stop() == 0
    assert "Traceback" not in broker.text


@needs_etcd
@pytest.mark.timeout(1800 if LONG else 300)
def test_three_brokers_and_three_members_that_are_killed(
    make_etcd: Callable[..., EtcdCluster], make_broker: Make
) -> None:
    etcd = make_etcd().start_all()
    settings = {"_registry": {**etcd.configuration(f"{PREFIX}foo"), "timeout_secs": 2}}
    brokers = [make_broker(settings).start() for _ in range(3)]
    crowd = Coordinating(brokers, 100_000)
    with crowd.at_work():
        crowd.await_progress(answers=200)
        for number in range(3 if LONG else 1):
            again(brokers[number])
            crowd.await_progress()
            killed = etcd.leader()
            etcd.kill(killed)
            crowd.await_progress()
            etcd.start(killed)
            crowd.await_progress(answers=100)
    check(crowd)
    for broker in brokers:
        assert broker.stop() == 0, broker.text


@needs_etcd
@needs_namespaces
@pytest.mark.timeout(1800 if LONG else 300)
def test_hosts_that_are_cut_off_and_processes_that_stand_still(etcd_network: EtcdNetwork, make_broker: Make) -> None:
    network, etcd = etcd_network
    settings = {"_registry": {**etcd.configuration(f"{PREFIX}foo"), "timeout_secs": 2}}
    hosts = [f"broker{number}" for number in (1, 2, 3)]
    brokers = [etcd_network.place(make_broker(settings), host).start() for host in hosts]
    crowd = Coordinating(brokers, 100_000, roam=False)
    with crowd.at_work():
        crowd.await_progress(answers=100)
        for number in range(3 if LONG else 1):
            for host in (hosts[number], f"etcd{etcd.leader() + 1}"):
                network.cut(host)
                crowd.await_progress(*(each for each in range(3) if hosts[each] != host))
                network.heal(host)
                crowd.await_progress()
            still = (number + 1) % 3
            brokers[still].signal(signal.SIGSTOP)
            crowd.await_progress(*(each for each in range(3) if each != still))
            brokers[still].signal(signal.SIGCONT)
            crowd.await_progress()
            paused = etcd.leader()
            etcd.pause(paused)
            crowd.await_progress()
            etcd.resume(paused)
            crowd.await_progress(answers=100)
    check(crowd)
    for broker in brokers:
        assert broker.stop() == 0, broker.text


FENCE_IGNORED = """
from bpbroker.registry import locks
locks.must_hold = lambda *_: None
"""

TOKEN_AGAIN = """
from dataclasses import replace
from bpbroker.registry import locks

parse, tokens = locks.parse, {}

def parsed(record):
    queue = parse(record)
    known = [tokens.setdefault((record.name, each.session), each.token) for each in queue.places]
    places = tuple(replace(each, token=token) for each, token in zip(queue.places, known))
    return replace(queue, places=places)

locks.parse = parsed
"""

TWO_HOLDERS = """
from dataclasses import replace
from bpbroker.registry import locks, writes
from bpbroker.registry.requests import Lock

writes.WRITES[Lock] = lambda write, view, limits: locks.lock(replace(write, limit=2), view, limits)
"""

NUMBER_TWICE = """
from bpbroker.registry import pools
owners = pools._owners
pools._owners = lambda pool, current: dict(list(owners(pool, current).items())[-2:])
"""

QUEUE_JUMPED = """
from dataclasses import replace
from bpbroker.registry import locks
encode = locks.encode
locks.encode = lambda queue, index: encode(
    replace(queue, places=(*queue.places[:1], *queue.places[:0:-1])), index
)
"""

PLACE_KEPT = """
from bpbroker.actors.registry_locks import Locks
Locks._give_back = lambda _locks, _message, then, if_waiting: then(None)
"""

EVENT_LOST = """
from bpbroker.registry.history import History
add = History.add
History.add = lambda history, events, upto: add(history, [each for each in events if each.revision % 7], upto)
"""

EVENT_TWICE = """
from dataclasses import replace
from bpbroker.registry.history import History
read = History.read

def again(history, watch):
    if watch.since is None:
        return read(history, watch)
    registry, _, number = watch.since.rpartition(":")
    return read(history, replace(watch, since=f"{registry}:{max(int(number) - 1, history._floor)}"))

History.read = again
"""

HALF_A_BATCH = """
from bpbroker.errors import RequestError
from bpbroker.record import Record
from bpbroker.registry import memory, writes
from bpbroker.registry.requests import Batch, BatchDone

decide = memory.decide

def half(write, view, limits):
    try:
        return decide(write, view, limits)
    except RequestError:
        if not isinstance(write, Batch) or not view.changes:
            raise
        return BatchDone(tuple(view.changes.values()), view.index)

memory.decide = half
"""

TAKEN_TWICE = """
from bpbroker.registry import taking
take = taking.take

def twice(write, view, limits):
    found = take(write, view, limits)
    view.changes.pop(write.name, None)
    return found

from bpbroker.registry import writes
from bpbroker.registry.requests import Take
writes.WRITES[Take] = twice
"""

SESSION_LEAVES_ITS_LOCK = """
from bpbroker.registry import session_end
session_end._let_go = lambda view, name, session: None
"""

STALE_COUNTER = """
from bpbroker.registry import numbers
count = numbers.count

def forgetful(write, view, limits):
    done = count(write, view, limits)
    if write.owner and done.data["number"] % 5 == 0:
        view.changes.pop(f"_counter/{write.name}/{write.owner}", None)
    return done

from bpbroker.registry import writes
from bpbroker.registry.requests import Next
writes.WRITES[Next] = forgetful
"""

FAULTS = {
    "fence": (FENCE_IGNORED, "locks"),
    "number": (NUMBER_TWICE, "numbers"),
    "half": (HALF_A_BATCH, "pairs"),
    "queue": (QUEUE_JUMPED, "queues"),
    "event": (EVENT_LOST, "watch"),
    "session": (SESSION_LEAVES_ITS_LOCK, "locks"),
    "counter": (STALE_COUNTER, "numbers"),
    "taken": (TAKEN_TWICE, "secrets"),
    "kept": (PLACE_KEPT, "queues"),
    "twice": (EVENT_TWICE, "watch"),
    "token": (TOKEN_AGAIN, "locks"),
    "holders": (TWO_HOLDERS, "locks"),
}
"""Name to the fault, and the names in whose history it shows."""
TOGETHER = ("fence", "number", "half", "queue", "event"), ("session", "counter", "taken", "kept", "twice")
"""Faults that do not hide each other: each shows in another history."""
_ALONE = tuple((name,) for name in FAULTS) if LONG else ()
_POINTS = 100_000
"""Orders that are looked at; of those that nothing explains all would be."""


@pytest.mark.parametrize("faults", [*TOGETHER, *_ALONE], ids="-".join)
def test_the_check_finds(faults: tuple[str, ...], make_broker: Make, tmp_path: Path) -> None:
    """At once: whether clients meet a fault is chance, but there are so many calls that all of them do."""
    (tmp_path / "sitecustomize.py").write_text("\n".join(FAULTS[name][0] for name in faults))
    broker = make_broker()
    broker.environ["PYTHONPATH"] = str(tmp_path)
    broker.start()
    crowd = Coordinating([broker], 4500)
    with crowd.at_work():
        crowd.await_end()
    found = {problem.partition(":")[0].rstrip("0123456789"): problem for problem in crowd.problems(_POINTS)}
    assert set(found) >= {FAULTS[name][1] for name in faults}, found


@needs_etcd
def test_the_check_finds_brokers_that_do_not_look(
    etcd_section: dict[str, Any], make_broker: Make, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLIND)
    brokers = [make_broker({"_registry": etcd_section}) for _ in range(2)]
    for broker in brokers:
        broker.environ["PYTHONPATH"] = str(tmp_path)
        broker.start()
    crowd = Coordinating(brokers, 2000)
    with crowd.at_work():
        crowd.await_end()
    assert crowd.problems(_POINTS)

"""Locks, sessions, numbers, taking, batches by several clients at once: some order of all calls explains all answers.

Once against one broker that is killed in between, once against three brokers on one etcd cluster, whose members are
killed too; 13 times as many calls with ``BPBROKER_LONG=1``. Faults that no single answer shows are put in, to see that
the check finds them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.coordinating import Coordinating
from tests.support.etcd_cluster import PREFIX, EtcdCluster, needs_etcd
from tests.support.running import RunningBroker

LONG = os.environ.get("BPBROKER_LONG") == "1"
Make = Callable[..., RunningBroker]


FORGOTTEN = pytest.mark.filterwarnings(
    # Python's own: a handshake that is reset leaves a socket without a peer to the collector.
    r"ignore:Exception ignored in. <ssl\.SSLSocket (?![^>]*raddr=):pytest.PytestUnraisableExceptionWarning"
)


def again(broker: RunningBroker) -> None:
    broker.kill()
    broker.port = 0  # the old one may have been taken meanwhile
    broker.start()


def check(crowd: Coordinating) -> None:
    print(crowd)  # noqa: T201 - for -s
    assert not [answer for answer in crowd.answers if answer[1] not in (0, 200, 404, 409, 412, 503)], crowd.answers
    problems = crowd.problems()
    assert not problems, "\n".join(problems)


@FORGOTTEN
@pytest.mark.timeout(1800 if LONG else 300)
def test_one_broker_that_is_killed(broker: RunningBroker) -> None:
    crowd = Coordinating([broker], 40_000 if LONG else 3000)
    with crowd.at_work():
        for _ in range(8 if LONG else 3):
            crowd.await_progress(answers=300)
            again(broker)
        crowd.await_end()
    check(crowd)
    assert broker.stop() == 0
    assert "Traceback" not in broker.text


@needs_etcd
@FORGOTTEN
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
from bpbroker.registry import numbers
owners = numbers._owners
numbers._owners = lambda pool, current: dict(list(owners(pool, current).items())[-2:])
"""

HALF_A_BATCH = """
from bpbroker.errors import RequestError
from bpbroker.messages import Record
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
from bpbroker.registry import sessions
sessions._let_go = lambda view, name, session: None
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

BLIND = """
from dataclasses import replace
from bpbroker.registry.changes import ANYTHING
from bpbroker.storage.etcd.store import EtcdStore

commit = EtcdStore.commit

def blind(group):
    changes = tuple(replace(change, expects=ANYTHING) for change in group.changes)
    return replace(group, changes=changes, compared=(), empty=())

EtcdStore.commit = lambda store, groups: commit(store, [blind(group) for group in groups])
"""

FAULTS = {
    "fence": FENCE_IGNORED,
    "number": NUMBER_TWICE,
    "half": HALF_A_BATCH,
    "session": SESSION_LEAVES_ITS_LOCK,
}
if LONG:
    FAULTS |= {"token": TOKEN_AGAIN, "holders": TWO_HOLDERS, "taken": TAKEN_TWICE, "counter": STALE_COUNTER}


def faulty(crowd: Coordinating) -> bool:
    with crowd.at_work():
        crowd.await_end()
    try:
        return bool(crowd.problems())
    except RuntimeError:  # too many orders, and none of them right
        return True


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_finds(fault: str, make_broker: Make, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTS[fault])
    broker = make_broker()
    broker.environ["PYTHONPATH"] = str(tmp_path)
    broker.start()
    # Whether clients meet the fault is chance: they get more than one.
    assert any(faulty(Coordinating([broker], calls)) for calls in (1500, 3000, 6000))


@needs_etcd
def test_the_check_finds_brokers_that_do_not_look(
    etcd_section: dict[str, Any], make_broker: Make, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLIND)
    brokers = [make_broker({"_registry": etcd_section}) for _ in range(2)]
    for broker in brokers:
        broker.environ["PYTHONPATH"] = str(tmp_path)
        broker.start()
    assert faulty(Coordinating(brokers, 2000))

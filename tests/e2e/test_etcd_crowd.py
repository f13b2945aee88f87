"""Sixteen clients of three brokers of one registry in etcd, while whatever can break is broken in turn.

Once round in CI; four times with ``BPBROKER_LONG=1``.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.crowd import BLIND, Crowd, await_that, health, own
from tests.support.etcd_cluster import PREFIX, EtcdCluster, needs_etcd
from tests.support.etcd_network import EtcdNetwork
from tests.support.network import needs_namespaces
from tests.support.running import RunningBroker

pytestmark = needs_etcd

LONG = os.environ.get("BPBROKER_LONG") == "1"
ROUNDS = 4 if LONG else 1
BROKERS = 3
Make = Callable[..., RunningBroker]


def settings(etcd: EtcdCluster) -> dict[str, Any]:
    return {
        "_registry": {**etcd.configuration(f"{PREFIX}foo"), "timeout_secs": 2},
        "_global": {"healthcheck_freq_sec": 1},
    }


@pytest.fixture
def etcd(make_etcd: Callable[..., EtcdCluster]) -> EtcdCluster:
    """Return a cluster whose members may be killed."""
    return make_etcd().start_all()


def is_well(broker: RunningBroker, status: int = 200) -> bool:
    return health(broker)[0] == status


def again(broker: RunningBroker) -> None:
    broker.port = 0  # the old one may have been taken meanwhile
    broker.start()


@pytest.mark.timeout(1800 if LONG else 600)
def test_members_and_brokers_die_in_turn(etcd: EtcdCluster, make_broker: Make) -> None:
    brokers = [make_broker(settings(etcd)).start() for _ in range(BROKERS)]
    crowd = Crowd(brokers)
    chance = random.Random(0)  # noqa: S311 - for chance, not for secrets
    with crowd.at_work():
        crowd.await_progress()
        for _ in range(ROUNDS):
            for number in range(3):
                # The one that leads, and one after the other.
                killed = etcd.leader() if number == 0 else number
                etcd.kill(killed)
                crowd.await_progress()
                etcd.start(killed)
                crowd.await_progress()
                brokers[number].kill()
                crowd.await_progress(*(other for other in range(BROKERS) if other != number))
                again(brokers[number])
                crowd.await_progress()
            paused = etcd.leader()
            etcd.pause(paused)
            crowd.await_progress()
            etcd.resume(paused)
            crowd.await_progress()
            # Both at once, and history is forgotten.
            killed = chance.randrange(3)
            etcd.kill(killed)
            brokers[killed].kill()
            etcd.compact(at=(killed + 1) % 3)
            crowd.await_progress(*(other for other in range(BROKERS) if other != killed))
            etcd.start(killed)
            again(brokers[killed])
            crowd.await_progress()
            # No quorum for a while.
            etcd.kill(0)
            etcd.kill(1)
            crowd.await_refusals()
            etcd.start(0, wait=False)
            crowd.await_progress()
            etcd.start(1)
            crowd.await_progress()
    print(crowd)  # noqa: T201 - for -s
    crowd.check()
    for broker in brokers:
        assert broker.stop() == 0, broker.text


@needs_namespaces
@pytest.mark.timeout(1800 if LONG else 600)
def test_hosts_are_cut_off_in_turn(etcd_network: EtcdNetwork, make_broker: Make) -> None:
    network, etcd = etcd_network
    hosts = [f"broker{number}" for number in (1, 2, 3)]
    brokers = [etcd_network.place(make_broker(settings(etcd)), host).start() for host in hosts]
    crowd = Crowd(brokers)
    with crowd.at_work():
        crowd.await_progress()
        for _ in range(ROUNDS):
            for host in ("broker1", f"etcd{etcd.leader() + 1}", "broker3", "etcd2"):
                network.cut(host)
                cut = hosts.index(host) if host in hosts else None
                if cut is not None:
                    await_that(partial(is_well, brokers[cut], 503), "cut off, and healthy")
                    crowd.await_refusals()
                crowd.await_progress(*(each for each in range(BROKERS) if each != cut))
                network.heal(host)
                crowd.await_progress()
    print(crowd)  # noqa: T201 - for -s
    crowd.check()
    for broker in brokers:
        await_that(partial(is_well, broker), broker.text)


def test_of_many_who_register_one_name_one_wins(etcd: EtcdCluster, make_broker: Make) -> None:
    # Nothing dies here, and on a busy machine a commit may take longer than the short time of the other tests.
    calm = {"_registry": {**etcd.configuration(f"{PREFIX}foo"), "timeout_secs": 20}}
    brokers = [make_broker(calm).start() for _ in range(BROKERS)]
    starting = threading.Barrier(16)
    answers: list[list[tuple[int, Any]]] = [[] for _ in range(16)]
    names = [f"race{number}" for number in range(20)]

    def race(number: int) -> None:
        for name in names:
            starting.wait(60)
            answer = brokers[number % BROKERS].register(name, f'{{"by": {number}}}')
            answers[number].append((answer.status, answer.json["data"].get("by")))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for number, name in enumerate(names):
        results = [each[number] for each in answers]
        winners = [client for client, result in enumerate(results) if result == (200, client)]
        assert len(winners) == 1, results
        assert sum(status == 409 for status, _ in results) == 15, results
        for broker in brokers:
            assert own(broker.get(name).json["data"]) == {"by": winners[0]}


STALE = """
import time
from dataclasses import replace
from bpbroker.actors.registry import Registry
from bpbroker.storage.etcd.store import EtcdStore

get, follow = Registry._get, EtcdStore.follow
Registry._get = lambda registry, message: get(registry, replace(message, local=True))
EtcdStore.follow = lambda store, after, take: follow(store, after, lambda news: (time.sleep(0.2), take(news)))
"""


@pytest.mark.parametrize("fault", [BLIND, STALE], ids=["blind", "stale"])
def test_the_check_finds_a_broker_that_does_not_look(
    etcd: EtcdCluster, make_broker: Make, tmp_path: Path, fault: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(fault)
    brokers = [make_broker(settings(etcd)) for _ in range(2)]
    for broker in brokers:
        broker.environ["PYTHONPATH"] = str(tmp_path)
        broker.start()
    crowd = Crowd(brokers)
    with crowd.at_work():
        crowd.await_progress(writes=300)
    assert not crowd.stray, crowd.stray[0]  # the fault is one that no answer shows
    assert crowd.history.problems()

"""Brokers whose registry is in etcd: what they answer when all is well, when something is not, and afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from bpbroker.discovery.jointoken import JoinToken, make_token
from bpbroker.registry.named_keys import digest_of
from tests.support.crowd import await_that, health, own
from tests.support.etcd_cluster import PASSWORDS, PREFIX, USER, EtcdCluster, needs_etcd
from tests.support.etcd_network import EtcdNetwork
from tests.support.network import needs_namespaces
from tests.support.running import Answer, RunningBroker

pytestmark = needs_etcd

Make = Callable[..., RunningBroker]
TIMEOUT_SECS = 2
"""``_registry.timeout_secs`` of all brokers here."""
PATIENT_SECS = 20
"""Its value where no call may be refused: on a busy machine a new leader takes longer than the short time."""
SLACK_SECS = 10
"""Shared machines are five times slower from one minute to the next."""


def settings(section: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"_registry": {**section, "timeout_secs": TIMEOUT_SECS, **changes}, "_global": {"healthcheck_freq_sec": 1}}


def is_well(broker: RunningBroker, status: int = 200) -> bool:
    return health(broker)[0] == status


@pytest.fixture
def two(etcd_section: dict[str, Any], make_broker: Make) -> tuple[RunningBroker, RunningBroker]:
    """Return two running brokers of one registry, on the cluster that all tests share, where no call is refused."""
    first, second = (make_broker(settings(etcd_section, timeout_secs=PATIENT_SECS)).start() for _ in range(2))
    return first, second


@pytest.fixture
def own_etcd(make_etcd: Callable[..., EtcdCluster]) -> EtcdCluster:
    """Return a running cluster whose members may be killed."""
    return make_etcd().start_all()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as executor:
        yield executor


def local(broker: RunningBroker, name: str) -> Answer:
    return broker.request("/services/Get/", name=name, consistency="local")


def calm(broker: RunningBroker, waiting: int) -> None:
    """Wait until so many requests wait in a broker."""
    await_that(lambda: f'"waiting": {waiting}' in json.dumps(health(broker)[1]), f"{health(broker)}")


def value_of(broker: RunningBroker, name: str) -> Any:
    """Return an entry's own keys as soon as it can be read: after members were away, one of them becomes the leader."""
    await_that(lambda: broker.get(name).status == 200, f"it is not to be read: {health(broker)}")
    return own(broker.get(name).json["data"])


# --- one registry ---


def test_what_one_broker_writes_the_other_has(two: tuple[RunningBroker, RunningBroker]) -> None:
    first, second = two
    assert first.register("foo", '{"a": 1}').status == 200
    assert own(second.get("foo").json["data"]) == {"a": 1}
    assert second.register("foo").status == 409
    updated = second.request("/services/Update/", name="foo", data='{"b": 2}')
    assert own(updated.json["data"]) == {"a": 1, "b": 2}
    found = first.get("foo")
    assert own(found.json["data"]) == {"a": 1, "b": 2}
    stale = {"If-Match": found.headers["ETag"]}
    assert second.request("/services/Replace/", name="foo", data='{"c": 3}').status == 200
    assert first.request("/services/Delete/", headers=stale, name="foo").status == 412
    fresh = {"If-Match": second.get("foo").headers["ETag"]}
    assert first.request("/services/Delete/", headers=fresh, name="foo").status == 200
    assert second.get("foo").status == 404
    assert second.request("/services/List/").json["data"] == {}


def test_a_registry_outlives_its_brokers(two: tuple[RunningBroker, RunningBroker]) -> None:
    first, second = two
    assert first.register("foo", '{"a": 1}').status == 200
    first.kill()
    assert second.stop() == 0
    first.port = 0
    first.start()
    assert own(first.get("foo").json["data"]) == {"a": 1}
    # The file has settings alone, and what is in etcd did not get into it.
    assert "foo" not in json.loads(second.config.read_text())["services"]


def test_waiting_ends_with_what_another_broker_does(
    two: tuple[RunningBroker, RunningBroker], pool: ThreadPoolExecutor
) -> None:
    first, second = two
    tag = first.register("there", '{"a": 1}').headers["ETag"]
    appears = pool.submit(second.request, "/services/Get/", name="new", wait="60")
    changes = pool.submit(second.request, "/services/Get/", headers={"If-None-Match": tag}, name="there", wait="60")
    counted = pool.submit(second.request, "/services/List/", prefix="n", count="2", wait="60")
    calm(second, 3)
    begun = time.monotonic()
    assert first.request("/services/Update/", name="there", data='{"b": 2}').status == 200
    assert own(changes.result(30).json["data"]) == {"a": 1, "b": 2}
    assert first.register("new", '{"c": 3}').status == 200
    assert own(appears.result(30).json["data"]) == {"c": 3}
    assert first.register("new2").status == 200
    assert list(counted.result(30).json["data"]) == ["new", "new2"]
    assert time.monotonic() - begun < SLACK_SECS


def test_waiting_survives_dead_members_and_forgotten_history(
    own_etcd: EtcdCluster, make_broker: Make, pool: ThreadPoolExecutor
) -> None:
    section = own_etcd.configuration(f"{PREFIX}foo")
    writer, waiter = (make_broker(settings(section, timeout_secs=PATIENT_SECS)).start() for _ in range(2))
    waiting = [pool.submit(waiter.request, "/services/Get/", name=f"new{number}", wait="120") for number in range(6)]
    calm(waiter, 6)
    for number in range(3):
        # Whichever member the watch is on, it is killed once; what happens meanwhile is forgotten before it is back.
        own_etcd.kill(number)
        assert writer.register(f"new{2 * number}", f'{{"n": {number}}}').status == 200
        assert writer.register("passing").status == 200
        assert writer.request("/services/Delete/", name="passing").status == 200
        own_etcd.compact(at=(number + 1) % 3)
        assert own(waiting[2 * number].result(60).json["data"]) == {"n": number}
        own_etcd.start(number)
        assert writer.register(f"new{2 * number + 1}", f'{{"n": {number}}}').status == 200
        assert own(waiting[2 * number + 1].result(60).json["data"]) == {"n": number}
    assert local(waiter, "passing").status == 404


@needs_namespaces
def test_waiting_survives_a_member_that_is_cut_off(
    etcd_network: EtcdNetwork, make_broker: Make, pool: ThreadPoolExecutor
) -> None:
    """Nobody tells the broker, whose watch is on the first member, that it will hear nothing more."""
    network, etcd = etcd_network
    section = etcd.configuration(f"{PREFIX}foo")
    writer, waiter = (
        etcd_network.place(make_broker(settings(section)), f"broker{number}").start() for number in (1, 2)
    )
    waiting = pool.submit(waiter.request, "/services/Get/", name="new", wait="120")
    calm(waiter, 1)
    network.cut("etcd1")
    await_that(lambda: writer.register("new").status in (200, 409), "no quorum")
    assert waiting.result(60).status == 200


def test_a_paused_broker_misses_nothing(own_etcd: EtcdCluster, make_broker: Make, pool: ThreadPoolExecutor) -> None:
    """Its watch is behind history that is gone when it goes on."""
    section = own_etcd.configuration(f"{PREFIX}foo")
    writer, waiter = (make_broker(settings(section)).start() for _ in range(2))
    assert writer.register("old").status == 200
    tag = waiter.get("old").headers["ETag"]
    appears = pool.submit(waiter.request, "/services/Get/", name="new", wait="120")
    changes = pool.submit(waiter.request, "/services/Get/", headers={"If-None-Match": tag}, name="old", wait="120")
    calm(waiter, 2)
    waiter.signal(signal.SIGSTOP)
    assert writer.register("new").status == 200
    assert writer.request("/services/Replace/", name="old", data="other").status == 200
    for number in range(3):  # the watch's connection breaks, and its place in history is gone
        own_etcd.kill(number)
        own_etcd.leader()
        own_etcd.compact(at=(number + 1) % 3)
        own_etcd.start(number)
    waiter.signal(signal.SIGCONT)
    assert appears.result(60).status == 200
    assert own(changes.result(60).json["data"]) == {"_str": "other"}


def test_a_backup_is_the_state_at_one_revision(
    two: tuple[RunningBroker, RunningBroker], pool: ThreadPoolExecutor
) -> None:
    """Of two entries at both ends of many pages the first is always written first."""
    first, second = two
    for status in pool.map(lambda number: first.register(f"m{number:04}").status, range(2100)):
        assert status == 200
    ended = threading.Event()

    def write() -> int:
        count = 0
        while not ended.is_set():
            count += 1
            for name in ("a", "z"):
                assert second.request("/services/Replace/", name=name, data=f'{{"n": {count}}}').status == 200
        return count

    writing: Future[int] = pool.submit(write)
    await_that(lambda: second.get("z").status == 200, "nothing is written")
    try:
        for _ in range(5):
            made = first.bpbroker("backup")
            assert made.returncode == 0, made
    finally:
        ended.set()
    assert writing.result(60) > 5
    backups = sorted((first.home / "backups").glob("*.json*"))
    assert len(backups) >= 5
    numbers = set()
    for backup in backups:
        entries = json.loads(backup.read_text())["services"]
        if "z" not in entries:  # made when the broker started
            continue
        assert sum(name.startswith("m") for name in entries) == 2100
        assert entries["a"]["n"] - entries["z"]["n"] in (0, 1)
        numbers.add(entries["z"]["n"])
    assert len(numbers) >= 3, "the writer stood still"


@needs_namespaces
def test_brokers_of_one_registry_are_no_split_brain(etcd_network: EtcdNetwork, make_broker: Make) -> None:
    network, etcd = etcd_network
    brokers, secret = [], "5e" * 32
    for host in ("broker1", "broker2"):
        mine = settings(etcd.configuration(f"{PREFIX}foo")) | {"_discovery": {"secret": secret}}
        brokers.append(etcd_network.place(make_broker(mine), host))
        brokers[-1].port = 20443
        brokers[-1].start()
    assert brokers[0].register("foo", '{"a": 1}').status == 200
    await_that(lambda: local(brokers[1], "foo").status == 200, "the second broker hears nothing")
    elsewhere = etcd_network.place(make_broker(), "broker3")

    def client(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*elsewhere.prefix, *elsewhere.command("bpbroker.client", *arguments)],
            env={**elsewhere.environ, "BPBROKER_TOKEN": make_token(JoinToken(secret=secret))},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    found = client("discover", "--name", "foo")
    assert (found.returncode, found.stderr) == (0, ""), found
    assert found.stdout in ("10.92.1.21\n", "10.92.1.22\n")
    everybody = client("--timeout", "2s", "discover", "--name", "foo", "--all")
    assert sorted(everybody.stdout.split()) == ["10.92.1.21", "10.92.1.22"]
    got = client("--discover", "foo", "service", "get", "--name", "foo", "--field", "a")
    assert (got.returncode, got.stdout) == (0, "1\n"), got
    # Who is cut off from the registry does not answer.
    for number in (1, 2, 3):
        network.cut(f"etcd{number}")
    await_that(lambda: all(is_well(broker, 503) for broker in brokers), "cut off, and healthy")
    assert client("--timeout", "2s", "discover", "--name", "foo").returncode == 124


# --- trouble ---


def refused(answer: Answer, begun: float) -> str:
    """See that an answer is a refusal in time; gives what it says."""
    assert answer.status == 503, answer
    assert time.monotonic() - begun < TIMEOUT_SECS + SLACK_SECS
    message: str = answer.json["message"]
    assert "etcd" in message or "store" in message, message
    return message


def test_without_a_quorum_it_says_so_and_comes_back(own_etcd: EtcdCluster, make_broker: Make) -> None:
    broker = make_broker(settings(own_etcd.configuration(f"{PREFIX}foo"))).start()
    assert broker.register("foo", '{"a": 1}').status == 200
    fresh = local(broker, "foo").json
    assert own(fresh["data"]) == {"a": 1}
    assert fresh["age_secs"] >= 0
    led = own_etcd.leader()
    own_etcd.kill(led)
    own_etcd.kill((led + 1) % 3)
    begun = time.monotonic()
    assert "not" in refused(broker.request("/services/Replace/", name="foo", data='{"a": 2}'), begun)
    for path in ("Get", "List"):
        begun = time.monotonic()
        refused(broker.request(f"/services/{path}/", name="foo"), begun)
    await_that(partial(is_well, broker, 503), f"healthy without a quorum: {health(broker)}")
    assert "The registry's" in json.dumps(health(broker)[1])
    assert broker.request("/ready", "GET").status == 503
    assert broker.request("/live", "GET").status == 200
    old = local(broker, "foo").json
    assert own(old["data"]) in ({"a": 1}, {"a": 2})
    assert old["age_secs"] > 1
    await_that(lambda: local(broker, "foo").json["age_secs"] > old["age_secs"], "it does not grow older")
    own_etcd.start((led + 1) % 3)
    await_that(partial(is_well, broker), f"still ill: {health(broker)}")
    assert value_of(broker, "foo") in ({"a": 1}, {"a": 2})
    assert broker.request("/services/Replace/", name="foo", data='{"a": 3}').status == 200
    assert local(broker, "foo").json["age_secs"] < old["age_secs"]
    assert "Traceback" not in broker.text
    assert PASSWORDS[USER] not in broker.text


def test_an_uncertain_answer_says_so(own_etcd: EtcdCluster, make_broker: Make) -> None:
    """Members that took the request and are stopped: nobody knows what will become of it."""
    broker = make_broker(settings(own_etcd.configuration(f"{PREFIX}foo"))).start()
    assert broker.register("foo", '{"a": 1}').status == 200
    for number in range(3):
        own_etcd.pause(number)
    begun = time.monotonic()
    assert "not known" in refused(broker.request("/services/Replace/", name="foo", data='{"a": 2}'), begun)
    # Nothing can have been changed by what was refused before it was sent.
    begun = time.monotonic()
    message = refused(broker.request("/services/Replace/", name="bar", data='{"a": 2}'), begun)
    assert not ("not known" in message and "Nothing was changed" in message), message
    for number in range(3):
        own_etcd.resume(number)
    await_that(partial(is_well, broker), f"still ill: {health(broker)}")
    assert value_of(broker, "foo") in ({"a": 1}, {"a": 2})


def test_one_member_after_the_other_and_nobody_notices(own_etcd: EtcdCluster, make_broker: Make) -> None:
    broker = make_broker(settings(own_etcd.configuration(f"{PREFIX}foo"), timeout_secs=PATIENT_SECS)).start()
    for number in range(3):
        own_etcd.kill(number)
        for count in range(5):
            name = f"n{number}-{count}"
            assert broker.register(name).status == 200
            assert broker.get(name).status == 200
        own_etcd.start(number)
    assert len(broker.request("/services/List/").json["data"]) == 15
    assert is_well(broker)


def test_the_cluster_is_full_and_has_space_again(make_etcd: Callable[..., EtcdCluster], make_broker: Make) -> None:
    etcd = make_etcd(options=("--quota-backend-bytes", str(4 * 1024 * 1024))).start_all()
    broker = make_broker(settings(etcd.configuration(f"{PREFIX}foo"))).start()
    large = "x" * 200_000
    answers: list[Answer] = []
    while not answers or answers[-1].status == 200:
        assert len(answers) < 100, "it takes more than it has"
        answers.append(broker.call("/services/Replace/", name=f"n{len(answers)}", data=large))
    assert answers[-1].status == 503
    assert "space" in answers[-1].json["message"]
    await_that(partial(is_well, broker, 503), f"healthy: {health(broker)}")
    assert "space" in json.dumps(health(broker)[1])
    kept = len(broker.request("/services/List/").json["data"])
    assert kept == len(answers) - 1
    assert broker.get("n0").status == 200
    # What an operator does: make room, and say so.
    etcd.etcdctl("del", "--prefix", f"{PREFIX}foo/entries/n1")
    revision = etcd.revision()
    etcd.etcdctl("compact", str(revision))
    etcd.etcdctl("defrag", "--cluster")
    etcd.etcdctl("alarm", "disarm")
    await_that(partial(is_well, broker), f"still ill: {health(broker)}")
    assert broker.register("n1", "small").status == 200
    left = [number for number in range(kept) if not str(number).startswith("1")]
    assert len(broker.request("/services/List/").json["data"]) == len(left) + 1


def test_users_change_while_it_runs(own_etcd: EtcdCluster, make_broker: Make) -> None:
    broker = make_broker(settings(own_etcd.configuration(f"{PREFIX}foo"))).start()
    assert broker.register("foo").status == 200
    # Each change of users makes all tokens old.
    own_etcd.etcdctl("user", "add", "somebody:else")
    assert broker.request("/services/Replace/", name="foo", data="1").status == 200
    assert broker.get("foo").status == 200
    own_etcd.etcdctl("role", "revoke-permission", "--prefix=true", USER, PREFIX)
    refusal = broker.request("/services/Replace/", name="foo", data="2")
    assert refusal.status == 503
    await_that(partial(is_well, broker, 503), f"healthy: {health(broker)}")
    assert "permission denied" in json.dumps(health(broker)[1])
    own_etcd.etcdctl("role", "grant-permission", "--prefix=true", USER, "readwrite", PREFIX)
    await_that(partial(is_well, broker), f"still ill: {health(broker)}")
    assert own(broker.get("foo").json["data"]) == {"_str": "1"}


@needs_namespaces
def test_a_broker_that_is_cut_off_refuses_and_comes_back(etcd_network: EtcdNetwork, make_broker: Make) -> None:
    network, etcd = etcd_network
    section = etcd.configuration(f"{PREFIX}foo")
    alone, other = (etcd_network.place(make_broker(settings(section)), f"broker{number}").start() for number in (1, 2))
    assert alone.register("foo", '{"a": 1}').status == 200
    network.cut("broker1")
    begun = time.monotonic()
    refused(alone.request("/services/Update/", name="foo", data='{"b": 2}'), begun)
    for name in ("foo", "none"):
        begun = time.monotonic()
        refused(alone.get(name), begun)
    begun = time.monotonic()
    refused(alone.register("foo"), begun)
    await_that(partial(is_well, alone, 503), f"cut off, and healthy: {health(alone)}")
    assert other.request("/services/Replace/", name="foo", data='{"a": 9}').status == 200
    assert other.register("new").status == 200
    assert is_well(other)
    old = local(alone, "foo").json
    assert own(old["data"]) == {"a": 1}
    assert old["age_secs"] > 1
    network.heal("broker1")
    await_that(partial(is_well, alone), f"still ill: {health(alone)}")
    assert value_of(alone, "foo") == {"a": 9}
    await_that(lambda: local(alone, "new").status == 200, "the watch is not back")


def test_it_starts_without_a_cluster_and_gets_ready(make_etcd: Callable[..., EtcdCluster], make_broker: Make) -> None:
    etcd = make_etcd(users=False)
    filed = {"sha256": digest_of("of-the-file").hex(), "allow": ["ping"]}
    broker = make_broker({**settings(etcd.configuration(f"{PREFIX}foo")), "_keys": {"filed": filed}}).start()
    begun = time.monotonic()
    refused(broker.register("foo"), begun)
    begun = time.monotonic()
    refused(broker.get("foo"), begun)
    assert local(broker, "foo").status == 503
    ready = broker.request("/ready", "GET")
    assert ready.status == 503
    assert ready.json["message"] == "Not ready: registry: The registry's etcd cluster does not answer"
    assert "is up, but not ready yet: listening on" in broker.text
    await_that(partial(is_well, broker, 503), "healthy without a cluster")
    assert "The registry's" in json.dumps(health(broker)[1])
    etcd.start_all()
    await_that(lambda: broker.request("/ready", "GET").status == 200, f"not ready: {health(broker)}")
    assert broker.register("foo").status == 200
    await_that(partial(is_well, broker), f"still ill: {health(broker)}")

    def whoami() -> Any:
        return broker.request("/whoami", "GET", None, {"X-Access-Key": "filed.of-the-file"}).json["data"].get("name")

    await_that(lambda: whoami() == "filed", "the keys in the file are not given to the registry")
    assert broker.stop() == 0


def test_it_stops_in_time_without_a_cluster(own_etcd: EtcdCluster, make_broker: Make) -> None:
    broker = make_broker(settings(own_etcd.configuration(f"{PREFIX}foo"))).start()
    assert broker.register("foo").status == 200
    for number in range(3):
        own_etcd.pause(number)
    begun = time.monotonic()
    assert broker.stop() == 0, broker.text
    assert time.monotonic() - begun < 10 + SLACK_SECS


# --- bad input ---


def all_keys(etcd: EtcdCluster, section: dict[str, Any]) -> list[tuple[str, int]]:
    found = json.loads(etcd.etcdctl("get", "--prefix", section["prefix"], "--write-out=json"))
    return [(kv.get("value", ""), kv["mod_revision"]) for kv in found.get("kvs", ())]


def ends(broker: RunningBroker, *words: str) -> None:
    """See that a broker does not start, and says why in one sentence."""
    broker.start(wait=False)
    assert broker.wait() == 78, broker.text
    for word in words:
        assert word in broker.text, broker.text
    assert "Traceback" not in broker.text
    assert PASSWORDS[USER] not in broker.text


def test_a_wrong_authority(etcd_section: dict[str, Any], make_broker: Make, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "other.pem")
    ends(make_broker(settings(etcd_section, ca_cert=str(tmp_path / "other.pem"))), "certificate")


def test_a_wrong_certificate(etcd_section: dict[str, Any], make_broker: Make, tmp_path: Path) -> None:
    stranger = trustme.CA().issue_cert("broker@example.org")
    stranger.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    stranger.private_key_pem.write_to_path(tmp_path / "key.pem")
    wrong = {"client_cert": str(tmp_path / "cert.pem"), "client_key": str(tmp_path / "key.pem")}
    ends(make_broker(settings(etcd_section, **wrong)), "certificate")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": "wrong"}, ["authentication failed"]),
        ({"user": "nobody"}, ["authentication failed"]),
        ({"prefix": "/elsewhere"}, ["permission denied"]),
        ({"ca_cert": "/nowhere/ca.pem"}, ["/nowhere/ca.pem"]),
        ({"client_key": "/nowhere/key.pem"}, ["/nowhere/key.pem"]),
        ({"endpoints": ["127.0.0.1:2379"]}, ["_registry.endpoints"]),
        ({"store": "etc"}, ["_registry.store"]),
    ],
)
def test_wrong_settings(
    etcd_section: dict[str, Any], make_broker: Make, changes: dict[str, Any], words: list[str]
) -> None:
    ends(make_broker(settings(etcd_section, **changes)), *words)


def test_a_prefix_that_others_use(etcd: EtcdCluster, etcd_section: dict[str, Any], make_broker: Make) -> None:
    etcd.etcdctl("put", f"{etcd_section['prefix']}/members/7", "precious")
    ends(make_broker(settings(etcd_section)), "members/7", etcd_section["prefix"])
    assert etcd.etcdctl("get", "--print-value-only", f"{etcd_section['prefix']}/members/7") == "precious\n"


@pytest.mark.parametrize("value", ["[1, 2]", "no JSON", "", '"text"'])
def test_an_entry_that_is_no_object(
    etcd: EtcdCluster, etcd_section: dict[str, Any], make_broker: Make, value: str
) -> None:
    broker = make_broker(settings(etcd_section)).start()
    assert broker.register("good").status == 200
    assert broker.register("bad").status == 200
    keys = etcd.etcdctl("get", "--prefix", "--keys-only", etcd_section["prefix"]).split()
    key = next(each for each in keys if each.endswith("/bad"))
    etcd.etcdctl("put", key, "--", value)
    before = all_keys(etcd, etcd_section)
    await_that(partial(is_well, broker, 503), f"healthy: {health(broker)}")
    assert "bad" in json.dumps(health(broker)[1])
    assert broker.get("good").status == 200
    for answer in (
        broker.get("bad"),
        broker.register("bad"),
        broker.request("/services/Replace/", name="bad", data="x"),
        broker.request("/services/Update/", name="bad", data="x"),
        broker.request("/services/Delete/", name="bad"),
    ):
        assert answer.status == 503, answer
        assert "bad" in answer.json["message"]
    assert all_keys(etcd, etcd_section) == before
    # One who starts now does not start, and says why.
    ends(make_broker(settings(etcd_section)), "'bad'")
    assert etcd.etcdctl("get", "--print-value-only", key) == f"{value}\n"
    # Mended by hand, all is well.
    etcd.etcdctl("put", key, '{"a": 1}')
    await_that(partial(is_well, broker), f"still ill: {health(broker)}")
    assert own(broker.get("bad").json["data"]) == {"a": 1}

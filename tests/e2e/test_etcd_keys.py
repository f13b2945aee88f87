"""Named keys on a shared registry: added at one broker, used and revoked at another, counted together."""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPException, HTTPSConnection
from typing import Any

from bpbroker.discovery.datagram import Question, decode_answer, question_mac, signed_question
from bpbroker.discovery.jointoken import parse_token
from bpbroker.registry.named_keys import digest_of
from tests.support.contents import contents
from tests.support.etcd_cluster import needs_etcd
from tests.support.running import RunningBroker, untrusting

pytestmark = needs_etcd

JOINS = 30
USES = 5


def answer(broker: RunningBroker, key: str, source: str = "127.0.0.1") -> int:
    """Return the status of a read with a key, from a loopback address of choice."""
    context = untrusting()
    to = HTTPSConnection("127.0.0.1", broker.port, timeout=60, source_address=(source, 0), context=context)
    with closing(to):
        to.request("GET", "/services/Get/?name=foo/x", headers={"X-Access-Key": key})
        return int(to.getresponse().status)


def becomes(broker: RunningBroker, key: str, status: int) -> float:
    """Wait until a read with a key is answered so; return how long that took, in seconds."""
    began = time.monotonic()
    while answer(broker, key) != status:
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    return time.monotonic() - began


def test_keys_are_those_of_all_brokers(etcd_section: dict[str, Any], make_broker: Callable[..., RunningBroker]) -> None:
    settings = {"_registry": {**etcd_section, "timeout_secs": 5}}
    of_file = {"sha256": digest_of("a-secret-in-a-file").hex(), "allow": ["services:get"]}
    first = make_broker({**settings, "_keys": {"filed": of_file}}).start()
    brokers = [first, *(make_broker(settings).start() for _ in range(2))]
    for broker in brokers:
        becomes(broker, "filed.a-secret-in-a-file", 404)
    done = first.bpbroker("key", "add", "join", "--allow", "services:get@foo/", "--uses", str(USES))
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    becomes(brokers[1], key, 404)
    becomes(brokers[2], key, 404)

    def join(number: int) -> int:
        return answer(brokers[number % 3], key, f"127.0.2.{number + 1}")

    with ThreadPoolExecutor(JOINS) as pool:
        answers = list(pool.map(join, range(JOINS)))
    assert answers.count(404) == USES - 1  # one address has used it above
    assert set(answers) == {401, 404}
    assert brokers[1].bpbroker("key", "revoke", "join").returncode == 0
    assert becomes(brokers[2], key, 401) < 5
    assert brokers[2].request("/services/List/", prefix="_keys/", access_key="filed.a-secret-in-a-file").status == 403


def finds(broker: RunningBroker, secret: str, name: str = "foo") -> bool:
    """Return whether a broker answers a question that is signed with a secret, and signs its answer with it."""
    nonce = "5a" * 16
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.sendto(signed_question(name, nonce, secret), ("127.0.0.1", broker.port))
        try:
            reply = sock.recv(65536)
        except TimeoutError:
            return False
    question = Question(name, nonce, question_mac(secret, nonce, name))
    return decode_answer(reply, question, secret) is not None


def all_find(brokers: Sequence[RunningBroker], secret: str) -> None:
    """Wait until all brokers answer what is signed with a secret."""
    until = time.monotonic() + 30
    while not all(finds(broker, secret) for broker in brokers):
        assert time.monotonic() < until


def test_a_token_of_one_broker_finds_all(
    etcd_section: dict[str, Any], make_broker: Callable[..., RunningBroker]
) -> None:
    settings = {"_registry": {**etcd_section, "timeout_secs": 5}, "_global": {"discovery": "authenticated"}}
    brokers = [make_broker(settings) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:  # all of them at once bring a secret to the registry
        list(pool.map(RunningBroker.start, brokers))
    assert brokers[0].register("foo", "x").status == 200
    secrets = [parse_token(broker.token("--address", "h:1")).secret for broker in brokers]
    assert len(secrets[0]) == 64
    assert secrets == [secrets[0]] * 3
    all_find(brokers, secrets[0])
    brokers[1].stop()
    brokers[1].start()
    all_find(brokers, secrets[0])

    renewed = parse_token(brokers[1].token("--address", "h:1", "--renew-secret")).secret
    assert renewed not in ("", secrets[0])
    all_find(brokers, renewed)
    assert not any(finds(broker, secrets[0]) for broker in brokers)
    assert parse_token(brokers[2].token("--address", "h:1")).secret == renewed

    # It is the registry's own: no client reads it, and nothing but a backup for its owner has it.
    for query in ("Get/?name=_discovery/secret", "Watch/?prefix=_discovery/&since=0&wait=1s"):
        assert brokers[0].request(f"/services/{query}").status == 400, query
    for query in ("List/", "List/?prefix=_discovery/", "List/?prefix=_", "Watch/?prefix=&since=1&wait=1s"):
        assert renewed.encode() not in brokers[0].request(f"/services/{query}").body
    for broker in brokers:
        assert broker.bpbroker("backup").returncode == 0
        for file in (path for path, content in contents(broker.home).items() if renewed.encode() in content):
            assert file.parent.name == "backups"
            assert file.stat().st_mode & 0o077 == 0, file
        assert renewed not in broker.text


def test_of_a_session_that_ends_by_itself_the_log_names_the_key(
    etcd_section: dict[str, Any], make_broker: Callable[..., RunningBroker]
) -> None:
    """The broker that takes its things away need not be the one at which it was opened, and only one tells it."""
    settings = {"_registry": {**etcd_section, "timeout_secs": 5}}
    brokers = [make_broker(settings, "--log-format", "json").start() for _ in range(2)]
    key = brokers[0].bpbroker("key", "add", "ann", "--allow", "services.*").stdout.strip()
    becomes(brokers[1], key, 404)
    sent = {"X-Access-Key": key}
    for method, given in (
        ("Open", {"session": "s", "ttl": "4"}),
        ("Register", {"name": "foo/x", "data": "x", "session": "s"}),
        ("Lock", {"name": "foo/l", "session": "s"}),
    ):
        assert brokers[0].request(f"/services/{method}/", "POST", None, sent, **given).status == 200, method
    becomes(brokers[1], key, 404)
    told: list[tuple[str, str, str]] = []
    until = time.monotonic() + 30
    while len(told) < 3:
        assert time.monotonic() < until, told
        time.sleep(0.1)
        lines = [
            json.loads(line)
            for each in brokers
            for line in each.text.splitlines()
            if '"id": ""' in line and line.endswith("}")
        ]
        told = [(line["method"], line["name"], line["key"]) for line in lines]
    assert sorted(told) == [("Delete", "foo/x", "ann"), ("Expire", "s", "ann"), ("Unlock", "foo/l", "ann")]


def test_exactly_so_many_of_fifty_join_though_a_broker_is_killed(
    etcd_section: dict[str, Any], make_broker: Callable[..., RunningBroker]
) -> None:
    """Whose answer was lost asks another broker, and is one of those that were counted, or is not."""
    settings = {"_registry": {**etcd_section, "timeout_secs": 5}}
    brokers = [make_broker(settings) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(RunningBroker.start, brokers))
    key = brokers[0].bpbroker("key", "add", "join", "--allow", "services:get@foo/", "--uses", str(USES)).stdout.strip()
    known = brokers[0].bpbroker("key", "add", "other", "--allow", "services:get@foo/").stdout.strip()
    for broker in brokers:  # what comes later is known later
        becomes(broker, known, 404)
    answers: queue.Queue[int] = queue.Queue()
    lost: list[int] = []
    killed = threading.Event()

    def join(number: int) -> None:
        if number > 45:
            killed.wait(60)  # so that some surely meet a dead broker
        until = time.monotonic() + 60
        for attempt in itertools.count(number):
            try:
                status = answer(brokers[attempt % 3], key, f"127.0.5.{number}")
            except (OSError, HTTPException):
                lost.append(number)
                status = 503
            if status != 503:
                answers.put(status)
                return
            assert time.monotonic() < until

    with ThreadPoolExecutor(50) as pool:
        joining = [pool.submit(join, number) for number in range(1, 51)]
        found = [answers.get(timeout=60) for _ in range(USES // 2)]
        brokers[1].kill()
        killed.set()
        for each in joining:
            each.result(120)
    found += [answers.get(timeout=1) for _ in range(50 - len(found))]
    assert lost
    assert (found.count(404), found.count(401)) == (USES, 50 - USES)
    shown = json.loads(brokers[2].bpbroker("key", "show", "join", "--format", "json").stdout)
    assert len(shown["used_by"]) == USES

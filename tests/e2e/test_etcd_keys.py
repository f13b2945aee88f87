"""Named keys on a shared registry: added at one broker, used and revoked at another, counted together."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPSConnection
from typing import Any

from bpbroker.registry.named_keys import digest_of
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

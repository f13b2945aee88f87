"""The cluster that other tests stand on does what they think it does."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.support.etcd_cluster import USER, EtcdCluster, Member, needs_etcd
from tests.support.etcd_network import EtcdNetwork
from tests.support.network import Network, needs_namespaces
from tests.support.running import RunningBroker

pytestmark = needs_etcd


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_broker_gets_in_with_its_section(etcd: EtcdCluster, etcd_section: dict[str, Any]) -> None:
    assert len(etcd_section["endpoints"]) == 3
    trust = ssl.create_default_context(cafile=etcd_section["ca_cert"])
    trust.load_cert_chain(etcd_section["client_cert"], etcd_section["client_key"])
    who = {"name": etcd_section["user"], "password": etcd_section["password"]}
    for member in etcd.members:
        assert member.ask("/v3/auth/authenticate", who, trust=trust)["token"]
        refused = member.ask("/v3/auth/authenticate", {**who, "password": "wrong"}, trust=trust)
        assert "authentication failed" in refused["error"]
        # The certificate alone is nobody.
        refused = member.ask("/v3/kv/range", {"key": encoded(etcd_section["prefix"])}, trust=trust)
        assert refused["error"] == "etcdserver: permission denied"


def test_nobody_gets_in_without_a_certificate(etcd: EtcdCluster) -> None:
    with pytest.raises((OSError, http.client.HTTPException)):
        etcd.members[0].ask("/health", trust=ssl.create_default_context(cafile=etcd.ca_cert))


def test_the_brokers_user_may_touch_its_own_prefix_alone(etcd: EtcdCluster, etcd_section: dict[str, Any]) -> None:
    etcd.etcdctl("put", f"{etcd_section['prefix']}/a", "b", user=USER)
    assert etcd.etcdctl("get", "--print-value-only", f"{etcd_section['prefix']}/a", user=USER) == "b\n"
    with pytest.raises(AssertionError, match="permission denied"):
        etcd.etcdctl("put", "/elsewhere/a", "b", user=USER)


def test_each_test_has_a_registry_of_its_own(etcd: EtcdCluster, etcd_section: dict[str, Any]) -> None:
    assert etcd.etcdctl("get", "--prefix", etcd_section["prefix"]) == ""


def test_history_is_forgotten(etcd: EtcdCluster, etcd_section: dict[str, Any]) -> None:
    key = f"{etcd_section['prefix']}/a"
    etcd.etcdctl("put", key, "1")
    before = etcd.revision()
    etcd.etcdctl("put", key, "2")
    assert etcd.etcdctl("get", "--print-value-only", f"--rev={before}", key) == "1\n"
    assert etcd.compact() > before
    with pytest.raises(AssertionError, match="compacted"):
        etcd.etcdctl("get", f"--rev={before}", key)


def test_members_die_and_come_back(make_etcd: Callable[..., EtcdCluster]) -> None:
    etcd = make_etcd().start_all()
    etcd.etcdctl("put", "a", "1")
    led = etcd.leader()
    etcd.kill(led)
    etcd.leader(but=led)
    alive = next(number for number in range(3) if number != led)
    etcd.etcdctl("put", "a", "2", at=alive)
    etcd.start(led)
    assert etcd.etcdctl("get", "--print-value-only", "a") == "2\n"
    # Without a quorum nothing is served, and with one all is there again.
    etcd.kill(led)
    etcd.kill(alive)
    last = 3 - led - alive
    assert not etcd.health(last)
    etcd.start(led)
    etcd.await_health(last)
    assert etcd.etcdctl("get", "--print-value-only", "a") == "2\n"


def test_a_paused_member_answers_nothing_until_it_goes_on(make_etcd: Callable[..., EtcdCluster]) -> None:
    etcd = make_etcd(users=False, client_certificates=False).start_all()
    led = etcd.leader()
    etcd.pause(led)
    assert not etcd.health(led)
    etcd.leader(but=led)
    etcd.resume(led)
    etcd.await_health(led)


@needs_namespaces
def test_a_member_is_cut_off_and_comes_back(etcd_network: EtcdNetwork) -> None:
    network, etcd = etcd_network
    etcd.etcdctl("put", "a", "1")
    led = etcd.leader()
    network.cut(f"etcd{led + 1}")
    etcd.await_health(etcd.leader(but=led))
    assert not etcd.health(led)
    network.heal(f"etcd{led + 1}")
    etcd.await_health(led)
    assert etcd.etcdctl("get", "--print-value-only", "a", at=led) == "1\n"


@needs_namespaces
def test_a_broker_on_a_host_is_reached_even_when_cut_off(
    etcd_network: EtcdNetwork, make_broker: Callable[..., RunningBroker]
) -> None:
    network, etcd = etcd_network
    broker = etcd_network.place(make_broker(), "broker1")
    broker.start()
    assert reaches(network, "broker1", etcd.members[0])
    network.cut("broker1")
    assert not reaches(network, "broker1", etcd.members[0], secs=1)
    assert broker.register("a").status == 200
    network.heal("broker1")
    assert reaches(network, "broker1", etcd.members[0])


def reaches(network: Network, host: str, member: Member, secs: float = 10) -> bool:
    """Return whether a connection comes about; a first SYN may be lost just after a cable was plugged in."""
    with network.inside(host), suppress(TimeoutError):
        socket.create_connection((member.place.address, member.client_port), timeout=secs).close()
        return True
    return False


def test_without_certificates_and_users_the_section_has_none(make_etcd: Callable[..., EtcdCluster]) -> None:
    section = make_etcd(1, users=False, client_certificates=False).configuration("/p")
    assert set(section) == {"store", "endpoints", "prefix", "ca_cert", "timeout_secs"}


def test_what_was_started_is_gone_in_the_end(make_etcd: Callable[..., EtcdCluster]) -> None:
    etcd = make_etcd(1, users=False).start_all()
    process = etcd.members[0].process
    assert process is not None
    etcd.pause(0)
    etcd.stop_all()
    assert not psutil.pid_exists(process.pid)

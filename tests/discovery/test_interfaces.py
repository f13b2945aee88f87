from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable

import ifaddr
import psutil
import pytest

from bpbroker.discovery.interfaces import Interface, interfaces, own_address, reached_at, seen_by_others

Says = Callable[..., None]
IPV4 = "0.0.0.0"  # noqa: S104 - asked for, not bound


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Have the system tell of these adapters."""

    def say(*adapters: ifaddr.Adapter) -> None:
        monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters)

    return say


def test_it_sees_the_addresses_that_psutil_sees() -> None:
    expected = {
        (name.partition(":")[0], item.address.partition("%")[0])
        for name, items in psutil.net_if_addrs().items()
        for item in items
        if item.family in (socket.AF_INET, socket.AF_INET6)
    }
    assert {(item.name, item.address) for item in interfaces()} == expected


def test_loopback_is_known_as_such() -> None:
    found = [item for item in interfaces() if item.address in ("127.0.0.1", "::1")]
    assert found
    assert all(item.loopback and not item.broadcast for item in found)


def test_every_socket_that_discovery_needs_can_be_bound() -> None:
    for item in interfaces():
        family = socket.AF_INET6 if item.ipv6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((item.address, 0, 0, item.number) if item.link_local else (item.address, 0))


def test_where_the_system_does_not_tell_a_broadcast_leaves_by_the_default_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden() -> list[ifaddr.Adapter]:
        raise PermissionError

    monkeypatch.setattr(ifaddr, "get_adapters", forbidden)
    assert [item.address for item in interfaces()] == ["127.0.0.1", "0.0.0.0"]  # noqa: S104 - compared, not bound


def test_windows_interfaces_have_the_names_of_its_control_panel_and_a_broadcast_address(says: Says) -> None:
    guid = "{846EE342-7039-11DE-9D20-806E6F6E6963}"
    ethernet = [
        ifaddr.IP(("2001:db8::1", 0, 0), 64, "Ethernet"),
        ifaddr.IP(("fe80::1", 0, 12), 64, "Ethernet"),
        ifaddr.IP("192.168.1.7", 24, "Ethernet"),
    ]
    loopback = [ifaddr.IP("127.0.0.1", 8, "Loopback Pseudo-Interface 1")]
    says(ifaddr.Adapter(guid, "Intel(R) Network", ethernet, 12), ifaddr.Adapter(guid, "Loopback", loopback, 1))
    assert interfaces() == [
        Interface("Ethernet", 12, "2001:db8::1", "", loopback=False, link_local=False),
        Interface("Ethernet", 12, "fe80::1", "", loopback=False, link_local=True),
        Interface("Ethernet", 12, "192.168.1.7", "192.168.1.255", loopback=False, link_local=False),
        Interface("Loopback Pseudo-Interface 1", 1, "127.0.0.1", "", loopback=True, link_local=False),
    ]


@pytest.mark.parametrize(
    ("prefix", "broadcast"), [(24, "10.1.2.255"), (16, "10.1.255.255"), (30, "10.1.2.3"), (31, ""), (32, "")]
)
def test_the_broadcast_address_follows_from_the_prefix(says: Says, prefix: int, broadcast: str) -> None:
    says(ifaddr.Adapter("eth0", "eth0", [ifaddr.IP("10.1.2.2", prefix, "eth0")], 3))
    assert interfaces() == [Interface("eth0", 3, "10.1.2.2", broadcast, loopback=False, link_local=False)]


def test_an_address_with_a_label_is_one_of_its_interface(says: Says) -> None:
    says(ifaddr.Adapter("eth0:1", "eth0:1", [ifaddr.IP("10.1.2.3", 24, "eth0:1")], 3))
    assert [item.name for item in interfaces()] == ["eth0"]


def test_loading_the_module_does_not_load_ifaddr() -> None:
    code = "import sys, bpbroker.client.outlets; sys.exit('ifaddr' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_this_hosts_address_is_one_that_its_interfaces_have() -> None:
    usable = {item.address for item in interfaces() if not (item.loopback or item.link_local)}
    assert own_address() in usable or (own_address() == "" and not usable)


@pytest.mark.parametrize(
    ("source", "configured", "listen_ip", "expected"),
    [
        ("10.0.0.9", "auto", "", "10.0.0.9"),
        ("10.0.0.9", "10.0.0.5", "", "10.0.0.9"),
        ("127.0.0.1", "auto", "", "10.0.0.5"),
        ("127.0.0.1", "auto", "0.0.0.0", "10.0.0.5"),  # noqa: S104 - compared, not bound
        ("::1", "auto", "::", "10.0.0.5"),
        ("127.0.0.1", "auto", "10.0.0.6", "10.0.0.6"),
        ("::1", "auto", "fe80::1%eth0", "fe80::1"),
        ("127.0.0.1", "auto", "127.0.0.1", "127.0.0.1"),
        ("127.9.9.9", "off", "", "127.9.9.9"),
        ("127.0.0.1", "203.0.113.7", "", "203.0.113.7"),
    ],
)
def test_a_writer_on_the_brokers_host_is_known_by_the_hosts_address(
    monkeypatch: pytest.MonkeyPatch, source: str, configured: str, listen_ip: str, expected: str
) -> None:
    monkeypatch.setattr("bpbroker.discovery.interfaces.own_address", lambda: "10.0.0.5")
    assert seen_by_others(source, configured, listen_ip) == expected


def test_a_host_with_loopback_alone_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpbroker.discovery.interfaces.own_address", lambda: "")
    assert seen_by_others("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("listen_ip", "addresses"),
    [
        ("", ["10.0.0.7", "192.0.2.9", "2001:db8::7"]),
        (IPV4, ["10.0.0.7", "192.0.2.9"]),
        ("::", ["2001:db8::7"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("10.0.0.7", ["10.0.0.7"]),
    ],
)
def test_only_addresses_on_which_something_listens_are_named(listen_ip: str, addresses: list[str]) -> None:
    found = [
        Interface("lo", 1, "127.0.0.1", "", loopback=True, link_local=False),
        Interface("eth0", 2, "2001:db8::7", "", loopback=False, link_local=False),
        Interface("eth0", 2, "fe80::7", "", loopback=False, link_local=True),
        Interface("eth0", 2, "10.0.0.7", "10.0.0.255", loopback=False, link_local=False),
        Interface("eth1", 3, "192.0.2.9", "", loopback=False, link_local=False),
        Interface("", 0, IPV4, "", loopback=False, link_local=False),
    ]
    assert reached_at(listen_ip, found) == addresses

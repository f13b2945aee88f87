from __future__ import annotations

import socket
import sys

import psutil
import pytest

from bpbroker.discovery import interfaces as module
from bpbroker.discovery.interfaces import Interface, interfaces

linux = pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")


@linux
def test_it_sees_the_addresses_that_psutil_sees() -> None:
    expected = {
        (name, item.address.partition("%")[0])
        for name, items in psutil.net_if_addrs().items()
        for item in items
        if item.family in (socket.AF_INET, socket.AF_INET6)
    }
    assert {(item.name, item.address) for item in interfaces()} == expected


@linux
def test_loopback_is_known_as_such() -> None:
    found = [item for item in interfaces() if item.address in ("127.0.0.1", "::1")]
    assert found
    assert all(item.loopback and not item.broadcast for item in found)


@linux
def test_every_socket_that_discovery_needs_can_be_bound() -> None:
    for item in interfaces():
        family = socket.AF_INET6 if item.ipv6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((item.address, 0, 0, item.number) if item.link_local else (item.address, 0))


@linux
def test_without_netlink_the_host_name_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> list[Interface]:
        raise PermissionError

    monkeypatch.setattr(module, "_netlink", forbidden)
    assert "127.0.0.1" in [item.address for item in interfaces()]


def test_elsewhere_each_address_reaches_its_network_by_the_limited_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, None, None, "", ("192.168.1.7", 0)),
            (socket.AF_INET, None, None, "", ("127.0.1.1", 0)),
            (socket.AF_INET6, None, None, "", ("fe80::1%12", 0, 0, 12)),
            (socket.AF_INET6, None, None, "", ("2001:db8::1", 0, 0, 0)),
        ]

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert interfaces() == [
        Interface("", 0, "127.0.0.1", "", loopback=True, link_local=False),
        Interface("", 0, "192.168.1.7", "", loopback=False, link_local=False),
        Interface("", 12, "fe80::1", "", loopback=False, link_local=True),
    ]


@pytest.mark.parametrize(
    ("prefix", "broadcast"), [(24, "10.1.2.255"), (16, "10.1.255.255"), (30, "10.1.2.3"), (31, ""), (32, "")]
)
def test_the_broadcast_address_follows_from_the_prefix(prefix: int, broadcast: str) -> None:
    raw = socket.inet_aton("10.1.2.2")
    body = bytes([socket.AF_INET, prefix, 0, 0]) + (3).to_bytes(4, sys.byteorder)
    body += (8).to_bytes(2, sys.byteorder) + (1).to_bytes(2, sys.byteorder) + raw
    (found,) = module._address(body, {3: "eth0"})
    assert found == Interface("eth0", 3, "10.1.2.2", broadcast, loopback=False, link_local=False)

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from bpbroker.discovery.interfaces import interfaces
from bpbroker.discovery.udp import bind_udp, join_groups
from bpbroker.errors import InUse, StartError
from tests.support.systems import is_wine, posix_only


@contextlib.contextmanager
def bound(ip: str, port: int = 0) -> Iterator[list[socket.socket]]:
    sockets = bind_udp(ip, port)
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def test_all_interfaces_share_one_port() -> None:
    with bound("") as sockets:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert sockets[0].family == socket.AF_INET
        assert all(not sock.getblocking() for sock in sockets)


def test_a_port_in_use_is_named_with_its_protocol() -> None:
    with bound("127.0.0.1") as sockets:
        port = sockets[0].getsockname()[1]
        with pytest.raises(InUse, match=rf"port {port} \(UDP\)"):
            bind_udp("127.0.0.1", port)
        with pytest.raises(InUse, match=rf"port {port} \(UDP\)"):
            bind_udp("", port)


@pytest.mark.skipif(is_wine(), reason="Wine binds to any address")
def test_an_address_of_another_host_is_refused_with_what_to_check() -> None:
    with pytest.raises(StartError, match=r"192\.0\.2\.99.*api\.listen_ip"):
        bind_udp("192.0.2.99", 0)


def test_a_name_that_is_no_address_is_refused_with_what_to_check() -> None:
    with pytest.raises(StartError, match=r"api\.listen_ip"):
        bind_udp("no.such.host.invalid", 0)


def test_an_address_that_is_link_local_can_be_listened_on() -> None:
    found = next((each for each in interfaces() if each.link_local), None)
    if found is None:
        pytest.skip("no interface has a link-local IPv6 address")
    for zone in (found.name, found.number):
        with bound(f"{found.address}%{zone}") as sockets:
            assert sockets[0].getsockname()[3] == found.number


@posix_only("Windows takes the first interface")
def test_without_its_interface_a_link_local_address_is_told_what_it_lacks() -> None:
    if not interfaces() or not socket.has_ipv6:
        pytest.skip("there is no IPv6")
    with pytest.raises(StartError, match=r"needs its interface: fe80::1%INTERFACE"):
        bind_udp("fe80::1", 0)


def test_loopback_alone_hears_no_broadcasts() -> None:
    with bound("127.0.0.1") as sockets:
        assert len(sockets) == 1


@posix_only("sockets of broadcast addresses")
def test_a_broker_on_one_address_hears_its_networks_broadcasts() -> None:
    own = next((item for item in interfaces() if item.broadcast), None)
    if own is None:
        pytest.skip("this host has no interface with broadcast")
    with bound(own.address) as sockets, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        port = sockets[0].getsockname()[1]
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.bind((own.address, 0))
        for address in (own.broadcast, "255.255.255.255"):
            client.sendto(address.encode(), (address, port))
        heard = set()
        for sock in sockets[1:]:
            sock.settimeout(10)
            heard.add(sock.recv(100).decode())
        assert heard == {own.broadcast, "255.255.255.255"}
        # A second broker, on another address of this host, would share those two.
        with bound("127.0.0.1", port):
            pass


def test_joining_the_multicast_group_again_is_harmless() -> None:
    with bound("") as sockets:
        join_groups(sockets)
        join_groups(sockets)

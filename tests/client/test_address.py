from __future__ import annotations

import pytest

from bpbroker.client.address import BrokerAddress, parse_address, parse_port
from bpbroker.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.5:1234", "10.0.0.5", 1234),
        ("10.0.0.5", "10.0.0.5", 20443),
        ("Broker.Example:20443", "broker.example", 20443),
        ("[2001:db8::1]:1", "2001:db8::1", 1),
        ("[2001:db8::1]", "2001:db8::1", 20443),
        ("2001:db8::1", "2001:db8::1", 20443),
        ("::1", "::1", 20443),
        ("fe80::1%eth0", "fe80::1%eth0", 20443),
        ("FE80::1%enP2p1s0", "fe80::1%enP2p1s0", 20443),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
        (" host:1 \n", "host", 1),
        ("bücher.example:1", "xn--bcher-kva.example", 1),
    ],
)
def test_an_address_is_understood(text: str, host: str, port: int) -> None:
    assert parse_address(text) == BrokerAddress(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":20443",
        "host:",
        "host:abc",
        "host:0",
        "host:65536",
        "host:-1",
        "host:+1",
        "host:1e3",
        "host:\u0661",
        "host:123456789012345678901234567890",
        "https://host:1",
        "host/path",
        "user@host:1",
        "a b:1",
        "[::1",
        "[::1]x",
        "[::1]:",
        "[host]:1",
        "[]:1",
        "2001:db8::1:20443",
        "::1:20443",
        "[::g]:1",
        "http://a:b:c",
        "a:b:c",
        "a\u0000b:1",
        "ü" * 300,
    ],
)
def test_anything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT") as caught:
        parse_address(text)
    assert caught.value.exit_code == 2


def test_another_port_may_be_the_usual_one() -> None:
    assert parse_address("host", 1234).port == 1234
    assert parse_address("host:1", 1234).port == 1


def test_it_is_written_so_that_it_can_be_read_again() -> None:
    for address in (BrokerAddress("host", 1), BrokerAddress("::1", 2), BrokerAddress("fe80::1%eth0", 3)):
        assert parse_address(str(address)) == address


def test_a_port_alone() -> None:
    assert parse_port("20443") == 20443
    with pytest.raises(UsageError):
        parse_port("x")

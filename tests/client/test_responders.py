from __future__ import annotations

import pytest

from bpbroker.client.responders import DISPUTE_SECS, SETTLE_SECS, Broker, Responders
from bpbroker.errors import SeveralBrokers

R1, R2 = "aa" * 16, "bb" * 16


def signed(address: str, registry: str = R1, fingerprint: str = "cd" * 32) -> Broker:
    return Broker(address, 20443, registry, fingerprint, authentic=True)


def claimed(address: str, registry: str = R1, fingerprint: str = "cd" * 32) -> Broker:
    return Broker(address, 20443, registry, fingerprint)


def plain(address: str) -> Broker:
    return Broker(address, 20443)


def after(*brokers: Broker, own: tuple[str, ...] = (), first: bool = False) -> Responders:
    responders = Responders(first=first)
    responders.own_addresses = set(own)
    for number, broker in enumerate(brokers):
        responders.heard(broker, 100.0 + number / 10)
    return responders


def test_one_answer_settles_after_a_moment() -> None:
    responders = after(signed("10.0.0.5"))
    assert responders.enough_at == pytest.approx(100.0 + SETTLE_SECS)
    assert responders.the_one("foo").address == "10.0.0.5"


def test_different_brokers_are_listened_to_longer_and_then_refused() -> None:
    responders = after(signed("10.0.0.5"), signed("10.0.0.6", R2))
    assert responders.enough_at == pytest.approx(100.0 + DISPUTE_SECS)
    with pytest.raises(SeveralBrokers) as caught:
        responders.the_one("foo")
    assert caught.value.addresses == ("10.0.0.5", "10.0.0.6")
    assert caught.value.exit_code == 7
    assert "10.0.0.5, 10.0.0.6" in str(caught.value)


def test_plain_answers_from_two_addresses_are_two_brokers() -> None:
    with pytest.raises(SeveralBrokers):
        after(plain("10.0.0.5"), plain("10.0.0.6")).the_one("foo")


@pytest.mark.parametrize(
    "brokers",
    [
        (signed("10.0.0.5"), signed("10.0.1.5")),
        (plain("10.0.0.5"), signed("10.0.0.5")),
        (signed("10.0.0.5"), plain("10.0.0.5")),
        (signed("10.0.0.5"), signed("fe80::1%eth0"), plain("10.0.0.5"), plain("fe80::1%eth0")),
    ],
)
def test_one_registry_by_several_ways_is_one_broker(brokers: tuple[Broker, ...]) -> None:
    assert after(*brokers).the_one("foo") == signed("10.0.0.5")


def test_brokers_that_share_a_registry_are_no_split_brain() -> None:
    two = after(signed("10.0.0.6"), signed("10.0.0.5", R1, "ee" * 32))
    assert two.the_one("foo").address == "10.0.0.6"
    assert [item.address for item in two.candidates("foo")] == ["10.0.0.6", "10.0.0.5"]


def test_an_unsigned_claim_of_the_same_registry_proves_nothing() -> None:
    with pytest.raises(SeveralBrokers):
        after(claimed("10.0.0.6"), claimed("10.0.0.66", R1, "66" * 32)).the_one("foo")


def test_one_certificate_at_several_addresses_is_one_broker() -> None:
    assert after(claimed("10.0.0.6"), claimed("10.0.1.6", R2)).the_one("foo").address == "10.0.0.6"


def test_answers_that_claim_expected_certificates_are_all_tried() -> None:
    responders = Responders(expected=True)
    for broker in (claimed("fe80::1%eth0"), claimed("10.0.0.66", R2), claimed("10.0.0.6", R1, "ee" * 32)):
        responders.heard(broker, 100.0)
    assert [item.address for item in responders.candidates("foo")] == ["10.0.0.66", "10.0.0.6", "fe80::1%eth0"]


def test_this_hosts_own_broker_is_one_whatever_its_addresses() -> None:
    own = ("127.0.0.1", "10.0.0.7", "fe80::7")
    assert after(plain("127.0.0.1"), plain("10.0.0.7"), own=own).the_one("foo").address == "10.0.0.7"
    assert after(plain("127.0.0.1"), signed("10.0.0.7"), plain("fe80::7%eth0"), own=own).the_one("foo") == signed(
        "10.0.0.7"
    )


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        (("127.0.0.1", "10.0.0.5"), "10.0.0.5"),
        (("fe80::1%eth0", "127.0.0.1"), "127.0.0.1"),
        (("fe80::1%eth0", "2001:db8::1"), "2001:db8::1"),
        (("2001:db8::1", "10.0.0.5"), "10.0.0.5"),
    ],
)
def test_the_address_of_most_use_is_given(addresses: tuple[str, ...], best: str) -> None:
    assert after(*map(signed, addresses)).the_one("foo").address == best


def test_the_first_is_enough_if_wanted() -> None:
    responders = after(signed("10.0.0.5"), signed("10.0.0.6", R2), first=True)
    assert responders.enough_at == 100.1
    assert responders.the_one("foo").address == "10.0.0.5"


def test_everybody_is_never_enough() -> None:
    responders = Responders(everybody=True)
    for address in ("10.0.0.5", "10.0.0.6", "10.0.0.5"):
        responders.heard(signed(address), 100.0)
    assert responders.enough_at == float("inf")
    assert [broker.address for broker in responders.everybody()] == ["10.0.0.5", "10.0.0.6"]


def test_everybody_is_listed_by_useful_addresses() -> None:
    responders = Responders(everybody=True)
    for broker in (
        signed("fe80::1%eth0"),
        signed("127.0.0.1", R2),
        signed("10.0.0.5"),
        signed("10.0.1.5"),
        plain("127.0.0.3"),
    ):
        responders.heard(broker, 100.0)
    assert [broker.address for broker in responders.everybody()] == ["127.0.0.1", "10.0.0.5", "10.0.1.5", "127.0.0.3"]


def test_nobody() -> None:
    assert not Responders().any()


def test_a_flood_of_answers_is_bounded() -> None:
    responders = Responders(everybody=True)
    for number in range(3000):
        responders.heard(plain(f"10.0.{number // 256}.{number % 256}"), 100.0)
    assert len(responders.everybody()) == 1000

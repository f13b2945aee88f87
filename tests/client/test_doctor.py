"""What the doctor finds on the way to a broker."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from bpbroker.client.address import BrokerAddress
from bpbroker.client.doctor import Finding, examine, validity
from bpbroker.client.pins import KnownBrokers
from bpbroker.client.transport import Trust
from bpbroker.discovery.jointoken import canonical_fingerprint
from tests.support.ports import refusing_port
from tests.support.running import RunningBroker


def look(broker: RunningBroker, pins: KnownBrokers, trust: Trust | None = None, key: str = "") -> dict[str, Finding]:
    target = BrokerAddress("127.0.0.1", broker.port)
    return {found.what: found for found in examine(target, trust or Trust(), pins, key=key, timeout_secs=30)}


def test_a_broker_that_is_well(broker: RunningBroker, tmp_path: Path) -> None:
    pins = KnownBrokers(tmp_path / "pins")
    found = look(broker, pins)
    assert {finding.level for finding in found.values()} == {"ok"}, found
    assert {"TCP", "certificate", "expiry", "health", "clock", "access", "UDP"} == set(found)
    assert "not seen before" in found["certificate"].detail
    assert not (tmp_path / "pins").exists()  # looking pins nothing
    right = Trust([canonical_fingerprint(broker.note["fingerprint"])])
    assert "as expected" in look(broker, pins, right)["certificate"].detail


def test_a_certificate_that_is_not_the_pinned_one(broker: RunningBroker, tmp_path: Path) -> None:
    pins = KnownBrokers(tmp_path / "pins")
    pins.check(f"127.0.0.1:{broker.port}", "0" * 64)
    for trust in (Trust(), Trust(["0" * 64])):
        found = look(broker, pins, trust, key="canary")
        assert found["certificate"].level == "fail"
        assert found["certificate"].advice
        assert "access" not in found  # the key is not sent to it
    assert broker.text.count('"method": "Get"') == 0


def test_a_key_that_is_missing_or_wrong(make_broker: object, tmp_path: Path) -> None:
    assert callable(make_broker)
    broker = make_broker({"services": {"_access_key": "secret"}}).start()
    pins = KnownBrokers(tmp_path / "pins")
    right = Trust([canonical_fingerprint(broker.note["fingerprint"])])
    assert "needs an access key" in look(broker, pins)["access"].detail
    assert look(broker, pins, right, key="wrong")["access"].level == "fail"
    assert look(broker, pins, right, key="secret")["access"].level == "ok"


def test_a_key_goes_only_where_the_certificate_is_known(make_broker: object, tmp_path: Path) -> None:
    assert callable(make_broker)
    broker = make_broker({"services": {"_access_key": "secret"}}).start()
    pins = KnownBrokers(tmp_path / "pins")
    found = look(broker, pins, key="secret")
    assert "needs an access key" in found["access"].detail  # it was not sent
    assert found["key"].level == "warning"
    own, other = tmp_path / "own.pem", tmp_path / "other.pem"
    own.write_bytes(broker.config.with_suffix(".crt").read_bytes())
    trustme.CA().cert_pem.write_to_path(str(other))
    assert look(broker, pins, Trust(cacert=str(own)), key="secret")["access"].level == "ok"
    refused = look(broker, pins, Trust(cacert=str(other)), key="secret")
    assert refused["certificate"].level == "fail"
    assert "access" not in refused


def test_nobody_there(tmp_path: Path) -> None:
    with refusing_port() as port:
        target = BrokerAddress("127.0.0.1", port)
        (found,) = examine(target, Trust(), KnownBrokers(tmp_path / "pins"))
    assert (found.what, found.level) == ("TCP", "fail")
    assert "firewall" in found.advice


def test_something_else_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            taken, _ = server.accept()
            with taken:
                taken.recv(1)
                taken.sendall(b"SSH-2.0-other\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        target = BrokerAddress("127.0.0.1", server.getsockname()[1])
        found = list(examine(target, Trust(), KnownBrokers(tmp_path / "pins")))
        thread.join(30)
    assert [(finding.what, finding.level) for finding in found] == [("TCP", "ok"), ("TLS", "fail")]


@pytest.mark.parametrize("year", [2030, 2060])
def test_the_end_of_a_certificate_is_read_in_both_forms(year: int) -> None:
    until = datetime(year, 5, 17, 1, 2, 3, tzinfo=UTC)
    issued = trustme.CA().issue_cert("localhost", not_after=until)
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    assert validity(der)[1] == until
    assert validity(b"rubbish") == (None, None)


@pytest.mark.parametrize(
    ("since", "level", "says"),
    [(timedelta(days=3), "fail", "is not valid before"), (timedelta(days=-3), "ok", "is good until")],
)
def test_a_certificate_of_a_clock_ahead_is_not_valid_yet(
    since: timedelta, level: str, says: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    issued = trustme.CA().issue_cert("localhost", not_before=now + since, not_after=now + timedelta(days=100))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def shake_hands() -> None:
            with suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True) as taken:
                taken.recv(1)

        thread = threading.Thread(target=shake_hands)
        thread.start()
        target = BrokerAddress("127.0.0.1", server.getsockname()[1])
        found = {each.what: each for each in examine(target, Trust(["0" * 64]), KnownBrokers(tmp_path / "pins"))}
        thread.join(30)
    assert (found["expiry"].level, says in found["expiry"].detail) == (level, True), found


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 64}.example", "."])
def test_a_host_that_is_no_name_is_a_finding(host: str, tmp_path: Path) -> None:
    (found,) = examine(BrokerAddress(host, 1), Trust(), KnownBrokers(tmp_path / "pins"))
    assert (found.what, found.level) == ("name", "fail")
    assert "cannot be looked up" in found.detail


def test_a_name_server_that_is_silent_does_not_hold_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def silent(*_: object, **__: object) -> list[tuple[object, ...]]:
        over.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    began = time.monotonic()
    (found,) = examine(BrokerAddress("broker.example", 1), Trust(), KnownBrokers(tmp_path / "pins"), total_secs=0.2)
    took = time.monotonic() - began
    over.set()
    assert (found.what, found.level) == ("name", "fail")
    assert "no name server answered within 0.2 s" in found.detail
    assert took < 30


def test_what_to_do_where_there_is_no_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_way(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_way)
    for host, advice in (("127.0.0.1", "ip link set lo up"), ("192.0.2.7", "bring an interface or a route up")):
        (found,) = examine(BrokerAddress(host, 1), Trust(), KnownBrokers(tmp_path / "pins"))
        assert advice in found.advice
    (found,) = examine(BrokerAddress("fe80::1", 1), Trust(), KnownBrokers(tmp_path / "pins"))
    assert "fe80::1%INTERFACE" in found.advice


def test_bpclient_doctor_remembers_no_certificate_and_shows_it_no_key(make_broker: object) -> None:
    assert callable(make_broker)
    broker = make_broker({"services": {"_access_key": "secret-secret-secret"}}).start()
    done = broker.bpclient("-a", "secret-secret-secret", "doctor")
    assert "not seen before; the first call will pin it" in done.stdout, done.stdout + done.stderr
    assert "the access key was not tried" in done.stdout
    assert "First contact" not in done.stderr
    assert not list(broker.home.rglob("known_brokers"))


def test_bpclient_doctor(broker: RunningBroker) -> None:
    done = broker.bpclient("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       UDP" in done.stdout
    found = json.loads(broker.bpclient("doctor", "--format", "json").stdout)
    assert {"what", "level", "detail", "advice"} == set(found[0])
    done = broker.bpclient("--fingerprint", "0" * 64, "doctor")
    assert done.returncode == 1
    assert "fail     certificate" in done.stdout

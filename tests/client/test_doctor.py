"""What the doctor finds on the way to a broker."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from bpbroker.client.address import BrokerAddress
from bpbroker.client.doctor import Finding, examine, not_after
from bpbroker.client.pins import KnownBrokers
from bpbroker.client.transport import Trust
from bpbroker.discovery.jointoken import canonical_fingerprint
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
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = BrokerAddress("127.0.0.1", closed.getsockname()[1])
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
    assert not_after(der) == until
    assert not_after(b"rubbish") is None


def test_bpclient_doctor(broker: RunningBroker) -> None:
    done = broker.bpclient("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       UDP" in done.stdout
    found = json.loads(broker.bpclient("doctor", "--format", "json").stdout)
    assert {"what", "level", "detail", "advice"} == set(found[0])
    done = broker.bpclient("--fingerprint", "0" * 64, "doctor")
    assert done.returncode == 1
    assert "fail     certificate" in done.stdout

"""What is spoken on the wire and with which certificate (cases T)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bpbroker.server import host_certificate
from tests.support.running import RunningBroker, untrusting
from tests.support.witness import CANARY, KEY, Attacked, eventually

ROOT = Path(__file__).parents[2]
PRIVATE_KEY = b"PRIVATE KEY-----"


def fingerprint_served(port: int) -> str:
    """Return the SHA-256 fingerprint of the certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", port), 30) as sock,
        untrusting().wrap_socket(sock, server_hostname="x") as client,
    ):
        certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return hashlib.sha256(certificate).digest().hex(":").upper()


def s_client(port: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``openssl s_client`` with everything allowed that OpenSSL still knows."""
    return subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@needs_openssl
@pytest.mark.parametrize(
    "options",
    [
        ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"],  # CBC
        ["-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-SHA:kRSA:@SECLEVEL=0"],  # no forward secrecy
        ["-tls1_2", "-cipher", "NULL:aNULL:eNULL:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-CCM8:PSK:SRP:@SECLEVEL=0"],
    ],
    ids=["TLS 1.1", "TLS 1.0", "CBC", "RSA", "none", "CCM8"],
)
def test_what_is_too_weak_is_refused(attacked: Attacked, options: list[str]) -> None:
    ended = s_client(attacked.broker.port, *options)
    assert ended.returncode != 0
    assert "Cipher is (NONE)" in ended.stdout, ended.stderr
    assert "alert" in ended.stderr, ended.stderr  # the broker said no, not this machine's openssl


@needs_openssl
@pytest.mark.parametrize(
    ("options", "protocol", "cipher"),
    [
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], "TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], "TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        (["-tls1_3"], "TLSv1.3", "TLS_"),
        ([], "TLSv1.3", "TLS_"),
    ],
)
def test_what_is_strong_is_spoken(attacked: Attacked, options: list[str], protocol: str, cipher: str) -> None:
    ended = s_client(attacked.broker.port, *options)
    assert f"{protocol}, Cipher is {cipher}" in ended.stdout, ended.stderr
    assert "Compression: NONE" in ended.stdout
    assert "Server Temp Key: X25519" in ended.stdout


@needs_openssl
def test_a_client_cannot_renegotiate(attacked: Attacked) -> None:
    with subprocess.Popen(
        ["openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{attacked.broker.port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as client:
        said, _ = client.communicate("R\nR\n", timeout=60)
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said
    assert attacked.call("Get", name="witness").status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed(attacked: Attacked, version: ssl.TLSVersion) -> None:
    context = untrusting()
    context.maximum_version = context.minimum_version = version
    session: ssl.SSLSession | None = None
    for reused in (False, True, True):
        with (
            socket.create_connection(("127.0.0.1", attacked.broker.port), 30) as sock,
            context.wrap_socket(sock, session=session, suppress_ragged_eofs=False) as client,
        ):
            assert client.session_reused is reused
            client.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b""
            while part := client.recv(65536):  # an end without close_notify would raise
                received += part
            assert received.startswith(b"HTTP/1.1 200 ")
            session = client.session


def settings_of(broker: RunningBroker) -> dict[str, Any]:
    """Return the section ``api`` of the file of a broker."""
    api: dict[str, Any] = json.loads(broker.config.read_text())["api"]
    return api


def with_own_pair(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> tuple[RunningBroker, Path, Path]:
    """Return a broker, not started, that is configured to use a pair of files."""
    cert, key = tmp_path / "own.crt", tmp_path / "own.key"
    host_certificate.make_pair(cert, key, ["broker.example"])
    api = {"ssl_cert": str(cert), "ssl_key": str(key)}
    return make_broker({"api": api, "services": {"_access_key": CANARY}}), cert, key


def test_the_first_start_makes_a_pair_of_its_own(make_broker: Callable[..., RunningBroker]) -> None:
    seen = set()
    for broker in (make_broker().start(), make_broker().start()):
        cert, key = (Path(settings_of(broker)[name]) for name in ("ssl_cert", "ssl_key"))
        assert broker.home in cert.parents
        assert key.stat().st_mode & 0o777 == 0o600
        served = fingerprint_served(broker.port)
        assert served == host_certificate.fingerprint(cert) == broker.note["fingerprint"]
        assert served in broker.text
        private = key.read_bytes()
        assert PRIVATE_KEY in private
        assert private.splitlines()[1].decode() not in broker.text
        broker.restart()
        assert fingerprint_served(broker.port) == served
        assert key.read_bytes() == private
        seen |= {served, private}
    assert len(seen) == 4


def test_a_new_pair_is_taken_at_sighup_and_open_connections_live(
    make_broker: Callable[..., RunningBroker], tmp_path: Path
) -> None:
    broker, cert, key = with_own_pair(make_broker, tmp_path)
    broker.start()
    old = fingerprint_served(broker.port)
    with closing(broker.connect()) as kept:

        def still_served() -> None:
            sock = kept.sock
            kept.request("GET", "/services/List/", headers=KEY)
            response = kept.getresponse()
            assert response.status == 200
            response.read()
            assert sock in (None, kept.sock)  # on the very connection that was open before

        still_served()
        for _ in range(2):
            host_certificate.make_pair(cert, key, ["broker.example"])
            new = host_certificate.fingerprint(cert)
            assert new != old
            broker.signal(signal.SIGHUP)
            eventually(lambda new=new: fingerprint_served(broker.port) == new)  # type: ignore[misc]  # bound at once
            eventually(lambda new=new: broker.note["fingerprint"] == new)  # type: ignore[misc]  # bound at once
            still_served()
            old = new


@pytest.mark.parametrize("fault", ["unmatched", "garbage", "missing", "empty"])
def test_a_pair_that_cannot_be_used_is_refused_and_the_old_one_kept(
    make_broker: Callable[..., RunningBroker], tmp_path: Path, fault: str
) -> None:
    broker, cert, key = with_own_pair(make_broker, tmp_path)
    broker.start()
    old = fingerprint_served(broker.port)
    with closing(broker.connect()) as kept:
        kept.request("GET", "/live")
        kept.getresponse().read()
        spoil(fault, cert, key)
        broker.signal(signal.SIGHUP)
        eventually(lambda: any("ERROR" in line and "certificate" in line for line in broker.text.splitlines()))
        assert fingerprint_served(broker.port) == old == broker.note["fingerprint"]
        kept.request("GET", "/live")
        assert kept.getresponse().read()
    assert "Traceback" not in broker.text
    assert broker.stop() == 0
    ended = broker.bpbroker("start", "--listen-port", "0")
    assert ended.returncode == 78
    assert str(key) in ended.stderr or str(cert) in ended.stderr
    assert "Traceback" not in ended.stderr


def spoil(fault: str, cert: Path, key: Path) -> None:
    """Make a pair of files unusable."""
    if fault == "unmatched":
        host_certificate.make_pair(cert.with_name("other.crt"), key, ["broker.example"])
    elif fault == "garbage":
        cert.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif fault == "missing":
        key.unlink()
    else:
        key.write_bytes(b"")


def test_a_key_that_others_can_read_is_warned_of(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> None:
    broker, _, key = with_own_pair(make_broker, tmp_path)
    key.chmod(0o644)
    broker.start()
    (line,) = [line for line in broker.text.splitlines() if "WARNING" in line and str(key) in line]
    assert "chmod 600" in line
    assert key.stat().st_mode & 0o777 == 0o644  # it is the operator's to change


def test_nothing_that_the_wheel_is_made_of_holds_a_private_key() -> None:
    shipped = [path for folder in ("bpbroker", "deploy") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert len(shipped) > 50
    for path in shipped:
        assert path.suffix not in (".crt", ".key", ".pem", ".p12", ".pfx"), path
        assert PRIVATE_KEY not in path.read_bytes(), path


SCANS = (
    "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3",
    "--heartbleed", "--openssl_ccs", "--compression", "--reneg", "--robot",
)  # fmt: skip


SSLYZE = os.environ.get("BPBROKER_SSLYZE") or shutil.which("sslyze")
"""It wants another version of cryptography than ours, so ``.ci/run`` gives it a virtual environment of its own."""


@pytest.mark.skipif(SSLYZE is None, reason="sslyze is not installed; BPBROKER_SSLYZE can name it")
def test_sslyze_finds_nothing_weak(attacked: Attacked, tmp_path: Path) -> None:
    assert SSLYZE is not None
    report = tmp_path / "report.json"
    subprocess.run(
        [SSLYZE, f"--json_out={report}", "--mozilla_config=disable", *SCANS, f"127.0.0.1:{attacked.broker.port}"],
        capture_output=True,
        timeout=120,
        check=True,
    )
    (server,) = json.loads(report.read_text())["server_scan_results"]
    scan = server["scan_result"]
    for old in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert scan[f"{old}_cipher_suites"]["result"]["accepted_cipher_suites"] == []
    accepted = [
        suite["cipher_suite"]["name"]
        for new in ("tls_1_2", "tls_1_3")
        for suite in scan[f"{new}_cipher_suites"]["result"]["accepted_cipher_suites"]
    ]
    assert accepted
    assert all("GCM" in name or "POLY1305" in name or "CCM_SHA256" in name for name in accepted), accepted
    assert scan["heartbleed"]["result"]["is_vulnerable_to_heartbleed"] is False
    assert scan["openssl_ccs_injection"]["result"]["is_vulnerable_to_ccs_injection"] is False
    assert scan["tls_compression"]["result"]["supports_compression"] is False
    assert scan["session_renegotiation"]["result"]["is_vulnerable_to_client_renegotiation_dos"] is False
    assert scan["session_renegotiation"]["result"]["supports_secure_renegotiation"] is True
    assert scan["robot"]["result"]["robot_result"].startswith("NOT_VULNERABLE")

from __future__ import annotations

import datetime
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.server import host_certificate, tls
from tests.support.systems import is_private, posix_only


def openssl(*words: str) -> str:
    return subprocess.run(["openssl", *words], capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_new_pair_is_for_this_host_and_its_key_for_nobody_else(pair: tuple[Path, Path]) -> None:
    cert, key = pair
    found = host_certificate.read_certificate(cert)
    assert found.subject == "CN=node-7"
    assert found.names == ("node-7", "10.0.0.7", "fe80::1", "xn--bcher-kva.example")
    assert found.days_left(datetime.datetime.now(datetime.UTC)) in (
        host_certificate.VALID_DAYS - 1,
        host_certificate.VALID_DAYS,
    )
    assert is_private(key)
    assert os.name == "nt" or cert.stat().st_mode & 0o022 == 0
    assert sorted(path.name for path in cert.parent.iterdir()) == ["a.crt", "a.key"]


def test_a_new_certificate_is_no_authority(pair: tuple[Path, Path]) -> None:
    extensions = x509.load_pem_x509_certificate(pair[0].read_bytes()).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


@posix_only("the program openssl")
def test_openssl_agrees_about_fingerprint_and_strict_verification(pair: tuple[Path, Path]) -> None:
    cert = str(pair[0])
    printed = openssl("x509", "-in", cert, "-noout", "-fingerprint", "-sha256")
    assert printed.strip().rpartition("=")[2] == host_certificate.fingerprint(pair[0])
    assert "OK" in openssl("verify", "-x509_strict", "-CAfile", cert, cert)


def test_two_pairs_have_nothing_in_common(tmp_path: Path) -> None:
    for name in ("a", "b"):
        host_certificate.ensure_pair(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
    assert (tmp_path / "a.key").read_bytes() != (tmp_path / "b.key").read_bytes()
    assert host_certificate.fingerprint(tmp_path / "a.crt") != host_certificate.fingerprint(tmp_path / "b.crt")


def test_a_pair_that_is_there_is_left_as_it_is(pair: tuple[Path, Path]) -> None:
    before = [path.read_bytes() for path in pair]
    host_certificate.ensure_pair(*pair)
    assert [path.read_bytes() for path in pair] == before


def test_a_certificate_without_its_key_is_not_replaced_behind_anybodys_back(pair: tuple[Path, Path]) -> None:
    pair[1].unlink()
    with pytest.raises(ConfigurationError, match=re.escape(str(pair[1]))):
        host_certificate.ensure_pair(*pair)
    assert not pair[1].exists()


def test_a_key_that_a_cut_off_first_start_left_makes_room_for_a_pair(pair: tuple[Path, Path]) -> None:
    old = pair[1].read_bytes()
    pair[0].unlink()
    host_certificate.ensure_pair(*pair)
    host_certificate.check_pair(*pair)
    assert pair[1].read_bytes() != old
    assert pair[1].with_name(f"{pair[1].name}.old").read_bytes() == old


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        host_certificate.ensure_pair(tmp_path / "nowhere" / "a.crt", tmp_path / "nowhere" / "a.key")


def test_this_host_knows_its_names() -> None:
    names = host_certificate.own_names()
    assert names[0] == socket.gethostname()
    assert {"localhost", "127.0.0.1", "::1"} <= set(names)
    assert len(names) == len(set(names))
    assert not any("%" in name for name in names)


def test_a_pair_that_does_not_match_or_is_none_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = pair
    other = tmp_path / "other.key"
    host_certificate.make_pair(tmp_path / "other.crt", other)
    empty = tmp_path / "empty"
    empty.write_text("nothing")
    for bad_cert, bad_key, named in (
        (cert, other, other),
        (cert, empty, empty),
        (empty, key, empty),
        (cert, cert, cert),
        (tmp_path / "none.crt", key, tmp_path / "none.crt"),
        (cert, tmp_path / "none.key", tmp_path / "none.key"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(str(named))):
            host_certificate.check_pair(bad_cert, bad_key)
    for unreadable in (empty, tmp_path / "none.crt"):
        with pytest.raises(ConfigurationError, match=re.escape(str(unreadable))):
            host_certificate.fingerprint(unreadable)


@posix_only("modes")
def test_a_key_that_others_can_read_is_warned_of(pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    host_certificate.check_pair(*pair)
    assert not caplog.records
    pair[1].chmod(0o644)
    host_certificate.check_pair(*pair)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(pair[1]) in caplog.text


@pytest.mark.parametrize(("days", "says"), [(5, "expires in"), (-5, "has expired")])
def test_a_certificate_that_ends_soon_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: int, says: str
) -> None:
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    issued = trustme.CA().issue_cert("localhost", not_after=ends)
    cert, key = tmp_path / "a.crt", tmp_path / "a.key"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    host_certificate.check_pair(cert, key)
    assert says in caplog.text


# --- what is spoken ---


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="Unix")
def test_a_device_is_no_certificate() -> None:
    with pytest.raises(ConfigurationError, match="/dev/zero holds no certificate in PEM form"):
        host_certificate.read_certificate(Path("/dev/zero"))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read: Linux")
def test_a_pair_that_the_disk_cannot_read_is_tried_again_by_the_service_manager(pair: tuple[Path, Path]) -> None:
    broken = Path("/proc/self/mem")  # its first byte is no memory: EIO
    for cert, key, what in ((broken, pair[1], "certificate"), (pair[0], broken, "private key")):
        with pytest.raises(StartError, match=f"Cannot read the {what} {broken}: Input/output error"):
            tls.context(cert, key)


def test_a_pair_that_is_utf_16_is_told_what_is_the_matter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    marked = [tmp_path / "marked.crt", tmp_path / "marked.key"]
    for there, path in zip(pair, marked, strict=True):
        path.write_text(there.read_text(), encoding="utf-16")
    for cert, key in ((marked[0], pair[1]), (pair[0], marked[1])):
        with pytest.raises(ConfigurationError, match="begins with a byte order mark"):
            tls.context(cert, key)


def _verified(trusted: Path, chain: Path, key: Path, host: str, flags: ssl.VerifyFlags) -> str:
    """Have a client that trusts one file shake hands with a server; give why it refuses, or nothing."""
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.load_verify_locations(trusted)
    client.verify_flags |= flags
    server.load_cert_chain(chain, key)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=host)
    two = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, two):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return str(error.verify_message)
    assert one.version() == "TLSv1.3"
    return ""


def _signed_by(cert: Path, key: Path, name: str, folder: Path) -> tuple[Path, Path]:
    """Misuse a broker's pair as an authority: give the chain and the key of a certificate for another name."""
    issuer = x509.load_pem_x509_certificate(cert.read_bytes())
    issuer_key = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    made = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    chain, own = folder / "forged.pem", folder / "forged.key"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + cert.read_bytes())
    own.write_bytes(
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, own


@pytest.mark.parametrize("flags", [ssl.VerifyFlags.VERIFY_DEFAULT, ssl.VerifyFlags.VERIFY_X509_STRICT])
def test_the_certificate_is_trusted_for_its_own_names_and_can_sign_for_no_other(
    tmp_path: Path, flags: ssl.VerifyFlags
) -> None:
    cert, key = tmp_path / "b.crt", tmp_path / "b.key"
    host_certificate.make_pair(cert, key, ["broker.example", "127.0.0.1"])
    for host in ("broker.example", "127.0.0.1"):
        assert _verified(cert, cert, key, host, flags) == ""
    assert _verified(cert, cert, key, "other.example", flags) != ""
    chain, own = _signed_by(cert, key, "other.example", tmp_path)
    assert "CA" in _verified(cert, chain, own, "other.example", flags)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("options", [(), ("-x509_strict",), ("-partial_chain",), ("-purpose", "sslserver")])
def test_openssl_takes_the_certificate_as_its_own_authority(tmp_path: Path, options: tuple[str, ...]) -> None:
    cert, key = tmp_path / "b.crt", tmp_path / "b.key"
    host_certificate.make_pair(cert, key, ["broker.example"])
    verify = ["openssl", "verify", *options, "-CAfile", str(cert)]
    assert subprocess.run([*verify, str(cert)], capture_output=True, check=False).returncode == 0
    chain, _ = _signed_by(cert, key, "other.example", tmp_path)
    forged = subprocess.run([*verify, "-untrusted", str(cert), str(chain)], capture_output=True, check=False)
    assert forged.returncode != 0

from __future__ import annotations

import contextlib
import datetime
import hmac
import itertools
import logging
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.server import tls
from tests.support.systems import end_listening, is_private, posix_only


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "a.crt", tmp_path / "a.key"
    tls.make_pair(cert, key, ["node-7", "10.0.0.7", "fe80::1", "bücher.example"])
    return cert, key


def openssl(*words: str) -> str:
    return subprocess.run(["openssl", *words], capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_new_pair_is_for_this_host_and_its_key_for_nobody_else(pair: tuple[Path, Path]) -> None:
    cert, key = pair
    found = tls.read_certificate(cert)
    assert found.subject == "CN=node-7"
    assert found.names == ("node-7", "10.0.0.7", "fe80::1", "xn--bcher-kva.example")
    assert found.days_left(datetime.datetime.now(datetime.UTC)) in (tls.VALID_DAYS - 1, tls.VALID_DAYS)
    assert is_private(key)
    assert os.name == "nt" or cert.stat().st_mode & 0o022 == 0
    assert sorted(path.name for path in cert.parent.iterdir()) == ["a.crt", "a.key"]


def test_a_new_certificate_is_no_authority(pair: tuple[Path, Path]) -> None:
    extensions = x509.load_pem_x509_certificate(pair[0].read_bytes()).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


@posix_only("the program openssl")
def test_openssl_agrees_about_fingerprint_and_strict_verification(pair: tuple[Path, Path]) -> None:
    cert = str(pair[0])
    printed = openssl("x509", "-in", cert, "-noout", "-fingerprint", "-sha256")
    assert printed.strip().rpartition("=")[2] == tls.fingerprint(pair[0])
    assert "OK" in openssl("verify", "-x509_strict", "-CAfile", cert, cert)


def test_two_pairs_have_nothing_in_common(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tls.ensure_pair(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
    assert (tmp_path / "a.key").read_bytes() != (tmp_path / "b.key").read_bytes()
    assert tls.fingerprint(tmp_path / "a.crt") != tls.fingerprint(tmp_path / "b.crt")


def test_a_pair_that_is_there_is_left_as_it_is(pair: tuple[Path, Path]) -> None:
    before = [path.read_bytes() for path in pair]
    tls.ensure_pair(*pair)
    assert [path.read_bytes() for path in pair] == before


def test_a_certificate_without_its_key_is_not_replaced_behind_anybodys_back(pair: tuple[Path, Path]) -> None:
    pair[1].unlink()
    with pytest.raises(ConfigurationError, match=re.escape(str(pair[1]))):
        tls.ensure_pair(*pair)
    assert not pair[1].exists()


def test_a_key_that_a_cut_off_first_start_left_makes_room_for_a_pair(pair: tuple[Path, Path]) -> None:
    old = pair[1].read_bytes()
    pair[0].unlink()
    tls.ensure_pair(*pair)
    tls.check_pair(*pair)
    assert pair[1].read_bytes() != old
    assert pair[1].with_name(f"{pair[1].name}.old").read_bytes() == old


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        tls.ensure_pair(tmp_path / "nowhere" / "a.crt", tmp_path / "nowhere" / "a.key")


def test_this_host_knows_its_names() -> None:
    names = tls.own_names()
    assert names[0] == socket.gethostname()
    assert {"localhost", "127.0.0.1", "::1"} <= set(names)
    assert len(names) == len(set(names))
    assert not any("%" in name for name in names)


def test_a_pair_that_does_not_match_or_is_none_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = pair
    other = tmp_path / "other.key"
    tls.make_pair(tmp_path / "other.crt", other)
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
            tls.check_pair(bad_cert, bad_key)
    for unreadable in (empty, tmp_path / "none.crt"):
        with pytest.raises(ConfigurationError, match=re.escape(str(unreadable))):
            tls.fingerprint(unreadable)


@posix_only("modes")
def test_a_key_that_others_can_read_is_warned_of(pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    tls.check_pair(*pair)
    assert not caplog.records
    pair[1].chmod(0o644)
    tls.check_pair(*pair)
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
    tls.check_pair(cert, key)
    assert says in caplog.text


# --- what is spoken ---


class Server:
    """Shakes hands with one client after the other and echoes a line to each."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._context = tls.context(cert, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                stream = tls.Stream(self._context, sock)
                try:
                    while stream.handshake() is not None:
                        pass
                    while isinstance(content := stream.receive(), tls.Want):
                        pass
                    assert isinstance(content, bytes)
                    stream.send(content)
                    stream.say_goodbye()
                except tls.StreamBroken:
                    continue

    def stop(self) -> None:
        end_listening(self._listener)
        self._thread.join()


@pytest.fixture
def server(pair: tuple[Path, Path]) -> Iterator[Server]:
    running = Server(*pair)
    yield running
    running.stop()


def talk(port: int, context: ssl.SSLContext) -> tuple[str | None, str]:
    """Return the version and the cipher of a connection over which a line was echoed."""
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 30) as sock,
        context.wrap_socket(sock, suppress_ragged_eofs=False) as wrapped,
    ):
        cipher = wrapped.cipher()
        assert cipher is not None
        wrapped.sendall(b"hello")
        assert wrapped.recv(100) == b"hello"
        assert wrapped.recv(100) == b""
        return wrapped.version(), cipher[0]


def client(version: ssl.TLSVersion, ciphers: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    if ciphers:
        context.set_ciphers(ciphers)
    return context


def test_both_versions_are_spoken_with_aead(server: Server) -> None:
    assert talk(server.port, client(ssl.TLSVersion.TLSv1_3))[0] == "TLSv1.3"
    for ciphers in ("ECDHE+AESGCM", "ECDHE+CHACHA20"):
        version, cipher = talk(server.port, client(ssl.TLSVersion.TLSv1_2, ciphers))
        assert version == "TLSv1.2"
        assert cipher.startswith("ECDHE-ECDSA-")


@pytest.mark.parametrize("ciphers", ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256"])
def test_weak_ciphers_are_not_spoken(server: Server, ciphers: str) -> None:
    with pytest.raises(ssl.SSLError):
        talk(server.port, client(ssl.TLSVersion.TLSv1_2, f"{ciphers}:@SECLEVEL=0"))
    assert talk(server.port, client(ssl.TLSVersion.TLSv1_3))[0] == "TLSv1.3"


@posix_only("the program openssl")
def test_older_versions_are_not_spoken(server: Server) -> None:
    for version in ("-tls1", "-tls1_1"):
        tried = subprocess.run(
            ["openssl", "s_client", version, "-cipher", "DEFAULT:@SECLEVEL=0", "-connect", f"127.0.0.1:{server.port}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert tried.returncode != 0
        assert "alert protocol version" in tried.stderr


def test_the_whole_chain_is_sent(tmp_path: Path) -> None:
    root = trustme.CA()
    issued = root.create_child_ca().issue_cert("127.0.0.1")
    cert, key, ca = tmp_path / "a.crt", tmp_path / "a.key", tmp_path / "ca.crt"
    cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    root.cert_pem.write_to_path(ca)
    running = Server(cert, key)
    try:
        context = ssl.create_default_context(cafile=ca)
        with (
            socket.create_connection(("127.0.0.1", running.port), 30) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.sendall(b"x")
            assert wrapped.recv(10) == b"x"
    finally:
        running.stop()


@posix_only("the program openssl")
def test_the_key_exchange_is_one_of_three_groups(server: Server) -> None:
    def tried(groups: str) -> str:
        return subprocess.run(
            ["openssl", "s_client", "-groups", groups, "-connect", f"127.0.0.1:{server.port}"],
            input="x\n", capture_output=True, text=True, check=False, timeout=60,
        ).stdout  # fmt: skip

    for group, name in (("X25519", "X25519"), ("P-256", "prime256v1"), ("P-384", "secp384r1")):
        assert name in tried(group)
    for group in ("P-521", "X448"):
        assert "no peer certificate available" in tried(group)


def connected(pair: tuple[Path, Path], version: int) -> tuple[tls.Stream, SSL.Connection, socket.socket]:
    """Return a stream, and a client of it that has its bytes in memory, and the socket that those have to go to."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    stream, client = tls.Stream(tls.context(*pair), ours), SSL.Connection(context, None)
    client.set_connect_state()
    want: tls.Want | None = tls.Want.READ
    shaken = False
    while want is not None or not shaken:
        try:
            client.do_handshake()
            shaken = True
        except SSL.WantReadError:
            pass
        with contextlib.suppress(SSL.WantReadError):
            theirs.send(client.bio_read(1 << 16))
        want = stream.handshake() if want is not None else None
        with contextlib.suppress(BlockingIOError):
            client.bio_write(theirs.recv(1 << 16))
    return stream, client, theirs


def arrive(theirs: socket.socket, stream: tls.Stream, data: bytes) -> None:
    """Send it, and wait until it is there: a pair of sockets is a TCP connection on Windows."""
    theirs.send(data)
    assert select.select([stream._socket], [], [], 30)[0]


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_however_records_are_cut_all_data_comes_out(pair: tuple[Path, Path], version: int) -> None:
    stream, client, theirs = connected(pair, version)
    with theirs, stream._socket:
        content, received = os.urandom(16_384), b""
        for size in (1, 16_384, 20, 5_000):
            for start in range(0, 16_384, size) if size > 1 else range(200):
                client.send(content[start : start + size])
        sent = client.bio_read(1 << 20)
        expected = content[:200] + 3 * content
        for size in (1, 3, 30_000, 16_389, 7, 100_000):
            arrive(theirs, stream, sent[:size])
            sent = sent[size:]
            while select.select([stream._socket], [], [], 0)[0]:
                part = stream.receive()
                if isinstance(part, bytes):
                    received += part
        assert not sent
        while len(received) < len(expected) and select.select([stream._socket], [], [], 30)[0]:
            part = stream.receive()
            received += part if isinstance(part, bytes) else b""
        assert received == expected
        client.shutdown()
        arrive(theirs, stream, client.bio_read(1 << 16))
        assert stream.receive() == b""
        assert stream.ended


def test_data_together_with_the_end_is_not_lost(pair: tuple[Path, Path]) -> None:
    stream, client, theirs = connected(pair, SSL.TLS1_3_VERSION)
    with theirs, stream._socket:
        client.send(b"last words")
        client.shutdown()
        arrive(theirs, stream, client.bio_read(1 << 16))
        assert stream.receive() == b"last words"
        assert stream.ended
        assert stream.receive() == b""


def test_what_the_socket_does_not_take_is_sent_later(pair: tuple[Path, Path]) -> None:
    stream, client, theirs = connected(pair, SSL.TLS1_3_VERSION)
    with theirs, stream._socket:
        content, taken, received = os.urandom(3_000_000), 0, b""
        while len(received) < len(content):
            while taken < len(content) and isinstance(sent := stream.send(content[taken : taken + 65_536]), int):
                taken += sent
            assert stream.held_bytes <= 70_000
            while True:
                try:
                    client.bio_write(theirs.recv(1 << 16))
                    while True:
                        received += client.recv(1 << 16)
                except SSL.WantReadError:
                    continue
                except BlockingIOError:
                    break
            stream.flush()
        assert received == content


def test_records_without_data_are_taken_for_a_while(pair: tuple[Path, Path]) -> None:
    stream, client, theirs = connected(pair, SSL.TLS1_3_VERSION)
    with theirs, stream._socket:
        for number in range(5_000):  # each record is as small as it can be, and full of data
            client.send(b"x" * 29)
            arrive(theirs, stream, client.bio_read(1 << 16))
            assert stream.receive() == b"x" * 29, number
        with pytest.raises(tls.StreamBroken, match="without data"):  # one byte of data with each 22 of record
            for _ in range(5_000):
                client.send(b"x")
                arrive(theirs, stream, client.bio_read(1 << 16))
                assert stream.receive() == b"x"


def sealer(client: SSL.Connection) -> Callable[[bytes], bytes]:
    """Return what makes TLS 1.2 records of data, empty ones too: OpenSSL does not send those (RFC 5246, RFC 5288)."""
    secret, server, mine = client.master_key(), client.server_random(), client.client_random()
    name = client.get_cipher_name()
    assert secret and server and mine and name and "GCM" in name
    hashed, size = ("sha384", 32) if "AES256" in name else ("sha256", 16)
    seed, block = b"key expansion" + server + mine, b""
    chained = seed
    while len(block) < 2 * size + 4:
        chained = hmac.digest(secret, chained, hashed)
        block += hmac.digest(secret, chained + seed, hashed)
    key, salt = AESGCM(block[:size]), block[2 * size : 2 * size + 4]
    numbers = itertools.count(1)  # the client's Finished had number 0

    def seal(data: bytes) -> bytes:
        nonce = next(numbers).to_bytes(8)
        sealed = key.encrypt(salt + nonce, data, nonce + b"\x17\x03\x03" + len(data).to_bytes(2))
        return b"\x17\x03\x03" + (len(nonce) + len(sealed)).to_bytes(2) + nonce + sealed

    return seal


def test_a_flood_of_empty_records_is_cut_off(pair: tuple[Path, Path]) -> None:
    stream, client, theirs = connected(pair, SSL.TLS1_2_VERSION)
    with theirs, stream._socket:
        seal = sealer(client)
        for _ in range(20):
            arrive(theirs, stream, seal(b""))
            assert stream.receive() is tls.Want.READ  # it was decrypted: a record that is no good breaks the stream
        with pytest.raises(tls.StreamBroken):  # OpenSSL itself takes 32 in a row
            for _ in range(20):
                arrive(theirs, stream, seal(b""))
                assert stream.receive() is tls.Want.READ


def test_empty_records_with_a_byte_now_and_then_are_cut_off(pair: tuple[Path, Path]) -> None:
    stream, client, theirs = connected(pair, SSL.TLS1_2_VERSION)
    with theirs, stream._socket:
        seal = sealer(client)
        came = 0
        with pytest.raises(tls.StreamBroken, match="without data"):
            for _ in range(1_000):
                arrive(theirs, stream, b"".join([seal(b"") for _ in range(20)] + [seal(b"x")]))
                while select.select([stream._socket], [], [], 0)[0]:
                    part = stream.receive()
                    came += len(part) if isinstance(part, bytes) else 0
        assert came > 20  # some are no attack


def test_renegotiation_is_refused_and_cannot_be_asked_for_without_end(pair: tuple[Path, Path]) -> None:
    stream, client, theirs = connected(pair, SSL.TLS1_2_VERSION)
    with theirs, stream._socket:
        assert client.renegotiate()
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
        hello = client.bio_read(1 << 16)
        theirs.send(hello)
        with contextlib.suppress(tls.StreamBroken):
            assert stream.receive() is tls.Want.READ
        assert theirs.recv(1 << 16)[0] == 21  # an alert: no_renegotiation


def test_what_is_no_tls_is_broken(pair: tuple[Path, Path]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        stream = tls.Stream(tls.context(*pair), ours)
        assert stream.handshake() is tls.Want.READ
        theirs.sendall(b"\x16\x03\x01\x00\x05hello")
        with pytest.raises(tls.StreamBroken):
            stream.handshake()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="Unix")
def test_a_device_is_no_certificate() -> None:
    with pytest.raises(ConfigurationError, match="/dev/zero holds no certificate in PEM form"):
        tls.read_certificate(Path("/dev/zero"))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read: Linux")
def test_a_pair_that_the_disk_cannot_read_is_tried_again_by_the_service_manager(pair: tuple[Path, Path]) -> None:
    broken = Path("/proc/self/mem")  # its first byte is no memory: EIO
    for cert, key, what in ((broken, pair[1], "certificate"), (pair[0], broken, "private key")):
        with pytest.raises(StartError, match=f"Cannot read the {what} {broken}: Input/output error"):
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
    tls.make_pair(cert, key, ["broker.example", "127.0.0.1"])
    for host in ("broker.example", "127.0.0.1"):
        assert _verified(cert, cert, key, host, flags) == ""
    assert _verified(cert, cert, key, "other.example", flags) != ""
    chain, own = _signed_by(cert, key, "other.example", tmp_path)
    assert "CA" in _verified(cert, chain, own, "other.example", flags)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("options", [(), ("-x509_strict",), ("-partial_chain",), ("-purpose", "sslserver")])
def test_openssl_takes_the_certificate_as_its_own_authority(tmp_path: Path, options: tuple[str, ...]) -> None:
    cert, key = tmp_path / "b.crt", tmp_path / "b.key"
    tls.make_pair(cert, key, ["broker.example"])
    verify = ["openssl", "verify", *options, "-CAfile", str(cert)]
    assert subprocess.run([*verify, str(cert)], capture_output=True, check=False).returncode == 0
    chain, _ = _signed_by(cert, key, "other.example", tmp_path)
    forged = subprocess.run([*verify, "-untrusted", str(cert), str(chain)], capture_output=True, check=False)
    assert forged.returncode != 0

from __future__ import annotations

import contextlib
import hmac
import itertools
import os
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

from bpbroker.server import tls
from tests.support.systems import end_listening, posix_only


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

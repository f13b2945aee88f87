from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from bpbroker.client import Client
from bpbroker.errors import CannotConnect, ClientError, NotTrusted, UsageError, WaitTimeout
from tests.support.fake_broker import FakeBroker, answer, failure, success
from tests.support.ports import refusing_port
from tests.support.systems import end_listening


def waiting(over: threading.Event) -> None:
    over.wait(30)


@contextlib.contextmanager
def plain_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a TCP server without TLS for one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            with contextlib.suppress(OSError):
                sock, _ = listening.accept()
                with sock:
                    serve(sock)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        end_listening(listening)
        thread.join(10)


@pytest.fixture(autouse=True)
def _echoing(fake: FakeBroker) -> None:
    fake.answers = [answer(200, {"src": "127.0.0.1", "data": {"_str": ""}})]


# --- trust ---


def test_the_first_contact_is_pinned_and_later_ones_must_be_the_same(
    fake: FakeBroker, make_client: Callable[..., Client], known_brokers: Path, authority: trustme.CA
) -> None:
    said: list[str] = []
    make_client(fingerprint="", tell=said.append).ping()
    assert fake.fingerprint in known_brokers.read_text()
    assert len(said) == 1
    make_client(fingerprint="", tell=said.append).ping()
    assert len(said) == 1
    requests = len(fake.requests)
    fake.show(authority)
    with pytest.raises(NotTrusted, match="nothing was sent"):
        make_client(fingerprint="").ping()
    assert len(fake.requests) == requests


def test_the_fingerprint_that_is_given_counts_alone(
    fake: FakeBroker, make_client: Callable[..., Client], known_brokers: Path
) -> None:
    make_client(fingerprint=fake.fingerprint.upper()).ping()
    with pytest.raises(NotTrusted) as caught:
        make_client(fingerprint="00" * 32).ping()
    assert caught.value.exit_code == 6
    assert "00:00" in str(caught.value)
    assert not known_brokers.exists()
    assert len(fake.requests) == 1


def test_a_token_brings_fingerprint_and_key(fake: FakeBroker, make_client: Callable[..., Client]) -> None:
    make_client(fingerprint="", token=f"bpb1:{fake.fingerprint}:secret").ping()
    assert fake.requests[0].headers["authorization"] == "Bearer secret"
    with pytest.raises(NotTrusted):
        make_client(fingerprint="", token=f"bpb1:{'00' * 32}:secret").ping()


def test_an_authority_may_vouch_for_the_certificate(
    make_client: Callable[..., Client], authority: trustme.CA, tmp_path: Path, known_brokers: Path
) -> None:
    good, other = tmp_path / "good.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(good)
    trustme.CA().cert_pem.write_to_path(other)
    make_client(fingerprint="", cacert=good).ping()
    with pytest.raises(NotTrusted, match="nothing was sent"):
        make_client(fingerprint="", cacert=other).ping()
    with pytest.raises(NotTrusted):
        make_client(fingerprint="00" * 32, cacert=good).ping()
    assert not known_brokers.exists()


def test_the_authority_must_fit_the_name_too(
    fake: FakeBroker, make_client: Callable[..., Client], authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    fake.show(authority, "other.example")
    with pytest.raises(NotTrusted, match="not good by"):
        make_client(fingerprint="", cacert=tmp_path / "ca.pem").ping()


def test_a_bundle_may_have_words_in_any_encoding_and_several_authorities(
    make_client: Callable[..., Client], authority: trustme.CA, tmp_path: Path
) -> None:
    certificates = [authority.cert_pem.bytes(), trustme.CA().cert_pem.bytes()]
    (tmp_path / "ca.pem").write_bytes(b"# Caf\xe9 \xc3\xa9\n" + b"\n# next\n".join(certificates))
    make_client(fingerprint="", cacert=tmp_path / "ca.pem").ping()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_bundle_that_powershell_wrote_is_read(
    make_client: Callable[..., Client], authority: trustme.CA, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes().decode().encode(encoding))
    make_client(fingerprint="", cacert=tmp_path / "ca.pem").ping()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="Unix")
def test_authorities_that_never_end_are_given_up(make_client: Callable[..., Client]) -> None:
    with pytest.raises(UsageError, match="'/dev/zero' of --cacert cannot be used: it is larger than"):
        make_client(fingerprint="", cacert="/dev/zero").ping()


@pytest.mark.parametrize("content", [None, "", "no certificate in here"])
def test_a_file_of_authorities_that_cannot_be_used_is_named(
    make_client: Callable[..., Client], tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"ca\.pem"):
        make_client(fingerprint="", cacert=path).ping()


def test_insecure_takes_anything_and_remembers_nothing(make_client: Callable[..., Client], known_brokers: Path) -> None:
    make_client(fingerprint="", insecure=True).ping()
    assert not known_brokers.exists()


# --- servers that are none ---


def test_nobody_there() -> None:
    with (
        refusing_port() as port,
        Client(f"127.0.0.1:{port}", retries=0) as client,
        pytest.raises(CannotConnect, match="refused") as caught,
    ):
        client.ping()
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert caught.value.exit_code == 6


def test_no_such_host() -> None:
    with Client("no.such.host.invalid", retries=0) as client, pytest.raises(CannotConnect, match="looked up"):
        client.ping()


def test_a_server_without_tls() -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with (
        plain_server(serve) as address,
        Client(address, retries=0) as client,
        pytest.raises(CannotConnect, match="not a bpbroker"),
    ):
        client.ping()


def test_a_server_that_hangs_up_at_once() -> None:
    with (
        plain_server(lambda _: None) as address,
        Client(address, retries=0) as client,
        pytest.raises(CannotConnect, match="ended the connection"),
    ):
        client.ping()


def test_a_server_that_never_speaks() -> None:
    over = threading.Event()
    with plain_server(lambda _: waiting(over)) as address, Client(address, timeout_secs=0.3) as client:
        began = time.monotonic()
        with pytest.raises(WaitTimeout) as caught:
            client.ping()
        assert time.monotonic() - began < 10
        over.set()
    assert caught.value.exit_code == 124


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"SSH-2.0-OpenSSH\r\n", CannotConnect),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", CannotConnect),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", CannotConnect),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", CannotConnect),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data": 1}', CannotConnect),
        (b"", CannotConnect),
    ],
)
def test_rubbish_half_an_answer_and_none(
    fake: FakeBroker, make_client: Callable[..., Client], content: bytes, kind: type[ClientError]
) -> None:
    def once(sock: ssl.SSLSocket) -> None:
        sock.recv(65536)
        sock.sendall(content)

    fake.handler = once
    client = make_client(retries=0)
    for call in (client.ping, lambda: client.get("x"), lambda: client.register("x", "y")):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.exit_code == 6
        assert "\n" not in str(caught.value)


def test_an_answer_that_dribbles_meets_the_same_deadline(fake: FakeBroker, make_client: Callable[..., Client]) -> None:
    over = threading.Event()

    def dribble(sock: ssl.SSLSocket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not over.wait(0.05):
            sock.sendall(b"x")

    fake.handler = dribble
    began = time.monotonic()
    with pytest.raises(WaitTimeout):
        make_client(timeout_secs=0.5).ping()
    assert time.monotonic() - began < 10
    over.set()


# --- the connection ---


def test_one_connection_serves_many_calls(fake: FakeBroker, client: Client) -> None:
    for _ in range(5):
        client.ping()
    assert fake.connections == 1


def test_a_connection_that_the_broker_closed_is_made_again(fake: FakeBroker, client: Client) -> None:
    fake.answers = [
        answer(200, {"src": "x", "data": {}}, Connection="close"),
        answer(200, {"src": "x", "data": {}}),
    ]
    client.ping()
    client.ping()
    assert fake.connections == 2


def test_an_idle_connection_that_ended_is_noticed_before_anything_is_sent(fake: FakeBroker, client: Client) -> None:
    fake.answers = [success({"_str": "x"})]
    ended = threading.Event()
    serve = fake.handler

    def one_request(sock: ssl.SSLSocket) -> None:
        fake.handler = serve
        sock.recv(65536)
        sock.sendall(success({"_str": "x"}))
        sock.shutdown(socket.SHUT_WR)
        ended.set()

    fake.handler = one_request
    client.register("a", "x")
    assert ended.wait(10)
    client.register("b", "x")  # not safe to repeat, so it must not go down the dead connection
    assert [request.json["name"] for request in fake.requests] == ["b"]


def test_an_early_refusal_of_a_large_request_is_read(fake: FakeBroker, client: Client) -> None:
    def refuse(sock: ssl.SSLSocket) -> None:
        sock.recv(1000)
        sock.sendall(failure(413, "The request body is larger than 1 bytes", Connection="close"))
        end = time.monotonic() + 20
        with contextlib.suppress(OSError):
            while time.monotonic() < end and sock.recv(65536):
                pass

    fake.handler = refuse
    with pytest.raises(Exception, match="larger than 1 bytes"):
        client.register("a", "x" * 3_000_000)


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with Client("[::1]:1", retries=0) as client, pytest.raises(CannotConnect, match=r"\[::1\]:1"):
        client.ping()


def test_a_key_that_cannot_be_sent_is_refused_before() -> None:
    with pytest.raises(UsageError):
        Client("h", access_key="a\r\nX-Evil: 1")

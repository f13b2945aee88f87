"""One endpoint: what it sends, and what it says of everything that can go wrong on the way."""

from __future__ import annotations

import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.storage.etcd.endpoint import Endpoint, tls_context
from bpbroker.storage.etcd.gateway import Gateway
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.responses import Failed, Refused
from bpbroker.storage.etcd.restore_detection import Timeline
from tests.support.ports import refusing_port
from tests.support.systems import end_listening, posix_only

Serve = Callable[..., str]


def respond(status: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), size, body)


class Server:
    """Returns one response to each request of a connection, None for none, and then closes it."""

    def __init__(
        self, responses: tuple[bytes | None, ...], context: ssl.SSLContext | None, got: list[bytes] | None
    ) -> None:
        self._responses = responses
        self._context = context
        self._got = [] if got is None else got
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listening.getsockname()[1]}"

    def stop(self) -> None:
        self._ended.set()
        end_listening(self._listening)
        self._thread.join(30)

    def _run(self) -> None:
        with self._listening, suppress(OSError):
            while not self._ended.is_set():
                sock, _ = self._listening.accept()
                with closing(sock), suppress(OSError):
                    self._converse(sock) if self._context is None else self._encrypt(sock, self._context)

    def _encrypt(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        with sock.dup() as raw:
            try:
                with context.wrap_socket(sock, server_side=True) as wrapped:
                    self._converse(wrapped)
            except ssl.SSLError:
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65536):  # to close before all is read would drop the alert
                    pass

    def _converse(self, sock: socket.socket) -> None:
        for response in self._responses:
            request = sock.recv(65536)
            while request and b"}" not in request:  # the body may come later
                request += sock.recv(65536)
            self._got.append(request)
            if response is None:
                self._ended.wait(30)
            else:
                sock.sendall(response)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers and returns their addresses."""
    servers: list[Server] = []

    def serve(*responses: bytes | None, context: ssl.SSLContext | None = None, got: list[bytes] | None = None) -> str:
        servers.append(Server(responses, context, got))
        return servers[-1].url

    yield serve
    for server in servers:
        server.stop()


def options(**changed: Any) -> EtcdOptions:
    return EtcdOptions((), "/x", **changed)


def endpoint(url: str, **changed: Any) -> Endpoint:
    return Endpoint(url, tls_context(options(**changed)))


def connected(url: str, **changed: Any) -> Endpoint:
    at = endpoint(url, **changed)
    at.connect(30)
    return at


def failure(at: Endpoint, secs: float = 30.0) -> Failed:
    with closing(at), pytest.raises(Failed) as caught:
        at.connect(30)
        at.post("/kv/range", {}, secs)
    return caught.value


def test_what_is_sent(serve: Serve) -> None:
    got: list[bytes] = []
    with closing(connected(serve(respond("200 OK", b"{}"), respond("200 OK", b'{"a": 1}'), got=got))) as at:
        assert at.post("/kv/txn", {"name": "é"}, 30) == {}
        at.token = "secret.1"
        assert at.post("/kv/txn", {}, 30) == {"a": 1}  # over the same connection
    head, _, body = got[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v3/kv/txn HTTP/1.1\r\n")
    assert body == b'{"name": "\\u00e9"}'
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert b"Authorization" not in head
    assert b"\r\nAuthorization: secret.1\r\n" in got[1]


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (respond("503 Away", b'{"code": 14, "error": "etcdserver: no leader"}'), "etcdserver: no leader"),
        (respond("429 Busy", b'{"code": 8, "message": "etcdserver: too many requests"}'), "too many requests"),
        (respond("400 Bad", b"Client sent an HTTP request to an HTTPS server."), "something else than etcd"),
        (respond("200 OK", b"<html>"), "something else than etcd"),
        (respond("200 OK", b"[1]"), "something else than etcd"),
        (respond("302 Found\r\nLocation: /elsewhere", b""), "something else than etcd"),
        (respond("200 OK", b"{}", 3), "it broke off"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it broke off"),
        (b"", "it broke off"),
        (None, "it does not answer"),
    ],
)
def test_a_response_of_no_use_may_have_been_a_write(serve: Serve, response: bytes | None, why: str) -> None:
    failed = failure(endpoint(serve(response)), 30.0 if response is not None else 0.2)
    assert why in str(failed)
    assert failed.sent
    assert not failed.distrust


@pytest.mark.parametrize(
    ("body", "stale"),
    [
        (b'{"code": 7, "message": "etcdserver: permission denied"}', False),
        (b'{"code": 8, "error": "etcdserver: mvcc: database space exceeded"}', False),
        (b'{"code": 16, "message": "etcdserver: invalid auth token"}', True),
        (b'{"code": 3, "message": "etcdserver: revision of auth store is old"}', True),
    ],
)
def test_what_every_member_would_refuse(serve: Serve, body: bytes, *, stale: bool) -> None:
    with closing(connected(serve(respond("400 Bad", body)))) as at, pytest.raises(Refused) as caught:
        at.post("/kv/range", {}, 30)
    assert caught.value.stale_token is stale


def test_what_was_not_sent() -> None:
    with refusing_port() as port:
        for url, why in (
            (f"http://127.0.0.1:{port}", "nothing listens there"),
            (f"https://127.0.0.1:{port}", "nothing listens there"),
            ("https://no-such-name.invalid:2379", "its name is not known"),
        ):
            failed = failure(endpoint(url))
            assert str(failed) == why
            assert not failed.sent


def test_certificates_that_are_not_accepted(serve: Serve, tmp_path: Path) -> None:
    ours, strange = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(tmp_path / "ca.pem")
    trusting = str(tmp_path / "ca.pem")

    def server(authority: trustme.CA, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        return context

    wanting = server(ours, "127.0.0.1")
    wanting.verify_mode = ssl.CERT_REQUIRED
    for context, ca_cert, why in (
        (server(strange, "127.0.0.1"), trusting, "its certificate cannot be verified"),
        (server(ours, "127.0.0.1"), None, "its certificate cannot be verified"),  # the system does not know it
        (server(ours, "127.0.0.2"), trusting, "its certificate is for another name"),
        (server(ours, "etcd.example.org"), trusting, "its certificate is for another name"),
        (wanting, trusting, "it refuses our certificate"),
    ):
        failed = failure(endpoint(serve(respond("200 OK", b"{}"), context=context), ca_cert=ca_cert))
        assert str(failed) == why
        assert (failed.distrust, failed.sent) == (True, False)


def test_without_ca_cert_the_authorities_of_the_system_count(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "system.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    url = serve(respond("200 OK", b"{}"), context=context)
    assert failure(endpoint(url)).distrust
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))  # what OpenSSL takes for the system's
    with closing(connected(url)) as at:
        assert at.post("/kv/range", {}, 30) == {}


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    first, second = (trustme.CA().issue_cert("broker@example.org") for _ in range(2))
    names = ("cert.pem", "key.pem", "other.pem", "text.pem", "marked.pem")
    cert, key, other, text, marked = (tmp_path / name for name in names)
    first.cert_chain_pems[0].write_to_path(cert)
    first.private_key_pem.write_to_path(key)
    second.private_key_pem.write_to_path(other)
    text.write_text("no certificate")
    marked.write_text(cert.read_text(), encoding="utf-16")
    tls_context(options(client_cert=str(cert), client_key=str(key)))
    for changed, why in (
        ({"ca_cert": "/nowhere.pem"}, "cannot read /nowhere.pem: "),
        ({"ca_cert": str(text)}, f"cannot use {text}: no PEM"),
        ({"ca_cert": str(marked)}, f"cannot use {marked}: no PEM, it begins with a byte order mark"),
        ({"client_cert": str(cert), "client_key": "/nowhere.pem"}, "cannot read /nowhere.pem: "),
        ({"client_cert": str(text), "client_key": str(key)}, f"cannot use {text} and {key}: no PEM"),
        ({"client_cert": str(cert), "client_key": str(other)}, "the key does not fit the certificate"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(why)):
            tls_context(options(**changed))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read: Linux")
def test_a_file_that_the_disk_cannot_read_is_tried_again_by_the_service_manager(tmp_path: Path) -> None:
    made = trustme.CA().issue_cert("broker@example.org")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made.cert_chain_pems[0].write_to_path(cert)
    made.private_key_pem.write_to_path(key)
    broken = "/proc/self/mem"  # its first byte is no memory: EIO
    for changed in (
        {"ca_cert": broken},
        {"client_cert": broken, "client_key": str(key)},
        {"client_cert": str(cert), "client_key": broken},
    ):
        with pytest.raises(StartError, match=re.escape(f"cannot read {broken}: Input/output error")):
            tls_context(options(**changed))


# --- several requests of a streaming method ---


def answers(*ids: int) -> bytes:
    return b"".join(b'{"result": {"ID": "%d"}}\n' % each for each in ids)


def test_what_the_gateway_has_not_read_is_sent_again(serve: Serve) -> None:
    """Go's HTTP/1.1 server drops the rest of a body when the first answer goes out."""
    got: list[bytes] = []
    url = serve(respond("200 OK", answers(1, 2)), respond("200 OK", answers(3)), got=got)
    with closing(connected(url)) as at:
        found = at.post_each("/lease/keepalive", [{"ID": each} for each in (1, 2, 3)], 30)
    assert found == [{"ID": "1"}, {"ID": "2"}, {"ID": "3"}]
    assert [request.rpartition(b"\r\n\r\n")[2] for request in got] == [b'{"ID":1}\n{"ID":2}\n{"ID":3}', b'{"ID":3}']


def test_no_more_is_sent_at_once_than_the_gateway_surely_reads(serve: Serve) -> None:
    got: list[bytes] = []
    ids = range(10**18, 10**18 + 40)
    url = serve(*(respond("200 OK", answers(*ids[at : at + 18])) for at in (0, 18, 36)), got=got)
    with closing(connected(url)) as at:
        assert [int(each["ID"]) for each in at.post_each("/lease/keepalive", [{"ID": each} for each in ids], 30)] == [
            *ids
        ]
    assert max(len(request.rpartition(b"\r\n\r\n")[2]) for request in got) <= 512


@pytest.mark.parametrize("body", [b"", answers(1, 2), b"[1]\n"])
def test_results_that_cannot_be(serve: Serve, body: bytes) -> None:
    with closing(connected(serve(respond("200 OK", body)))) as at, pytest.raises(Failed):
        at.post_each("/lease/keepalive", [{"ID": 1}], 30)


# --- streams ---

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_messages_of_a_stream_end_anywhere(serve: Serve) -> None:
    whole = b'{"n": 1}\n{"n": 2}\n\n{"n": 3}\n'
    for size in (1, 5, 100):
        pieces = b"".join(chunk(whole[at : at + size]) for at in range(0, len(whole), size))
        at = connected(serve(CHUNKED + pieces + chunk(b"")))
        with closing(at):
            messages = at.stream("/watch", {}, 30)
            assert [next(messages) for _ in range(3)] == [{"n": 1}, {"n": 2}, {"n": 3}]
            with pytest.raises(Failed, match="it ended the watch"):
                next(messages)


def test_a_stream_that_is_silent_ends_without_an_error(serve: Serve) -> None:
    with closing(connected(serve(CHUNKED + chunk(b'{"n": 1}\n'), None))) as at:
        assert list(at.stream("/watch", {}, 0.2)) == [{"n": 1}]


def test_a_stream_breaks_off(serve: Serve) -> None:
    for response, why in (
        (CHUNKED + chunk(b'{"n": 1}\n'), "it broke off"),
        (CHUNKED + chunk(b"rubbish\n") + chunk(b""), "something else than etcd"),
        (CHUNKED + b"no length\r\n", "it broke off"),
        (respond("401 No", b'{"code": 7, "message": "etcdserver: permission denied"}'), "permission denied"),
    ):
        with closing(connected(serve(response))) as at, pytest.raises((Failed, Refused), match=why):
            list(at.stream("/watch", {}, 30))


@posix_only("a read that ends when its socket is shut down; on Windows etcd ends it, which is told")
def test_a_stream_in_another_thread_is_hung_up(serve: Serve) -> None:
    at = connected(serve(CHUNKED + chunk(b'{"n": 1}\n'), None))
    begun, ended = threading.Event(), list[str]()

    def follow() -> None:
        try:
            for _ in at.stream("/watch", {}, 30):
                begun.set()
        except Failed as failed:
            ended.append(str(failed))

    thread = threading.Thread(target=follow)
    with closing(at):
        thread.start()
        assert begun.wait(30)
        at.hang_up()
        thread.join(10)
    assert ended == ["it broke off"]


def token(at: Endpoint) -> str | None:
    return at.token


def test_a_token_does_not_outlive_a_lost_connection(serve: Serve) -> None:
    good = respond("200 OK", b"{}")
    at = connected(serve(good))  # one response, then it closes
    at.token = "secret.1"
    with closing(at):
        assert at.post("/kv/range", {}, 30) == {}
        at.close()
        at.connect(30)
        assert at.token == "secret.1"  # we closed it
        assert at.post("/kv/range", {}, 30) == {}
        while at.connected:
            pass
        at.connect(30)
        assert token(at) is None
    at = connected(serve(respond("200 OK", b"{}", 3)))
    at.token = "secret.1"
    assert str(failure(at)) == "it broke off"
    assert token(at) is None


def test_who_lacks_its_client_is_told_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpbroker.storage.etcd.endpoint", None)
    options = EtcdOptions.of({"_registry": {"endpoints": ["http://127.0.0.1:1"], "prefix": "/bpbroker"}})
    with pytest.raises(ConfigurationError) as caught:
        Gateway(options, Timeline())
    # Not by the package's own name: the index has 0.22 under it.
    assert str(caught.value).endswith(f": {sys.executable} -m pip install 'urllib3>=2.3'")

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bpbroker.config import layers
from bpbroker.discovery.interfaces import interfaces
from bpbroker.errors import InUse, StartError
from bpbroker.server import host_certificate, request_cycle, response, tls
from bpbroker.server.budget import Budget
from bpbroker.server.listener import BrokerServer, bind_tcp, raise_descriptor_limit
from bpbroker.server.request import Request, network_of
from bpbroker.server.response import PendingResponse, Response
from tests.support.systems import posix_only, slow_under_wine

Serve = Callable[..., BrokerServer]
Admit = Callable[[Request], Response | None]
GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class App:
    """What it is asked for by path: ``later`` owes its answer, ``heavy`` too, ``big`` is 30 MB, and so on."""

    def __init__(self) -> None:
        self.owed: list[Future[bytes]] = []
        self.threads: list[str] = []
        self.bodies: list[bytes] = []
        self.finished: list[str] = []
        """Paths whose owed answer was made, in that order."""
        self.held, self.release = threading.Event(), threading.Event()
        """A request for ``hold`` keeps the loop's thread."""

    def __call__(self, request: Request) -> Response | PendingResponse:
        path = request.path.strip("/")
        self.threads.append(threading.current_thread().name)
        self.bodies.append(request.body)
        if path in ("later", "heavy", "patient", "brief"):
            return self._later(path)
        if path == "hold":
            self.held.set()
            self.release.wait(30)
        if path == "exit":
            raise SystemExit(0)
        if path == "raise":
            raise ValueError("canary")
        headers = (("X-Header", "a\r\nb" if path == "inject" else "b"),)
        return Response(200, b"x" * 30_000_000 if path == "big" else path.encode(), headers=headers)

    def _later(self, path: str) -> PendingResponse:
        def ask() -> Future[bytes]:
            self.owed.append(Future())
            return self.owed[-1]

        def finish(reply: Future[bytes]) -> Response:
            self.threads.append(threading.current_thread().name)
            self.finished.append(path)
            return response.rendered(reply, lambda value: Response(200, value), self._fail)

        return PendingResponse(
            ask, finish, 0.3 if path == "brief" else 30, heavy=path == "heavy", patient=path == "patient"
        )

    def _fail(self, error: BaseException) -> Response:
        raise error

    def settle(self, value: bytes) -> None:
        eventually(lambda: self.owed)
        self.owed.pop(0).set_result(value)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "a.crt", folder / "a.key"
    host_certificate.make_pair(cert, key, ["localhost", "127.0.0.1"])
    return cert, key


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def serve(pair: tuple[Path, Path], app: App) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(memory: Budget | None = None, admit: Admit = lambda _: None, **api: Any) -> BrokerServer:
            settings = layers.freeze({"api": api})
            listener = bind_tcp("127.0.0.1", 0)
            server = BrokerServer(listener, app, settings, tls.context(*pair), admit=admit, memory=memory)
            stack.callback(server.listener.close)
            thread = threading.Thread(target=server.start)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.stop)
            eventually(lambda: server.ready)
            return server

        yield start


@contextmanager
def client(server: BrokerServer, context: ssl.SSLContext | None = None, **options: Any) -> Iterator[ssl.SSLSocket]:
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", server.port), 30) as sock,
        context.wrap_socket(sock, suppress_ragged_eofs=False, **options) as wrapped,
    ):
        yield wrapped


def read_all(sock: ssl.SSLSocket) -> bytes:
    """Read to the end; an end without close_notify is an error."""
    received = bytearray()
    while part := sock.recv(1 << 16):
        received += part
    return bytes(received)


def answer(sock: ssl.SSLSocket) -> tuple[int, bytes]:
    """Read one answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = sock.recv(1 << 16)
        assert part, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += sock.recv(1 << 16)
    assert len(body) == length
    return int(head.split(b" ")[1]), body


def ask(server: BrokerServer, request: bytes) -> tuple[int, bytes]:
    with client(server) as sock:
        sock.sendall(request)
        return answer(sock)


# --- serving ---


def test_a_connection_serves_one_request_after_the_other_and_ends_with_a_word(serve: Serve) -> None:
    with client(serve()) as sock:
        for path in (b"one", b"two"):
            sock.sendall(GET % path)
            assert answer(sock) == (200, path)
        sock.sendall(LAST % b"three")
        assert read_all(sock).endswith(b"\r\n\r\nthree")


def test_pipelined_requests_are_answered_in_order_even_around_one_that_is_owed(serve: Serve, app: App) -> None:
    with client(serve()) as sock:
        sock.sendall(GET % b"one" + GET % b"later" + GET % b"three")
        assert answer(sock)[1] == b"one"
        eventually(lambda: app.owed)
        sock.sendall(LAST % b"four")
        app.settle(b"two")
        rest = read_all(sock)
    assert [part.rpartition(b"\r\n\r\n")[2] for part in rest.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"two",
        b"three",
        b"four",
    ]


def test_what_is_quick_is_served_by_the_loop_and_what_is_large_by_a_worker(serve: Serve, app: App) -> None:
    server = serve()
    large = b"x" * (request_cycle.INLINE_BODY_BYTES + 1)
    head = b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with client(server) as sock:
        for path, body in ((b"small", b"x"), (b"large", large), (b"small", b"y")):
            sock.sendall(head % (path, len(body)) + body)
            assert answer(sock) == (200, path)
    assert app.bodies == [b"x", large, b"y"]
    loop, worker, again = app.threads
    assert loop == again
    assert worker.startswith("worker-")


def test_an_application_that_exits_or_raises_stops_nobody(serve: Serve) -> None:
    server = serve()
    for path in (b"exit", b"raise", b"inject"):
        status, body = ask(server, GET % path)
        assert status == 500
        assert json.loads(body) == {"success": False, "message": "Internal error; see the broker's log", "data": {}}
    status, body = ask(server, b"POST /exit HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20_000)
    assert (status, b"canary" in body) == (500, False)
    assert ask(server, GET % b"fine") == (200, b"fine")


def test_a_rejected_request_is_answered_and_its_connection_ended(serve: Serve) -> None:
    with client(serve()) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" + b"x" * 100_000)
        received = read_all(sock)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 The Content-Length is not a number\r\n")
    assert json.loads(body)["message"] == "The Content-Length is not a number"


# --- answers that are owed ---


@pytest.mark.parametrize("path", [b"later", b"heavy"])
def test_an_owed_answer_holds_no_thread(serve: Serve, app: App, path: bytes) -> None:
    server = serve(workers=1)
    with ExitStack() as stack:
        waiting = [stack.enter_context(client(server)) for _ in range(20)]
        for sock in waiting:
            sock.sendall(GET % path)
        eventually(lambda: len(app.owed) == len(waiting))
        assert ask(server, GET % b"quick") == (200, b"quick")
        owed = list(app.owed)
        for number, reply in enumerate(owed):
            reply.set_result(b"%d" % number)
        answers = {answer(sock) for sock in waiting}
        assert answers == {(200, b"%d" % number) for number in range(20)}
        waiting[0].sendall(GET % b"again")
        assert answer(waiting[0]) == (200, b"again")
    completed_by_worker = any(name.startswith("worker-") for name in app.threads)
    assert completed_by_worker is (path == b"heavy")


def test_who_meant_to_wait_does_not_hold_up_the_others(serve: Serve, app: App) -> None:
    """One change may answer a thousand who wait: all others have their turn after each few of them."""
    server = serve()
    with ExitStack() as stack:
        waiting = [stack.enter_context(client(server)) for _ in range(60)]
        for sock in waiting:
            sock.sendall(GET % b"patient")
        eventually(lambda: len(app.owed) == len(waiting))
        last = stack.enter_context(client(server))
        last.sendall(GET % b"later")
        eventually(lambda: len(app.owed) == len(waiting) + 1)
        held = stack.enter_context(client(server))
        held.sendall(GET % b"hold")
        assert app.held.wait(30)
        app.finished.clear()
        for reply in app.owed:
            reply.set_result(b"done")
        app.release.set()
        assert {answer(sock) for sock in (last, *waiting)} == {(200, b"done")}
        assert app.finished[0] == "later"
        assert app.finished[1:] == ["patient"] * len(waiting)


def test_an_answer_owed_to_a_large_request_comes_too(serve: Serve, app: App) -> None:
    with client(serve()) as sock:
        sock.sendall(b"POST /heavy HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000)
        app.settle(b"done")
        assert answer(sock) == (200, b"done")


def test_an_owed_answer_that_does_not_come_is_given_up(serve: Serve, app: App) -> None:
    status, body = ask(serve(), GET % b"brief")
    assert status == 504
    assert b"did not answer in time" in body
    assert app.owed[0].cancelled()


def test_a_client_that_leaves_frees_its_place(serve: Serve, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpbroker.server.connection._HALF_CLOSED_SECS", 0.1)
    server = serve()
    with client(server) as sock:
        sock.sendall(GET % b"patient")
        eventually(lambda: app.owed)
    eventually(app.owed[0].cancelled)
    with client(server) as sock:
        sock.sendall(GET % b"patient")
        eventually(lambda: len(app.owed) == 2)
        # A reset instead of an end.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(app.owed[1].cancelled)
    eventually(lambda: server.loop.figures()["connections"] == 0)


@posix_only("descriptors of sockets")
def test_a_client_that_closes_one_direction_still_gets_its_answer(serve: Serve, app: App) -> None:
    server = serve()
    with client(server) as sock:
        sock.sendall(GET % b"later")
        eventually(lambda: app.owed)
        os_level = socket.socket(fileno=os.dup(sock.fileno()))
        os_level.shutdown(socket.SHUT_WR)
        os_level.close()
        time.sleep(0.05)
        app.settle(b"here")
        assert answer(sock) == (200, b"here")


def test_an_answer_that_breaks_while_it_is_made_is_an_internal_error(serve: Serve, app: App) -> None:
    with client(serve()) as sock:
        sock.sendall(GET % b"later")
        eventually(lambda: app.owed)
        app.owed[0].set_exception(ValueError("canary"))
        status, body = answer(sock)
    assert (status, b"canary" in body) == (500, False)


# --- slow and greedy clients ---


def test_a_large_answer_is_whole_at_a_reader_that_pauses_and_holds_up_nobody(serve: Serve) -> None:
    server = serve(workers=1)
    with client(server) as slow:
        slow.sendall(LAST % b"big")
        for _ in range(5):
            assert ask(server, GET % b"quick") == (200, b"quick")
            time.sleep(0.05)
        received = read_all(slow)
    assert len(received.partition(b"\r\n\r\n")[2]) == 30_000_000


def test_a_reader_that_takes_nothing_is_let_go(serve: Serve) -> None:
    server = serve(request_timeout_secs=0.3)
    with client(server) as sock:
        sock.sendall(GET % b"big")
        eventually(lambda: server.loop.figures()["connections"] == 1)
        eventually(lambda: server.loop.figures()["connections"] == 0)


def test_too_much_kept_for_clients_is_let_go(serve: Serve) -> None:
    memory = Budget(1_000_000)
    server = serve(memory=memory)
    with ExitStack() as stack:
        greedy = stack.enter_context(client(server))
        greedy.sendall(GET % b"big")
        loader = stack.enter_context(client(server))
        loader.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 900_000)
        modest = stack.enter_context(client(server))
        modest.sendall(GET[:-2] % b"modest")
        eventually(lambda: server.loop.figures()["connections"] <= 2)
        modest.sendall(b"\r\n")
        assert answer(modest) == (200, b"modest")
    eventually(lambda: memory.held_bytes == 0)


@slow_under_wine(14)
def test_what_is_kept_is_counted_while_it_comes_while_it_is_served_and_while_it_goes(serve: Serve, app: App) -> None:
    memory = Budget()
    server = serve(memory=memory)
    with client(server) as sock:
        sock.sendall(b"POST /later HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + b"x" * 400_000)
        eventually(lambda: memory.held_bytes > 390_000)
        sock.sendall(b"x" * 100_000)
        eventually(lambda: app.owed)
        app.settle(b"y" * 10_000_000)
        eventually(lambda: memory.held_bytes > 9_000_000)
        assert answer(sock) == (200, b"y" * 10_000_000)
        eventually(lambda: memory.held_bytes == 0)


def test_a_request_can_be_refused_by_its_head_alone(serve: Serve, app: App) -> None:
    asked: list[Request] = []

    def admit(request: Request) -> Response | None:
        asked.append(request)
        return None if request.path == "/fine" else response.failure(401, "Incorrect access key")

    server = serve(admit=admit)
    head = b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n"
    with client(server) as sock:
        sock.sendall(head % b"wrong")
        assert answer(sock)[0] == 401
        assert sock.recv(1) == b""
    with client(server) as sock:
        sock.sendall(head % b"fine" + b"x" * 250_000)
        sock.sendall(b"x" * 250_000 + GET % b"wrong")  # one that is complete goes to the application at once
        assert answer(sock) == (200, b"fine")
        assert answer(sock) == (200, b"wrong")
    assert [request.path for request in asked] == ["/wrong", "/fine"]
    assert app.bodies == [b"x" * 500_000, b""]


def test_when_full_the_oldest_that_never_asked_gives_way_to_the_next(serve: Serve) -> None:
    server = serve(max_connections=16, max_connections_per_address=1)
    with ExitStack() as stack:

        def connect(number: int) -> ssl.SSLSocket:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            sock = socket.create_connection(("127.0.0.1", server.port), 30, (f"127.0.3.{number}", 0))
            return stack.enter_context(context.wrap_socket(sock))

        served = connect(1)
        served.sendall(GET % b"x")
        assert answer(served) == (200, b"x")
        halves = [connect(number) for number in range(2, 17)]
        for half in halves:
            half.sendall(b"GET / HTTP/1.1\r\nHo")
        for number in range(17, 40):  # each is one too many
            fresh = connect(number)
            fresh.sendall(GET % b"y")
            assert answer(fresh) == (200, b"y")
        for half in halves:
            with suppress(ConnectionResetError):
                assert half.recv(1) == b""


def test_an_address_can_have_so_many_connections_and_no_more(serve: Serve) -> None:
    server = serve(max_connections_per_address=2)
    with client(server) as one, client(server) as two:
        with pytest.raises(OSError), client(server):
            pass
        for sock in (one, two):
            sock.sendall(GET % b"x")
            assert answer(sock) == (200, b"x")
    eventually(lambda: server.loop.figures()["connections"] == 0)
    assert ask(server, GET % b"x") == (200, b"x")


def test_a_refusal_reaches_a_client_that_looks_for_it_late(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset would reach a client in the middle of its sending, and take the refusal away from it."""
    monkeypatch.setattr("bpbroker.server.connection._LINGER_BYTES", 1024 * 1024)
    server = serve()
    with client(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        sock.settimeout(0.2)
        with suppress(TimeoutError):  # the broker reads no more: its system, and this one, keep what they can
            for _ in range(1024):
                sock.sendall(b"x" * 65536)
        sock.settimeout(30)
        status, body = answer(sock)
        assert (status, b"max_body_bytes" in body) == (413, True)
        eventually(lambda: server.loop.figures()["connections"] == 0)


def test_silent_connections_end_by_their_deadline(serve: Serve) -> None:
    server = serve(handshake_timeout_secs=0.2)
    with socket.create_connection(("127.0.0.1", server.port), 30) as silent:
        assert silent.recv(1) == b""


def test_descriptors_beyond_1024_are_served(serve: Serve) -> None:
    if raise_descriptor_limit() < 1400:
        pytest.skip("this process may not open that many files")
    server = serve()
    with ExitStack() as stack:
        for _ in range(1100):
            stack.callback(os.close, os.dup(0))
        with client(server) as sock:
            assert sock.fileno() > 1024
            sock.sendall(GET % b"x")
            assert answer(sock) == (200, b"x")


@posix_only("a limit of descriptors")
def test_without_descriptors_it_waits_until_there_are_some(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.settimeout(30)
        resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, limit[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limit)
        for _ in range(sock.fileno()):  # fill the gaps below
            try:
                stack.callback(os.close, os.dup(0))
            except OSError:
                break
        sock.connect(("127.0.0.1", server.port))
        eventually(lambda: "Cannot accept" in caplog.text)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        with context.wrap_socket(sock) as wrapped:
            wrapped.sendall(GET % b"x")
            assert answer(wrapped) == (200, b"x")


# --- TLS ---


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed(serve: Serve, pair: tuple[Path, Path], version: ssl.TLSVersion) -> None:
    server = serve()
    context = ssl.create_default_context(cafile=pair[0])
    context.minimum_version = context.maximum_version = version
    with client(server, context, server_hostname="localhost") as sock:
        sock.sendall(LAST % b"x")
        read_all(sock)
        session = sock.session
        assert not sock.session_reused
    with client(server, context, server_hostname="localhost", session=session) as sock:
        assert sock.session_reused
        sock.sendall(GET % b"x")
        assert answer(sock) == (200, b"x")


def test_a_reload_serves_the_new_certificate_and_leaves_open_connections_alone(
    serve: Serve, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    server = serve()
    cert, key = tmp_path / "b.crt", tmp_path / "b.key"
    host_certificate.make_pair(cert, key)
    with client(server) as old:
        before = old.getpeercert(binary_form=True)
        server.reload(tls.context(cert, key), layers.freeze({"api": {"max_header_bytes": 2048}}))
        with client(server) as new:
            assert new.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(cert.read_text())
        assert before == ssl.PEM_cert_to_DER_cert(pair[0].read_text())
        old.sendall(GET % b"x")
        assert answer(old) == (200, b"x")
        old.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 3000 + b"\r\n\r\n")
        assert answer(old)[0] == 431


# --- start and stop ---


def test_stop_finishes_what_is_in_hand_and_sends_away_who_waits(serve: Serve, app: App) -> None:
    server = serve()
    with client(server) as idle, client(server) as served, client(server) as patient:
        served.sendall(GET % b"later")
        eventually(lambda: app.owed)
        patient.sendall(GET % b"patient")
        eventually(lambda: len(app.owed) == 2)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        assert idle.recv(1) == b""
        status, body = answer(patient)
        assert (status, b"stopping" in body) == (503, True)
        app.settle(b"finished")
        assert answer(served) == (200, b"finished")
        stopper.join()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 30)


def test_stop_is_bounded_when_an_answer_never_comes(serve: Serve, app: App) -> None:
    server = serve()
    with client(server) as sock:
        sock.sendall(GET % b"later")
        eventually(lambda: app.owed)
        longest, server.shutdown_timeout = 3 * server.shutdown_timeout, 1
        before = time.monotonic()
        server.stop()
        assert time.monotonic() - before < longest
        assert app.owed[0].cancelled()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]
    server.stop()  # once more does nothing


def test_the_environment_of_socket_activation_is_not_looked_at(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    assert ask(serve(), GET % b"x") == (200, b"x")


def test_the_loop_shows_that_it_is_alive(serve: Serve) -> None:
    server = serve()
    time.sleep(0.3)
    assert server.loop.silent_secs() < 30


def test_a_port_in_use_is_named() -> None:
    with bind_tcp("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InUse, match=rf"port {port} \(TCP\)"):
            bind_tcp("127.0.0.1", port)
    for nowhere in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(StartError, match=rf"of {nowhere}: .*check api\.listen_ip"):
            bind_tcp(nowhere, 0)


def test_an_empty_address_is_all_interfaces() -> None:
    with bind_tcp("", 0) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 10).close()
        if listener.family == socket.AF_INET6:
            socket.create_connection(("::1", port), 10).close()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::1", "2001:db8:1:2::"),
        ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("", ""),
    ],
)
def test_a_network_of_ipv6_is_one_client(address: str, network: str) -> None:
    assert network_of(address) == network


def test_an_address_that_is_link_local_can_be_listened_on() -> None:
    found = next((each for each in interfaces() if each.link_local), None)
    if found is None:
        pytest.skip("no interface has a link-local IPv6 address")
    with bind_tcp(f"{found.address}%{found.name}", 0) as sock:
        assert sock.getsockname()[3] == found.number

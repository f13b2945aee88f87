"""What a request costs, in function calls: a number that a busy machine does not change.

Counted are the calls that the broker's own code makes and takes, from a
request's bytes on its socket to the response's. Left out are the loop, which
takes as many turns as the clients make it, and comprehensions, which are calls
in Python 3.11 and none in 3.12.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

import bpbroker
from bpbroker.actors.inbox import Envelope
from bpbroker.actors.lockless_future import LocklessFuture
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.config import layers
from bpbroker.frontend import access_log
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.application import Application
from bpbroker.server import host_certificate, tls
from bpbroker.server.budget import Budget
from bpbroker.server.connection import Connection, Turn
from bpbroker.server.policy import Policy, Service
from bpbroker.server.request_parser import Limits
from bpbroker.storage.embedded.store import EmbeddedStore
from tests.support.running import untrusting

KNOWN: Final = Path(__file__).with_name("calls_per_request.json")
RENEW: Final = "BPBROKER_RENEW_CALLS"
MAY_GROW: Final = 1.05
COMPREHENSIONS: Final = ("<listcomp>", "<dictcomp>", "<setcomp>")
OURS: Final = str(Path(bpbroker.__file__).parent) + os.sep
REQUESTS: Final = {
    "Get": b"GET /services/Get/?name=node-7 HTTP/1.1\r\nHost: broker:20443\r\n\r\n",
    "Replace": b"POST /services/Replace/?name=node-7&data=%7B%22a%22%3A1%7D HTTP/1.1\r\nHost: broker:20443\r\n"
    b"Content-Length: 0\r\n\r\n",
}


class Registered:
    """The registry's actor without its thread: a message is taken when it is asked."""

    name = "registry"

    def __init__(self, actor: Registry) -> None:
        self._actor = actor

    def tell(self, message: Any) -> None:
        raise AssertionError(message)

    def reply_now(self, message: Any) -> Any:
        return self._actor.reply_now(message)

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:
        assert timeout_secs > 0
        reply: Future[Any] = LocklessFuture()
        self._actor.on_receive(Envelope(message, reply))
        while not self._actor.actor_inbox.empty():
            self._actor.on_receive(self._actor.actor_inbox.get().message)
        return reply


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """What sends a request and returns how many calls it took."""
    cert, key = tmp_path / "a.crt", tmp_path / "a.key"
    host_certificate.make_pair(cert, key, ["localhost"])
    named = NamedKeys()
    registry = Registry(LocalBackend(lambda: EmbeddedStore(tmp_path / "journal", dict)), layers.DEFAULTS, named)
    registry.started()
    policy = Policy(tls.context(cert, key), Limits(), 60.0, 60.0, 60.0, 10, 10)
    memory = Budget()
    application = Application(layers.DEFAULTS, {"registry": Registered(registry)}, "token", (), memory, named)
    access_log.count_with(application.request_counts.take)  # as in every broker: requests are counted for metrics
    service = Service(application, policy, memory, application.admit, lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        theirs, address = listener.accept()
        connection = Connection(service, lambda _: None, lambda _: None, theirs, address)
        sock.setblocking(False)
        client = untrusting().wrap_socket(sock, do_handshake_on_connect=False)

        def until_read(step: Callable[[], Any]) -> Any:
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    return step()
                assert connection.move_on() is not Turn.CLOSE

        until_read(client.do_handshake)

        def counted(request: bytes) -> int:
            calls = 0

            def count(frame: FrameType, event: str, _arg: object) -> None:
                nonlocal calls
                if event == "call" and frame.f_code.co_name not in COMPREHENSIONS:
                    caller = frame.f_back.f_code.co_filename if frame.f_back else ""
                    calls += frame.f_code.co_filename.startswith(OURS) or caller.startswith(OURS)

            client.send(request)
            sys.setprofile(count)
            try:
                turn = connection.move_on()
                if turn is Turn.ASK:
                    connection.ask()
                    turn = connection.resume()
            finally:
                sys.setprofile(None)
            assert turn is Turn.READ
            assert b" 200 OK" in until_read(lambda: client.recv(65_536))
            return calls

        yield counted
        connection.close()
        client.close()
    access_log.count_with(None)
    registry.stopped()


@pytest.mark.parametrize("method", REQUESTS)
def test_a_request_takes_no_more_calls_than_before(method: str, exchange: Callable[[bytes], int]) -> None:
    for _ in range(2):  # the first ones fill what is kept between requests
        exchange(REQUESTS["Replace"])
    calls = min(exchange(REQUESTS[method]) for _ in range(5))
    known = json.loads(KNOWN.read_text())
    if os.environ.get(RENEW):
        KNOWN.write_text(json.dumps({**known, method: calls}, indent=2, sort_keys=True) + "\n")
        return
    assert calls <= known[method] * MAY_GROW, (
        f"A {method} takes {calls} calls, {known[method]} are known. If they are worth it, run"
        f" {RENEW}=1 pytest {Path(__file__).name}, commit {KNOWN.name} and say in the message what they are for"
    )
    assert calls >= known[method] * 0.8, f"A {method} takes {calls} calls only: set {RENEW}=1 to keep what was won"

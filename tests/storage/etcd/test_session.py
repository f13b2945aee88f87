"""The session for etcd sends what ``requests`` would, in fewer steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import requests

from bpbroker.storage.etcd.session import EtcdSession

BODY = {"key": "Zm9v", "name": "é"}


class Server(HTTPServer):
    """Keeps what it gets; answers ``{}``, or half of what it promises to /half."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, str, dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.command, self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", "3" if self.path == "/half" else "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def post(session: requests.Session, url: str, **options: Any) -> Any:
    session.trust_env = False
    session.headers["Authorization"] = "token"
    with session:
        return session.post(url, json=BODY, timeout=30, **options).json()


def test_it_sends_what_requests_sends(server: Server) -> None:
    for session in (requests.Session(), EtcdSession()):
        assert post(session, f"{server.url}/v3/kv/txn") == {}
    assert post(EtcdSession(), f"{server.url}/v3/watch", stream=True, headers={"X": "y"}) == {}
    usual, ours, stream = server.got
    assert ours == usual
    assert stream[2]["X"] == "y"


def test_it_fails_as_requests_fails(server: Server) -> None:
    for session in (requests.Session(), EtcdSession()):
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            post(session, f"{server.url}/half")
    for session in (requests.Session(), EtcdSession()):
        with pytest.raises(requests.exceptions.ConnectionError, match="NewConnectionError"):
            post(session, "http://127.0.0.1:1/")

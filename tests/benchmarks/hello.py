"""A bare WSGI "hello" on our server: what no application on it can surpass. Run as a process of its own."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpbroker import tls
from bpbroker.server import BrokerServer, bind_tcp

BODY = b"hello"


def hello(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]


def main(port: str, cert: str, key: str) -> None:
    """Serve until SIGTERM."""
    server = BrokerServer(bind_tcp("127.0.0.1", int(port)), hello, {}, tls.context(Path(cert), Path(key)))
    server.prepare()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.stop).start())
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])

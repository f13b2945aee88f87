"""The HTTP server: cheroot's, with a gate in front of its workers and parking behind them.

*Gate*: nobody but the selector's thread ever deals with a connection that has
not sent its whole request. It shakes hands and reads ahead, without blocking
(cheroot hands a connection to a worker before it is readable, so that ten
silent clients hold its ten workers).

*Serving*: the application never waits for anything, so a small request is
served right there: handing it to a worker and back costs more than serving it
(measured: 9,000 requests/s with the handover, see the benchmarks without).
Only what takes long to parse or to write goes to a worker.

*Parking*: when the application returns an answer that is still owed
(:class:`bpbroker.server.response.PendingResponse`), the connection waits without a thread. Nor
does anybody wait for a slow reader: the rest is sent when the socket takes it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from cheroot.server import HTTPServer

from bpbroker.config import schema
from bpbroker.errors import InUse, cannot_listen
from bpbroker.frontend import access_log
from bpbroker.messages import Settings
from bpbroker.server.connection import Connection, Phase
from bpbroker.server.event_loop import EventLoop
from bpbroker.server.exchange import SERVER_NAME
from bpbroker.server.framing import Limits

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""cheroot's 5 lets a burst of 16 new connections wait a second for SYN retries; the kernel caps this."""
_DESCRIPTORS_APART: Final = 256


def bind_tcp(ip: str, port: int) -> socket.socket:
    """Bind and listen.

    Args:
        ip: address; empty is all interfaces, IPv6 and IPv4 in one socket where both exist.
        port: 0 for any free one.

    Raises:
        InUse: the port is taken.
        StartError: the address is not this machine's, or the port is not allowed.
    """
    candidates = [(ip, socket.AF_INET6 if ":" in ip else socket.AF_INET)]
    if not ip:
        candidates = [("0.0.0.0", socket.AF_INET)]  # noqa: S104 - what an empty listen_ip asks for
        if socket.has_ipv6:
            candidates.insert(0, ("::", socket.AF_INET6))
    for host, family in candidates:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue
        try:
            if os.name != "nt":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if not ip else 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            if family == socket.AF_INET6 and not ip and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # IPv6 is compiled in but switched off
            raise cannot_listen(error, "TCP", ip, port) from None
        sock.setblocking(False)
        return sock
    raise InUse(f"Cannot listen on port {port} (TCP): this machine has no usable network")


def descriptor_limit() -> int:
    """Give how many files this process may have open."""
    if sys.platform == "win32":
        return 1 << 20
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_descriptor_limit() -> int:
    """Let this process open as many files as it may; give that number."""
    if sys.platform == "win32":
        return descriptor_limit()
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return descriptor_limit()


class BrokerServer(HTTPServer):
    """A cheroot server on a socket that listens already.

    Args:
        sock: from :func:`bind_tcp`.
        application: WSGI application.
        settings: the settings in force.
        context: from :func:`bpbroker.server.tls.context`.
    """

    protocol = "HTTP/1.1"
    shutdown_timeout = 3

    def __init__(self, sock: socket.socket, application: Callable[..., Any], settings: Settings, context: Any) -> None:
        super().__init__(sock.getsockname()[:2], gateway=None, server_name=SERVER_NAME)
        self.listener = sock
        self.wsgi_app = application
        self.software = SERVER_NAME
        self.context = context
        self.port: int = sock.getsockname()[1]
        self.requests = Workers(schema.option(settings, "api", "workers"))
        self.reload(context, settings)

    def reload(self, context: Any, settings: Settings) -> None:
        """Serve new connections with this context, and everybody by these settings."""
        self.context = context
        self.limits = Limits(
            head_bytes=schema.option(settings, "api", "max_header_bytes"),
            fields=schema.option(settings, "api", "max_headers"),
            body_bytes=schema.option(settings, "api", "max_body_bytes"),
        )
        self.handshake_secs: float = schema.option(settings, "api", "handshake_timeout_secs")
        self.request_secs: float = schema.option(settings, "api", "request_timeout_secs")
        self.keep_alive_secs: float = schema.option(settings, "api", "keep_alive_secs")
        # Some descriptors are for everything else: files, actors, extensions.
        self.connections_max: int = min(
            schema.option(settings, "api", "max_connections"), max(16, descriptor_limit() - _DESCRIPTORS_APART)
        )
        self.connections_per_address_max: int = schema.option(settings, "api", "max_connections_per_address")

    def prepare(self) -> None:
        """Get ready to serve; the socket is bound already, so ``LISTEN_PID`` is never looked at."""
        self._interrupt = None
        self.socket = self.listener
        self._connections = self.selecting = EventLoop(self, self.listener)
        self.requests.start()
        self.ready = True
        self._start_time = time.time()

    def serve(self) -> None:
        """Serve until :meth:`stop`; an error in the loop is logged and does not end it."""
        while self.ready:
            try:
                self.selecting.run()
            except Exception:
                logger.exception("Error in the server's loop")

    def stop(self) -> None:
        """Stop accepting, finish what is in hand for at most ``shutdown_timeout`` seconds, close everything."""
        if not self.ready:
            return
        deadline = time.monotonic() + self.shutdown_timeout  # cheroot's is no bound: an untimed join follows it
        self.selecting.stop_accepting()
        while self.selecting.busy() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.ready = False
        self.selecting.stop(timeout_secs=2.0)
        self.requests.stop(max(0.1, deadline - time.monotonic()))
        self.selecting.close()
        access_log.flush()

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Log what cheroot has to say."""
        logger.log(level, "%s", msg, exc_info=traceback)


class Workers:
    """The threads for what takes long. Few are faster: they hand the GIL around (measured: 2 beat 10 twofold)."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._queue: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.put = self._queue.put
        self.qsize = self._queue.qsize

    def start(self) -> None:
        """Start the threads."""
        for number in range(self._count):
            thread = threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_secs: float) -> None:
        """End the threads behind the work that is queued; wait no longer than that (cheroot's join has no bound)."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout_secs
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        get = self._queue.get
        while True:
            connection = get()
            if connection is None:
                return
            try:
                connection.work()
            except BaseException:
                logger.exception("Error while serving %s", connection.peer)
                connection.phase = Phase.BROKEN
            connection.lent = False
            connection.hand_back()

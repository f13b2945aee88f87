"""The HTTP server: a listening socket, the event loop, a few workers. CherryPy's bus starts and stops it.

It replaces cheroot's ``HTTPServer``, which CherryPy uses, for three reasons. Each was measured on cheroot 11.1.2.

*Gate*: only the loop's thread handles a connection that has not sent its whole request. It does the handshake and
reads ahead, without blocking. cheroot hands a connection to a worker before it is readable, so ten silent clients
block its ten workers.

*Serving*: the application never waits for anything, so a small request is
served by the loop: handing it to a worker and back costs more than serving it (9,000 requests/s with the handover; the
benchmarks have the number without). Only requests that take long to parse, or responses that take long to write, go to
a worker.

*Parking*: when the application returns a
:class:`bpbroker.server.response.PendingResponse`, the connection waits without
a thread. A slow reader blocks no thread either: the rest is sent when the socket accepts it.

The bus's ``ServerAdapter`` needs ``start``, ``stop`` and ``ready`` of a server; nothing else of cheroot's class was
used.
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
from collections.abc import Callable, Sequence
from typing import Any, Final

from bpbroker.config import schema
from bpbroker.errors import InUse, cannot_listen
from bpbroker.messages import Settings
from bpbroker.server.budget import Budget
from bpbroker.server.connection import Connection
from bpbroker.server.event_loop import EventLoop
from bpbroker.server.policy import Policy, Service
from bpbroker.server.request import Request
from bpbroker.server.request_cycle import Application
from bpbroker.server.request_parser import Limits
from bpbroker.server.response import Response

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""With cheroot's 5, a burst of 16 new connections waits a second for SYN retries. The kernel limits this number."""
_DESCRIPTORS_APART: Final = 256
_LOOP_PAUSE_SECS: Final = 0.2
_SAY_AGAIN_SECS: Final = 60.0


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
            # For fe80::1%eth0 this returns the interface, too.
            sock.bind(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4])
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
    """Return how many files this process may have open."""
    if sys.platform == "win32":
        return 1 << 20
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_descriptor_limit() -> int:
    """Let this process open as many files as it may; return that number."""
    if sys.platform == "win32":
        return descriptor_limit()
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return descriptor_limit()


def _no_log(_address: str, _refusal: Response) -> None:
    """Log nothing."""


def _admit(_request: Request) -> None:
    """Admit each request."""


class BrokerServer:
    """A server on a socket that listens already.

    Args:
        sock: from :func:`bind_tcp`.
        more: further sockets that listen, such as a Unix socket.
        application: decides what each request means.
        settings: the settings in force.
        context: from :func:`bpbroker.server.tls.context`.
        rejected: called with the client's address and the response when a
            request is refused before the application sees it.
        admit: called with a request whose body is still to come; returns the
            response if it is refused by its head alone.
        memory: the budget that counts the memory kept for clients.
    """

    shutdown_timeout = 3
    """How many seconds :meth:`stop` waits for requests that are being served."""

    def __init__(
        self,
        sock: socket.socket,
        application: Application,
        settings: Settings,
        context: Any,
        rejected: Callable[[str, Response], object] = _no_log,
        admit: Callable[[Request], Response | None] = _admit,
        memory: Budget | None = None,
        more: Sequence[socket.socket] = (),
    ) -> None:
        self.listener = sock
        self.port: int = sock.getsockname()[1]
        self.ready = False
        """Whether it serves."""
        self._service = Service(
            application, _policy(context, settings), Budget() if memory is None else memory, admit, rejected
        )
        self._ending = threading.Event()
        self._workers = Workers(schema.option(settings, "api", "workers"))
        self.loop = EventLoop((sock, *more), self._service, self._workers.put)

    def reload(self, context: Any, settings: Settings) -> None:
        """Use this context for new connections, and these settings for all requests."""
        self._service.policy = _policy(context, settings)

    def start(self) -> None:
        """Serve until :meth:`stop`."""
        if not self.ready:
            self.prepare()
        self.serve()

    def prepare(self) -> None:
        """Start the workers. The server is ready from now on: its socket listens already."""
        self._workers.start(self.loop.hand_back)
        self.ready = True

    def serve(self) -> None:
        """Serve until :meth:`stop`; an error in the loop is logged and does not end it.

        An error that repeats at once is logged once a minute, with a pause so that it does not take the processor.
        """
        said, said_at = "", 0.0
        while self.ready:
            try:
                self.loop.run()
            except Exception as error:
                if repr(error) != said or time.monotonic() >= said_at + _SAY_AGAIN_SECS:
                    logger.exception("Error in the server's loop")
                    said, said_at = repr(error), time.monotonic()
                self._ending.wait(_LOOP_PAUSE_SECS)

    def stop(self) -> None:
        """Stop accepting, finish the current requests within ``shutdown_timeout`` seconds, close everything."""
        if not self.ready:
            return
        deadline = time.monotonic() + self.shutdown_timeout
        self.loop.stop_accepting()
        while self.loop.busy() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.ready = False
        self._ending.set()
        self.loop.stop(timeout_secs=2.0)
        self._workers.stop(max(0.1, deadline - time.monotonic()))
        self.loop.close()


def _policy(context: Any, settings: Settings) -> Policy:
    def api(key: str) -> Any:
        return schema.option(settings, "api", key)

    return Policy(
        context=context,
        limits=Limits(head_bytes=api("max_header_bytes"), fields=api("max_headers"), body_bytes=api("max_body_bytes")),
        handshake_secs=api("handshake_timeout_secs"),
        request_secs=api("request_timeout_secs"),
        keep_alive_secs=api("keep_alive_secs"),
        # Some descriptors are left for files, actors and extensions.
        connections_max=min(api("max_connections"), max(16, descriptor_limit() - _DESCRIPTORS_APART)),
        connections_per_address_max=api("max_connections_per_address"),
    )


class Workers:
    """The threads for long work. A few are best, because of the GIL (measured: 2 are twice as fast as 10)."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._queue: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.put = self._queue.put

    def start(self, hand_back: Callable[[Connection], object]) -> None:
        """Start the threads; ``hand_back`` is called with each connection after the work on it."""
        for number in range(self._count):
            thread = threading.Thread(target=self._work, args=(hand_back,), name=f"worker-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_secs: float) -> None:
        """End the threads after the queued work; wait at most ``timeout_secs`` (cheroot's join has no bound)."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout_secs
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, hand_back: Callable[[Connection], object]) -> None:
        get = self._queue.get
        while True:
            connection = get()
            if connection is None:
                return
            try:
                connection.work()
            except BaseException:  # SystemExit, too: it would end the worker's thread
                logger.exception("Error while serving %s", connection.peer)
                connection.broken()
            connection.lent = False
            hand_back(connection)

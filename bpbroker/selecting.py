"""The selector's thread: accepts, shakes hands, reads ahead, sends what is slow to go, and keeps deadlines.

It alone registers, closes and counts connections. A worker that is done with
one hands it back through a queue.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from bpbroker.connection import Connection, Phase, Turn

if TYPE_CHECKING:
    from bpbroker.server import BrokerServer

logger = logging.getLogger(__name__)

_ACCEPT_AT_ONCE: Final = 64
_TICK_SECS: Final = 0.25
_PAUSE_SECS: Final = 0.1
"""How long not to accept when the process has no file descriptor left."""

_EVENTS: Final = {Turn.READ: selectors.EVENT_READ, Turn.WRITE: selectors.EVENT_WRITE}


class Selecting:
    """All connections of a server, and the loop that moves them on."""

    def __init__(self, server: BrokerServer, listener: socket.socket) -> None:
        self._server = server
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._handed_back: deque[Connection] = deque()
        self._connections: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._accept_again = 0.0
        self._stop = False
        self._done = threading.Event()
        self._beat = time.monotonic()
        self.stopping = False
        self._selector.register(self._wakee, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)
        self._listening = True

    # --- for other threads ---

    def hand_back(self, connection: Connection) -> None:
        """Take a connection back from a worker; what is next stands in its ``phase``."""
        self._handed_back.append(connection)
        self._wake()

    def stop_accepting(self) -> None:
        """Take no new connections, and no new request on those there are."""
        self.stopping = True
        self._wake()

    def busy(self) -> bool:
        """Whether a request is still being served."""
        return any(
            connection.phase in (Phase.WORKING, Phase.SENDING) and not connection.waits
            for connection in tuple(self._connections)
        )

    def stop(self, timeout_secs: float) -> None:
        """End the loop."""
        self._stop = True
        self._wake()
        self._done.wait(timeout_secs)

    def silent_secs(self) -> float:
        """Give the seconds since the loop last went round; it does so four times a second even when idle."""
        return time.monotonic() - self._beat

    def figures(self) -> dict[str, Any]:
        """Give the number of open connections."""
        return {"connections": len(self._connections)}

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            self._waker.send(b"w")

    # --- the loop ---

    def run(self) -> None:
        """Go round until :meth:`stop`."""
        next_sweep = time.monotonic() + _TICK_SECS
        try:
            while not self._stop:
                for key, _ in self._selector.select(max(0.0, next_sweep - time.monotonic())):
                    if key.data is not None:
                        self._move_on(key.data)
                    elif key.fileobj is self._wakee:
                        with suppress(BlockingIOError):
                            self._wakee.recv(4096)
                    else:
                        self._accept()
                while self._handed_back:
                    self._take_back(self._handed_back.popleft())
                now = self._beat = time.monotonic()
                if now >= next_sweep:
                    next_sweep = now + _TICK_SECS
                    self._sweep(now)
        finally:
            if self._stop:
                self._done.set()

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # EMFILE and its like: the connection stays in the backlog; going on at once would only spin.
                logger.error("Cannot accept a connection: %s", error)  # noqa: TRY400 - a traceback adds nothing
                self._listen(on=False)
                self._accept_again = time.monotonic() + _PAUSE_SECS
                return
            host = address[0]
            if (
                len(self._connections) >= self._server.connections_max
                or self._by_address[host] >= self._server.connections_per_address_max
            ):
                sock.close()
                continue
            connection = Connection(self._server, sock, address)
            self._connections.add(connection)
            self._by_address[host] += 1
            self._wait_for(connection, Turn.READ)

    def _listen(self, *, on: bool) -> None:
        if on and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif not on and self._listening:
            self._selector.unregister(self._listener)
        self._listening = on

    def _move_on(self, connection: Connection) -> None:
        """Let a connection do what it can without blocking, and see whose turn it is then."""
        try:
            turn = connection.move_on()
        except Exception:
            logger.exception("Error on the connection of %s", connection.remote_addr)
            turn = Turn.CLOSE
        self._next(connection, turn)

    def _next(self, connection: Connection, turn: Turn) -> None:
        if turn is Turn.CLOSE:
            self._close(connection)
        elif turn is Turn.WORKER:
            self._unwatch(connection)
            self._server.requests.put(connection)
        else:
            self._wait_for(connection, turn)

    def _wait_for(self, connection: Connection, turn: Turn) -> None:
        if connection.watched is turn:
            return
        if connection.watched is None:
            self._selector.register(connection.socket, _EVENTS[turn], connection)
        else:
            self._selector.modify(connection.socket, _EVENTS[turn], connection)
        connection.watched = turn

    def _unwatch(self, connection: Connection) -> None:
        if connection.watched is not None:
            self._selector.unregister(connection.socket)
            connection.watched = None

    def _take_back(self, connection: Connection) -> None:
        if connection in self._connections:
            self._move_on(connection)

    def _close(self, connection: Connection) -> None:
        self._unwatch(connection)
        if connection in self._connections:
            self._connections.remove(connection)
            host = connection.peer
            self._by_address[host] -= 1
            if not self._by_address[host]:
                del self._by_address[host]
        connection.close()

    def _sweep(self, now: float) -> None:
        """Keep deadlines; begin to accept again; let go of idle connections when stopping."""
        if self.stopping:
            self._listen(on=False)
        elif not self._listening and now >= self._accept_again:
            self._listen(on=True)
        for connection in tuple(self._connections):
            if connection.phase is Phase.WORKING:
                connection.watch_over(now)
            elif now >= connection.deadline or (self.stopping and connection.idle):
                self._next(connection, connection.too_late())

    def close(self) -> None:
        """Close every connection; only when the loop has ended."""
        for connection in tuple(self._connections):
            connection.give_up()
            connection.close()
        self._connections.clear()
        self._selector.close()
        self._waker.close()
        self._wakee.close()

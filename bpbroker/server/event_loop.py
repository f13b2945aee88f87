"""The loop's thread: accepts, does handshakes, reads ahead, serves small requests, sends, applies deadlines.

It alone registers, closes and counts connections. Another thread passes a connection back to it through a queue. It
knows connections and the service that they share, not the listener that made it.
"""

from __future__ import annotations

import logging
import selectors
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from bpbroker import windows
from bpbroker.server.connection import Connection, Phase, Turn
from bpbroker.server.policy import Service
from bpbroker.server.request import network_of

logger = logging.getLogger(__name__)

_ACCEPT_AT_ONCE: Final = 64
_TICK_SECS: Final = 0.25
_PAUSE_SECS: Final = 0.1
"""How long not to accept when the process has no file descriptor left."""
_LOOKED_AT: Final = 256
"""How many new connections are checked to find one to close, so that each accept costs the same."""
_SHARES: Final = 8
"""The share of one network is this part of all places: a network with more loses connections first."""
_EVICT_AT_ONCE: Final = 64
_FAN_OUT_AT_ONCE: Final = 8
"""How many replies to clients that asked to wait are handled in one round: one change may end a thousand waits, and
each takes 0.1 ms. Between two rounds all other connections have their turn."""

_OF_UNIX_SOCKET: Final = ("127.0.0.1",)
"""A client at a Unix socket has no address; it is on this host."""

_EVENTS: Final = {Turn.READ: selectors.EVENT_READ, Turn.WRITE: selectors.EVENT_WRITE}


def _selector() -> selectors.BaseSelector:
    """Return the system's best selector; on Windows one of our own, as ``select`` there takes 512 sockets."""
    if sys.platform == "win32":
        return windows.PollSelector()
    return selectors.DefaultSelector()


class EventLoop:
    """All connections of a server, and the loop that moves them on.

    Args:
        listeners: the listening sockets.
        service: what all connections share.
        lend: passes a connection to a worker, which hands it back.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], service: Service, lend: Callable[[Connection], object]
    ) -> None:
        self._listeners = listeners
        self._service = service
        self._lend = lend
        self._selector = _selector()
        self._waker, self._wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._asleep = False
        self._handed_back: deque[Connection] = deque()
        self._fan_out: deque[Connection] = deque()
        """As ``_handed_back``, for clients that asked to wait."""
        self._asking: deque[Connection] = deque()
        self._connections: set[Connection] = set()
        self._by_network: Counter[str] = Counter()
        self._most = 0
        """No network has more connections than this; it may be more than any network has now."""
        self._newcomers: dict[Connection, None] = {}
        """Connections in the order in which they came; one is removed when it is found to have had a complete
        request."""
        self._accept_again = 0.0
        self._stop = False
        self._done = threading.Event()
        self._beat = time.monotonic()
        self._selector.register(self._wakee, selectors.EVENT_READ)
        self._listening = False
        self._listen(on=True)

    # --- for other threads ---

    def hand_back(self, connection: Connection) -> None:
        """Let the loop continue with a connection."""
        self._handed_back.append(connection)
        self._wake()

    def hand_back_patiently(self, connection: Connection) -> None:
        """Let the loop continue with the connection of a client that asked to wait, in its turn."""
        self._fan_out.append(connection)
        self._wake()

    def stop_accepting(self) -> None:
        """Accept no new connections, and no new requests on open ones."""
        self._service.stopping = True
        self._wake()

    def busy(self) -> bool:
        """Whether a request is still being served."""
        return any(connection.busy for connection in tuple(self._connections))

    def stop(self, timeout_secs: float) -> None:
        """End the loop."""
        self._stop = True
        self._wake()
        self._done.wait(timeout_secs)

    def silent_secs(self) -> float:
        """Return the seconds since the loop's last round; it has four rounds a second even when it is idle."""
        return time.monotonic() - self._beat

    def figures(self) -> dict[str, Any]:
        """Return the number of open connections."""
        return {"connections": len(self._connections)}

    def counts(self) -> dict[str, Any]:
        """Return the counts of connections for metrics; health has the other figures."""
        tally = self._service.tally
        return {
            "accepted": tally.accepted,
            "refused": dict(tally.refused),
            "handshakes": dict(tally.handshakes),
            "connections_max": self._service.policy.connections_max,
        }

    def _wake(self) -> None:
        # The loop sets this before it checks the queue a last time and sleeps, so nothing is missed.
        if self._asleep:
            self._asleep = False
            with suppress(BlockingIOError, OSError):
                self._waker.send(b"w")

    # --- the loop ---

    def run(self) -> None:
        """Run until :meth:`stop`."""
        next_sweep = time.monotonic() + _TICK_SECS
        try:
            while not self._stop:
                self._asleep = True
                busy = self._handed_back or self._fan_out or self._asking or self._stop
                pause = 0.0 if busy else max(0.0, next_sweep - time.monotonic())
                ready = self._selector.select(pause)
                self._asleep = False
                for key, _ in ready:
                    if key.data is not None:
                        self._move_on(key.data)
                    elif key.fileobj is self._wakee:
                        with suppress(BlockingIOError):
                            self._wakee.recv(4096)
                    elif isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj)
                for _ in range(len(self._handed_back)):
                    self._take_back(self._handed_back.popleft())
                for _ in range(len(self._asking)):
                    self._asking.popleft().ask()
                for _ in range(min(len(self._fan_out), _FAN_OUT_AT_ONCE)):
                    self._take_back(self._fan_out.popleft())
                memory = self._service.memory
                if memory.held_bytes > memory.limit_bytes:
                    self._shed(memory.held_bytes - memory.limit_bytes // 2)
                now = self._beat = time.monotonic()
                if now >= next_sweep or (self._service.stopping and self._listening):
                    next_sweep = now + _TICK_SECS
                    self._sweep(now)
        finally:
            if self._stop:
                self._done.set()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, address = listener.accept()
                address = address or _OF_UNIX_SOCKET
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # EMFILE and similar: the connection stays in the backlog, and a new try at once would fail again.
                logger.error("Cannot accept a connection: %s", error)  # noqa: TRY400 - a traceback adds nothing
                self._service.tally.refused["no_descriptors"] += 1
                self._listen(on=False)
                self._accept_again = time.monotonic() + _PAUSE_SECS
                return
            try:
                if self._has_room(network_of(address[0])):
                    self._enter(Connection(self._service, self.hand_back, self.hand_back_patiently, sock, address))
                else:
                    sock.close()
            except OSError:  # the client has gone already
                sock.close()

    def _enter(self, connection: Connection) -> None:
        self._service.tally.accepted += 1
        self._connections.add(connection)
        self._by_network[connection.network] += 1
        self._most = max(self._most, self._by_network[connection.network])
        self._newcomers[connection] = None
        self._wait_for(connection, Turn.READ)

    def _has_room(self, network: str) -> bool:
        """Whether one more connection of a client's network may come in.

        When all places are taken, a network with more than its share loses some of its idle connections. If no network
        has more, as with an attacker at many addresses, the oldest connection without a complete request is closed. If
        there is none, those that have been idle for longest are closed. So a client that sends requests keeps its
        place, and there is always a place for the next connection.
        """
        held = self._by_network.get(network, 0)
        refused = self._service.tally.refused
        if held >= self._service.policy.connections_per_address_max:
            refused["address_full"] += 1
            return False
        places = self._service.policy.connections_max
        if len(self._connections) < places:
            return True
        # An attacker at many addresses has one connection at each: a client with two would count as the largest.
        share = max(1, places // _SHARES)
        busiest, most = "", self._most
        if most > share:  # otherwise all networks would be counted for each new connection
            busiest, most = self._by_network.most_common(1)[0]
            self._most = most
        greedy = most > share
        if greedy and held + 1 < most:
            idle = [connection for connection in self._connections if connection.network == busiest and connection.idle]
            idle.sort(key=lambda connection: connection.deadline)
            for connection in idle[: min(_EVICT_AT_ONCE, most - held - 1)]:
                self._displace(connection)
        if len(self._connections) >= places:
            self._evict_newcomer(busiest if greedy else None)
        if len(self._connections) >= places:
            idle = [connection for connection in self._connections if connection.idle]
            for connection in sorted(idle, key=lambda connection: connection.deadline)[:_EVICT_AT_ONCE]:
                self._displace(connection)
        if len(self._connections) < places:
            return True
        refused["full"] += 1
        return False

    def _displace(self, connection: Connection) -> None:
        """Close a connection whose place another one needs."""
        self._service.tally.refused["displaced"] += 1
        self._close(connection)

    def _evict_newcomer(self, network: str | None) -> None:
        """Close the oldest connection that has never had a complete request, if there is one.

        Args:
            network: the one with the most connections. Its own are closed first, so that a client in the middle of its
                handshake does not lose its place to a network that takes them all.
        """
        for connection in list(islice(self._newcomers, _LOOKED_AT)):
            if connection.served or connection not in self._connections:
                del self._newcomers[connection]
        oldest = next(iter(self._newcomers), None)
        near = islice(self._newcomers, _LOOKED_AT)
        victim = next((each for each in near if each.network == network and not each.served), oldest)
        if victim is not None:
            del self._newcomers[victim]
            if not victim.served:
                self._displace(victim)

    def _listen(self, *, on: bool) -> None:
        for listener in self._listeners if on is not self._listening else ():
            if on:
                self._selector.register(listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(listener)
        self._listening = on

    def _move_on(self, connection: Connection) -> None:
        """Let a connection do its step, and note what it waits for."""
        if connection.watched is None or connection.queued:
            return  # it was closed or lent a moment ago, or has its turn in this round anyway
        self._next(connection, self._safely(connection, connection.move_on))

    def _take_back(self, connection: Connection) -> None:
        connection.queued = False
        if connection in self._connections and not connection.lent:
            self._next(connection, self._safely(connection, connection.resume))

    def _safely(self, connection: Connection, step: Any) -> Turn:
        try:
            turn: Turn = step()
        except Exception:
            logger.exception("Error on the connection of %s", connection.peer)
            return Turn.CLOSE
        return turn

    def _next(self, connection: Connection, turn: Turn) -> None:
        if turn is Turn.READ or turn is Turn.WRITE:
            self._wait_for(connection, turn)
        elif turn is Turn.ASK:
            self._wait_for(connection, Turn.READ)
            self._asking.append(connection)
        elif turn is Turn.AGAIN:
            self._wait_for(connection, Turn.READ)
            connection.queued = True
            self._handed_back.append(connection)
        elif turn is Turn.CLOSE:
            self._close(connection)
        else:
            self._unwatch(connection)
            if turn is Turn.WORKER:
                connection.lent = True
                self._lend(connection)

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

    def _close(self, connection: Connection) -> None:
        self._unwatch(connection)
        if connection in self._connections:
            self._connections.remove(connection)
            self._newcomers.pop(connection, None)
            network = connection.network
            self._by_network[network] -= 1
            if not self._by_network[network]:
                del self._by_network[network]
        connection.close()

    def _sweep(self, now: float) -> None:
        """Apply deadlines and the bound on memory; end a pause in accepting; when stopping, close idle connections."""
        stopping = self._service.stopping
        if stopping:
            self._listen(on=False)
            for listener in self._listeners:
                listener.close()  # a client that connects now is refused at once
        elif not self._listening and now >= self._accept_again:
            self._listen(on=True)
        for connection in tuple(self._connections):
            if connection.lent:
                continue
            if connection.phase is Phase.SERVING:
                connection.watch_over(now)
                if stopping:
                    connection.stop()
            elif now >= connection.deadline or (stopping and connection.idle):
                self._next(connection, self._safely(connection, connection.too_late))

    def _shed(self, too_many_bytes: int) -> None:
        """Close the connections with the largest buffers until half of the limit is in use."""
        logger.warning(
            "More than %d MiB are kept for clients; the connections that need most are closed",
            self._service.memory.limit_bytes >> 20,
        )
        candidates = [
            connection
            for connection in self._connections
            if not connection.lent and connection.phase in (Phase.READING, Phase.SENDING)
        ]
        for connection in sorted(candidates, key=lambda connection: connection.held_bytes, reverse=True):
            if too_many_bytes <= 0:
                return
            too_many_bytes -= connection.held_bytes
            self._service.tally.refused["no_memory"] += 1
            self._next(connection, self._safely(connection, connection.shed))

    def close(self) -> None:
        """Close every connection; only when the loop has ended."""
        for connection in tuple(self._connections):
            connection.close()
        self._connections.clear()
        self._selector.close()
        self._waker.close()
        self._wakee.close()

"""The loop's thread: accepts, shakes hands, reads ahead, serves what is quick, sends, and keeps deadlines.

It alone registers, closes and counts connections. What another thread is done
with comes back to it through a queue. It knows connections and the service
that they share, nothing of the listener that made it.
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
"""Newcomers that are looked at for one to close: each accept costs the same however many there are."""
_SHARES: Final = 8
"""A network's share is one of so many: what has more has to give way first."""
_EVICT_AT_ONCE: Final = 64
_FAN_OUT_AT_ONCE: Final = 8
"""Replies to clients that meant to wait, in one round: one change may answer a thousand of them, and takes 0.1 ms for
each. Between two rounds all others have their turn."""

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
        lend: gives a connection to a worker, which hands it back.
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
        """As ``_handed_back``, of clients that meant to wait."""
        self._asking: deque[Connection] = deque()
        self._connections: set[Connection] = set()
        self._by_network: Counter[str] = Counter()
        self._most = 0
        """No network has more connections than that; perhaps none has so many any more."""
        self._newcomers: dict[Connection, None] = {}
        """Connections in the order in which they came, until it is seen that a request on one was complete."""
        self._accept_again = 0.0
        self._stop = False
        self._done = threading.Event()
        self._beat = time.monotonic()
        self._selector.register(self._wakee, selectors.EVENT_READ)
        self._listening = False
        self._listen(on=True)

    # --- for other threads ---

    def hand_back(self, connection: Connection) -> None:
        """Let the loop go on with a connection."""
        self._handed_back.append(connection)
        self._wake()

    def hand_back_patiently(self, connection: Connection) -> None:
        """Let the loop go on with the connection of a client that meant to wait, when it is its turn."""
        self._fan_out.append(connection)
        self._wake()

    def stop_accepting(self) -> None:
        """Take no new connections, and no new request on those there are."""
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
        """Return the seconds since the loop last went round; it does so four times a second even when idle."""
        return time.monotonic() - self._beat

    def figures(self) -> dict[str, Any]:
        """Return the number of open connections."""
        return {"connections": len(self._connections)}

    def counts(self) -> dict[str, Any]:
        """Return what metrics show of connections beside the figures."""
        tally = self._service.tally
        return {
            "accepted": tally.accepted,
            "refused": dict(tally.refused),
            "handshakes": dict(tally.handshakes),
            "connections_max": self._service.policy.connections_max,
        }

    def _wake(self) -> None:
        # The loop says that it is about to sleep before it looks at the queue a last time, so nothing is missed.
        if self._asleep:
            self._asleep = False
            with suppress(BlockingIOError, OSError):
                self._waker.send(b"w")

    # --- the loop ---

    def run(self) -> None:
        """Go round until :meth:`stop`."""
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
                # EMFILE and its like: the connection stays in the backlog; going on at once would only spin.
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
            except OSError:  # it has gone already
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

        When all places are taken, a network that has more than its share of them
        loses some of its idle ones. When none has, as none of an attacker with
        many addresses has, the oldest connection goes that has never had a complete
        request, and if there is none, the ones that have been idle for longest.
        So the place of a client that asks for something is safe, and there is
        always one for the next.
        """
        held = self._by_network.get(network, 0)
        refused = self._service.tally.refused
        if held >= self._service.policy.connections_per_address_max:
            refused["address_full"] += 1
            return False
        places = self._service.policy.connections_max
        if len(self._connections) < places:
            return True
        # With many addresses of one connection each, a client with two would have the most.
        share = max(1, places // _SHARES)
        busiest, most = "", self._most
        if most > share:  # else there is no need to look at all networks for each connection that comes
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
            network: has the most connections, so one of its own goes first: a client in the middle of its
                handshake must not pay for a neighbour that takes all places.
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
        """Let a connection do what it can without blocking, and see what has to happen then."""
        if connection.watched is None or connection.queued:
            return  # closed or lent a moment ago, while this was on its way; or it has its turn in this round anyway
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
        """Keep deadlines and the bound on memory; begin to accept again; close idle connections when stopping."""
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

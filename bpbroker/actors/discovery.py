"""The discovery actor: owns the UDP sockets, and answers questions about names that the registry has.

A receiver thread reads datagrams and sends them to the actor in batches. It reads a limited number in a second, and
none while the actor has enough of them. In a flood, the system's own buffer overflows: that costs the broker nothing,
and clients ask again.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from bpbroker.actors.base import Actor
from bpbroker.actors.inbox import Wake
from bpbroker.config import layers, schema
from bpbroker.discovery.datagram import (
    GROWTH_MAX,
    PLAIN_REPLY,
    Echo,
    Question,
    Reply,
    decode,
    may_answer,
    question_mac,
    signed_answer,
)
from bpbroker.discovery.jointoken import canonical_fingerprint
from bpbroker.discovery.udp import bind_udp, join_groups
from bpbroker.errors import BpbrokerError
from bpbroker.messages import Address, CertificateChanged, Datagram, Exists, Pong, Settings, SettingsChanged
from bpbroker.registry.discovery_secret import DiscoverySecret

__all__ = ["Discovery", "bind_udp"]

logger = logging.getLogger(__name__)

DATAGRAMS_PER_SEC: Final = 2000
"""At most so many datagrams are read in a second in the long run; a burst of as many again is read at once."""
OUTCOMES: Final = ("answered", "echoed", "unknown_name", "malformed", "wrong_mac", "ignored", "not_sent", "not_known")
"""What becomes of datagrams. Ignored: of a kind or from a port that gets no answer. Not known: the registry did not
reply in time."""
_BATCH_MAX: Final = 64
_BATCHES_WAITING_MAX: Final = 8
_DATAGRAM_MAX: Final = 65535
_PAUSE_SECS: Final = 0.01
_EXISTS_TIMEOUT_SECS: Final = 2.0
_REJOIN_SECS: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Batch:
    """Datagrams and the sockets on which they came."""

    items: tuple[tuple[socket.socket, Datagram], ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question and where to answer it."""

    question: Question
    secret: str
    """The discovery secret of its MAC; empty if it has none."""
    sock: socket.socket
    datagram: Datagram


@dataclass(frozen=True, slots=True)
class _Held:
    """The registry has the name in all of these questions."""

    asked: tuple[_Asked, ...]
    registry_id: str


class Discovery(Actor):
    """Answers discovery and the UDP ping.

    Args:
        sockets: from :func:`bind_udp`; they stay the caller's, to be closed after this actor has stopped.
        registry: asked whether it has a name.
        settings: the settings in force.
        fingerprint: of the certificate that the broker serves with, SHA-256.
        wrong: called with the address of each question with a wrong signature, if only signed questions are answered.
        shared: the secret of a shared registry; None where the settings have it.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        registry: Address,
        settings: Settings,
        fingerprint: str,
        wrong: Callable[[str], None] = lambda _: None,
        shared: DiscoverySecret | None = None,
    ) -> None:
        super().__init__()
        self._shared = shared
        self._sockets = list(sockets)
        self._registry = registry
        self._fingerprint = canonical_fingerprint(fingerprint)
        self._wrong = wrong
        self._port: int = sockets[0].getsockname()[1]
        self._read = 0
        self._answered = 0
        self._wrong_macs = 0
        self._outcomes = dict.fromkeys(OUTCOMES, 0)
        self._receiver: _Receiver | None = None
        self._apply(settings)
        self.handlers = {
            _Batch: self._batch,
            _Held: self._held,
            SettingsChanged: lambda news: self._apply(news.settings),
            CertificateChanged: self._certificate_changed,
            Wake: lambda _: self._rejoin(),
        }

    def started(self) -> None:
        """Start to read."""
        self._receiver = _Receiver(self._sockets, self._has_room, self.tell_self, lambda: self.in_use)
        self._receiver.start()
        self.wake_at(time.monotonic() + _REJOIN_SECS)

    def stopped(self) -> None:
        """Stop reading."""
        if self._receiver is not None:
            self._receiver.stop()

    def abandoned(self) -> None:
        """Let the thread end that reads: the next datagram may be far."""
        if self._receiver is not None:
            self._receiver.end()

    def status(self) -> Pong:
        """Return health: whether datagrams are being read."""
        receiver = self._receiver
        running = receiver is not None and receiver.is_alive()
        figures = {"mode": self._mode, "read": self._read, "answered": self._answered, "wrong_macs": self._wrong_macs}
        detail = "" if running else "The thread that reads datagrams has ended"
        return Pong(running, detail, figures, {"outcomes": dict(self._outcomes)})

    def _apply(self, settings: Settings) -> None:
        self._mode: str = schema.option(settings, "_global", "discovery")
        self._name_max: int = schema.option(settings, "api", "max_name_bytes")
        self._secret: str = schema.option(settings, "_discovery", "secret") or ""
        self._echoes = self._mode != "off" and not layers.access_keys(settings, "ping")

    def _certificate_changed(self, news: CertificateChanged) -> None:
        self._fingerprint = canonical_fingerprint(news.fingerprint)

    def _rejoin(self) -> None:
        """Include interfaces that came up after the start, such as a VPN."""
        join_groups(self._sockets)
        self.wake_at(time.monotonic() + _REJOIN_SECS)

    def _has_room(self) -> bool:
        return self.actor_inbox.qsize() < _BATCHES_WAITING_MAX

    def _batch(self, batch: _Batch) -> None:
        """Echo pings; ask the registry once for each name in the questions."""
        self._read += len(batch.items)
        outcomes = self._outcomes
        if self._mode == "off":
            outcomes["ignored"] += len(batch.items)
            return
        by_name: dict[str, list[_Asked]] = {}
        for sock, datagram in batch.items:
            if not may_answer(datagram.sender[1], self._port):
                outcomes["ignored"] += 1
                continue
            request = decode(datagram.payload, self._name_max)
            if isinstance(request, Echo):
                if self._echoes:
                    self._send(sock, request.data, datagram, "echoed")
                else:
                    outcomes["ignored"] += 1
            elif request is None:
                outcomes["malformed"] += 1
            else:
                secret = self._secret_of(request, str(datagram.sender[0]))
                if secret is not None:
                    by_name.setdefault(request.name, []).append(_Asked(request, secret, sock, datagram))
        for name, asked in by_name.items():
            try:
                reply = self._registry.ask(Exists(name), _EXISTS_TIMEOUT_SECS)
            except BpbrokerError:  # overloaded or being replaced: clients ask again
                outcomes["not_known"] += len(asked)
                continue
            reply.add_done_callback(self._when_known(tuple(asked)))

    def _secret_of(self, question: Question, source: str) -> str | None:
        """Return the secret to sign the answer with, "" for an unsigned answer, None for no answer."""
        if not question.mac:
            if self._mode == "open":
                return ""
            self._outcomes["ignored"] += 1
            return None
        import hmac

        secret = self._secret if self._shared is None else self._shared.value
        if self._shared is not None and not secret:  # the secret is not known yet: clients ask again
            self._outcomes["not_known"] += 1
            return None
        if secret and hmac.compare_digest(question_mac(secret, question.nonce, question.name), question.mac):
            return secret
        self._wrong_macs += 1
        self._outcomes["wrong_mac"] += 1
        if self._mode == "authenticated":
            self._wrong(source)
        return None

    def _when_known(self, asked: tuple[_Asked, ...]) -> Callable[[Future[str]], None]:
        """Return the callback. It runs in the registry's thread, so it only sends a message to this actor.

        It counts the questions without a result. Another thread runs it while the registry is being replaced; both at
        one time may miscount by a few.
        """

        def tell(reply: Future[str]) -> None:
            if reply.cancelled() or reply.exception() is not None:
                self._outcomes["not_known"] += len(asked)
            elif reply.result():
                self.tell_self(_Held(asked, reply.result()))
            else:
                self._outcomes["unknown_name"] += len(asked)

        return tell

    def _held(self, news: _Held) -> None:
        for asked in news.asked:
            if not asked.question.nonce:
                self._send(asked.sock, PLAIN_REPLY, asked.datagram)
                continue
            own = _own_address(self._sender(asked.sock), asked.datagram.sender)
            if own is None:
                self._outcomes["not_sent"] += 1
                continue
            answer = Reply(news.registry_id, self._fingerprint, self._port, own)
            self._send(asked.sock, signed_answer(asked.question, answer, asked.secret), asked.datagram)

    def _send(self, heard_on: socket.socket, payload: bytes, datagram: Datagram, outcome: str = "answered") -> None:
        self._outcomes[outcome if self._sent(heard_on, payload, datagram) else "not_sent"] += 1

    def _sent(self, heard_on: socket.socket, payload: bytes, datagram: Datagram) -> bool:
        if not payload or len(payload) > len(datagram.payload) + GROWTH_MAX:
            return False
        try:
            self._sender(heard_on).sendto(payload, datagram.sender)
        except OSError:  # the client is gone, or there is no room: clients ask again
            return False
        self._answered += 1
        return True

    def _sender(self, heard_on: socket.socket) -> socket.socket:
        """Return the socket for an answer. A socket that hears broadcasts cannot send; the first of its family can."""
        return next(sock for sock in self._sockets if sock.family == heard_on.family)


def _own_address(sock: socket.socket, peer: tuple[Any, ...]) -> str | None:
    """Return the own address from which ``sock`` sends to ``peer``, without a scope."""
    bound = str(sock.getsockname()[0]).partition("%")[0]
    if bound not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return bound
    with socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(peer)  # sends nothing: it only asks the system for the route
        except OSError:
            return None
        return str(probe.getsockname()[0]).partition("%")[0]


class _Receiver(threading.Thread):
    """Reads datagrams from all sockets and passes them on in batches.

    Args:
        sockets: not blocking; never closed here.
        has_room: whether another batch may be read; asked before each.
        take: gets a batch.
        wanted: whether the actor still waits for batches. When the actor has died, or another one took its place while
            it was stuck, this thread is not stopped, and it must not take datagrams away from the next one.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        has_room: Callable[[], bool],
        take: Callable[[_Batch], None],
        wanted: Callable[[], bool],
    ) -> None:
        super().__init__(name="discovery receiver", daemon=True)
        self._sockets = sockets
        self._has_room = has_room
        self._take = take
        self._wanted = wanted
        self._stopping = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._buffer = bytearray(_DATAGRAM_MAX)
        self._allowed = float(DATAGRAMS_PER_SEC)
        self._refilled = time.monotonic()

    def end(self) -> None:
        """Let the thread end soon; from any thread, and does not wait for it."""
        self._stopping = True
        with suppress(OSError):  # it has ended
            self._wake_write.send(b"x")

    def stop(self) -> None:
        """End the thread; the sockets may be closed or read by another one afterwards."""
        self.end()
        self.join(5.0)

    def run(self) -> None:
        """Read until told to stop."""
        with self._wake_read, self._wake_write, selectors.DefaultSelector() as selector:
            for sock in (*self._sockets, self._wake_read):
                selector.register(sock, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._stopping or not self._wanted():
                    return
                sockets = [sock for sock in ready if isinstance(sock, socket.socket)]
                items = self._read(sockets) if self._has_room() else ()
                if items:
                    self._take(_Batch(items))
                else:
                    time.sleep(_PAUSE_SECS)

    def _read(self, ready: list[socket.socket]) -> tuple[tuple[socket.socket, Datagram], ...]:
        """Read the waiting datagrams of these sockets, within the allowance."""
        now = time.monotonic()
        refill = (now - self._refilled) * DATAGRAMS_PER_SEC
        self._allowed = min(self._allowed + refill, float(DATAGRAMS_PER_SEC))
        self._refilled = now
        items: list[tuple[socket.socket, Datagram]] = []
        limit = min(_BATCH_MAX, int(self._allowed))
        for sock in ready:
            while len(items) < limit:
                try:
                    size, sender = sock.recvfrom_into(self._buffer)
                except BlockingIOError:
                    break
                except OSError:  # on Windows, an error of an earlier answer to a closed port
                    break
                items.append((sock, Datagram(bytes(self._buffer[:size]), sender)))
        self._allowed -= len(items)
        return tuple(items)

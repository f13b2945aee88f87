"""Connecting to a broker that has a name, or several addresses: the first trusted connection is used.

The idea of RFC 8305: an attempt that takes longer than a quarter of a second
does not hold up the next one, and the first to succeed ends the others. An attempt succeeds when the certificate has
been checked: so a host that accepts connections and then is silent delays no other attempt either.

A name is looked up in a thread, because the system's resolver cannot be
interrupted. A call to a single numeric address does without this module.
"""

from __future__ import annotations

import _thread
import errno
import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence

from bpbroker.client.address import BrokerAddress, NotReached, host_bytes, not_known, unreached
from bpbroker.errors import BpbrokerError, CannotConnect, NotTrusted, UsageError

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any, Final

    from bpbroker.client.tls import TlsSocket

STEP_SECS: Final = 0.25
"""How long an attempt is alone before the next one begins (RFC 8305, section 5)."""
_UNDER_WAY: Final = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", 0))


class Lookup:
    """The addresses of one host name, looked up in a thread.

    Its socket :attr:`over` becomes readable when the lookup has ended. The thread may outlive its caller; it ends with
    the process.
    """

    def __init__(self, host: bytes, port: int) -> None:
        self.places: list[tuple[Any, ...]] = []
        """What :func:`socket.getaddrinfo` found."""
        self.error: OSError | UnicodeError | None = None
        self.over, there = socket.socketpair()
        _thread.start_new_thread(self._run, (host, port, there))

    def _run(self, host: bytes, port: int, there: socket.socket) -> None:
        try:
            self.places = list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            self.error = error
        finally:
            there.close()  # only this thread has it: closing it wakes the other end


class _Broker:
    """One of the given addresses, with its lookup and its failures.

    Args:
        address: as given.
    """

    def __init__(self, address: BrokerAddress) -> None:
        self.address = address
        self.places: list[tuple[Any, ...]] = []
        self.lookup: Lookup | None = None
        self.begun = 0
        """Number of attempts."""
        self.failures: list[BpbrokerError] = []


class _Attempt:
    """One connection on its way."""

    def __init__(self, broker: _Broker, sock: socket.socket) -> None:
        self.broker = broker
        self.sock = sock
        self.secure: TlsSocket | None = None
        self.waits_for = selectors.EVENT_WRITE

    def close(self) -> None:
        (self.secure or self.sock).close()


class Dialing:
    """Attempts to reach any of several addresses.

    Args:
        addresses: the preferred one first.
        wrap: begins TLS on a connected socket, without a handshake.
        check: checks a connection after its handshake; raises NotTrusted.
        failed: returns the error for a failed handshake.
    """

    def __init__(
        self,
        addresses: Sequence[BrokerAddress],
        wrap: Callable[[socket.socket, BrokerAddress], TlsSocket],
        check: Callable[[TlsSocket, BrokerAddress], None],
        failed: Callable[[OSError, BrokerAddress], BpbrokerError],
    ) -> None:
        self._brokers = [_Broker(address) for address in addresses]
        self._wrap = wrap
        self._check = check
        self._failed = failed
        self._selector = selectors.DefaultSelector()
        self._attempts: list[_Attempt] = []

    def first(self, secs: float) -> tuple[BrokerAddress, TlsSocket]:
        """Return the first connection to a trusted broker, not blocking, with the address that led there.

        Args:
            secs: how long to try.

        Raises:
            NotReached, NotTrusted, CannotConnect, UsageError: there is none; the message names each address.
        """
        try:
            for broker in self._brokers:
                self._look_up(broker)
            won = self._race(time.monotonic() + secs)
            if won is None or won.secure is None:
                raise self._failure(secs)
            self._attempts.remove(won)
            return won.broker.address, won.secure
        finally:
            for attempt in self._attempts:
                attempt.close()
            for broker in self._brokers:
                if broker.lookup is not None:
                    broker.lookup.over.close()
            self._selector.close()

    @property
    def rejected(self) -> list[str]:
        """The errors of the brokers that responded and could not be used."""
        return [str(error) for broker in self._brokers for error in broker.failures if isinstance(error, NotTrusted)]

    def _look_up(self, broker: _Broker) -> None:
        host, port = broker.address.host, broker.address.port
        try:
            name = host_bytes(host)
            broker.places = list(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
        except UnicodeError:
            broker.failures.append(UsageError(f"The host name {host[:200]!r} cannot be looked up: check the address"))
        except socket.gaierror as error:
            if ":" in host:
                broker.failures.append(not_known(host, error))
                return
            broker.lookup = Lookup(name, port)
            self._selector.register(broker.lookup.over, selectors.EVENT_READ, broker)

    def _race(self, end: float) -> _Attempt | None:
        """Return the attempt that succeeded; None if none did in time."""
        began = time.monotonic()
        next_at = began
        while (now := time.monotonic()) < end:
            waiting = any(broker.lookup for broker in self._brokers)
            following = self._next(hurry=now >= began + STEP_SECS) if now >= next_at else None
            if following is not None:
                next_at = now + STEP_SECS if self._begin(following) else now
                continue
            left = any(broker.places for broker in self._brokers)
            if not (self._attempts or waiting or left):
                return None
            wake = min(end, *(at for at in (next_at, began + STEP_SECS) if left and at > now), end)
            for key, _ in self._selector.select(max(0.0, wake - now)):
                what: _Broker | _Attempt = key.data
                if isinstance(what, _Broker):
                    self._looked_up(what)
                elif self._goes_on(what):
                    return what
                if what not in self._attempts:
                    next_at = min(next_at, time.monotonic())  # an event is there already: no need to wait
        return None

    def _next(self, *, hurry: bool) -> _Broker | None:
        """Return the broker to try next: the one with the fewest attempts; of several, the preferred one.

        If the lookup of the preferred one has not ended, wait for it, unless in a ``hurry``.
        """
        chosen: _Broker | None = None
        for broker in self._brokers:
            if broker.lookup is not None and not hurry:
                break
            if broker.places and (chosen is None or broker.begun < chosen.begun):
                chosen = broker
        return chosen

    def _looked_up(self, broker: _Broker) -> None:
        lookup, broker.lookup = broker.lookup, None
        assert lookup is not None  # noqa: S101 - its socket was registered
        self._selector.unregister(lookup.over)
        lookup.over.close()
        if lookup.error is None:
            broker.places = _interleaved(lookup.places)
        else:
            broker.failures.append(not_known(broker.address.host, lookup.error))

    def _begin(self, broker: _Broker) -> bool:
        """Begin an attempt; return whether it runs."""
        family, kind, protocol, _, where = broker.places.pop(0)
        broker.begun += 1
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            broker.failures.append(_unreached(broker, error.strerror or str(error)))
            return False
        sock.setblocking(False)
        try:
            code = sock.connect_ex(where)
        except OSError as error:  # such as an address without its interface
            code = error.errno or errno.EINVAL
        if code not in _UNDER_WAY:
            sock.close()
            broker.failures.append(_unreached(broker, os.strerror(code)))
            return False
        attempt = _Attempt(broker, sock)
        self._attempts.append(attempt)
        self._selector.register(sock, attempt.waits_for, attempt)
        return True

    def _goes_on(self, attempt: _Attempt) -> bool:
        """Do the next step of an attempt; return whether it has succeeded."""
        from bpbroker.client import tls

        broker = attempt.broker
        self._selector.unregister(attempt.secure or attempt.sock)
        try:
            if attempt.secure is None:
                code = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self._give_up(attempt, _unreached(broker, os.strerror(code)))
                    return False
                attempt.secure = self._wrap(attempt.sock, broker.address)
            attempt.secure.do_handshake()
            self._check(attempt.secure, broker.address)
        except tls.WantRead:
            attempt.waits_for = selectors.EVENT_READ
        except tls.WantWrite:
            attempt.waits_for = selectors.EVENT_WRITE
        except NotTrusted as error:
            self._give_up(attempt, error)
            return False
        except OSError as error:
            self._give_up(attempt, self._failed(error, broker.address))
            return False
        else:
            return True
        self._selector.register(attempt.secure or attempt.sock, attempt.waits_for, attempt)
        return False

    def _give_up(self, attempt: _Attempt, error: BpbrokerError) -> None:
        attempt.close()
        self._attempts.remove(attempt)
        attempt.broker.failures.append(error)

    def _failure(self, secs: float) -> BpbrokerError:
        for attempt in self._attempts:
            attempt.broker.failures.append(_unreached(attempt.broker, "no answer"))
        for broker in self._brokers:
            if broker.lookup is not None:
                broker.failures.append(
                    NotReached(
                        f"The host name {broker.address.host!r} could not be looked up within {secs:.3g} s: "
                        "no name server answered; check the network, or use the address"
                    )
                )
            elif not broker.failures:
                broker.failures.append(_unreached(broker, "there was no time to try it"))
        # The common part of the errors of one name's addresses is said once.
        failures = list({str(error): error for broker in self._brokers for error in broker.failures}.values())
        if len(failures) == 1:
            return failures[0]
        kinds = (NotReached, NotTrusted, CannotConnect)
        kind = next((kind for kind in kinds if any(isinstance(error, kind) for error in failures)), UsageError)
        return kind(f"No broker could be reached: {'; '.join(map(str, failures))}")


def _unreached(broker: _Broker, why: str) -> NotReached:
    return unreached(broker.address, why)


def _interleaved(places: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return addresses with the families in turn, beginning with the system's first choice (RFC 8305, section 4)."""
    first = [place for place in places if place[0] == places[0][0]]
    others = [place for place in places if place[0] != places[0][0]]
    mixed: list[tuple[Any, ...]] = []
    for at in range(max(len(first), len(others))):
        mixed += [*first[at : at + 1], *others[at : at + 1]]
    return mixed

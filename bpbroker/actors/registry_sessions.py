"""The registry's sessions: when each is over, and what its end removes. Used in the registry's thread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from bpbroker.actors.base import DEFERRED
from bpbroker.actors.registry_backend import Owner
from bpbroker.errors import Overloaded
from bpbroker.record import Record
from bpbroker.registry import numbers, sessions
from bpbroker.registry.coming import Coming
from bpbroker.registry.memory import BATCHES
from bpbroker.registry.replies import send
from bpbroker.registry.requests import Done, Expire, Forget, Lost, Open, Renew, Rest
from bpbroker.server.request import network_of

_RESERVE: Final = 4
"""The part of the limit by which clients with few sessions may exceed it together."""
_FEW: Final = 100
"""A client that has less than this part of the limit has few."""
_TIDY_SECS: Final = 60.0
_FORGOTTEN_AT_ONCE: Final = 50
_CLOSED_KEPT_SECS: Final = 600
"""How long the note is kept that a session was closed, on a shared store."""
_AGAIN_SECS: Final = 10.0
"""After how long it is tried again, on a shared store, to remove what an ended session left."""
_BATCHES_KEPT_SECS: Final = 3600
"""How long the id of a batch is kept, to recognise a repetition."""


def with_reserve(most: int) -> int:
    """Return the limit for all clients together, if ``most`` is the limit for a client that has many."""
    return most + -(-most // _RESERVE)


def share_of(most: int) -> int:
    """Return the number from which on a client has many, if ``most`` is the limit for a client that has many."""
    return max(1, most // _FEW)


class Sessions:
    """Opens, renews and ends sessions.

    Args:
        owner: the registry.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._memory = owner.memory
        self._times = sessions.Times()
        self._tick_at = float("inf")
        self._tidy_at = time.monotonic() + _TIDY_SECS
        self.ended = dict.fromkeys(("ended",) if owner.backend.leases else ("closed", "lost"), 0)
        """How many sessions ended, by the way in which they ended."""
        self.keep_lost_secs = 0
        """``_registry.keep_lost_secs``."""
        self.most = 0
        """``_registry.max_sessions``."""
        self._clients: dict[str, str] = {}
        """Session to the client that opened it, see :func:`network_of`."""
        self._by_client: dict[str, dict[str, None]] = {}
        """Client to its sessions."""
        self._coming = Coming()
        """The sessions that calls under way may open."""
        self._left: dict[str, Record | None] = {}
        """Ended sessions of a shared store that have left something, as far as their removal failed, with their records
        if these are known. Each may have been opened again: the store does not show then that it ended."""
        self._left_at = float("inf")
        """When this is to be removed."""
        self._memory.session_began = self._began
        self._memory.session_ended = self._ended
        self.handlers: Mapping[type, Callable[[Any], Any]] = {
            Open: self._open,
            Renew: self._renew,
            Lost: self._lost,
        }

    def _began(self, session: str, record: Record) -> None:
        self._coming.end(session)
        value = json.loads(record.json)
        if session not in self._clients:
            client = self._clients[session] = network_of(str(value.get("source", "")))
            self._by_client.setdefault(client, {})[session] = None
        if self._owner.backend.leases:  # the store ends it
            return
        now = time.monotonic()
        self._times.begin(session, value["ttl"], now)
        self._tick_at = min(self._tick_at, now + self._times.tick_secs)
        self._owner.set_alarm()

    def _ended(self, session: str, opened: Record | None) -> None:
        was_over = session in self._times.ending
        self._times.end(session)
        client = self._clients.pop(session, None)
        if client is not None:
            del self._by_client[client][session]
            if not self._by_client[client]:
                del self._by_client[client]
        if self._owner.backend.leases:
            how = "ended"
        elif was_over:
            how = "lost"
        else:
            how = "closed"
        self.ended[how] += 1
        if self._owner.backend.leases:  # a lease ended, so its records are removed now; any broker may do it
            self._sweep(session, opened)

    def _expire(self, session: str) -> None:
        """End a session whose time is over."""
        opened = self._memory.get(sessions.PREFIX + session)

        def ended(result: Any) -> None:
            if isinstance(result, BaseException):  # it lives on, may be renewed, and closed later
                self._times.ending.discard(session)
            elif result.revision:  # else it was closed just before
                self._owner.expired(sessions.expired(session, opened, result))

        self._owner.ask_self(Expire(session), ended)

    def _sweep(self, session: str, opened: Record | None) -> None:
        """Remove what a session of a shared store left, a part at a time; one of the brokers does each part."""
        self._left.pop(session, None)
        names = len(self._memory.belongings.get(session, ()))
        if not names:
            return

        def gone(result: Any) -> None:
            if isinstance(result, BaseException):
                self._sweep_at(time.monotonic() + _AGAIN_SECS, session, opened)
                return
            if result.ended:
                self._owner.expired(sessions.expired(session, opened, result))
            # A later session of the name may have got more meanwhile than was removed.
            if result.revision or len(self._memory.belongings.get(session, ())) < names:
                self._sweep(session, opened)

        self._owner.ask_self(Expire(session), gone)

    def _sweep_at(self, moment: float, session: str, opened: Record | None = None) -> None:
        self._left_at = min(self._left_at, moment) if self._left else moment
        self._left.setdefault(session, opened)

    def sweep_soon(self, session: str) -> None:
        """Remove later what a session of a shared store left that seems to be over; others may wait for it."""
        self._sweep_at(time.monotonic(), session)

    def _open(self, message: Open) -> Any:
        owner, session, reply = self._owner, message.session, self._owner.reply
        if self._memory.get(sessions.PREFIX + session) is None and session not in self._coming:
            self._check_share(message)
            self._coming.begin(session, network_of(message.source))

        def opened(result: Any) -> None:
            self._coming.end(session)
            send(reply, result)

        if owner.backend.leases:
            owner.backend.open_session(message, opened)
        else:
            self._times.renew(session, time.monotonic())
            owner.ask_self(message, opened)
        return DEFERRED

    def _check_share(self, message: Open) -> None:
        """Check that no client takes all sessions: beyond the limit, clients with few sessions still get one.

        Raises:
            Overloaded: there are so many sessions, and this client has its share of them; or no more are taken at all.
        """
        there = self._memory.sessions + len(self._coming)
        if there < self.most:
            return
        most = self._owner.limits.sessions
        if there >= most and self._owner.backend.leases:  # elsewhere that is decided with what is closed just now
            raise Overloaded(f"There are {most} sessions already ({sessions.COUNT}); nothing was changed")
        client = network_of(message.source)
        held = len(self._by_client.get(client, ())) + self._coming.of(client)
        if held >= share_of(self.most):
            raise Overloaded(
                f"There are {there} sessions already ({sessions.COUNT}), {held} of them of {client};"
                " nothing was changed"
            )

    def of(self, source: str) -> Iterator[str]:
        """Yield the sessions of the client that has an address."""
        return iter(self._by_client.get(network_of(source), ()))

    def _renew(self, message: Renew) -> Any:
        owner = self._owner
        if owner.backend.leases:
            owner.backend.renew_session(message.session, partial(send, owner.reply))
            return DEFERRED
        # The reply must not say that a session lives on while it is being ended.
        ttl = None if message.session in self._times.ending else self._times.renew(message.session, time.monotonic())
        if ttl is None:
            raise sessions.over(message.session)
        return self._renewed(message.session, ttl)

    def renewed_now(self, session: str) -> Done | None:
        """Renew a session in another thread; None if the registry has to be asked."""
        ttl = self._times.hear(session, time.monotonic)
        return None if ttl is None else self._renewed(session, ttl)

    def _renewed(self, session: str, ttl: float) -> Done:
        return Done({"session": session, "ttl": ttl}, self._memory.history.revision)

    def _lost(self, message: Lost) -> tuple[Record, ...]:
        ages = self._memory.ages
        return tuple(
            Record(found.name.removeprefix(sessions.LOST), found.json, found.revision)
            for found in self._memory.own.matching(sessions.LOST + message.prefix)
            if ages.secs(sessions.LOST, found.name) <= self.keep_lost_secs
            and found.name.removeprefix(sessions.LOST) not in self._memory.entries
        )

    # --- time ---

    def next_moment(self) -> float:
        """Return the monotonic time at which :meth:`pass_time` has work to do; may be infinite."""
        return min(self._tick_at, self._tidy_at) if self._memory.own else self._tick_at

    def pass_time(self, now: float, late_secs: float) -> None:
        """End the sessions whose time is over.

        Args:
            now: monotonic time.
            late_secs: how much too late the registry was woken: it could hear no renewals meanwhile.
        """
        if late_secs > self._times.tick_secs:
            self._times.delay(late_secs)
        if not self._owner.backend.leases:
            for session in list(self._times.over(now)):
                self._expire(session)
        elif self._left and now >= self._left_at and not self._owner.backend.trouble:
            for session, opened in list(self._left.items()):
                self._sweep(session, opened)
        self._tick_at = now + self._times.tick_secs
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_SECS
            self._times.tidy()
            self.tidy()

    def tidy(self) -> None:
        """Remove own records that are too old to be needed, by a clock that does not jump."""
        memory = self._memory
        names = [
            name
            for kind, secs in (
                (sessions.LOST, self.keep_lost_secs),
                (sessions.CLOSED, _CLOSED_KEPT_SECS),
                (BATCHES, _BATCHES_KEPT_SECS),
            )
            for name in memory.ages.older(kind, secs)
        ]
        for start in range(0, len(names), _FORGOTTEN_AT_ONCE):
            self._owner.ask_self(Forget(tuple(names[start : start + _FORGOTTEN_AT_ONCE])))
        for record in memory.own.matching(numbers.RESTING):
            if any(
                _is_due(memory.ages.of(record.name, part).secs, secs) for part, secs in numbers.parts(record).items()
            ):
                self._owner.ask_self(Rest(record.name.removeprefix(numbers.RESTING)))


def _is_due(age_secs: float, rest_secs: float) -> bool:
    """Return whether the time that a number still has to rest must be stored again.

    That is so at its end, and each time that a tenth of the time stored last is over, but at most once a minute.
    """
    return age_secs >= max(_TIDY_SECS, rest_secs / 10) or age_secs >= rest_secs

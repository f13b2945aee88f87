"""Access: keys compared in constant time, named keys as they are at the moment, a limit on guessing. No I/O.

Every way into a namespace asks :func:`check`, for each name and prefix that a
call is about.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Final

from bpbroker.errors import BadRequest, Forbidden
from bpbroker.registry import named_keys, rights
from bpbroker.registry.named_keys import NamedKey
from bpbroker.registry.rights import Need, Rights

logger: Final = logging.getLogger(__name__)

KEY_MAX_BYTES: Final = 1024
_WINDOW_SECS: Final = 60.0
_ADDRESSES_MAX: Final = 10_000
_DELAY_SECS: Final = 0.1
_DELAY_MAX_SECS: Final = 20.0
_LOOKS_AT_ONCE: Final = 0.05
_LOOKS_LATER: Final = 0.1
"""Shares of the limit: how many keys are compared although an address has to pause. The first share may come at once,
the other one is for each minute after that."""
_LOOKS_LEAST: Final = 3
_RIGHT_MAX: Final = 10_000
_GENERATED: Final = 43
"""Characters of a generated secret: 256 bits."""


def matches(candidates: Sequence[object], keys: Iterable[str]) -> bool:
    """Whether a request brings exactly one key, and that is one of ``keys``.

    Each configured key is compared, and digests of equal length are compared,
    so that the time taken tells nothing about any of them.
    """
    if len(candidates) != 1:
        return False
    candidate = candidates[0]
    if not isinstance(candidate, str):
        return False
    given = candidate.encode(errors="surrogatepass")
    if len(given) > KEY_MAX_BYTES:
        return False
    digest = hashlib.sha256(given).digest()
    right = False
    for key in keys:
        right |= hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest())
    return right


def check(key: NamedKey | None, needs: Iterable[Need]) -> None:
    """Check that a key has the right for everything that a call does.

    Args:
        key: the named key that let the call in; None for one that may do anything there: it brought the namespace's
            own ``_access_key``, or the namespace is open.
        needs: what the call does.

    Raises:
        Forbidden: a right is missing; the message names it.
    """
    if key is None:
        return
    missing = key.rights.missing(needs)
    if missing is not None:
        raise Forbidden(f"The access key '{key.name}' lacks the right {rights.explain(missing)}")


_NO_KEY: Final = NamedKey("", b"\0" * 32, (), Rights(()))
"""A key of an unknown name is compared with this, so that it takes as long as with a known name."""


class _Everything:
    """Contains every item."""

    def __contains__(self, item: object) -> bool:
        return True


class NamedKeys:
    """The named keys as the registry has them now.

    The registry's actor changes this, other threads read it; each step is
    atomic in CPython.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, NamedKey] = {}
        self.closed: Container[str] = _Everything()
        """The namespaces that keys are about. Keys that have ended count too: their namespace stays closed."""
        self.known = False
        """Whether the registry has sent its keys. Until then only namespaces whose section says so are open."""
        self.registry_id = ""
        """Id of the registry whose keys these are; empty until it is known."""
        self.ended: Callable[[NamedKey], None] = lambda _: None
        """Called in the registry's thread with each key that was revoked or removed."""
        self._about: dict[str, int] = {}
        """Namespace to how many keys are about it."""
        self._bare: dict[str, NamedKey] = {}

    def take(self, stored_name: str, value: bytes | None) -> None:
        """Set the stored form of a key; None removes the key."""
        name = stored_name.removeprefix(named_keys.PREFIX)
        before, after = self.by_name.get(name), None
        if value is not None:
            try:
                after = named_keys.of(name, json.loads(value))
            except (BadRequest, ValueError) as error:
                logger.error("An access key in the registry cannot be used: %s", error)  # noqa: TRY400 - the sentence says it
        for key, step in ((after, 1), (before, -1)):  # in this order, so that the namespace is open at no moment
            for namespace in key.rights.namespaces if key is not None else ():
                self._about[namespace] = self._about.get(namespace, 0) + step
                if not self._about[namespace]:
                    del self._about[namespace]
        self._bare.pop(name, None)
        if after is None:
            self.by_name.pop(name, None)
        else:
            self.by_name[name] = after
            if after.bare:
                self._bare[name] = after
        if before is not None and (after is None or after.revoked is not None):
            self.ended(before)

    def complete(self) -> None:
        """Note that the registry has sent all its keys."""
        self.known, self.closed = True, self._about

    def registry_is(self, registry_id: str) -> None:
        """Note the id of the registry whose keys these are."""
        self.registry_id = registry_id

    def find(self, candidates: Sequence[object], now: float) -> NamedKey | None:
        """Return the key whose secret a request brings, in force or not; None if it brings none, or several.

        ``now`` is Unix time.
        """
        if len(candidates) != 1:
            return None
        text = candidates[0]
        if not isinstance(text, str) or len(text) > KEY_MAX_BYTES:
            return None
        name, _, secret = text.partition(".")
        key = self.by_name.get(name, _NO_KEY)
        found = key if key.has_secret(named_keys.digest_of(secret), now) and key is not _NO_KEY else None
        if self._bare:
            digest = named_keys.digest_of(text)
            for each in tuple(self._bare.values()):
                if each.has_secret(digest, now):
                    found = each
        return found

    def others_in_force(self, name: str, namespace: str, now: float) -> bool:
        """Whether another key than this one has all rights in a namespace at Unix time ``now``."""
        return any(
            key.name != name and key.is_in_force(now) and namespace in key.rights.whole()
            for key in tuple(self.by_name.values())
        )


class _Counted:
    """The wrong keys of one address."""

    __slots__ = ("looked_at", "looks", "over", "proven_at", "times")

    def __init__(self, limit: int, looks: int) -> None:
        self.over = 0
        """How many wrong keys came in a row during its pause."""
        self.times: deque[float] = deque(maxlen=limit)
        self.proven_at = -math.inf
        """When the last one came over a connection, which proves the address."""
        self.looks = float(looks)
        """How many keys may still be compared although it has to pause; as of ``looked_at``."""
        self.looked_at = -math.inf


class WrongKeys:
    """Counts wrong keys by address over the last minute, in bounded memory.

    The source of a datagram can be forged. Wrong keys in datagrams therefore count, but an address has to pause only
    if it has also sent a wrong key over a connection. Otherwise one host could shut out another.

    Only wrong keys are delayed: other clients at the same address may have the right key. An attacker must not learn
    more by that. So beyond the limit of its address, a key is compared in three cases only: it is as long as a
    generated key and so cannot be guessed; it was right from this address before; very few keys were compared lately.
    With a limit of 100, at most 115 keys are compared in the first minute of an attack, and 10 in each later one.

    Called by several threads without a lock: each step is atomic in CPython,
    and a race can miscount by one, no more.
    """

    def __init__(self, limit: int) -> None:
        self._set(limit)
        self._counted: dict[str, _Counted] = {}
        self._right: dict[tuple[str, str], None] = {}
        """Addresses with the keys that were right from there, the newest last; only keys short enough to be guessed."""
        self.totals = {"https": 0, "udp": 0}
        """How many there were since the start."""

    def _set(self, limit: int) -> None:
        """Set the limit, and how many keys are compared beyond it."""
        self._limit = limit
        self._at_once = max(_LOOKS_LEAST, int(limit * _LOOKS_AT_ONCE))
        self._later = max(2 * _LOOKS_LEAST, int(limit * _LOOKS_LATER))

    @property
    def limit(self) -> int:
        """How many wrong keys an address may send in a minute. With a new limit, counting begins at 0."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit != self._limit:
            self._set(limit)
            self._counted = {}

    def pause_secs(self, address: str, now: float) -> int | None:
        """Return the seconds that an address has to pause, after too many wrong keys in the last minute, or None."""
        counted = self._counted.get(address)
        if counted is None or len(counted.times) < self._limit or counted.proven_at <= now - _WINDOW_SECS:
            return None
        left = counted.times[0] + _WINDOW_SECS - now
        return max(1, math.ceil(left)) if left > 0 else None

    def may_look(self, address: str, candidates: Sequence[object], now: float) -> bool:
        """Whether the keys of a request are to be compared with the configured ones.

        Args:
            address: of the client.
            candidates: the keys in the request.
            now: monotonic time in seconds.
        """
        if self.pause_secs(address, now) is None or not self._could_be_guessed(candidates):
            return True
        if (address, candidates[0]) in self._right:
            return True
        counted = self._counted.get(address)
        if counted is None:
            return True
        regained = (now - counted.looked_at) * self._later / _WINDOW_SECS
        counted.looks = min(float(self._at_once), counted.looks + regained)
        counted.looked_at = now
        if counted.looks < 1:
            return False
        counted.looks -= 1
        return True

    def was_right(self, address: str, candidates: Sequence[object]) -> None:
        """Note that a key was right, so that it passes from this address while another client there guesses keys."""
        if self._could_be_guessed(candidates):
            known = (address, str(candidates[0]))
            if known not in self._right:
                self._right[known] = None
                while len(self._right) > _RIGHT_MAX:
                    self._right.pop(next(iter(self._right)), None)

    @staticmethod
    def _could_be_guessed(candidates: Sequence[object]) -> bool:
        """Whether this is a single key that is shorter than a generated one."""
        if len(candidates) != 1 or not isinstance(candidates[0], str):
            return False
        return len(candidates[0].rpartition(".")[2]) < _GENERATED

    def delay_secs(self, address: str) -> float:
        """Return the delay in seconds of the response to a wrong key during a pause: it grows with each one."""
        counted = self._counted.get(address)
        if counted is None:
            return _DELAY_SECS
        counted.over += 1
        return min(_DELAY_MAX_SECS, _DELAY_SECS * 2.0 ** min(counted.over - 1, 20))

    def count(self, address: str, now: float, *, proven: bool = True) -> None:
        """Count a wrong key of an address at this monotonic time.

        Args:
            address: as text.
            now: monotonic time in seconds.
            proven: whether the key came over a connection, so that the address is not forged.
        """
        self.totals["https" if proven else "udp"] += 1
        counted = self._counted.get(address)
        if counted is None:
            if len(self._counted) >= _ADDRESSES_MAX:
                self._forget_old(now)
            counted = self._counted.setdefault(address, _Counted(self._limit, self._at_once))
        if counted.times and counted.times[-1] <= now - _WINDOW_SECS:
            counted.over = 0
        counted.times.append(now)
        if proven:
            counted.proven_at = now

    def _forget_old(self, now: float) -> None:
        fresh = {
            address: counted
            for address, counted in list(self._counted.items())
            if counted.times[-1] > now - _WINDOW_SECS
        }
        # Too many addresses in one minute: the older half is forgotten, addresses that may be forged first.
        surplus = max(0, len(fresh) - _ADDRESSES_MAX // 2)
        for address in sorted(fresh, key=lambda address: fresh[address].proven_at > now - _WINDOW_SECS)[:surplus]:
            del fresh[address]
        self._counted = fresh

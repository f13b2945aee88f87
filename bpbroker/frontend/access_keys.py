"""Access: keys compared in constant time, and a limit on guessing. Nothing here does I/O."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

KEY_MAX_BYTES: Final = 1024
_WINDOW_SECS: Final = 60.0
_ADDRESSES_MAX: Final = 10_000


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


class _Counted:
    """Wrong keys of one address."""

    __slots__ = ("proven_at", "times")

    def __init__(self, limit: int) -> None:
        self.times: deque[float] = deque(maxlen=limit)
        self.proven_at = -math.inf
        """When the last one came over a connection, which proves the address."""


class WrongKeys:
    """Counts wrong keys by address over the last minute, in bounded memory.

    The source of a datagram can be forged. So wrong keys that came in datagrams
    count, but do not shut an address out that has brought none over a
    connection: else one host could shut out another.

    Called by several threads without a lock: each step is atomic in CPython,
    and a race can miscount by one, no more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counted: dict[str, _Counted] = {}

    @property
    def limit(self) -> int:
        """How many an address may bring in a minute; a new limit begins to count afresh."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit != self._limit:
            self._limit = limit
            self._counted = {}

    def pause_secs(self, address: str, now: float) -> int | None:
        """Return the seconds that an address has to wait before its key is looked at again, or None."""
        counted = self._counted.get(address)
        if counted is None or len(counted.times) < self._limit or counted.proven_at <= now - _WINDOW_SECS:
            return None
        left = counted.times[0] + _WINDOW_SECS - now
        return max(1, math.ceil(left)) if left > 0 else None

    def count(self, address: str, now: float, *, proven: bool = True) -> None:
        """Count a wrong key of an address at this monotonic time.

        Args:
            address: as text.
            now: monotonic time in seconds.
            proven: whether it came over a connection, so that it is surely this address's.
        """
        counted = self._counted.get(address)
        if counted is None:
            if len(self._counted) >= _ADDRESSES_MAX:
                self._forget_old(now)
            counted = self._counted.setdefault(address, _Counted(self._limit))
        counted.times.append(now)
        if proven:
            counted.proven_at = now

    def _forget_old(self, now: float) -> None:
        fresh = {
            address: counted
            for address, counted in list(self._counted.items())
            if counted.times[-1] > now - _WINDOW_SECS
        }
        # More addresses than that in one minute: the half that came first gets away. Forged ones go before others.
        surplus = max(0, len(fresh) - _ADDRESSES_MAX // 2)
        for address in sorted(fresh, key=lambda address: fresh[address].proven_at > now - _WINDOW_SECS)[:surplus]:
            del fresh[address]
        self._counted = fresh

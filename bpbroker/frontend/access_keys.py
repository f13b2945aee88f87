"""Who may call: access keys compared in constant time, and a limit on guessing. Nothing here does I/O."""

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


class WrongKeys:
    """Counts wrong keys by address over the last minute, in bounded memory.

    Called by several threads without a lock: each step is atomic in CPython,
    and a race can miscount by one, no more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: dict[str, deque[float]] = {}

    @property
    def limit(self) -> int:
        """How many an address may bring in a minute; a new limit begins to count afresh."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit != self._limit:
            self._limit = limit
            self._times = {}

    def pause_secs(self, address: str, now: float) -> int | None:
        """Give the seconds that an address has to wait before its key is looked at again, or None."""
        times = self._times.get(address)
        if times is None or len(times) < self._limit:
            return None
        left = times[0] + _WINDOW_SECS - now
        return max(1, math.ceil(left)) if left > 0 else None

    def count(self, address: str, now: float) -> None:
        """Count a wrong key of an address at this monotonic time."""
        times = self._times.get(address)
        if times is None:
            if len(self._times) >= _ADDRESSES_MAX:
                self._forget_old(now)
            times = self._times.setdefault(address, deque(maxlen=self._limit))
        times.append(now)

    def _forget_old(self, now: float) -> None:
        fresh = {address: times for address, times in list(self._times.items()) if times[-1] > now - _WINDOW_SECS}
        # More addresses than that in one minute: the half that came first gets away.
        for address in list(fresh)[: max(0, len(fresh) - _ADDRESSES_MAX // 2)]:
            del fresh[address]
        self._times = fresh

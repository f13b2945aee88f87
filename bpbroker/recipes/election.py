"""An election: one of several runs a function, and when it ends the next one does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bpbroker.errors import LockTimeout, NotFound
from bpbroker.recipes.lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from bpbroker.recipes.coordination import Coordination

_STEP_SECS: Final = 5.0
"""How long one call waits, and so how long a cancel may take. Between calls the place in the queue is given back."""
_PAUSE_SECS: Final = 0.5


class Election:
    """Candidates for one name; as kazoo's.

    Args:
        registry: of a client, or of an extension's call.
        name: of the election.
        data: about this candidate, for others: JSON.
        ttl_secs: of the session.
    """

    def __init__(self, registry: Coordination, name: str, *, data: Any = None, ttl_secs: float = 30.0) -> None:
        self.name = name
        self._registry = registry
        self._data = data
        self._ttl = ttl_secs
        self._cancelled = threading.Event()

    def run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Wait to be elected, call the function, and step down when it ends. Return False when cancelled before.

        Raises:
            LockLost: the office was lost meanwhile; the function ended without an error of its own.
            LockTimeout: another is elected, as long as an extension's call may take; a client waits without end.
        """
        self._cancelled.clear()
        lock = Lock(self._registry, self.name, ttl_secs=self._ttl, data=self._data)
        if not self._elected(lock):
            return False
        with lock.held():
            func(*args, **kwargs)
        return True

    def cancel(self) -> None:
        """End the waiting of :meth:`run`; a running function is not ended. From any thread."""
        self._cancelled.set()

    def leader(self) -> Any:
        """Return the data of the one that is elected; None if there is none. From any thread."""
        with self._registry.sibling() as registry:
            found = registry.holder(self.name)["holders"]
        return found[-1].get("data") if found else None

    def contenders(self) -> list[Any]:
        """Return the data of all candidates, the elected one first. From any thread."""
        with self._registry.sibling() as registry:
            found = registry.holder(self.name)
        return [each.get("data") for each in (*found["holders"], *found["waiting"])]

    def _elected(self, lock: Lock) -> bool:
        end = time.monotonic() + self._registry.calls.patience_secs
        while not self._cancelled.is_set():
            left = end - time.monotonic()
            try:
                lock.take(max(0.0, min(_STEP_SECS, left)))
            except (LockTimeout, NotFound):
                if left <= _STEP_SECS:
                    raise
                continue
            except self._registry.calls.away:
                self._cancelled.wait(_PAUSE_SECS)
                continue
            return True
        return False

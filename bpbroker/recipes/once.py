"""Once: several ask for a piece of work, one does it, all learn how it ended.

The entry of the same name as the lock says where it stands; every change of it
is fenced by the lock. A crash between the work and its mark repeats the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from bpbroker.errors import BpbrokerError, NotFound, PreconditionFailed, WaitTimeout
from bpbroker.recipes.lock import Lock
from bpbroker.retry import pauses, sleep_before

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from bpbroker.recipes.coordination import Coordination

DIED: Final = 111
"""The exit code of an attempt whose host died or was cut off."""


class Once:
    """One piece of work by name.

    Args:
        registry: of a client, or of an extension's call.
        name: of the lock, and of the entry.
        by: the host that does it, as the entry shows it.
        ttl_secs: of the session: how long at least after the death of a host the next one begins.
        wait_secs: how long to wait for others; None: until they are done, or as long as an extension's call may take.
        attempts: how often the work is tried at most, by all callers together.
    """

    def __init__(
        self,
        registry: Coordination,
        name: str,
        *,
        by: str = "",
        ttl_secs: float = 60.0,
        wait_secs: float | None = None,
        attempts: int = 3,
    ) -> None:
        self.name = name
        self.attempts = attempts
        self.errors = registry.calls.errors
        self._away: tuple[type[Exception], ...] = (*registry.calls.away, WaitTimeout)
        self._by = by
        self._registry = registry
        self._wait = wait_secs
        self._lock = Lock(registry, name, ttl_secs=ttl_secs, data=by or None)

    @property
    def lock(self) -> Lock:
        """The lock that is held while the work runs."""
        return self._lock

    def run(self, work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Do the work, or wait for another that does; return what the entry says in the end.

        Args:
            work: does it and returns ``exit`` (0: well) and what else the entry is to say.

        Raises:
            WaitTimeout: no caller was done in time.
            LockLost: the lock was lost while the work ran, so what became of it is not said.
        """
        wait = self._registry.calls.patience_secs if self._wait is None else self._wait
        end = time.monotonic() + wait
        while True:
            found = self._ended(self._state(end))
            if found is not None:
                return found
            self._lock.take(max(0.0, end - time.monotonic()))
            with _Releasing(self._lock):
                state = self._state(end)
                found = self._ended(state)
                if found is not None:
                    return found
                attempt = _number(state.get("attempt")) + 1
                if attempt > self.attempts:  # the last one died in the middle
                    return self._mark({**state, "state": "failed", "exit": state.get("exit", DIED)})
                return self._attempt(attempt, work)

    def _attempt(self, attempt: int, work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        head = {"by": self._by, "attempt": attempt}
        self._mark({"state": "running", **head})
        began = time.monotonic()
        result = work()
        self._lock.check()
        state = "failed" if result.get("exit") else "done"
        return self._mark({"state": state, **head, "exit": 0, "secs": round(time.monotonic() - began, 3), **result})

    def _state(self, end: float) -> Mapping[str, Any]:
        pause = pauses()
        while True:
            try:
                return self._registry.get(self.name).own
            except NotFound:
                return {}
            except self._registry.calls.away:
                if not sleep_before(end, next(pause)):
                    raise

    def _ended(self, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if state.get("state") == "done":
            return state
        used_up = _number(state.get("attempt")) >= self.attempts
        return state if state.get("state") == "failed" and used_up else None

    def _mark(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the entry, as long as the lock is held."""
        pause = pauses()
        while True:
            try:
                self._registry.replace(self.name, state, lock=self._lock)
            except PreconditionFailed as error:
                raise self.errors.LockLost(f"The lock '{self.name}' is lost: {error}") from error
            except self._away:
                self._lock.check()
                time.sleep(next(pause))
            else:
                return state


class _Releasing:
    """Give the lock back; the work's own end counts more than whether that could be said."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        try:
            if self._lock.token:
                self._lock.release()
        except BpbrokerError:
            pass  # it ends with the session's ttl


def call_once(once: Once, func: Callable[[], Any]) -> Any:
    """Run a function, or wait; return its result, which is JSON.

    Raises:
        OnceFailed: it failed as often as it may.
        Exception: what the function raised, if it ran here.
    """
    raised: list[Exception | SystemExit] = []

    def work() -> Mapping[str, Any]:
        raised.clear()
        try:
            return {"exit": 0, "result": func()}
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it is raised again once it is noted
            raised.append(error)
            return {"exit": 1, "error": f"{type(error).__name__}: {error}"[:1000]}

    state = once.run(work)
    if raised:
        raise raised[0]
    if state.get("state") != "done":
        said = state.get("error", "its process ended in the middle" if state.get("exit") == DIED else state.get("exit"))
        raise once.errors.OnceFailed(f"'{once.name}' failed {state.get('attempt')} times: {said}")
    return state.get("result")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0

"""A barrier: wait until enough entries say that they are ready, and end at once when one cannot be any more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from bpbroker.errors import CursorExpired
from bpbroker.recipes.filters import matches, texts
from bpbroker.recipes.watch import Watch
from bpbroker.registry.entry_values import without_stamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from bpbroker.errors import BarrierBroken
    from bpbroker.recipes.coordination import Coordination, Entry

_SAYS: Final = ("message", "error", "reason", "why")
_SHOWN_MAX: Final = 60


class Barrier:
    """Waits for ``count`` entries under a prefix.

    Args:
        registry: of a client, or of an extension's call.
        prefix: of their names.
        count: how many there must be.
        where: conditions that each of them must meet: ``{"state": "ready"}`` or ``["state=ready"]``.
        fail_where: conditions of which no entry may meet even one.
        fail_lost: whether an entry that ended with its session is a failure.
    """

    def __init__(
        self,
        registry: Coordination,
        prefix: str,
        count: int,
        *,
        where: Mapping[str, Any] | Sequence[str] | str = (),
        fail_where: Mapping[str, Any] | Sequence[str] | str = (),
        fail_lost: bool = False,
    ) -> None:
        self._registry = registry
        self._prefix = prefix
        self._count = count
        self._where = texts(where)
        self._fail_where = texts(fail_where)
        self._fail_lost = fail_lost

    def wait(self, timeout: float | None = None) -> dict[str, Entry]:
        """Return the entries that are ready, once there are enough; ``timeout`` is in seconds.

        Raises:
            BarrierBroken: an entry failed or was lost.
            BarrierTimeout: there were too few until the end.
        """
        end = time.monotonic() + (self._registry.calls.patience_secs if timeout is None else timeout)
        with Watch(self._registry, self._prefix) as watch:
            while True:
                found = self._look()
                if found is not None:
                    return found
                if not self._changed(watch, end):
                    raise self._broken(self._registry.calls.errors.BarrierTimeout)

    def _look(self) -> dict[str, Entry] | None:
        """Return what is ready if that is enough; raise if it can be no more."""
        entries = self._registry.list(self._prefix)
        ready = {name: entry for name, entry in entries.items() if self._is_ready(entry)}
        if any(self._is_failed(entry) for entry in entries.values()):
            raise self._broken(self._registry.calls.errors.BarrierBroken)
        if len(ready) >= self._count:
            return ready
        if self._fail_lost and any(name not in entries for name in self._registry.lost(self._prefix)):
            raise self._broken(self._registry.calls.errors.BarrierBroken)
        return None

    def _changed(self, watch: Watch, end: float) -> bool:
        """Wait for a change; return False when the time is over."""
        try:
            for event in watch.until(end):
                watch.cursor = event.cursor
                return True
        except CursorExpired as error:
            watch.cursor = error.cursor
            return True
        return False

    def _is_ready(self, entry: Mapping[str, Any]) -> bool:
        return all(matches(entry, each) for each in self._where)

    def _is_failed(self, entry: Mapping[str, Any]) -> bool:
        return any(matches(entry, each) for each in self._fail_where)

    def _broken(self, kind: type[BarrierBroken]) -> BarrierBroken:
        entries = self._registry.list(self._prefix)
        failed = {name: entry for name, entry in entries.items() if self._is_failed(entry)}
        ready = {name: entry for name, entry in entries.items() if name not in failed and self._is_ready(entry)}
        missing = {name: entry for name, entry in entries.items() if name not in failed and name not in ready}
        lost = {name: entry for name, entry in self._registry.lost(self._prefix).items() if name not in entries}
        parts = [f"{len(ready)} of {self._count} ready"]
        for word, group in (("failed", failed), ("not ready", missing), ("lost", lost)):
            if group:
                parts.append(
                    f"{word}: {', '.join(_told(name, entry, self._conditions()) for name, entry in group.items())}"
                )
        absent = self._count - len(ready) - len(failed) - len(missing) - len(lost)
        if absent > 0:
            parts.append(f"{absent} never came")
        return kind("; ".join(parts), missing, failed, lost)

    def _conditions(self) -> set[str]:
        return {each.partition("=")[0].partition(".")[0] for each in self._fail_where}


def _told(name: str, entry: Mapping[str, Any], known: set[str]) -> str:
    """Return a name, and what its entry says beside what is known of it."""
    own = {key: value for key, value in without_stamp(entry).items() if key not in known}
    said = next((own[key] for key in _SAYS if isinstance(own.get(key), str)), None)
    text = said if said is not None else ", ".join(f"{key}: {value}" for key, value in own.items())
    return f"{name} ({text[:_SHOWN_MAX]})" if text else name

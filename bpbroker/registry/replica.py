"""What a broker knows of a store that other brokers write to as well.

What is read and what a watch tells come in any order. Each has a version, so
what is older than what is known already changes nothing. No thread, no lock: only
the registry's actor touches it.
"""

from __future__ import annotations

import logging

from bpbroker.messages import Record
from bpbroker.registry.changes import Seen, State
from bpbroker.registry.memory import Memory
from bpbroker.registry.writes import record

logger = logging.getLogger(__name__)


class Versions:
    """Which version of each entry is known, and so whether something that comes late is news.

    Names that are known to be absent are not kept one by one: ``floor`` is the
    newest version at which any name was seen to be absent.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._floor = 0
        self.newest = 0
        """Version of the last change of all."""

    def clear(self) -> None:
        """Forget everything: the store holds another registry now."""
        self._known.clear()
        self._floor = self.newest = 0

    def __getitem__(self, name: str) -> int:
        """Return the version to expect; 0 for no entry."""
        return self._known.get(name, 0)

    def take(self, seen: Seen) -> bool | None:
        """Note what was seen. Return whether it is news; None if that cannot be told and it must be read again."""
        known = self._known.get(seen.name)
        if seen.value is None:
            if known is not None and known > seen.as_of:
                return False
            self._floor = max(self._floor, seen.as_of)
            if known is None:
                return False
            del self._known[seen.name]
            self.newest = max(self.newest, seen.as_of)
            return True
        if known is None and seen.as_of < self._floor:
            return None
        if known is not None and known >= seen.version:
            return False
        self._known[seen.name] = seen.version
        self.newest = max(self.newest, seen.version)
        return True


class Replica:
    """Keeps the entries in memory up with what a shared store turns out to hold."""

    def __init__(self, memory: Memory) -> None:
        self.versions = Versions()
        self.faults: dict[str, str] = {}
        """Name to why what the store holds there cannot be an entry."""
        self.registry_id = ""
        self._memory = memory
        memory.version = self.versions.__getitem__

    def learn(self, seen: Seen, known: Record | None = None) -> bool:
        """Take what the store held for a name. Return False if that may be old and has to be read again.

        Args:
            seen: what the store held.
            known: its record, if there is one already.
        """
        name = seen.name
        news = self.versions.take(seen)
        if news and seen.fault:
            self.faults[name] = f"{seen.fault}, somebody else wrote it"
            logger.error("%s", self.faults[name])
            self._memory.put(name, None)
        elif news:
            self.faults.pop(name, None)
            self._memory.put(name, None if seen.value is None else known or record(name, seen.value))
        return news is not None

    def learn_all(self, state: State, prefix: str) -> list[str]:
        """Take all entries whose names begin with ``prefix``. Return the names that have to be read again."""
        present = {seen.name for seen in state.entries}
        for known in self._memory.matching(prefix):
            if known.name not in present:
                self.learn(Seen(known.name, None, 0, state.version))
        return [seen.name for seen in state.entries if not self.learn(seen)]

    def take_state(self, state: State) -> list[str]:
        """Take everything that the store holds. Return the names that have to be read again."""
        if self.registry_id != state.registry_id:
            if self._memory.entries:
                logger.error("The registry in the store is another one than before")
            # Versions and entries of another registry say nothing about this one.
            self.versions.clear()
            self.faults.clear()
            for known in self._memory.matching(""):
                self._memory.put(known.name, None)
            self.registry_id = state.registry_id
        return self.learn_all(state, "")

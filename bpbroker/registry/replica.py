"""What a broker knows of a store to which other brokers write, too.

Results of reads and news of a watch come in any order. Each has a version, so
an older one changes nothing. No thread, no lock: only the registry's actor
touches it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bpbroker.registry.changes import Seen, State
from bpbroker.registry.memory import Memory
from bpbroker.registry.sessions import PREFIX as SESSION

logger = logging.getLogger(__name__)


class Versions:
    """The known version of each entry, to tell whether a late result is news.

    Names that are known to be absent are not kept one by one: ``floor`` is the
    newest version at which any name was seen to be absent.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._floor = 0
        self.newest = 0
        """Version of the newest change."""

    def clear(self) -> None:
        """Forget everything: the store holds another registry now."""
        self._known.clear()
        self._floor = self.newest = 0

    def __getitem__(self, name: str) -> int:
        """Return the version to expect; 0 for no entry."""
        return self._known.get(name, 0)

    def know_all(self, version: int) -> None:
        """Note that all entries of a version are known: every other name was absent."""
        self._floor = max(self._floor, version)

    def take(self, seen: Seen) -> bool | None:
        """Note a version that was seen. Return whether it is news; None if it must be read again to know that."""
        known = self._known.get(seen.name)
        if seen.record is None:
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
    """Brings the entries in memory up to date with a shared store."""

    def __init__(self, memory: Memory) -> None:
        self.versions = Versions()
        self.faults: dict[str, str] = {}
        """Name to the reason why its value in the store cannot be an entry."""
        self.registry_id = ""
        self._memory = memory
        memory.version = self.versions.__getitem__
        memory.faults = self.faults

    def learn(self, seen: Seen) -> bool:
        """Apply the store's record of a name. Return False if it may be old and has to be read again."""
        name = seen.name
        news = self.versions.take(seen)
        if news and seen.fault:
            self.faults[name] = f"{seen.fault}, another program wrote it"
            logger.error("%s", self.faults[name])
            self._memory.put(name, None)
        elif news:
            self.faults.pop(name, None)
            self._memory.put(name, seen.record)
        return news is not None

    def learn_together(self, seen: Sequence[Seen]) -> list[str]:
        """Apply the store's records of some names. Return the names that have to be read again.

        Sessions come last: when the end of one is seen, the records that were removed with it are gone already.
        """
        ordered = sorted(seen, key=lambda each: each.name.startswith(SESSION))
        return [each.name for each in ordered if not self.learn(each)]

    def learn_all(self, state: State, prefix: str, *, own_too: bool = True) -> list[str]:
        """Apply all records whose names begin with ``prefix``. Return the names that have to be read again.

        Args:
            state: what the store holds.
            prefix: of names.
            own_too: whether an empty prefix stands for the registry's own records, too.
        """
        present = {seen.name for seen in state.entries}
        gone = [
            Seen(name, None, 0, state.version) for name in self._names(prefix, own_too=own_too) if name not in present
        ]
        self.learn_together(gone)
        return self.learn_together(state.entries)

    def _names(self, prefix: str, *, own_too: bool = True) -> list[str]:
        memory = self._memory
        own = memory.own.matching(prefix) if prefix.startswith("_") or (not prefix and own_too) else ()
        return [known.name for known in (*memory.entries.matching(prefix), *own)]

    def take_state(self, state: State) -> list[str]:
        """Apply the complete state of the store. Return the names that have to be read again."""
        if self.registry_id != state.registry_id:
            known = self._names("")
            if known:
                logger.error("The registry in the store is another one than before")
            # Versions and entries of another registry say nothing about this one.
            self.versions.clear()
            self.faults.clear()
            # A record in both is replaced, not removed: a call that waits for a change must not see a removal.
            present = {seen.name for seen in state.entries}
            for name in known:  # entries and locks come before the sessions that they belong to
                if name not in present:
                    self._memory.put(name, None)
            self.registry_id = state.registry_id
        unsure = self.learn_all(state, "")
        # No later change shows what was deleted before this, and the result of an older read may still come.
        self.versions.know_all(state.version)
        return unsure

    def abandoned(self) -> list[str]:
        """Return the sessions that are over and to which records still belong."""
        memory = self._memory
        return [session for session in memory.belongings if memory.get(SESSION + session) is None]

"""How many more names fit into one group of a commit, where the store limits its size. Pure.

Writes that share a name are one group, and a group is committed whole. Very many writes with the same session, or to
the same lock, would be a group that the store refuses. When the group is full, further writes wait for the next
commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from bpbroker.registry.changes import READ_MAX
from bpbroker.registry.requests import Batch, Close, Expire

NAMES_OF_ONE_END: Final = 5
"""The most names that come with one of a session's: for a place in a lock its own record, the lock's, and those beside
it or those that move up."""
_NAMES: Final = 8
"""The most names of one write; a few more where it checks the sessions of several holders."""
NAMES_OF_OPERATION: Final = 6
"""The most names of an operation in a batch: the entry, what was taken of it, the session of the entry or the two
records of a counter, a lock, and the session that holds it."""
_OTHERS: Final = "_taken/"
"""Names that each write of an entry reads for itself."""


class Room:
    """Counts the names of a commit's writes that may belong to one group.

    Args:
        belongings: returns how many names belong to a session.
    """

    def __init__(self, belongings: Callable[[str], int]) -> None:
        self._belongings = belongings
        self._batch: object = None
        self._names: set[str] = set()

    def for_another(self, message: Any, batch: object) -> bool:
        """Return whether a write may go into a batch; the first one always may."""
        if self._batch is not batch:
            self._batch = batch
            self._names.clear()
        return not self._names or len(self._names) + self._most(message) <= READ_MAX

    def take(self, names: Sequence[str]) -> None:
        """Note the names of a write that went into the batch."""
        if any(name[0] == "_" and not name.startswith(_OTHERS) for name in names):
            self._names.update(names)

    def _most(self, message: Any) -> int:
        if isinstance(message, Batch):
            return NAMES_OF_OPERATION * len(message.operations)
        if isinstance(message, (Close, Expire)):
            return 2 + NAMES_OF_ONE_END * self._belongings(message.session)
        return _NAMES

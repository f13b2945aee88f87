"""How much one group of a commit may yet take, where the store takes no group of any size. Pure.

Writes that share a name are one group, and a group is committed whole. So very many writes with the same session, or
to the same lock, would be a group that the store refuses. When those in a commit have as many names as fit, the
others wait for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from bpbroker.registry.changes import READ_MAX
from bpbroker.registry.requests import Batch, Close, Expire

NAMES_OF_ONE_END: Final = 5
"""Names that go with each one of a session, at most: of a place in a lock its own record, the lock's, and those beside
it or those that move up."""
_NAMES: Final = 8
"""Of a write, at most; a few more where it looks at the sessions of several holders."""
_NAMES_OF_OPERATION: Final = 4
_OTHERS: Final = "_taken/"
"""What each write of an entry looks at for itself alone."""


class Room:
    """Counts the names of the writes in one commit that rest on something which others may rest on, too.

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
            return _NAMES_OF_OPERATION * len(message.operations)
        if isinstance(message, (Close, Expire)):
            return 2 + NAMES_OF_ONE_END * self._belongings(message.session)
        return _NAMES

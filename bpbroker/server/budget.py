"""How much memory all clients together may have the server keep."""

from __future__ import annotations

import threading
from typing import Final

HELD_MAX_BYTES: Final = 256 * 1024 * 1024
SMALL_BYTES: Final = 16 * 1024
"""A connection that has less than this kept for it is not counted: most have a few hundred bytes for a moment."""
CONNECTION_BYTES: Final = 48 * 1024
"""What one that is counted needs beside that: TLS's own buffers, objects."""


class Budget:
    """What is kept for clients: requests on their way in and being served, responses on their way out.

    Counted by the loop's thread and by workers, as it changes.
    """

    def __init__(self, limit_bytes: int = HELD_MAX_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._lock = threading.Lock()

    def change(self, by_bytes: int) -> None:
        """Count that so much more is kept, or less."""
        with self._lock:
            self.held_bytes += by_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether a response of this size may be made: each may take half of what is left."""
        return size_bytes <= max(SMALL_BYTES, (self.limit_bytes - self.held_bytes) // 2)

"""How much memory the server keeps for all clients together."""

from __future__ import annotations

import threading
from typing import Final

HELD_MAX_BYTES: Final = 256 * 1024 * 1024
SMALL_BYTES: Final = 16 * 1024
"""A connection with less than this is not counted: most connections have a few hundred bytes for a moment."""
CONNECTION_BYTES: Final = 48 * 1024
"""What a counted connection needs in addition: buffers of TLS, objects."""


class Budget:
    """The memory kept for clients: requests that come in or are being served, and responses that are sent.

    The loop's thread and the workers count each change.
    """

    def __init__(self, limit_bytes: int = HELD_MAX_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._lock = threading.Lock()

    def change(self, by_bytes: int) -> None:
        """Count a change of the kept memory, in bytes."""
        with self._lock:
            self.held_bytes += by_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether a response of this size may be made: each may take half of what is left."""
        return size_bytes <= max(SMALL_BYTES, (self.limit_bytes - self.held_bytes) // 2)

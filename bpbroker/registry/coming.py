"""What calls are about to make, so that limits count it before it is there. No thread: only the registry's actor."""

from __future__ import annotations

from collections import Counter


class Coming:
    """What calls that have no reply yet may make, and for which clients."""

    def __init__(self) -> None:
        self._clients: dict[str, str] = {}
        """What is made, to the client that it will be of."""
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._clients)

    def __contains__(self, what: str) -> bool:
        return what in self._clients

    def of(self, client: str) -> int:
        """Return how much of it will be of one client."""
        return self._counts[client]

    def begin(self, what: str, client: str) -> None:
        """Count what a call may make; if another call is about to make the same, it counts once."""
        if what not in self._clients:
            self._clients[what] = client
            self._counts[client] += 1

    def end(self, what: str) -> None:
        """Count it no more: it is there, or will not be."""
        client = self._clients.pop(what, None)
        if client is not None:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]

"""Taking an entry: one receiver gets it, and when it has it, the entry is destroyed."""

from __future__ import annotations

from bpbroker.recipes.coordination import owned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from bpbroker.recipes.coordination import Coordination, Entry
    from bpbroker.recipes.lock import Lock


class Take:
    """An entry for one receiver: ``with`` takes it, and acknowledges on a clean exit.

    Args:
        registry: of a client, or of an extension's call.
        name: of the entry.
        receiver: its name; it may take the entry again until it has acknowledged.
        lock: a lock, or ``NAME:TOKEN``: take and acknowledgement are refused when it is no longer held.
    """

    def __init__(self, registry: Coordination, name: str, receiver: str, lock: Lock | str | None = None) -> None:
        self._calls = registry.calls
        self._sent = {"name": name, "receiver": receiver, **owned(None, lock)}

    def take(self) -> Entry:
        """Take the entry.

        Raises:
            AlreadyExists: another receiver has taken it.
            NotFound: there is no such entry, or it was acknowledged.
            PreconditionFailed: the lock is not held any more.
        """
        answer = self._calls.registry("Take", self._sent, repeatable=True)
        return self._calls.entry(answer.data, answer.etag, answer.revision)

    def ack(self) -> None:
        """Destroy the entry; no error if it was destroyed before."""
        self._calls.registry("Ack", self._sent, repeatable=True)

    def __enter__(self) -> Entry:
        return self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.ack()

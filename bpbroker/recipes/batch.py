"""A batch: several writes that happen together or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from bpbroker.errors import RequestError
from bpbroker.recipes.coordination import allocating, as_text, counting, expected, owned, releasing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, Self  # novermin: for the type checker alone

    from bpbroker.recipes.coordination import Coordination
    from bpbroker.recipes.lock import Lock

MOST: Final = 100
"""Operations in one batch."""
MOST_BYTES: Final = 1024 * 1024 - 4096


class Batch:
    """Collects operations; ``with`` commits them on a clean exit, and does nothing on an exception.

    What creates or changes an entry takes ``session`` as :meth:`~bpbroker.client.Client.register` does, and every write
    takes ``lock``. Of the entry that it names it may expect a tag (``if_match``; ``if_none_match``), or a ``revision``
    (0: that there is no entry).

    Args:
        registry: of a client, or of an extension's call.
        atomic: all or none; otherwise each has its own result.
        operations: the first ones, as the broker takes them.
        batch_id: one that was carried out under this id is not carried out again; by default it is a new one.
    """

    def __init__(
        self,
        registry: Coordination,
        *,
        atomic: bool = True,
        operations: Sequence[Mapping[str, Any]] = (),
        batch_id: str = "",
    ) -> None:
        self.results: Sequence[Mapping[str, Any]] = []
        """What became of each operation, in order: ``status``, ``data``, ``revision``, ``message``."""
        self.operations: list[dict[str, Any]] = [dict(each) for each in operations]
        self._registry = registry
        self._atomic = atomic
        self._id = batch_id or os.urandom(16).hex()

    def register(self, name: str, data: Any, **how: Any) -> None:
        """Create an entry that must not exist."""
        self._add("Register", name=name, data=as_text(data), **how)

    def replace(self, name: str, data: Any, **how: Any) -> None:
        """Create or overwrite an entry."""
        self._add("Replace", name=name, data=as_text(data), **how)

    def update(self, name: str, data: Any, **how: Any) -> None:
        """Merge into an entry."""
        self._add("Update", name=name, data=as_text(data), **how)

    def delete(self, name: str, **how: Any) -> None:
        """Remove an entry."""
        self._add("Delete", name=name, **how)

    def check(self, name: str, **how: Any) -> None:
        """Require a revision, a tag or a lock of an entry that is not changed."""
        self._add("Check", name=name, **how)

    def check_empty(self, prefix: str) -> None:
        """Require that there is no entry with this prefix."""
        self._add("CheckEmpty", prefix=prefix)

    def get(self, name: str) -> None:
        """Read an entry as it is after the batch."""
        self._add("Get", name=name)

    def list(self, prefix: str = "") -> None:
        """Read the entries with this prefix, as they are after the batch."""
        self._add("List", prefix=prefix)

    def take(self, name: str, receiver: str, *, lock: Lock | str | None = None) -> None:
        """Take an entry for one receiver; its value is in the result."""
        self._add("Take", name=name, receiver=receiver, lock=lock)

    def ack(self, name: str, receiver: str, *, lock: Lock | str | None = None) -> None:
        """Destroy an entry that the receiver has taken."""
        self._add("Ack", name=name, receiver=receiver, lock=lock)

    def allocate(
        self,
        pool: str,
        owner: str,
        *,
        first: int = 1,
        last: int = 255,
        number: int | None = None,
        lock: Lock | str | None = None,
    ) -> None:
        """Give the owner a number in a pool; it is in the result, as ``number``."""
        self._add("Allocate", **allocating(pool, owner, first, last, number), lock=lock)

    def release(self, pool: str, owner: str, *, quarantine_secs: float = 0, lock: Lock | str | None = None) -> None:
        """Free the owner's number, which is not given away again for ``quarantine_secs``."""
        self._add("Release", **releasing(pool, owner, quarantine_secs), lock=lock)

    def next(self, name: str, by: int = 1, *, owner: str = "", lock: Lock | str | None = None) -> None:
        """Count on; the counter is in the result, as ``number``."""
        self._add("Next", **counting(name, by, owner), lock=lock)

    def commit(self) -> Sequence[Mapping[str, Any]]:
        """Send the batch and return the results. It may be sent again: its id says that it is the same.

        Raises:
            BatchFailed: an operation was refused, so nothing was done; ``index`` says which, ``error`` why.
        """
        if not self.operations:
            return self.results
        sent = {"id": self._id, "operations": self.operations, "atomic": self._atomic}
        try:
            answer = self._registry.calls.registry("Batch", sent, repeatable=True)
        except RequestError as error:
            if error.failed is None or not 0 <= error.failed < len(self.operations):
                raise
            operation = self.operations[error.failed]
            what = " ".join(str(operation.get(key, "")) for key in ("method", "name")).strip()
            raise self._registry.calls.errors.BatchFailed(
                f"Operation {error.failed} ({what}): {error}; nothing was changed", error.failed, error
            ) from error
        found = answer.data.get("results")
        self.results = found if isinstance(found, list) else []
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()

    def _add(self, method: str, **parameters: Any) -> None:
        owner = owned(parameters.pop("session", None), parameters.pop("lock", None))
        condition = expected(parameters.pop("revision", None), parameters.pop("if_match", None))
        given = {key: value for key, value in parameters.items() if value is not None}
        self.operations.append({"method": method, **given, **condition, **owner})


def pieces(operations: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return operations in batches that a broker takes."""
    found: list[list[Mapping[str, Any]]] = []
    size = 0
    for each in operations:
        length = len(json.dumps(each)) + 2
        if not found or len(found[-1]) >= MOST or size + length > MOST_BYTES:
            found.append([])
            size = 0
        found[-1].append(each)
        size += length
    return found

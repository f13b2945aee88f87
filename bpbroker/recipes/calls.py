"""What a recipe needs of the side that it runs on. For the type checker alone.

There are two kinds of calls: those of a client, over HTTPS
(:mod:`bpbroker.client.calls`), and those of an extension's method, over the
channel of its process (:mod:`bpbroker.extensions.rh_registry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bpbroker import errors
from bpbroker.recipes.coordination import Entry


class Answer(Protocol):
    """What the registry said to a call that was no failure."""

    @property
    def data(self) -> Mapping[str, Any]:
        """The answer's ``data``."""

    @property
    def etag(self) -> str:
        """The entry's tag, or empty."""

    @property
    def revision(self) -> int:
        """The revision of the change, or of the state that was read."""


class Errors(Protocol):
    """The errors that recipes raise: :mod:`bpbroker.errors`, or those of the same names for extensions."""

    @property
    def BarrierBroken(self) -> type[errors.BarrierBroken]: ...  # noqa: D102, N802 - a class of a module
    @property
    def BarrierTimeout(self) -> type[errors.BarrierTimeout]: ...  # noqa: D102, N802 - a class of a module
    @property
    def BatchFailed(self) -> type[errors.BatchFailed]: ...  # noqa: D102, N802 - a class of a module
    @property
    def LockLost(self) -> type[errors.LockLost]: ...  # noqa: D102, N802 - a class of a module
    @property
    def LockTimeout(self) -> type[errors.LockTimeout]: ...  # noqa: D102, N802 - a class of a module
    @property
    def OnceFailed(self) -> type[errors.OnceFailed]: ...  # noqa: D102, N802 - a class of a module
    @property
    def SessionLost(self) -> type[errors.SessionLost]: ...  # noqa: D102, N802 - a class of a module


class Calls(Protocol):
    """Calls of the registry, of one kind."""

    @property
    def errors(self) -> Errors:
        """The errors that recipes are to raise here."""

    @property
    def away(self) -> tuple[type[Exception], ...]:
        """The errors after which a recipe tries again, because the broker may come back."""

    @property
    def renews(self) -> bool:
        """Whether sessions renew themselves, each in a thread with calls of its own."""

    @property
    def patience_secs(self) -> float:
        """How many seconds a recipe waits without a time of its own."""

    def ttl_secs(self, usual_secs: float) -> float:
        """Return the ttl in seconds of a session without one of its own; ``usual_secs`` is the recipe's default."""

    def entry(self, content: Mapping[str, Any], etag: str, revision: int) -> Entry:
        """Create an entry of the class that callers know here."""

    def registry(
        self, method: str, sent: Mapping[str, Any], *, repeatable: bool, wait_secs: float | None = None
    ) -> Answer:
        """Call a method of the registry.

        Args:
            method: such as ``Lock``.
            sent: its parameters.
            repeatable: whether to call again when it is not known if it was carried out.
            wait_secs: for how long the broker is asked to wait; None if this is no part of a longer wait.

        Raises:
            RequestError: it was refused.
        """

"""The errors of extensions: what a method raises to refuse a call, and what ``rh.registry`` raises.

::

    Error                         any status
    ├── BadRequest                400
    ├── Unauthorized              401
    ├── Forbidden                 403
    ├── NotFound                  404
    ├── AlreadyExists             409
    │   └── LockTimeout           409
    ├── CursorExpired             410
    ├── PreconditionFailed        412
    ├── TooLarge                  413
    ├── TooManyRequests           429
    ├── OnceFailed                500
    ├── Unavailable               503
    │   └── Overloaded            503
    ├── TimedOut                  504
    └── BatchFailed               the refused operation's

``except Error`` catches all of them. One that the registry answers with is also the
error of the same name in :mod:`bpbroker.errors`, those of time are also Python's
``TimeoutError``. What a method lets pass becomes the answer to its call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bpbroker import errors


class Error(Exception):
    """Raise it to refuse a call: the client gets this status and this one-line message.

    Args:
        status: HTTP status, 400 to 599.
        message: what the client is told.
    """

    status: int
    message: str

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class _Named(Error, errors.RequestError):
    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


class BadRequest(_Named, errors.BadRequest):
    """The request makes no sense."""


class Unauthorized(_Named, errors.Unauthorized):
    """The caller is not known."""


class Forbidden(_Named, errors.Forbidden):
    """The caller has no right to this."""


class NotFound(_Named, errors.NotFound):
    """There is no such thing: no such entry, no such session."""


class AlreadyExists(_Named, errors.AlreadyExists):
    """The name, the number or the entry is another's; ``data`` says whose."""


class LockTimeout(AlreadyExists, TimeoutError):
    """Others hold the lock, all the time that was given; ``holders`` has what is known of them."""

    @property
    def holders(self) -> list[Mapping[str, Any]]:
        """Who holds it: ``data``, ``token``, ``since``, ``session``."""
        found = (self.data or {}).get("holders")
        return found if isinstance(found, list) else []


class CursorExpired(_Named, errors.Gone):
    """Changes behind a watch's cursor are forgotten; ``cursor`` is from where to go on after a new list."""

    @property
    def cursor(self) -> str:
        """The present cursor."""
        return str((self.data or {}).get("cursor", ""))


class PreconditionFailed(_Named, errors.PreconditionFailed):
    """The entry has another revision than expected, or the lock is not held any more; nothing was changed."""


class TooLarge(_Named, errors.TooLarge):
    """Something is larger than its limit."""


class TooManyRequests(_Named, errors.TooManyRequests):
    """The caller has to wait."""


class OnceFailed(_Named):
    """What was to be done once failed as often as it may."""

    status = 500  # type: ignore[misc]  # as the classes of bpbroker.errors say theirs


class Unavailable(_Named, errors.Unavailable):
    """The registry, or something else that is needed, cannot serve at the moment."""


class Overloaded(Unavailable, errors.Overloaded):
    """There are too many of these already; nothing was done."""


class TimedOut(_Named, errors.TimedOut):
    """It was not there in time."""


class BatchFailed(_Named):
    """An operation of a batch was refused, so nothing of it was done.

    Args:
        message: the whole sentence.
        index: of the operation, from 0.
        error: why.
    """

    def __init__(self, message: str, index: int, error: Error) -> None:
        super().__init__(message)
        self.index = index
        self.error = error
        self.status = error.status  # that of what was refused


_BY_STATUS: Final[Mapping[int, type[_Named]]] = {
    kind.status: kind
    for kind in (
        BadRequest, Unauthorized, Forbidden, NotFound, AlreadyExists, CursorExpired, PreconditionFailed, TooLarge,
        TooManyRequests, Unavailable, TimedOut,
    )
}  # fmt: skip


def refusal_of(status: int, message: str, data: Mapping[str, Any] | None = None, failed: int | None = None) -> Error:
    """Return the error that the registry's refusal means to a method.

    Args:
        status: HTTP status.
        message: one sentence.
        data: what is there.
        failed: which operation of a batch it is about.
    """
    kind = _BY_STATUS.get(status)
    if kind is None:
        return Error(status, message)
    error = kind(message)
    error.data = data
    error.failed = failed
    return error

"""The errors of extensions: what a method raises to refuse a call, and what ``rh.registry`` raises.

::

    Error                         any status
    ├── BadRequest                400
    ├── Unauthorized              401
    ├── Forbidden                 403
    ├── NotFound                  404
    │   └── SessionLost           404
    ├── AlreadyExists             409
    │   └── LockTimeout           409
    ├── CursorExpired             410
    ├── PreconditionFailed        412
    │   └── LockLost              412
    ├── TooLarge                  413
    ├── TooManyRequests           429
    ├── OnceFailed                500
    ├── BarrierBroken             500
    │   └── BarrierTimeout        504
    ├── Unavailable               503
    │   └── Overloaded            503
    ├── TimedOut                  504
    └── BatchFailed               the refused operation's

``except Error`` catches all of them. Each is also the error of the same name in
:mod:`bpbroker.errors`, those of time are also Python's ``TimeoutError``.
What a method lets pass becomes the answer to its call.
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


class LockTimeout(AlreadyExists, errors.LockTimeout):
    """Others held the lock during the whole wait; ``holders`` has them, as far as they are known.

    Each is a mapping with ``data``, ``token``, ``since``, ``session``.
    """

    __init__ = errors.LockTimeout.__init__


class CursorExpired(_Named, errors.CursorExpired):
    """Changes behind a watch's cursor are forgotten; ``cursor`` is from where to go on after a new list."""

    __init__ = errors.CursorExpired.__init__


class PreconditionFailed(_Named, errors.PreconditionFailed):
    """The entry has another revision than expected, or the lock is not held any more; nothing was changed."""


class LockLost(PreconditionFailed, errors.LockLost):
    """The lock is not held any more, or may not be: another may hold it."""


class SessionLost(NotFound, errors.SessionLost):
    """The session is over: what belonged to it may be gone."""


class TooLarge(_Named, errors.TooLarge):
    """Something is larger than its limit."""


class TooManyRequests(_Named, errors.TooManyRequests):
    """The caller has to wait."""


class OnceFailed(_Named, errors.OnceFailed):
    """The work failed as often as it may be tried."""

    status = 500  # type: ignore[misc]  # as the classes of bpbroker.errors say theirs


class Unavailable(_Named, errors.Unavailable):
    """The registry, or something else that is needed, cannot serve at the moment."""


class Overloaded(Unavailable, errors.Overloaded):
    """There are too many of these already; nothing was done."""


class TimedOut(_Named, errors.TimedOut):
    """It was not there in time."""


class BatchFailed(_Named, errors.BatchFailed):
    """An operation of a batch was refused, so nothing of it was done.

    Args:
        message: the whole sentence.
        index: of the operation, from 0.
        error: why.
    """

    def __init__(self, message: str, index: int, error: errors.RequestError) -> None:
        errors.BatchFailed.__init__(self, message, index, error)
        self.status = error.status  # that of what was refused


class BarrierBroken(Error, errors.BarrierBroken):
    """Too few are ready, and not all can be: ``missing``, ``failed`` and ``lost`` have the entries, by name."""

    status = 500  # type: ignore[misc]  # as the classes of bpbroker.errors say theirs

    __init__ = errors.BarrierBroken.__init__


class BarrierTimeout(BarrierBroken, errors.BarrierTimeout):
    """Too few were ready in time."""

    status = 504  # type: ignore[misc]  # as the classes of bpbroker.errors say theirs


_BY_STATUS: Final[Mapping[int, type[_Named]]] = {
    kind.status: kind
    for kind in (
        BadRequest, Unauthorized, Forbidden, NotFound, AlreadyExists, CursorExpired, PreconditionFailed, TooLarge,
        TooManyRequests, Unavailable, TimedOut,
    )
}  # fmt: skip


def refusal_of(
    status: int,
    message: str,
    data: Mapping[str, Any] | None = None,
    failed: int | None = None,
    revision: int | None = None,
) -> Error:
    """Return the error that the registry's refusal means to a method.

    Args:
        status: HTTP status.
        message: one sentence.
        data: what is there.
        failed: which operation of a batch it is about.
        revision: of the entry that is there.
    """
    kind = _BY_STATUS.get(status)
    if kind is None:
        return Error(status, message)
    error = kind(message)
    error.data = data
    error.failed = failed
    error.entry_revision = revision
    if isinstance(error, CursorExpired):
        error.cursor = str((data or {}).get("cursor", ""))
    return error

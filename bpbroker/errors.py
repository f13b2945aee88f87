"""Every error that bpbroker raises on purpose.

The HTTP status that an answer carries and the exit code that a command ends
with sit on the class, so no caller translates one into the other::

    BpbrokerError                     500   1
    ├── RequestError                  (what a client did or met)
    │   ├── BadRequest                400   2
    │   ├── Unauthorized              401   5
    │   ├── Forbidden                 403   5
    │   ├── NotFound                  404   3
    │   ├── MethodNotAllowed          405   1
    │   ├── AlreadyExists             409   4
    │   ├── Gone                      410   1
    │   │   └── CursorExpired         410   1
    │   ├── PreconditionFailed        412   4
    │   ├── TooLarge                  413   2
    │   ├── Misdirected               421   1
    │   ├── HeadersTooLarge           431   1
    │   ├── TooManyRequests           429   1
    │   ├── ExtensionFailed           500   1
    │   ├── Overloaded                503   1
    │   ├── Unavailable               503   1
    │   │   ├── StorageFull           503   1
    │   │   └── StorageFailed         503   1
    │   └── TimedOut                  504 124
    ├── ConfigurationError                  78
    │   └── DamagedFile                     78
    ├── StartError                           1
    │   └── InUse                            1
    └── ClientError                          1
        ├── UsageError                       2
        ├── Misused                          1
        ├── NotShown                         1
        ├── CannotConnect                    6
        │   └── NotTrusted                   6
        ├── SeveralBrokers                   7
        ├── SessionLost                        111
        ├── LockLost                           111
        ├── BatchFailed                          4
        ├── OnceFailed                           1
        ├── BarrierBroken                        1
        │   └── BarrierTimeout                 124
        └── WaitTimeout                        124
            └── LockTimeout                    124

What is over time is a ``TimeoutError`` of Python's, too, and CannotConnect with
those below it a ``ConnectionError``. Both are kinds of ``OSError``: code around
a call that can raise ours names ours before ``OSError``.

Exit codes follow the project's conventions: those of ``bpclient`` tell a script
what happened, 78 is ``EX_CONFIG`` of ``sysexits.h``.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar


class BpbrokerError(Exception):
    """Base of the tree; ``str(error)`` is one sentence fit for a person to read."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    @property
    def message(self) -> str:
        """The sentence shown to the person who caused or met the error."""
        return str(self)


class RequestError(BpbrokerError):
    """A request that is answered with something else than success."""

    outcome_known: bool = True
    """False when the change that was asked for may or may not have happened."""

    retry_after_secs: int | None = None
    """When set, the answer carries ``Retry-After`` with this many seconds."""

    data: Mapping[str, Any] | None = None
    """The present state, for ``data`` of the response: JSON values."""

    failed: int | None = None
    """Which operation of a batch was refused, from 0."""

    entry_revision: int | None = None
    """Revision of the existing entry, where the refusal is about one."""

    when_durable: Callable[[int], RequestError] | None = None
    """Returns the refusal for the revision of a commit; None: the refusal names no revision of this commit."""

    def at(self, revision: int) -> RequestError:
        """Return the refusal for the time when the commit that it depends on is durable at a revision."""
        if self.when_durable is None:
            return self
        refusal = self.when_durable(revision)
        refusal.failed = self.failed
        return refusal


class BadRequest(RequestError):
    """The request is not one that this broker understands."""

    status = 400
    exit_code = 2


class Unauthorized(RequestError):
    """The namespace, the method or the access key is not allowed."""

    status = 401
    exit_code = 5


class Forbidden(RequestError):
    """The request comes from a place that is never served, such as a web page of another origin."""

    status = 403
    exit_code = 5


class NotFound(RequestError):
    """No such entry."""

    status = 404
    exit_code = 3


class MethodNotAllowed(RequestError):
    """The HTTP method does not fit the broker's method; ``allow`` names those that do."""

    status = 405

    def __init__(self, message: str, allow: tuple[str, ...] = ("POST",)) -> None:
        super().__init__(message)
        self.allow = allow


class AlreadyExists(RequestError):
    """Register found the name taken."""

    status = 409
    exit_code = 4


class Gone(RequestError):
    """What the request refers to is forgotten; ``data`` says from where to go on."""

    status = 410


class CursorExpired(Gone):
    """Changes behind a watch's cursor are forgotten; ``cursor`` is from where to go on after a new list."""

    def __init__(self, message: str, cursor: str = "") -> None:
        super().__init__(message)
        self.cursor = cursor


class PreconditionFailed(RequestError):
    """``If-Match`` or ``If-None-Match`` did not hold; nothing was changed."""

    status = 412
    exit_code = 4


class TooLarge(RequestError):
    """Something in the request is larger than its limit."""

    status = 413
    exit_code = 2


class Misdirected(RequestError):
    """A browser was led here by a name that is not this broker's."""

    status = 421


class HeadersTooLarge(RequestError):
    """The request's head is larger, or has more fields, than its limit."""

    status = 431


class TooManyRequests(RequestError):
    """This address has to wait, for instance after too many wrong access keys."""

    status = 429


class ExtensionFailed(RequestError):
    """An extension crashed, raised or answered something that cannot be sent."""

    status = 500


class Overloaded(RequestError):
    """A queue is full; nothing was done, trying again later is safe."""

    status = 503
    retry_after_secs = 1


class Unavailable(RequestError):
    """A part of the broker cannot serve at the moment."""

    status = 503


def not_known(why: str) -> Unavailable:
    """Return the error of a change of the registry that may have happened, or may not, with the reason."""
    error = Unavailable(f"Whether this was changed is not known: {why}")
    error.outcome_known = False
    return error


class StorageFull(Unavailable):
    """The disk is full; nothing was changed, writes work again when there is space."""


class StorageFailed(Unavailable):
    """A commit failed; until a restart no write is accepted."""


class TimedOut(RequestError, TimeoutError):
    """No answer in time."""

    status = 504
    exit_code = 124


class ConfigurationError(BpbrokerError):
    """The configuration cannot be used; ``problems`` has every fault found, a line each."""

    exit_code = 78

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class DamagedFile(ConfigurationError):
    """A file of the broker's is not what the broker wrote; it is left as it is."""


class StartError(BpbrokerError):
    """The broker cannot start here and now."""


class InUse(StartError):
    """Another process holds the configuration file or the port."""


def cannot_listen(error: OSError, protocol: str, ip: str, port: int) -> StartError:
    """Create the error for a port that cannot be used, with the advice what to do.

    Args:
        error: from binding.
        protocol: TCP or UDP.
        ip: the wanted address; empty is all interfaces.
        port: the wanted port.
    """
    import errno

    what = f"Cannot listen on port {port} ({protocol}) of {ip or 'all interfaces'}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return InUse(f"{what}; stop the process that uses it, or choose another with api.listen_port or --listen-port")
    if error.errno == errno.EACCES:
        return StartError(f"{what}; ports below 1024 need more rights")
    if ip.lower().startswith(("fe8", "fe9", "fea", "feb")) and "%" not in ip:
        return StartError(f"{what}; a link-local address needs its interface: {ip}%INTERFACE, such as %eth0")
    return StartError(f"{what}; check api.listen_ip or --listen-ip: an address of this host, as numbers")


class ClientError(BpbrokerError):
    """What the client met before or without an answer."""


class UsageError(ClientError):
    """The command's words do not make sense together."""

    exit_code = 2


class Misused(ClientError, RuntimeError):
    """Calls of one object in an order that makes no sense, such as the release of a lock that is not held."""


class NotShown(ClientError):
    """There is a result, but it cannot be shown in the form that was asked for, or standard output is closed."""


class CannotConnect(ClientError, ConnectionError):
    """No broker could be reached at the address, or it stopped half-way."""

    exit_code = 6


class NotTrusted(CannotConnect):
    """The server's certificate is not the expected one; nothing was sent."""


class SeveralBrokers(ClientError):
    """Different brokers answered for one name; ``addresses`` has them."""

    exit_code = 7

    def __init__(self, message: str, addresses: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.addresses = addresses


class WaitTimeout(ClientError, TimeoutError):
    """The time that the caller gave is over."""

    exit_code = 124


class LockTimeout(WaitTimeout):
    """Others held the lock during the whole wait; ``holders`` has them, as far as they are known."""

    def __init__(self, message: str, holders: list[Mapping[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.holders = holders or []
        self.data: Mapping[str, Any] | None = None
        """All that the broker said of the lock."""


class SessionLost(ClientError):
    """The session is over, or was not renewed in time: what belonged to it may be gone."""

    exit_code = 111


class LockLost(ClientError):
    """The lock is no longer held, or may not be: another may hold it."""

    exit_code = 111


class BatchFailed(ClientError):
    """An operation of a batch was refused, so nothing of it was done; ``index`` says which, ``error`` why."""

    exit_code = 4

    def __init__(self, message: str, index: int, error: RequestError) -> None:
        super().__init__(message)
        self.index = index
        self.error = error


class OnceFailed(ClientError):
    """The work failed as often as it may be tried."""


class BarrierBroken(ClientError):
    """Too few are ready, and not all can be: ``missing``, ``failed`` and ``lost`` have the entries, by name."""

    def __init__(
        self,
        message: str,
        missing: Mapping[str, Mapping[str, Any]],
        failed: Mapping[str, Mapping[str, Any]],
        lost: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.failed = failed
        self.lost = lost


class BarrierTimeout(BarrierBroken, TimeoutError):
    """Too few were ready in time."""

    exit_code = 124


_BY_STATUS: dict[int, type[RequestError]] = {
    kind.status: kind
    for kind in (
        BadRequest, Unauthorized, Forbidden, NotFound, AlreadyExists, Gone, PreconditionFailed,
        TooLarge, HeadersTooLarge, TooManyRequests, Unavailable, TimedOut,
    )
}  # fmt: skip


def from_status(status: int, message: str) -> RequestError:
    """Return the error that a broker's answer of this HTTP status means to a client."""
    return _BY_STATUS.get(status, RequestError)(message)

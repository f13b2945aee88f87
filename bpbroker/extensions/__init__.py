"""Other people's code: modules in the lib folder, each run in processes of its own.

Authors of extensions import :class:`Request`, :class:`Registry` and the errors
from here: ``refusals`` has their tree. Readers begin with ``modules`` (where modules are
and what they offer), then ``child_process`` (the broker's side of one process) and
``child_main`` (what runs inside it). ``child_pool`` and ``call_results``
belong to the extension's actor, ``idempotency`` keeps results of calls that may
be repeated, ``installing`` and ``trial`` serve the command line.
"""

from bpbroker.extensions.refusals import (
    AlreadyExists,
    BadRequest,
    BarrierBroken,
    BarrierTimeout,
    BatchFailed,
    CursorExpired,
    Error,
    Forbidden,
    LockLost,
    LockTimeout,
    NotFound,
    OnceFailed,
    Overloaded,
    PreconditionFailed,
    SessionLost,
    TimedOut,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from bpbroker.extensions.rh import Request
from bpbroker.extensions.rh_registry import Entry, Registry

__all__ = [
    "AlreadyExists",
    "BadRequest",
    "BarrierBroken",
    "BarrierTimeout",
    "BatchFailed",
    "CursorExpired",
    "Entry",
    "Error",
    "Forbidden",
    "LockLost",
    "LockTimeout",
    "NotFound",
    "OnceFailed",
    "Overloaded",
    "PreconditionFailed",
    "Registry",
    "Request",
    "SessionLost",
    "TimedOut",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
]

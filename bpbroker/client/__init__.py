"""The client: :class:`Client` for Python, ``bpclient`` for shells.

An example::

    from bpbroker.client import Client, discover

    broker = discover("foo-cluster1", token=token)
    with Client(broker.address, token=token) as client:
        client.register("node-7", {"role": "replica"})
        master = client.get("master", wait_secs=300)

The errors are here too. An error about time is also a ``TimeoutError``, one about the connection also a
``ConnectionError``; :mod:`bpbroker.errors` has the tree.

Read ``api`` first, then ``calls`` (one call, and its repetitions), ``transport`` (the connection) and
``dialing`` (which of several brokers or addresses to take).

No module of the server is loaded, and no module of the client before it is needed: loading is most of the cost of a
one-shot call of ``bpclient``. So the modules of such a call do without ``typing``, ``pathlib``, ``dataclasses`` and
``contextlib``, and load modules that only some calls need inside of functions.
``tests/client/test_imports.py`` holds the list.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpbroker.client.api import Client, Result
    from bpbroker.client.discovery import discover, discover_all
    from bpbroker.client.responders import Broker
    from bpbroker.errors import (
        AlreadyExists,
        BadRequest,
        BarrierBroken,
        BarrierTimeout,
        BatchFailed,
        BpbrokerError,
        CannotConnect,
        ClientError,
        CursorExpired,
        Forbidden,
        LockLost,
        LockTimeout,
        Misused,
        NotFound,
        NotTrusted,
        OnceFailed,
        PreconditionFailed,
        RequestError,
        SessionLost,
        SeveralBrokers,
        TimedOut,
        TooLarge,
        TooManyRequests,
        Unauthorized,
        Unavailable,
        UsageError,
        WaitTimeout,
    )
    from bpbroker.recipes.coordination import Entry

__all__ = [
    "AlreadyExists",
    "BadRequest",
    "BarrierBroken",
    "BarrierTimeout",
    "BatchFailed",
    "BpbrokerError",
    "Broker",
    "CannotConnect",
    "Client",
    "ClientError",
    "CursorExpired",
    "Entry",
    "Forbidden",
    "LockLost",
    "LockTimeout",
    "Misused",
    "NotFound",
    "NotTrusted",
    "OnceFailed",
    "PreconditionFailed",
    "RequestError",
    "Result",
    "SessionLost",
    "SeveralBrokers",
    "TimedOut",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UsageError",
    "WaitTimeout",
    "discover",
    "discover_all",
]

_WHERE = {
    "Broker": "bpbroker.client.responders",
    "Client": "bpbroker.client.api",
    "Entry": "bpbroker.recipes.coordination",
    "Result": "bpbroker.client.api",
    "discover": "bpbroker.client.discovery",
    "discover_all": "bpbroker.client.discovery",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _WHERE:
        from bpbroker import errors

        found: object = getattr(errors, name)
        return found
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)

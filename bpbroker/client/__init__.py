"""The client: :class:`Client` for Python, ``bpclient`` for shells.

An example::

    from bpbroker.client import Client, discover

    broker = discover("foo-cluster1", token=token)
    with Client(broker.address, token=token) as client:
        client.register("node-7", {"role": "replica"})
        master = client.get("master", wait_secs=300)

Nothing of the server is loaded, and nothing of the client before it is needed:
what a process loads is most of what a one-shot call of ``bpclient`` costs. That
is why modules on its way do without ``typing``, ``pathlib``, ``dataclasses``
and ``contextlib``, and load what only some calls need when those need it.
``tests/client/test_imports.py`` holds the list.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpbroker.client.api import Client, Entry, Result
    from bpbroker.client.discovery import discover, discover_all
    from bpbroker.client.responders import Broker
    from bpbroker.errors import BarrierBroken, BatchFailed, CursorExpired, LockLost, LockTimeout, SessionLost

__all__ = [
    "BarrierBroken",
    "BatchFailed",
    "Broker",
    "Client",
    "CursorExpired",
    "Entry",
    "LockLost",
    "LockTimeout",
    "Result",
    "SessionLost",
    "discover",
    "discover_all",
]

_ERRORS = frozenset({"BarrierBroken", "BatchFailed", "CursorExpired", "LockLost", "LockTimeout", "SessionLost"})

_WHERE = {
    "Broker": "responders",
    "Client": "api",
    "Entry": "api",
    "Result": "api",
    "discover": "discovery",
    "discover_all": "discovery",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for (PEP 562)."""
    if name in _ERRORS:
        from bpbroker import errors

        found: object = getattr(errors, name)
        return found
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)

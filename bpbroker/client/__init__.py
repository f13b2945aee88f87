"""The client: :class:`Client` for Python, ``bpclient`` for shells.

An example::

    from bpbroker.client import Client, discover

    broker = discover("foo-cluster1", key="secret")
    with Client(broker.address, access_key="secret", fingerprint=broker.fingerprint) as client:
        client.register("node-7", {"role": "replica"})
        master = client.get("master", wait=300)

Nothing of the server is loaded.
"""

from __future__ import annotations

from bpbroker.client.api import Client, Entry, Result
from bpbroker.client.discover import discover, discover_all
from bpbroker.client.responders import Broker

__all__ = ["Broker", "Client", "Entry", "Result", "discover", "discover_all"]

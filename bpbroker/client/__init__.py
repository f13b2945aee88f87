"""The client: ``Client`` for Python, ``bpclient`` for shells.

    from bpbroker.client import Client

    with Client("10.0.0.5:20443", access_key="secret") as broker:
        broker.register("node-7", {"role": "replica"})

Nothing of the server is loaded.
"""

from __future__ import annotations

from bpbroker.client.api import Client

__all__ = ["Client"]

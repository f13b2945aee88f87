"""An example extension module.

Install it and enable it, then call it::

    bpbroker install-extension --script example_extension_module.py
    echo '{"example_extension_module": {"_access_key": "secret"}}' | bpbroker configure
    bpclient -b HOST:20443 -a secret execute --method example_extension_module.Test --data hello
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpbroker.sandbox import RequestHandler


def Test(rh: RequestHandler) -> None:  # noqa: N802 - methods are named as clients call them
    """Echo the parameters and the client's address."""
    rh.data = json.dumps({**rh.qs, "from": rh.RequestingHost()})

    # To refuse a request, set a status and a line for the client:
    #   rh.status = 409
    #   rh.status_message = "This host is registered already"


def Count(rh: RequestHandler) -> None:  # noqa: N802 - as above
    """Count the calls in an entry of the broker's registry."""
    name = "example-count"
    entries = rh.registry.list(name)
    count = int(entries.get(name, {}).get("count", 0)) + 1
    rh.registry.replace(name, {"count": count})
    rh.log.info("call number %d", count)
    rh.data = {"count": count}


def _helper() -> None:
    """Is no method: its name begins with an underscore."""

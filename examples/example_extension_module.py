"""An example extension module.

Copy it into the broker's lib folder, enable it, call it::

    bpbroker install-extension --script example_extension_module.py
    echo '{"example_extension_module": {"_access_key": "secret"}}' | bpbroker configure
    bpclient -b HOST:20443 -a secret execute --method example_extension_module.Test --data hello

Or try a method without a broker::

    bpbroker run-extension example_extension_module.Test --data hello --from 10.0.0.7
"""

import json

from bpbroker.extensions import Error, Request


def Test(rh: Request) -> None:
    """Echo the parameters and the client's address."""
    rh.data = json.dumps({**rh.qs, "from": rh.RequestingHost()})

    # This is how a request is refused:
    # rh.status = 409
    # rh.status_message = "What the client is told"


def Enlist(rh: Request) -> None:
    """Keep the host named in ``data`` in the broker's registry, unless there is one of that name."""
    name = rh.qs.get("data", "")
    if not _is_host_name(name):
        raise Error(400, "data must be a host name")  # the short way to refuse
    # Whatever the registry refuses, such as a name that is taken (409), the client is told.
    rh.data = rh.registry.register(f"host-{name}", {"role": rh.config.get("role", "any")})
    rh.log.info("%s is enlisted", name)


def _is_host_name(name: str) -> bool:
    """Is no method: its name begins with an underscore."""
    return name.replace("-", "").isalnum() and name.isascii()

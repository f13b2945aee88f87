"""Requests that a browser sends for a web page: which of them are served. Pure.

Each page in a browser that can reach the broker could use this browser to send requests from inside the network. Three
things prevent that:

- *Cross-site requests*: a request from a page of another origin has an
  ``Origin``, or ``Sec-Fetch-Site: cross-site`` or ``same-site``.
- *DNS rebinding*: a page whose own name suddenly points to the broker is of the
  same origin for the browser, but its ``Host`` is not a name of this broker. An
  IP address in ``Host`` is always right: no name was looked up.
- Methods that change something are not called with GET (:mod:`bpbroker.frontend.actions`).

Programs are not led by web pages, and clients may use names that the broker cannot know (an alias in DNS, a load
balancer). So ``Host`` is checked only in requests of browsers: every browser sends ``Sec-Fetch-*`` headers, which no
page can change, or at least calls itself Mozilla.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping

from bpbroker.errors import Forbidden, Misdirected


def check(fields: Mapping[str, str], names: Collection[str]) -> None:
    """Refuse a request that a browser sends for a web page of another origin.

    Args:
        fields: the request's header fields.
        names: the names of this broker, in lower case; ``*.example.org`` is every name right below.

    Raises:
        Forbidden: the request comes from a page of another origin.
        Misdirected: a browser was led here by a name that is not this broker's.
    """
    origin, site = fields.get("origin"), fields.get("sec-fetch-site")
    if (
        origin is None
        and site is None
        and not fields.get("user-agent", "").startswith("Mozilla/")
        and "sec-fetch-mode" not in fields
        and "sec-fetch-dest" not in fields
    ):
        return
    host = fields.get("host", "")
    if origin is not None and origin != f"https://{host}":
        raise Forbidden("Requests from web pages of another origin are not served")
    if site is not None and site.strip().lower() not in ("same-origin", "none"):
        raise Forbidden("Requests from web pages of another site are not served")
    if not is_own(host, names):
        raise Misdirected(
            "This broker is not known by the name in Host: use its address or its host's name, or add this one to"
            " api.host_names"
        )


def is_own(host: str, names: Collection[str]) -> bool:
    """Whether the value of ``Host`` is one of the names, or an IP address."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0].partition("%")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    name = name.removesuffix(".")
    if name in names or f"*.{name.partition('.')[2]}" in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

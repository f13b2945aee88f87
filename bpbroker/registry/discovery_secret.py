"""The discovery secret of a shared registry: among its own records, where no client sees it. Pure but for its holder.

A broker with a registry of its own has the secret in its settings. Brokers that
share one have it in the registry, as the record ``_discovery/secret``, so that a
join token of any of them is understood by all. The first one puts it there.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from bpbroker.registry.named_keys import shown_time

logger: Final = logging.getLogger(__name__)

NAME: Final = "_discovery/secret"
"""The name under which it is among the registry's own records."""

_SECRET: Final = re.compile(r"[0-9a-f]{64}\Z")


def secret_of(value: bytes | None) -> str:
    """Return the secret in what is stored, 64 hexadecimal digits; empty if there is none."""
    if value is None:
        return ""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return ""
    secret = found.get("secret") if isinstance(found, Mapping) else None
    return secret if is_secret(secret) else ""


def is_secret(value: object) -> TypeGuard[str]:
    """Whether this can be a discovery secret."""
    return isinstance(value, str) and _SECRET.match(value) is not None


def stored(secret: str, now: float) -> dict[str, Any]:
    """Return what is stored of a secret.

    Args:
        secret: 64 hexadecimal digits.
        now: Unix time in seconds.
    """
    return {"secret": secret, "made": shown_time(now)}


class DiscoverySecret:
    """The secret of a shared registry as this broker knows it.

    The registry's actor changes it, other threads read it; each step is atomic in CPython.

    Args:
        configured: the secret in this broker's settings, which an older broker put there; empty for none.
    """

    def __init__(self, configured: str = "") -> None:
        self.value = ""
        """64 hexadecimal digits; empty before the registry has told it."""
        self._configured = configured

    def take(self, value: bytes | None) -> None:
        """Take what is stored of it now; None when it is gone."""
        secret = secret_of(value)
        # One that is gone is made anew in a moment, and until then the tokens that there are go on working.
        self.value = secret or self.value
        if secret and self._configured and secret != self._configured:
            self._configured = ""
            logger.warning(
                "_discovery.secret in the settings is not used: the registry has another one, for all its brokers"
            )

    @property
    def offered(self) -> str:
        """What a registry that has none may take; empty for a new one."""
        return self.value or self._configured

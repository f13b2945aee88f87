"""The discovery secret of a shared registry: a record that no client sees. Pure, except for its holder.

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
"""The name of its record."""

_SECRET: Final = re.compile(r"[0-9a-f]{64}\Z")


def secret_of(value: bytes | None) -> str:
    """Return the secret in a stored value, 64 hexadecimal digits; empty if there is none."""
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
    """Return the stored form of a secret.

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
        """64 hexadecimal digits; empty until the registry's records are known."""
        self._configured = configured

    def take(self, value: bytes | None) -> None:
        """Set the stored form of the secret; None: there is no secret."""
        secret = secret_of(value)
        # After a removal another one is made in a moment. Until then existing tokens go on working.
        self.value = secret or self.value
        if secret and self._configured and secret != self._configured:
            self._configured = ""
            logger.warning(
                "_discovery.secret in the settings is not used: the registry has another one, for all its brokers"
            )

    @property
    def offered(self) -> str:
        """The secret for a registry that has none; empty: a new one is made."""
        return self.value or self._configured

"""How an etcd cluster is reached, as the settings say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bpbroker.config import schema


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """How the cluster is reached: the section ``_registry`` of the configuration."""

    endpoints: tuple[str, ...]
    """Such as ``https://10.0.0.5:2379``."""
    prefix: str
    """Every key begins with it and a slash."""
    ca_cert: str | None = None
    """File with the authorities that count; None for those of the system."""
    client_cert: str | None = None
    client_key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_secs: float = 5.0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> EtcdOptions:
        """Return what the settings say."""

        def option(key: str) -> Any:
            return schema.option(settings, "_registry", key)

        return cls(
            tuple(option("endpoints")), option("prefix"), option("ca_cert"), option("client_cert"),
            option("client_key"), option("user"), option("password"), option("timeout_secs"),
        )  # fmt: skip

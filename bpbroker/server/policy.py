"""The rules of a server: deadlines, limits, the certificate, the application. Plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bpbroker.server.budget import Budget
from bpbroker.server.request import Request
from bpbroker.server.request_cycle import Application
from bpbroker.server.request_parser import Limits
from bpbroker.server.response import Response


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in force; a reload puts another policy in its place."""

    context: Any
    """The TLS context of new connections, from :func:`bpbroker.server.tls.context`."""
    limits: Limits
    handshake_secs: float
    """How long a TLS handshake may take."""
    request_secs: float
    """How long a whole request may take to come in, and how long a response may make no progress."""
    keep_alive_secs: float
    """How long a connection stays open between two requests."""
    connections_max: int
    connections_per_address_max: int


@dataclass(slots=True)
class Tally:
    """The counts of connections. Only the loop's thread counts."""

    accepted: int = 0
    refused: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("full", "address_full", "no_descriptors", "displaced", "no_memory"), 0)
    )
    """Connections that were refused, or closed to make room, by the reason."""
    handshakes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("done", "failed", "late", "left", "not_tls"), 0)
    )
    """How TLS handshakes ended."""


@dataclass(slots=True)
class Service:
    """What all connections of a server share. Only the listener and the loop change it."""

    application: Application
    policy: Policy
    memory: Budget
    admit: Callable[[Request], Response | None]
    """Called with a request whose body is still to come; a response that it returns is sent, and the body is not
    read."""
    rejected: Callable[[str, Response], object]
    """Called with a client's address and the response when a request is refused before the application sees it."""
    stopping: bool = False
    """Whether each response is the last one of its connection."""
    tally: Tally = field(default_factory=Tally)

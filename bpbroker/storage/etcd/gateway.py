"""The way to an etcd cluster: its HTTPS/JSON gateway, endpoint after endpoint until the time is over.

:mod:`bpbroker.storage.etcd.endpoint` sends one request to one endpoint. Here are
the others: the deadline, the token of a user, and which endpoint is next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from bpbroker.config import schema
from bpbroker.errors import ConfigurationError
from bpbroker.storage.etcd.responses import AWAY, Failed, Refused, Unreachable

if TYPE_CHECKING:
    from bpbroker.storage.etcd.endpoint import Endpoint

logger = logging.getLogger(__name__)

_ATTEMPT_SECS: Final = 1.5
"""How long one endpoint may think before the next one is asked; at least, and at most the rest of the time."""
_PAUSE_SECS: Final = 0.1
"""Between two rounds over all endpoints."""
SILENT_SECS: Final = 10.0
"""A watch that hears nothing for so long is begun anew: a link that is cut tells nothing."""


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


class Gateway:
    """One caller's way to the cluster; to be used by one thread at a time, except :meth:`hang_up` and :meth:`close`.

    Raises:
        ConfigurationError: urllib3 is not installed, or a certificate cannot be used.
    """

    def __init__(self, options: EtcdOptions) -> None:
        try:
            from bpbroker.storage.etcd.endpoint import Endpoint, tls_context
        except ImportError:
            raise ConfigurationError(
                "_registry.store is etcd, but its client is not installed: pip install 'bpbroker[etcd]'"
            ) from None
        self._options = options
        context = tls_context(options)
        self._endpoints = [Endpoint(url, context) for url in options.endpoints]
        self._current = 0
        self._closed = False
        self._told: set[str] = set()
        """What went wrong and was logged, until something goes right again."""

    def call(self, path: str, body: Mapping[str, Any], timeout_secs: float | None = None) -> dict[str, Any]:
        """Send a request that may be sent twice, to one endpoint after the other until one answers.

        Raises:
            Unreachable: none did within the time.
            Compacted: it asks for versions that are gone.
            StorageFull: the cluster takes no more data.
            ConfigurationError: the cluster refuses us.
        """
        limit = self._options.timeout_secs if timeout_secs is None else timeout_secs
        deadline = time.monotonic() + limit
        tried, sent, distrusting = 0, False, set[int]()
        while True:
            remaining = deadline - time.monotonic()
            try:
                answer = self._attempt(path, body, max(0.05, min(remaining, max(_ATTEMPT_SECS, limit / 3))))
            except Refused as refusal:
                raise refusal.meaning(sent=sent) from None
            except Failed as failure:
                sent = sent or failure.sent
                if failure.distrust:  # it may show only at the second try: TLS 1.3 refuses late
                    distrusting.add(self._current)
                self._tell(failure)
                tried += 1
                self._next()
            else:
                self._told.clear()
                return answer
            if len(distrusting) == len(self._endpoints):
                raise ConfigurationError("The registry's etcd cluster cannot be used: its certificate or ours is wrong")
            if tried % len(self._endpoints) == 0:
                time.sleep(min(_PAUSE_SECS, max(0.0, deadline - time.monotonic())))
            if time.monotonic() >= deadline or self._closed:
                error = Unreachable(AWAY)
                error.outcome_known = not sent
                raise error

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a request to one endpoint and yield the messages of its response as they come.

        Ends when the endpoint has been silent for a while; the next call tries the next endpoint.

        Raises:
            Unreachable: the endpoint ended it, or :meth:`hang_up` was called.
            ConfigurationError: the cluster refuses us.
        """
        endpoint = self._endpoints[self._current]
        try:
            self._log_in(endpoint, _ATTEMPT_SECS)
            yield from endpoint.stream(path, body, SILENT_SECS)
        except Refused as refusal:
            endpoint.token = None
            self._next()
            raise refusal.meaning(sent=False) from None
        except Failed as failure:
            self._tell(failure)
            self._next()
            raise Unreachable("The registry's etcd cluster ended the watch") from None
        self._next()

    def hang_up(self) -> None:
        """Make a :meth:`stream` in another thread end now."""
        for endpoint in self._endpoints:
            endpoint.hang_up()

    def close(self) -> None:
        """Close all connections; a call in another thread ends after its present attempt."""
        self._closed = True
        for endpoint in self._endpoints:
            endpoint.close()

    def _next(self) -> None:
        self._current = (self._current + 1) % len(self._endpoints)

    def _attempt(self, path: str, body: Mapping[str, Any], secs: float) -> dict[str, Any]:
        endpoint = self._endpoints[self._current]
        self._log_in(endpoint, secs)
        try:
            return endpoint.post(path, body, secs)
        except Refused as refusal:
            endpoint.token = None
            if self._options.user is None or not refusal.stale_token:
                raise
        self._log_in(endpoint, secs)
        return endpoint.post(path, body, secs)

    def _log_in(self, endpoint: Endpoint, secs: float) -> None:
        if self._options.user is None or endpoint.token is not None:
            return
        answer = endpoint.post(
            "/auth/authenticate", {"name": self._options.user, "password": self._options.password}, secs
        )
        endpoint.token = str(answer.get("token", ""))

    def _tell(self, failure: Failed) -> None:
        """Log once what is wrong with an endpoint: clients must not see addresses, operators must."""
        text = f"etcd at {self._options.endpoints[self._current]}: {failure}"
        if text not in self._told and not self._closed:
            self._told.add(text)
            logger.warning("%s", text)

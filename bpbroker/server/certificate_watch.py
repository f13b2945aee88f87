"""Watches that the certificate's time has begun and is not over: in health always, in the log once a day."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.messages import Pong
from bpbroker.server.host_certificate import read_certificate

logger = logging.getLogger(__name__)


class CertificateWatch:
    """A probe for the healthcheck.

    A certificate that is expired or not valid yet is a failure, as both doctors say. But the broker stays in service:
    clients that pinned the certificate still trust it.

    Args:
        cert: returns the certificate in use.
        now: the clock.
    """

    def __init__(self, cert: Callable[[], Path], now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._cert = cert
        self._now = now
        self._warned: date | None = None

    def __call__(self) -> Pong:
        """Say how many days are left."""
        now = self._now()
        try:
            certificate = read_certificate(self._cert())
        except (ConfigurationError, StartError):
            return Pong(detail="its file cannot be read any more; the broker goes on with the one it has")
        left, detail = certificate.days_left(now), certificate.problem(now)
        counts = {"not_after": certificate.not_after.timestamp()}
        if not detail:
            return Pong(figures={"days_left": left}, counts=counts)
        if self._warned != now.date():
            self._warned = now.date()
            logger.warning("The certificate %s; `bpbroker certificate --renew` makes a new one", detail)
        in_time = certificate.not_before <= now and left >= 0
        return Pong(in_time, detail, {"days_left": left}, counts)

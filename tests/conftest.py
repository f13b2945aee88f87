"""Fixtures that all tests share: hypothesis' profile and a real broker process."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Shared machines are up to five times slower from one minute to the next: no test may fail for that.
settings.register_profile("bpbroker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bpbroker")

"""What ``bpbroker top`` makes of two readings of the metrics: numbers as they are, and per second. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

Labels = Mapping[str, str]
_OWN: Final = ("_control", "Metrics")
"""Namespace and method of what ``top`` itself asks."""


class Reading(NamedTuple):
    """The metrics at one moment."""

    at: float
    """Monotonic time in seconds."""
    samples: Mapping[str, Iterable[tuple[Labels, float]]]
    """Name of a sample, such as ``bpbroker_requests_total``, to its labels and values."""

    def value(self, name: str, **labels: str) -> float | None:
        """Return one value; None if it is not there."""
        wanted = labels.items()
        return next((value for found, value in self.samples.get(name, ()) if wanted <= found.items()), None)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all values; 0 if there is none."""
        wanted = labels.items()
        return sum(value for found, value in self.samples.get(name, ()) if wanted <= found.items())

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Return the sums by the values of a label."""
        wanted, sums = labels.items(), dict[str, float]()
        for found, value in self.samples.get(name, ()):
            if wanted <= found.items():
                sums[found[label]] = sums.get(found[label], 0.0) + value
        return sums


class _Change:
    """What happened between two readings."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self.after = after
        self.secs = max(after.at - before.at, 1e-9)
        started = [each.value("bpbroker_uptime_seconds") or 0.0 for each in (before, after)]
        # Another broker, started meanwhile, counts from 0.
        self.before = before if started[0] <= started[1] else Reading(before.at, {})

    def per_sec(self, name: str, **labels: str) -> float:
        """Return how fast counters grow, all together."""
        return self._grown(self.after.total(name, **labels), self.before.total(name, **labels)) / self.secs

    @staticmethod
    def _grown(now: float, then: float) -> float:
        return now - then if now >= then else now  # the part was restarted

    def rates(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Return how fast counters grow, by the values of a label."""
        before = self.before.by(name, label, **labels)
        after = self.after.by(name, label, **labels)
        return {key: self._grown(value, before.get(key, 0.0)) / self.secs for key, value in after.items()}

    def quantile(self, part: float, name: str, **labels: str) -> float | None:
        """Return in seconds how long this share of the calls between the readings took at most; None without calls."""
        before = self.before.by(f"{name}_bucket", "le", **labels)
        after = self.after.by(f"{name}_bucket", "le", **labels)
        upto = sorted((float(bound), self._grown(number, before.get(bound, 0.0))) for bound, number in after.items())
        if not upto or not upto[-1][1]:
            return None
        wanted, low, below = part * upto[-1][1], 0.0, 0.0
        for bound, number in upto:
            if number >= wanted:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (wanted - below) / (number - below)
            low, below = bound, number
        return low


def figures(before: Reading, after: Reading, now: float) -> dict[str, Any]:
    """Return everything that is shown, as JSON values.

    Args:
        before: the reading that rates count from.
        after: the reading that is shown.
        now: Unix time in seconds.
    """
    change = _Change(before, after)
    value = after.value
    ends = value("bpbroker_certificate_not_after_timestamp_seconds")
    return {
        "version": next((labels["version"] for labels, _ in after.samples.get("bpbroker_build_info", ())), None),
        "uptime_secs": value("bpbroker_uptime_seconds"),
        "interval_secs": round(change.secs, 3),
        "ok": _flag(value("bpbroker_health_ok")),
        "registry": {
            "entries": _whole(value("bpbroker_entries")),
            "sessions": _whole(value("bpbroker_sessions")),
            "sessions_max": _whole(value("bpbroker_sessions_max")),
            "ended_sessions": _wholes(after.by("bpbroker_ended_sessions_total", "how")),
            "lost_entries": _whole(value("bpbroker_lost_entries_total")),
            "locks": _whole(value("bpbroker_locks")),
            "waiting": _wholes(after.by("bpbroker_waiting_requests", "kind")),
            "waiting_max": _whole(value("bpbroker_waiting_requests_max")),
        },
        "storage": {
            "ok": _flag(value("bpbroker_storage_ok")),
            "commits_per_sec": change.per_sec("bpbroker_commits_total"),
            "failed_commits": _whole(value("bpbroker_commits_total", outcome="failed")),
            "commit": _times(change, "bpbroker_commit_duration_seconds"),
            "fsync": _times(change, "bpbroker_fsync_duration_seconds"),
            "journal_bytes": _whole(value("bpbroker_journal_bytes")),
            "free_disk_bytes": _whole(value("bpbroker_free_disk_bytes")),
            "age_secs": value("bpbroker_store_age_seconds"),
        },
        "backup": {
            "age_secs": value("bpbroker_backup_age_seconds"),
            "current_age_secs": value("bpbroker_backup_current_age_seconds"),
            "interval_secs": value("bpbroker_backup_interval_seconds"),
            "failures": _whole(value("bpbroker_backup_failures_total")),
        },
        "certificate_left_secs": None if ends is None else ends - now,
        "server": {
            "connections": _whole(value("bpbroker_connections")),
            "connections_max": _whole(value("bpbroker_connections_max")),
            "accepted_per_sec": change.per_sec("bpbroker_accepted_connections_total"),
            "refused": _wholes(after.by("bpbroker_refused_connections_total", "reason")),
            "refused_per_sec": change.rates("bpbroker_refused_connections_total", "reason"),
            "handshakes": _wholes(after.by("bpbroker_handshakes_total", "outcome")),
            "client_memory_bytes": _whole(value("bpbroker_client_memory_bytes")),
            "client_memory_limit_bytes": _whole(value("bpbroker_client_memory_limit_bytes")),
        },
        "wrong_keys": _wholes(after.by("bpbroker_wrong_keys_total", "via")),
        "wrong_keys_per_sec": change.rates("bpbroker_wrong_keys_total", "via"),
        "process": {
            "cpu_ratio": None
            if value("process_cpu_seconds_total") is None
            else change.per_sec("process_cpu_seconds_total"),
            "resident_bytes": _whole(value("process_resident_memory_bytes")),
            "open_fds": _whole(value("process_open_fds")),
        },
        "discovery_per_sec": change.rates("bpbroker_discovery_datagrams_total", "outcome"),
        "requests_per_sec": sum(each["per_sec"] for each in _requests(change)),
        "requests": _requests(change),
        "extensions": _extensions(change),
        "parts": _parts(after),
    }


def _requests(change: _Change) -> list[dict[str, Any]]:
    """Return the figures of each method that was called since the start, the busiest first."""
    found = []
    seen = {
        (labels["namespace"], labels["method"]) for labels, _ in change.after.samples.get("bpbroker_requests_total", ())
    }
    for namespace, method in seen - {_OWN}:
        labels = {"namespace": namespace, "method": method}
        rates = change.rates("bpbroker_requests_total", "status", **labels)
        totals = change.after.by("bpbroker_requests_total", "status", **labels)
        found.append(
            {
                **labels,
                "total": _whole(sum(totals.values())),
                "per_sec": sum(rates.values()),
                **_times(change, "bpbroker_request_duration_seconds", **labels),
                "refused_per_sec": sum(rate for status, rate in rates.items() if status.startswith("4")),
                "failed_per_sec": sum(rate for status, rate in rates.items() if status.startswith("5")),
            }
        )
    return sorted(found, key=lambda each: (-each["per_sec"], -each["total"], each["namespace"], each["method"]))


def _extensions(change: _Change) -> list[dict[str, Any]]:
    after = change.after
    return [
        {
            "namespace": namespace,
            "running": _whole(running),
            "waiting": _whole(after.value("bpbroker_extension_waiting_calls", namespace=namespace)),
            "waiting_max": _whole(after.value("bpbroker_extension_waiting_calls_max", namespace=namespace)),
            "processes": _whole(after.value("bpbroker_extension_processes", namespace=namespace)),
            "per_sec": change.per_sec("bpbroker_extension_calls_total", namespace=namespace),
            "outcomes": _wholes(after.by("bpbroker_extension_calls_total", "outcome", namespace=namespace)),
        }
        for namespace, running in sorted(after.by("bpbroker_extension_running_calls", "namespace").items())
    ]


def _parts(after: Reading) -> list[dict[str, Any]]:
    """Return the parts, those first that are not well."""
    return [
        {
            "name": name,
            "ok": _flag(ok),
            "inbox": _whole(after.value("bpbroker_actor_inbox_messages", actor=name)),
            "restarts": _whole(after.value("bpbroker_actor_restarts_total", actor=name)),
            "age_secs": after.value("bpbroker_actor_age_seconds", actor=name),
            "silent_secs": after.value("bpbroker_actor_silent_seconds", actor=name),
        }
        for name, ok in sorted(after.by("bpbroker_part_ok", "part").items(), key=lambda part: bool(part[1]))
    ]


def _times(change: _Change, name: str, **labels: str) -> dict[str, float | None]:
    """Return the median and what 99 of 100 did not exceed, in seconds."""
    return {
        "median_secs": change.quantile(0.5, name, **labels),
        "p99_secs": change.quantile(0.99, name, **labels),
    }


def _flag(value: float | None) -> bool | None:
    return None if value is None else bool(value)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _wholes(values: Mapping[str, float]) -> dict[str, int]:
    return {key: int(value) for key, value in values.items()}

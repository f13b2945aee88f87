"""The metrics: one table of them all, their values from the counts of the parts, and the text of ``/metrics``. Pure.

No label has the name of an entry, an address or an access key as its value; the broker's configuration bounds how many
values there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from bpbroker import __version__
from bpbroker.durations import Histogram
from bpbroker.frontend.request_counts import Counted
from bpbroker.messages import Measured, PartHealth

TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text"
OPENMETRICS_TYPE: Final = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
_UNITS: Final = ("seconds", "bytes")
_EXTENSION: Final = "extension "


class Seen(NamedTuple):
    """The values that one scrape shows."""

    measured: Measured | None
    """None if the healthcheck did not answer in time."""
    requests: Counted
    wrong_keys: Mapping[str, int]
    """Number of wrong keys since the start, by the way on which they came: ``https`` or ``udp``."""
    held_bytes: int
    """What is kept for clients."""
    held_max_bytes: int
    uptime_secs: float

    def parts(self) -> Iterator[PartHealth]:
        """Yield the parts whose health is known."""
        if self.measured is not None:
            yield from self.measured.health.parts

    def counts(self, part: str) -> Mapping[str, Any]:
        """Return the counts of a part; empty if they are not known."""
        return {} if self.measured is None else self.measured.counts.get(part, {})

    def figures(self, part: str) -> Mapping[str, Any]:
        """Return a part's figures in health; empty if they are not known."""
        return next((each.figures for each in self.parts() if each.name == part), {})


Values = Iterable[tuple[tuple[str, ...], Any]]
"""Values of labels, and a number or a :class:`bpbroker.durations.Histogram`."""


class Spec(NamedTuple):
    """One metric."""

    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...]
    values: Callable[[Seen], Values]


def _one(value: Any) -> Values:
    """Return the only sample of a metric without labels; no sample if the value is not known."""
    return () if value is None else (((), value),)


def _figure(part: str, name: str) -> Callable[[Seen], Values]:
    return lambda seen: _one(seen.figures(part).get(name))


def _count(part: str, name: str) -> Callable[[Seen], Values]:
    return lambda seen: _one(seen.counts(part).get(name))


def _counts(part: str, name: str) -> Callable[[Seen], Values]:
    """Return a function that makes samples of a mapping; its keys are the values of the one label."""
    return lambda seen: (((label,), value) for label, value in seen.counts(part).get(name, {}).items())


def _actors(name: str) -> Callable[[Seen], Values]:
    """Return a function that makes a sample of each actor's count."""

    def values(seen: Seen) -> Values:
        measured = seen.measured
        if measured is not None:
            for part, counts in measured.counts.items():
                if name in counts:
                    yield (part,), counts[name]

    return values


def _extensions(look: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]) -> Callable[[Seen], Values]:
    """Return a function that makes samples of each extension.

    Args:
        look: returns a further label's values, or "" for none, to values, for an extension's figures and counts.
    """

    def values(seen: Seen) -> Values:
        for part in seen.parts():
            if part.name.startswith(_EXTENSION):
                for label, value in look(part.figures, seen.counts(part.name)).items():
                    if value is not None:
                        yield (part.name.removeprefix(_EXTENSION), *((label,) if label else ())), value

    return values


def _parts_ok(seen: Seen) -> Values:
    yield ("healthcheck",), int(seen.measured is not None)
    for part in seen.parts():
        yield (part.name,), int(part.ok)


def _storage_ok(seen: Seen) -> Values:
    ok = seen.counts("registry").get("storage_ok")
    return _one(None if ok is None else int(ok))


def _commits(seen: Seen) -> Values:
    counts = seen.counts("registry")
    if "commits" in counts:
        failed = counts["failed_commits"]
        yield ("done",), sum(counts["commits"].counts) - failed
        yield ("failed",), failed


METRICS: Final[Mapping[str, Spec]] = {
    # --- the broker ---
    "bpbroker_build_info": Spec("info", "The broker's version.", ("version",), lambda _: [((__version__,), 1)]),
    "bpbroker_uptime_seconds": Spec(
        "gauge", "Time since the broker began to serve.", (), lambda seen: _one(seen.uptime_secs)
    ),
    "bpbroker_health_ok": Spec(
        "gauge",
        "Whether the broker serves as it should, as /health says.",
        (),
        lambda seen: _one(int(seen.measured is not None and seen.measured.health.ok)),
    ),
    "bpbroker_part_ok": Spec("gauge", "Whether a part of the broker is well.", ("part",), _parts_ok),
    "bpbroker_actor_inbox_messages": Spec("gauge", "Messages that wait for an actor.", ("actor",), _actors("inbox")),
    "bpbroker_actor_inbox_messages_max": Spec(
        "gauge", "Messages that may wait for an actor; the next request is refused.", ("actor",), _actors("inbox_max")
    ),
    "bpbroker_actor_restarts_total": Spec(
        "counter", "How often an actor was replaced, because it was dead or stuck.", ("actor",), _actors("restarts")
    ),
    "bpbroker_actor_age_seconds": Spec(
        "gauge", "Time since an actor was started, or put in another one's place.", ("actor",), _actors("age_secs")
    ),
    "bpbroker_actor_silent_seconds": Spec(
        "gauge",
        "For how long an actor has neither answered a ping nor made any progress.",
        ("actor",),
        _actors("silent_secs"),
    ),
    # --- requests ---
    "bpbroker_requests_total": Spec(
        "counter",
        "Requests that were answered. Methods that do not exist count together.",
        ("namespace", "method", "status"),
        lambda seen: seen.requests.requests.items(),
    ),
    "bpbroker_request_duration_seconds": Spec(
        "histogram",
        "Time from a request's last byte to its response; of one that means to wait with its wait.",
        ("namespace", "method"),
        lambda seen: seen.requests.durations.items(),
    ),
    "bpbroker_wrong_keys_total": Spec(
        "counter",
        "Wrong access keys, and over UDP questions signed with something else than the discovery secret.",
        ("via",),
        lambda seen: [((via,), number) for via, number in seen.wrong_keys.items()],
    ),
    # --- connections ---
    "bpbroker_connections": Spec("gauge", "Open connections.", (), _figure("frontend", "connections")),
    "bpbroker_connections_max": Spec(
        "gauge", "Connections that may be open.", (), _count("frontend", "connections_max")
    ),
    "bpbroker_accepted_connections_total": Spec(
        "counter", "Connections that were accepted.", (), _count("frontend", "accepted")
    ),
    "bpbroker_refused_connections_total": Spec(
        "counter",
        "Connections that were refused, or closed to make room for others (displaced, no_memory); no_descriptors"
        " counts pauses in accepting.",
        ("reason",),
        _counts("frontend", "refused"),
    ),
    "bpbroker_handshakes_total": Spec(
        "counter", "TLS handshakes by how they ended.", ("outcome",), _counts("frontend", "handshakes")
    ),
    "bpbroker_client_memory_bytes": Spec(
        "gauge", "Memory kept for large requests and responses.", (), lambda seen: _one(seen.held_bytes)
    ),
    "bpbroker_client_memory_limit_bytes": Spec(
        "gauge",
        "Beyond this the connections that need most memory are closed.",
        (),
        lambda seen: _one(seen.held_max_bytes),
    ),
    # --- registry ---
    "bpbroker_entries": Spec("gauge", "Entries in the registry.", (), _figure("registry", "entries")),
    "bpbroker_waiting_requests": Spec(
        "gauge",
        "Requests that wait: reads for an entry, watches, for a lock, for another holder of one.",
        ("kind",),
        _counts("registry", "waiting"),
    ),
    "bpbroker_waiting_requests_max": Spec(
        "gauge", "Requests that may wait (api.max_waiting).", (), _count("registry", "waiting_max")
    ),
    "bpbroker_sessions": Spec("gauge", "Sessions that live.", (), _figure("registry", "sessions")),
    "bpbroker_sessions_max": Spec(
        "gauge", "Sessions that may live (_registry.max_sessions).", (), _count("registry", "sessions_max")
    ),
    "bpbroker_ended_sessions_total": Spec(
        "counter",
        "Sessions that ended: closed, or lost because they were not renewed; on a shared store it is not known which.",
        ("how",),
        _counts("registry", "ended_sessions"),
    ),
    "bpbroker_lost_entries_total": Spec(
        "counter", "Entries that ended with a lost session.", (), _count("registry", "entries_lost")
    ),
    "bpbroker_locks": Spec("gauge", "Locks that are held.", (), _count("registry", "locks")),
    # --- storage ---
    "bpbroker_storage_ok": Spec("gauge", "Whether writes can be stored.", (), _storage_ok),
    "bpbroker_commits_total": Spec(
        "counter", "Commits; each carries all writes that came together.", ("outcome",), _commits
    ),
    "bpbroker_commit_duration_seconds": Spec(
        "histogram", "Time that a commit took.", (), _count("registry", "commits")
    ),
    "bpbroker_fsync_duration_seconds": Spec(
        "histogram",
        "Time that a commit took to get to stable storage; only of the embedded store.",
        (),
        _count("registry", "syncs"),
    ),
    "bpbroker_journal_bytes": Spec(
        "gauge", "Size of the journal with its log.", (), _figure("registry", "journal_bytes")
    ),
    "bpbroker_free_disk_bytes": Spec(
        "gauge", "Free space on the journal's disk.", (), _figure("registry", "disk_free_bytes")
    ),
    "bpbroker_store_age_seconds": Spec(
        "gauge",
        "How old what this broker knows of a shared store may be; only with the store etcd.",
        (),
        _figure("registry", "age_secs"),
    ),
    # --- backups and certificate ---
    "bpbroker_backup_age_seconds": Spec(
        "gauge", "Age of the newest backup.", (), _figure("backup", "newest_backup_age_secs")
    ),
    "bpbroker_backup_current_age_seconds": Spec(
        "gauge",
        "Time since the newest backup was last known to hold the current state: none is made while nothing changes.",
        (),
        _count("backup", "current_age_secs"),
    ),
    "bpbroker_backup_interval_seconds": Spec(
        "gauge", "Time between two backups (_config.backup_freq_secs).", (), _count("backup", "every_secs")
    ),
    "bpbroker_backup_failures_total": Spec(
        "counter", "Backups that were due and failed.", (), _count("backup", "failures")
    ),
    "bpbroker_certificate_not_after_timestamp_seconds": Spec(
        "gauge", "When the certificate ends, in Unix time.", (), _count("certificate", "not_after")
    ),
    # --- extensions ---
    "bpbroker_extension_calls_total": Spec(
        "counter",
        "Calls of an extension: answered, failed (the method raised an error), crashed (its process ended), late"
        " (killed at _timeout_secs), refused (_queue_max waited already).",
        ("namespace", "outcome"),
        _extensions(lambda _, counts: counts.get("outcomes", {})),
    ),
    "bpbroker_extension_running_calls": Spec(
        "gauge", "Calls that run.", ("namespace",), _extensions(lambda figures, _: {"": figures.get("running")})
    ),
    "bpbroker_extension_waiting_calls": Spec(
        "gauge", "Calls that wait.", ("namespace",), _extensions(lambda figures, _: {"": figures.get("waiting")})
    ),
    "bpbroker_extension_waiting_calls_max": Spec(
        "gauge",
        "Calls that may wait (_queue_max).",
        ("namespace",),
        _extensions(lambda _, counts: {"": counts.get("waiting_max")}),
    ),
    "bpbroker_extension_processes": Spec(
        "gauge",
        "Child processes of an extension.",
        ("namespace",),
        _extensions(lambda figures, _: {"": figures.get("processes")}),
    ),
    # --- discovery ---
    "bpbroker_discovery_datagrams_total": Spec(
        "counter",
        "Datagrams by what became of them: ignored are those that the settings or their port forbid to answer,"
        " not_known those for which the registry could not be asked.",
        ("outcome",),
        _counts("discovery", "outcomes"),
    ),
}
"""Name to metric, in the order in which they are shown. The process's own, ``process_*``, come behind them."""


def families(seen: Seen) -> Iterator[Metric]:
    """Yield all metrics, those without a value too."""
    for name, spec in METRICS.items():
        unit = next((unit for unit in _UNITS if name.endswith(f"_{unit}")), "")
        if spec.kind == "histogram":
            timed = HistogramMetricFamily(name, spec.help, labels=spec.labels, unit=unit)
            for labels, value in spec.values(seen):
                timed.add_metric(labels, *_buckets(value))
            yield timed
            continue
        if spec.kind == "info":
            info = InfoMetricFamily(name.removesuffix("_info"), spec.help)
            for labels, _ in spec.values(seen):
                info.add_metric((), dict(zip(spec.labels, labels, strict=True)))
            yield info
            continue
        made = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
        family = made(name, spec.help, labels=spec.labels, unit=unit)
        for labels, value in spec.values(seen):
            family.add_metric(labels, value)
        yield family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return the cumulative buckets and the sum."""
    bounds = (*map(str, histogram.bounds), "+Inf")
    upto, buckets = 0, []
    for bound, number in zip(bounds, histogram.counts, strict=True):
        upto += number
        buckets.append((bound, float(upto)))
    return buckets, histogram.total_secs


_process: Final = ProcessCollector(registry=None)


class _Shown(Collector):
    """Metrics as prometheus_client takes them."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        yield from families(self._seen)
        yield from _process.collect()


def content_type(accept: str) -> str:
    """Return in which format to show metrics to a client, by its header ``Accept``."""
    for offer in accept.lower().split(","):
        kind, *options = (word.strip() for word in offer.split(";"))
        if kind == OPENMETRICS and not any(option in ("q=0", "q=0.0") for option in options):
            return OPENMETRICS_TYPE
    return TEXT_TYPE


def text(seen: Seen, form: str) -> bytes:
    """Return all metrics in one of the two formats that :func:`content_type` returns."""
    make: Callable[[Collector], bytes]
    make = openmetrics.generate_latest if form == OPENMETRICS_TYPE else generate_latest
    return make(_Shown(seen))


def samples(seen: Seen) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the name of each sample to its labels and values, as the local ``bpbroker top`` reads them."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in _Shown(seen).collect():
        sample: Sample
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), float(sample.value)))
    return found

"""The table of metrics: what a monitoring system expects of each, and that alerts and dashboard name no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from bpbroker.durations import REQUEST_SECS, STORAGE_SECS, Durations, Histogram
from bpbroker.frontend import metrics
from bpbroker.frontend.request_counts import Counted
from bpbroker.messages import HealthReport, Measured, PartHealth

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
UNITS: Final = frozenset(
    {
        "seconds", "bytes", "ok", "info", "requests", "keys", "connections", "handshakes", "messages", "restarts",
        "entries", "sessions", "locks", "commits", "failures", "calls", "processes", "datagrams", "fds",
    }
)  # fmt: skip
"""A metric's name has one of these: base units, what is counted, and ok for 1 or 0."""


def histogram(bounds: tuple[float, ...], *secs: float) -> Histogram:
    durations = Durations(bounds)
    for each in secs:
        durations.add(each)
    return durations.shown()


def seen(measured: Measured | None) -> metrics.Seen:
    requests = Counted(
        {("services", "Get", "200"): 7, ("(unknown)", "(unknown)", "401"): 1},
        {("services", "Get"): histogram(REQUEST_SECS, 0.001, 0.002, 700.0)},
    )
    return metrics.Seen(measured, requests, {"https": 3, "udp": 0}, 5, 256, 12.5)


def all_parts() -> Measured:
    """Return what a broker on the embedded store would say, with made-up numbers."""
    actor = {"inbox": 2, "inbox_max": 10_000, "age_secs": 60.0, "silent_secs": 0.0, "restarts": 1}
    figures: dict[str, dict[str, Any]] = {
        "registry": {"entries": 5, "sessions": 2, "journal_bytes": 4096, "disk_free_bytes": 1 << 30, "age_secs": 0.5},
        "backup": {"newest_backup_age_secs": 60},
        'extension a"b\\': {"running": 1, "waiting": 2, "processes": 1},
        "frontend": {"connections": 3},
        "certificate": {"days_left": 90},
    }
    counts: dict[str, dict[str, Any]] = {
        "registry": {
            **actor,
            "waiting": {"read": 1, "watch": 2, "lock": 0, "holder": 0},
            "waiting_max": 4096,
            "sessions_max": 10_000,
            "ended_sessions": {"closed": 1, "lost": 2},
            "entries_lost": 3,
            "locks": 1,
            "commits": histogram(STORAGE_SECS, 0.0004, 0.02),
            "syncs": histogram(STORAGE_SECS, 0.0003),
            "failed_commits": 1,
            "storage_ok": False,
        },
        "backup": {**actor, "current_age_secs": 5.0, "every_secs": 3600, "failures": 0},
        'extension a"b\\': {**actor, "outcomes": {"answered": 5, "failed": 1}, "waiting_max": 64},
        "frontend": {"accepted": 9, "refused": {"full": 1}, "handshakes": {"done": 8}, "connections_max": 8192},
        "certificate": {"not_after": 2.1e9},
        "discovery": {**actor, "outcomes": {"answered": 1, "malformed": 2}},
        "healthcheck": actor,
    }
    parts = tuple(PartHealth(name, ok=name != "registry", since=0.0, figures=figures[name]) for name in figures)
    return Measured(HealthReport(ok=False, parts=parts), counts)


def shown(form: str, measured: Measured | None = None) -> dict[str, Metric]:
    text = metrics.text(seen(all_parts() if measured is None else measured), form).decode()
    parse = parse_openmetrics if form == metrics.OPENMETRICS_TYPE else parse_text
    return {family.name: family for family in parse(text)}


@pytest.mark.parametrize("form", [metrics.TEXT_TYPE, metrics.OPENMETRICS_TYPE])
def test_both_formats_can_be_read_and_say_the_same(form: str) -> None:
    found: dict[str, list[tuple[tuple[tuple[str, str], ...], float]]] = {}
    for family in shown(form).values():
        for sample in family.samples:
            found.setdefault(sample.name, []).append((tuple(sorted(sample.labels.items())), sample.value))
    assert found["bpbroker_entries"] == [((), 5.0)]
    assert found["bpbroker_storage_ok"] == [((), 0.0)]
    assert ((("namespace", 'a"b\\'), ("outcome", "failed")), 1.0) in found["bpbroker_extension_calls_total"]
    assert dict(found["bpbroker_commits_total"]) == {(("outcome", "done"),): 1.0, (("outcome", "failed"),): 1.0}
    buckets = {dict(labels)["le"]: value for labels, value in found["bpbroker_request_duration_seconds_bucket"]}
    assert (buckets["0.0005"], buckets["0.001"], buckets["0.0025"]) == (0.0, 1.0, 2.0)
    assert (buckets["600.0"], buckets["+Inf"]) == (2.0, 3.0)


def test_every_metric_has_help_type_and_a_unit_in_its_name() -> None:
    found = shown(metrics.TEXT_TYPE)
    ours = {name for name in found if name.startswith("bpbroker_")}
    assert ours == {name.removesuffix("_total") for name in metrics.METRICS}
    for family in found.values():
        assert family.documentation.strip(), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert UNITS & set(family.name.split("_")), f"{family.name} has no unit in its name"
    for name, spec in metrics.METRICS.items():
        assert (spec.kind == "counter") == name.endswith("_total"), name
        assert spec.help.endswith("."), name


def test_every_metric_has_a_value_and_its_own_labels_only() -> None:
    found = shown(metrics.TEXT_TYPE)
    for name, spec in metrics.METRICS.items():
        samples = found[name.removesuffix("_total")].samples
        assert samples, f"{name} has no value, though all parts tell theirs"
        for sample in samples:
            assert set(sample.labels) - {"le"} == set(spec.labels), sample


def test_labels_are_none_that_a_client_can_make_up() -> None:
    """Namespaces and methods are bounded where they are counted, see ``test_request_counts.py``."""
    labels = {label for spec in metrics.METRICS.values() for label in spec.labels}
    assert labels == {
        "version", "part", "actor", "namespace", "method", "status", "via", "reason", "outcome", "kind", "how",
    }  # fmt: skip


def test_without_the_healthcheck_there_is_what_is_known_without_it() -> None:
    text = metrics.text(seen(None), metrics.TEXT_TYPE).decode()
    values = {sample.name: sample.value for family in parse_text(text) for sample in family.samples}
    assert values["bpbroker_part_ok"] == values["bpbroker_health_ok"] == 0.0
    assert values["bpbroker_requests_total"] == 1.0
    assert "bpbroker_entries" not in values
    assert "bpbroker_storage_ok" not in values


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", metrics.TEXT_TYPE),
        ("*/*", metrics.TEXT_TYPE),
        ("text/plain; version=1.0.0; escaping=allow-utf-8", metrics.TEXT_TYPE),
        ("application/openmetrics-text", metrics.OPENMETRICS_TYPE),
        ("text/html, Application/OpenMetrics-Text; version=\xff; q=0.5,text/plain;q=0.3", metrics.OPENMETRICS_TYPE),
        ("application/openmetrics-text; q=0, text/plain", metrics.TEXT_TYPE),
        (";,;q=,;;version", metrics.TEXT_TYPE),
    ],
)
def test_the_client_says_which_format(accept: str, form: str) -> None:
    assert metrics.content_type(accept) == form


# --- what is made of them ---


def used(text: str) -> set[str]:
    """Return the metrics that expressions of Prometheus name."""
    return set(re.findall(r"\b(?:bpbroker|process)_[a-z_]+\b", text))


def names() -> set[str]:
    """Return the names of all samples there are."""
    return {sample.name for family in shown(metrics.TEXT_TYPE).values() for sample in family.samples}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def test_the_alerts_name_metrics_that_there_are() -> None:
    text = (DEPLOY / "alerts.yml").read_text()
    assert used(text)
    assert not used(text) - names()
    told = set(re.findall(r"alert: (\w+)", text))
    wanted = "Down StorageFailed BackupTooOld CertificateEnds WrongKeys QueueFull ExtensionFailing SessionsLost"
    assert {f"Bpbroker{each}" for each in wanted.split()} <= told


def test_the_dashboard_names_metrics_that_there_are_and_leaves_none_out() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    numbers = [panel["id"] for panel in panels(dashboard)]
    assert len(numbers) == len(set(numbers))
    asked = " ".join(target["expr"] for panel in panels(dashboard) for target in panel.get("targets", ()))
    asked += " ".join(str(variable.get("definition")) for variable in dashboard["templating"]["list"])
    assert not used(asked) - names()
    left_out = {name for name, spec in metrics.METRICS.items() if name not in used(asked) and spec.kind != "histogram"}
    assert left_out == {"bpbroker_actor_inbox_messages_max"}, "which is the same number for all"


@pytest.mark.parametrize("labels", re.findall(r"bpbroker_\w+\{[^}]*\}", (DEPLOY / "alerts.yml").read_text()))
def test_the_alerts_choose_by_labels_that_there_are(labels: str) -> None:
    name, _, chosen = labels.partition("{")
    assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", chosen)) <= {*metrics.METRICS[name].labels, "job", "instance"}


def test_the_page_on_monitoring_names_every_metric() -> None:
    page = (DEPLOY.parent / "docs" / "monitoring.md").read_text()
    told = dict(re.findall(r"^\| `(bpbroker_\w+)` \| ([^|]*) \| ", page, re.MULTILINE))
    assert {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in told.items()} == {
        name: spec.labels for name, spec in metrics.METRICS.items()
    }

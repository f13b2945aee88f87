"""``bpbroker status``: how each part of the running broker is."""

from __future__ import annotations

import sys
from typing import Any

import click

from bpbroker.commands.local import must_run
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.commands.tables import echo_json, echo_table, format_option, shown_age, shown_size, shown_time
from bpbroker.errors import CannotConnect, StartError, WaitTimeout
from bpbroker.storage.lock_file import machine_secs


@command("status", short_help="Show how the running broker is")
@format_option
@pass_scope
def status(scope: Scope, *, form: str) -> None:
    """Show how each part of the running broker is.

    Each is ok, warning (look at its detail) or fail. Exit code 0 when none failed, 1 when one did, or when no broker
    runs.
    """
    broker = must_run(scope)
    try:
        report = broker.ask("Status", timeout_secs=10.0)
    except (CannotConnect, WaitTimeout) as error:
        raise StartError(f"The broker runs (process {broker.pid}), but: {error}") from None
    note, now = broker.note, machine_secs()
    about = {key: note.get(key) for key in ("version", "pid", "address", "port", "fingerprint", "started")}
    if form == "json":
        echo_json(
            {"ok": report["ok"], "state": report["state"], **about, "config": str(scope.own), "parts": report["parts"]}
        )
    else:
        up = shown_age(now - note.get("uptime_from", now))
        click.echo(f"bpbroker {note.get('version')}, process {broker.pid}, up {up}, port {note['port']}, {scope.own}")
        click.echo(f"certificate SHA-256 {note['fingerprint']}")
        echo_table(
            ("PART", "STATE", "SINCE", "RESTARTS", "DETAIL"),
            [
                (
                    part["name"],
                    part["state"],
                    shown_time(part["since"]),
                    part["restarts"],
                    _detail(part),
                )
                for part in report["parts"]
            ],
        )
    sys.exit(1 if any(part["state"] == "fail" for part in report["parts"]) else 0)


def _detail(part: dict[str, Any]) -> str:
    figures = ", ".join(
        _figure(key, value) for key, value in part["figures"].items() if not isinstance(value, (dict, list))
    )
    return "; ".join(text for text in (part["detail"], figures) if text)


def _figure(name: str, value: object) -> str:
    """Return a figure as people read it; its name says its unit."""
    if isinstance(value, (int, float)):
        for ending, unit, shown in (
            ("_at", "", shown_time),
            ("_bytes", "_bytes", shown_size),
            ("_age_secs", "_secs", shown_age),
        ):
            if name.endswith(ending):
                return f"{name.removesuffix(unit)} {shown(value)}"
    return f"{name} {value}"

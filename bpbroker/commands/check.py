"""``bpbroker check``: whether a broker's files can be trusted."""

from __future__ import annotations

import sys

import click

from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.commands.tables import echo_json, format_option
from bpbroker.storage import offline


@command("check", short_help="Check file, journal and backups")
@format_option
@pass_scope
def check(scope: Scope, *, form: str) -> None:
    """Check whether the configuration file, its journal and its backups can be trusted; changes nothing.

    Exit code 0 when a start would work, 78 when not.
    """
    findings = offline.check(scope.own)
    if form == "json":
        echo_json([{"what": each.what, "level": each.level, "detail": each.detail} for each in findings])
    else:
        for each in findings:
            click.echo(f"{each.level:<8} {each.what}: {each.detail}")
    sys.exit(78 if any(each.level == "fail" for each in findings) else 0)

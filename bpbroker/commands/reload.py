"""``bpbroker reload``: let the running broker read its files again."""

from __future__ import annotations

import click

from bpbroker.commands.local import BULK_SECS, must_run
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.errors import StartError


@command("reload", short_help="Let the running broker read its files again")
@pass_scope
def reload(scope: Scope) -> None:
    """Let the running broker read configuration, certificate and extension modules, and open its log files, again.

    If the configuration cannot be used, nothing changes; exit code 78. If the certificate cannot be used, the earlier
    one stays in use, and all else is read; exit code 78, too. If a module or a log file cannot be used, the earlier one
    stays in use; exit code 1.
    """
    broker = must_run(scope)
    problems = broker.ask("Reload", timeout_secs=BULK_SECS)["problems"]
    if problems:
        listed = "\n  ".join(problems)
        raise StartError(f"The broker (process {broker.pid}) has reloaded, but not all of it:\n  {listed}")
    click.echo(f"The broker (process {broker.pid}) has reloaded.", err=True)

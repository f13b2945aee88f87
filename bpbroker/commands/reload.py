"""``bpbroker reload``: have the running broker take its files up anew."""

from __future__ import annotations

import click

from bpbroker.commands.local import BULK_SECS, must_run
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.errors import StartError


@command("reload", short_help="Have the running broker take changes up")
@pass_scope
def reload(scope: Scope) -> None:
    """Have the running broker take configuration, certificate and extension modules up anew, and say how it went.

    What cannot be used stays as it was; all else is taken up. Exit code 1 then, 78 if the configuration or the
    certificate cannot be used.
    """
    broker = must_run(scope)
    problems = broker.ask("Reload", timeout_secs=BULK_SECS)["problems"]
    if problems:
        listed = "\n  ".join(problems)
        raise StartError(f"The broker (process {broker.pid}) has reloaded, but not all of it:\n  {listed}")
    click.echo(f"The broker (process {broker.pid}) has reloaded.", err=True)

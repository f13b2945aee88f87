"""``bpbroker migrate``: the registry of a stopped broker moves to an etcd cluster, or back."""

from __future__ import annotations

import click

from bpbroker import progress
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.registry.entry_values import shown_names
from bpbroker.runtime.migration import migrate as move


@command("migrate", short_help="Move the registry to etcd, or back")
@click.option(
    "--to", "target", type=click.Choice(("etcd", "embedded")), required=True, help="Where the registry is from then on."
)
@click.option("--merge", is_flag=True, help="Keep other entries that are there already.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@pass_scope
def migrate(scope: Scope, *, target: str, merge: bool, dry_run: bool) -> None:
    """Copy all entries between the configuration file and the etcd cluster that `_registry` names, and use that.

    It refuses while a broker runs on the file. The copied entries are read back
    before `_registry.store` is changed. It can be done again at any time: equal
    entries are not copied twice. The old file is kept as a backup.
    """
    scope.act_as_owner()
    with progress.Work("Moving the registry") as work:

        def tell(done: int, of: int) -> None:
            work.what = f"Copying entries, {done} of {of}"
            work.step(done, of)

        done = move(scope.sources(), target, merge=merge, dry_run=dry_run, tell=tell)
    click.echo(f"entries to copy: {done.copied}" if dry_run else f"entries copied: {done.copied}")
    click.echo(f"there already: {done.same}")
    shown = shown_names(done.left)
    click.echo(f"left as they are there: {len(done.left)}" + (f" ({shown})" if done.left else ""))
    if dry_run:
        click.echo("Nothing was changed.", err=True)
        return
    where = "in etcd" if target == "etcd" else f"beside {scope.own}"
    if done.kept is None:
        click.echo(f"The registry is {where} already; nothing was changed.", err=True)
        return
    click.echo(f"The file as it was is kept as {done.kept}", err=True)
    if target == "embedded":
        click.echo("What is in etcd stays there, and other brokers go on with it.", err=True)
    click.echo(f"The registry is {where} now; to start the broker: {scope.command_line('start')}", err=True)

"""``bpbroker migrate``: the registry of a stopped broker moves to an etcd cluster, or back."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import click

from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.registry.entry import shown_names
from bpbroker.runtime.migration import Tell
from bpbroker.runtime.migration import migrate as move

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


def _progress(bars: contextlib.ExitStack) -> Tell:
    """Create the function that shows, on a terminal, how many entries have been copied; the bar ends with ``bars``."""
    bar: ProgressBar[int] | None = None

    def show(done: int, of: int) -> None:
        nonlocal bar
        if bar is None:
            new = click.progressbar(length=of, label="copying entries", show_pos=True, file=sys.stderr)
            bar = bars.enter_context(new)
        bar.update(done - bar.pos)

    return show if sys.stderr.isatty() else lambda _done, _of: None


@command("migrate", short_help="Move the registry to etcd, or back")
@click.option("--to", "target", type=click.Choice(("etcd", "embedded")), required=True, help="Where it shall be.")
@click.option("--merge", is_flag=True, help="Let other entries that are there already stay as they are.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@pass_scope
def migrate(scope: Scope, *, target: str, merge: bool, dry_run: bool) -> None:
    """Copy all entries between the configuration file and the etcd cluster that `_registry` names, and use that.

    Only while no broker runs on the file. What was copied is read back before
    `_registry.store` is changed. It may be done again at any time: entries that
    are there already, just so, are not copied twice. The file as it was is kept
    as a backup.
    """
    scope.act_as_owner()
    with contextlib.ExitStack() as bars:
        done = move(scope.sources(), target, merge=merge, dry_run=dry_run, tell=_progress(bars))
    click.echo(f"entries copied: {done.copied}")
    click.echo(f"there already: {done.same}")
    shown = shown_names(done.left)
    click.echo(f"left as they are there: {len(done.left)}" + (f" ({shown})" if done.left else ""))
    if dry_run:
        click.echo("Nothing was changed.", err=True)
        return
    if done.kept is not None:
        click.echo(f"The file as it was is kept as {done.kept}", err=True)
    where = "in etcd" if target == "etcd" else f"beside {scope.own}"
    click.echo(f"The registry is {where} now; to start the broker: {scope.command_line('start')}", err=True)

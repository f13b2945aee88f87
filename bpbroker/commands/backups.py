"""``bpbroker backup``, ``backups`` and ``restore``: make, list and put back copies of a broker's state."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bpbroker import progress
from bpbroker.commands.local import BULK_SECS, running
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.commands.tables import echo_json, echo_table, format_option, shown_size, shown_time
from bpbroker.registry.entry_values import shown_names
from bpbroker.runtime.identity_files import IdentityFiles
from bpbroker.storage import backups as backup_files
from bpbroker.storage import offline


@command("backup", short_help="Make a backup now")
@pass_scope
def backup(scope: Scope) -> None:
    """Make a backup now, by the running broker or of a stopped one, and print its path.

    It holds settings, entries, the certificate that the broker made, its private key, and the installed extensions:
    all that a new machine needs. Keep copies of it where no one else can read them.
    """
    broker = running(scope)
    if broker is not None:
        click.echo(broker.ask("Backup", timeout_secs=BULK_SECS)["path"])
        return
    scope.act_as_owner()
    click.echo(offline.back_up(scope.own, IdentityFiles(scope.own, scope.home)).path)


@command("backups", short_help="List the backups")
@format_option
@pass_scope
def backups(scope: Scope, *, form: str) -> None:
    """List the backups, newest first, and whether each can be read back well."""
    found = backup_files.found(scope.own)
    checked: list[backup_files.Checked] = []
    with progress.Work("Reading the backups") as work:
        for info in found:
            work.what = f"Backup {len(checked) + 1} of {len(found)}"
            checked.append(backup_files.check(info))
    if form == "json":
        echo_json(
            [
                {
                    "path": each.info.path,
                    "made_at": each.info.made_at,
                    "size_bytes": each.info.size_bytes,
                    "entries": None if each.problem else each.entries,
                    "identity": each.has_identity,
                    "problem": each.problem,
                }
                for each in checked
            ]
        )
    elif checked:
        echo_table(
            ("TIME", "SIZE", "ENTRIES", "IDENTITY", "STATE", "PATH"),
            [
                (
                    shown_time(each.info.made_at),
                    shown_size(each.info.size_bytes),
                    "-" if each.problem else each.entries,
                    "yes" if each.has_identity else "no",
                    "DAMAGED" if each.problem else "good",
                    each.info.path,
                )
                for each in checked
            ],
        )
    else:
        click.echo(f"There are no backups in {backup_files.folder_for(scope.own)}.", err=True)
    for each in checked:
        if each.problem:
            click.echo(f"warning: {each.problem}", err=True)


@command("restore", short_help="Go back to a backup")
@click.argument("backup", type=click.Path(path_type=Path))
@click.option("--data-only", is_flag=True, help="Leave certificate, key and extensions as they are.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@pass_scope
def restore(scope: Scope, *, backup: Path, data_only: bool, dry_run: bool) -> None:
    """Go back to the state in BACKUP: a path, or a name that `bpbroker backups` lists.

    What comes back: settings, entries, named access keys, the certificate that the broker had made for itself with its
    key, so that clients go on trusting it, also on a new machine, and the extensions that were installed. What does
    not: a certificate of your own (ssl_cert), sessions, and what is in etcd; extensions that the backup does not have
    stay. A backup that `bpbroker backups` shows without an identity, as earlier versions made them, brings settings and
    entries only.

    It refuses while the broker runs, except with --dry-run. The replaced state is kept as a backup.
    """
    scope.act_as_owner()
    identity = None if data_only else IdentityFiles(scope.own, scope.home)
    done = offline.restore(scope.own, backup, identity=identity, dry_run=dry_run)
    if done.difference is None:
        click.echo("What is there now is damaged and cannot be compared.")
    else:
        _show(done.difference)
    for line in done.identity.changed:
        click.echo(line)
    if not (done.has_identity or data_only):
        click.echo("This backup has no certificate and no extensions: those that are there stay.", err=True)
    for path in done.kept:
        click.echo(f"What was there is kept as {path}", err=True)
    if done.unused:
        click.echo(
            f"By these settings the registry is in etcd, and the {done.unused} entries are in the file only;"
            f" to bring those there that etcd lacks: {scope.command_line('migrate --to etcd --merge')}",
            err=True,
        )
    outcome = "Nothing was changed." if dry_run else f"{scope.own} is now as it was in {done.backup}."
    click.echo(outcome, err=True)
    for sentence in done.identity.missing:
        click.echo(f"bpbroker: {sentence}", err=True)
    sys.exit(1 if done.identity.missing else 0)


def _show(difference: offline.Difference) -> None:
    """Print a line for each kind of change; entries and sections always, the others if there are some."""
    for what, differing, always in (
        ("entries", difference.entries, True),
        ("named access keys", difference.keys, False),
        ("other records", difference.others, False),
    ):
        for how, names in differing._asdict().items():
            if names or always:
                _show_names(f"{what} {how}", names)
    _show_names("sections changed", difference.sections_changed)


def _show_names(what: str, names: tuple[str, ...]) -> None:
    click.echo(f"{what}: {len(names)}" + (f" ({shown_names(names)})" if names else ""))

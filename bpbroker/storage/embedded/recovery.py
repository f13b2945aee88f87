"""Whether a configuration file and a journal belong together, and what they hold together. Pure functions.

The file holds everything up to one commit of one registry (:class:`Origin`),
the journal what changed since. Both carry the registry's id, so that another
broker's journal, an older file and an edited one are noticed and never mixed
in silence. What the journal has forgotten must be in the file.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bpbroker.errors import DamagedFile
from bpbroker.storage.config_file import Origin
from bpbroker.storage.embedded.journal import JournalState, journal_path
from bpbroker.text import command_line

_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Match:
    """How a file and its journal fit."""

    changes: Mapping[str, bytes | None]
    """What of the journal counts; None for a deleted entry."""
    commit: int
    """The last commit that the two hold together."""
    base: int
    """The commit up to which the file is needed, because the journal has forgotten it."""
    edited: bool = False
    """Whether the file was changed by hand although its journal was not empty."""
    warning: str = ""
    """What an operator has to know; empty when all is as a broker left it."""


def match(own: Path, origin: Origin | None, journal: JournalState) -> Match:
    """Decide what a start makes of a file and its journal.

    Args:
        own: the configuration file; it exists or not.
        origin: whose state the file says it is.
        journal: what its journal holds.

    Raises:
        DamagedFile: they do not belong together; the message says why and what to do.
    """
    if not journal.changes:
        return _alone(own, origin, journal)
    if not own.exists():
        raise DamagedFile(f"{own} is gone, but its journal {journal_path(own)} has changes of it")
    if not journal.registry:  # an earlier version wrote it, and the file, too
        return Match(journal.changes, journal.sequence, 0)
    if origin is None:
        raise _stranger(own, journal, "no broker wrote this file")
    if origin.registry != journal.registry:
        why = f"the file is of registry {origin.registry}, the journal of registry {journal.registry}"
        raise _stranger(own, journal, why)
    if origin.commit < journal.base:
        why = f"the file is older: it ends with commit {origin.commit}, the journal goes on from commit {journal.base}"
        raise _stranger(own, journal, why)
    if origin.commit > journal.sequence:
        newer = f"{own} is newer (commit {origin.commit}) than its journal (commit {journal.sequence}): the file counts"
        return Match({}, origin.commit, origin.commit, warning=newer)
    if origin.intact:
        return Match(journal.changes, journal.sequence, journal.base)
    names = ", ".join(repr(name) for name in sorted(journal.changes)[:_NAMES_SHOWN])
    more = len(journal.changes) - _NAMES_SHOWN
    listed = f"{names} and {more} more" if more > 0 else names
    edited = (
        f"{own} was edited after its broker had crashed. Its settings count, and its entries, too, but not where"
        f" the journal has later ones: {listed}"
    )
    return Match(journal.changes, journal.sequence, journal.base, edited=True, warning=edited)


def _alone(own: Path, origin: Origin | None, journal: JournalState) -> Match:
    """Match a file with a journal that has no changes: the file alone counts."""
    if origin is None:
        return Match({}, journal.sequence, 0)
    if journal.registry not in ("", origin.registry):
        other = f"{journal_path(own)} is of another registry ({journal.registry}); it has no changes and is not used"
        return Match({}, origin.commit, origin.commit, warning=other)
    older = ""
    if origin.commit < journal.base:
        listing = command_line("bpbroker", "--config", str(own), "backups")
        older = (
            f"{own} is older (commit {origin.commit}) than what its broker wrote last (commit {journal.base}): it"
            f" counts as it is, what came later is not in it. Backups, perhaps newer: {listing}"
        )
    return Match({}, max(origin.commit, journal.sequence), origin.commit, warning=older)


def _stranger(own: Path, journal: JournalState, why: str) -> DamagedFile:
    alone = command_line("bpbroker", "--config", str(own), "restore", str(own))
    return DamagedFile(
        f"{own} and its journal {journal_path(own)} ({len(journal.changes)} changes) do not belong together: {why}."
        f" Put the right file there; or, to use this one without these changes (they are kept aside):\n  {alone}"
    )


def registry_of(origin: Origin | None, journal: JournalState) -> str:
    """Return the registry's id: the file's, else the journal's, else a new one."""
    return (origin.registry if origin else "") or journal.registry or secrets.token_hex(16)


def merged(entries: Mapping[str, bytes], changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Return the file's entries with the journal's changes."""
    result = dict(entries)
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result

"""The stored form of a record: its JSON, with its revision and its session as last keys. Pure.

This is what stands in the journal, in the configuration file, in a backup and in
etcd. There the revision is not known when a record is written, so only its place
in the commit is noted (``last_write_index``). Clients never see these keys, and may not use them.
"""

from __future__ import annotations

import re
from typing import Final

from bpbroker.record import INDEX_MAX, Record

_TRAILER: Final = re.compile(
    rb'(?:,? ?"last_write_(revision|index)": (\d{1,19}))?(?:,? ?"last_write_session": "([^"\\]{1,128})")?\}\Z'
)
_TRAILER_MAX: Final = 256
_KEY: Final = b'"last_write_'


def joined(record: Record, commit: int = 0) -> bytes:
    """Return the stored form of a record: with its revision, or with its place in the commit that writes it.

    Args:
        record: as a write left it, or as it is stored.
        commit: the revision of the commit that writes it, where that is known.
    """
    json, revision, session = record.json, record.revision, record.session
    if revision < INDEX_MAX and commit:
        revision += commit
    if not revision and not session:
        return json
    lead = b"" if json == b"{}" else b", "
    number = b'"last_write_revision": %d' if revision >= INDEX_MAX else b'"last_write_index": %d'
    if not session:  # as most have none
        return b"%b%b%b}" % (json[:-1], lead, number % revision)
    more = b'"last_write_session": "%b"' % session.encode()
    return b"%b%b%b}" % (json[:-1], lead, b"%b, %b" % (number % revision, more) if revision else more)


def split(name: str, stored: bytes, commit: int = 0) -> Record:
    """Return the record of a stored form.

    Args:
        name: the record's name.
        stored: JSON in UTF-8.
        commit: the revision of the commit that wrote it, where the store knows it.

    Returns:
        The record. Its revision is the one that stands in it, else its place after ``commit``, else 0.
    """
    for start in _starts_of_trailer(stored):
        found = _TRAILER.match(stored, start)
        if found is not None:
            break
    else:
        return Record(name, stored, commit)
    kind, number, session = found.groups()
    revision = int(number) if kind == b"revision" else commit + int(number or 0)
    return Record(name, stored[:start] + b"}", revision, (session or b"").decode())


def _starts_of_trailer(stored: bytes) -> list[int]:
    """Return where the registry's own keys may begin, the first place first.

    They are looked for from the end: to try the pattern at each byte costs ten times as much.
    """
    starts: list[int] = []
    lowest, end = max(0, len(stored) - _TRAILER_MAX), len(stored)
    for kinds in ((b"session",), (b"revision", b"index")):
        found = stored.rfind(_KEY, lowest, end)
        if found >= 0 and stored.startswith(kinds, found + len(_KEY)):
            end = found
            found -= stored[found - 1 : found] == b" "
            found -= stored[found - 1 : found] == b","
            starts.insert(0, found)
    return starts


def unrevised(stored: bytes) -> bytes:
    """Return a stored form without its revision: its entry may have been changed by hand."""
    record = split("", stored)
    return joined(record._replace(revision=0))


_OF_SESSIONS: Final = ("_session/", "_closed/", "_lock/", "_batch/")


def outlives_sessions(record: Record) -> bool:
    """Return whether a record needs no session: such ones a restore brings back, and a migration takes along."""
    return not record.session and not record.name.startswith(_OF_SESSIONS)

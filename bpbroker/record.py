"""A record: one entry as it is stored and sent. Its ETag is made here."""

from __future__ import annotations

from typing import Final, NamedTuple

INDEX_MAX: Final = 4096
"""A commit carries fewer writes than this. A lower revision is a place in a commit that is not durable yet, from 1 on:
0 stands for no change."""


def when(revision: int) -> tuple[bool, int]:
    """Return what sorts revisions as they come: a place in a commit that is not durable yet is behind all that are."""
    return revision < INDEX_MAX, revision


class Record(NamedTuple):
    """One entry as it is stored and answered, or something that the registry keeps beside the entries.

    A named tuple: each write makes two and each start one for each entry, and a frozen dataclass takes longer to make.
    """

    name: str
    json: bytes
    """The entry, its two ``last_write_*`` keys included, as a JSON object in UTF-8."""
    revision: int = 0
    """Of the change that made it so; below :data:`INDEX_MAX` its place in the commit that will make it durable."""
    session: str = ""
    """Id of the session with which it ends; empty: it stays."""
    age_secs: float | None = None
    """Of a local read: how long ago this was surely the newest state. None where it is now."""

    @property
    def etag(self) -> str:
        """Strong entity tag with its quotes (RFC 9110, section 8.8.3)."""
        return f'"{self.revision}"'

    def at(self, revision: int) -> Record:
        """Return it as it is when its commit is durable at a revision."""
        if self.revision >= INDEX_MAX:
            return self
        return Record(self.name, self.json, revision + self.revision, self.session)

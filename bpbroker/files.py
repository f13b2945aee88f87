"""Files that survive a crash: each is replaced as a whole or left as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from bpbroker.errors import StorageFailed, StorageFull, Unavailable

SYNC_EVERY_BYTES: Final = 1024 * 1024
"""A large file goes to the disk in pieces: one big fsync would hold up the journal's on the same disk."""

_BREATH_SECS: Final = 0.0005

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def replace(path: Path, chunks: Iterable[bytes]) -> None:
    """Put ``chunks`` in the place of the file at ``path``, mode 0600, durably.

    A symbolic link is followed. The new file belongs to the owner of the old
    one (else of the folder), so that a command run by root does not lock out a
    broker that runs as somebody else.

    Raises:
        StorageFull: no space; the old file is untouched.
        StorageFailed: anything else; ``outcome_known`` is False when the new
            file is in place but perhaps not for good.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{path.name}.tmp")
    renamed = False
    try:
        try:
            _write(temporary, path, chunks)
            os.replace(temporary, path)  # noqa: PTH105 - os.replace and Path.replace are the same; this one is atomic by name
            renamed = True
            sync_folder(path.parent)
        finally:
            if not renamed:
                with contextlib.suppress(OSError):
                    temporary.unlink()
    except OSError as error:
        raise storage_error(f"Cannot write {path}", error, outcome_known=not renamed) from error


def gently(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give chunks with a short sleep behind each: long work in one thread must not slow the requests of others.

    Without it a thread that computes keeps the interpreter's lock for 5 ms each time that another one wants it.
    """
    for chunk in chunks:
        yield chunk
        time.sleep(_BREATH_SECS)


def _write(temporary: Path, path: Path, chunks: Iterable[bytes]) -> None:
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # what a crash has left
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(descriptor, "wb", buffering=256 * 1024) as file:
        adopt_owner(descriptor, path)
        unsynced = 0
        for chunk in chunks:
            file.write(chunk)
            unsynced += len(chunk)
            if unsynced >= SYNC_EVERY_BYTES:
                file.flush()
                os.fsync(descriptor)
                unsynced = 0
        file.flush()
        os.fsync(descriptor)


def adopt_owner(descriptor: int, path: Path) -> None:
    """When run by root, give a new file to whom ``path`` belongs, or else its folder."""
    if sys.platform != "win32" and os.geteuid() == 0:
        try:
            before = path.stat()
        except FileNotFoundError:
            before = path.parent.stat()
        if (before.st_uid, before.st_gid) != (0, 0):
            os.fchown(descriptor, before.st_uid, before.st_gid)


def make_folder(folder: Path, owner_of: Path) -> None:
    """Make a folder, mode 0700, if it is not there; when run by root, for whom ``owner_of`` belongs to.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            adopt_owner(descriptor, owner_of)
        finally:
            os.close(descriptor)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable: what was created, renamed or removed there."""
    if sys.platform == "win32":  # a folder cannot be opened there, NTFS journals its names itself
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(what: str, error: OSError, *, outcome_known: bool = True) -> Unavailable:
    """Give the error of ours that an operating system's error while writing means."""
    reason = error.strerror or str(error)
    result = StorageFull if error.errno in NO_SPACE and outcome_known else StorageFailed
    raised = result(f"{what}: {reason}")
    raised.outcome_known = outcome_known
    return raised

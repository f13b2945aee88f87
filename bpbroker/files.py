"""Reading and writing files safely: whole or not at all, on the disk for good, never through a foreign link.

What a power cut leaves is the measure. A file that was written and not synced
may be empty or zeros afterwards, also when its rename is there; a name that
was made, renamed or removed may be as before until its folder was synced. So
:func:`write_whole` writes under another name, syncs that, renames it, syncs the
folder, and only then returns. Temporary names are never used twice: a
thread that was given up may still be writing under an older one. What a crash
left of them is removed by :func:`sweep` at the next start.

A folder that another user may write to can hold a link to any file of this
machine. Where this process is root, no link in such a folder is followed, and
no file in it that has a second name is opened; :mod:`bpbroker.foreign_folders`
has what root does there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from bpbroker import windows
from bpbroker.errors import ConfigurationError, StartError, StorageFailed, StorageFull, Unavailable

if TYPE_CHECKING:  # novm
    from typing import Self

SYNC_EVERY_BYTES: Final = 1024 * 1024
"""A large file goes to the disk in pieces: one big fsync would hold up the journal's on the same disk."""

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
MAY_PASS: Final = NO_SPACE | {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""A service manager tries again after these: they are no fault of the configuration."""

_BREATH_SECS: Final = 0.0005
_ALONE_SECS: Final = 10.0
_PAUSE_SECS: Final = 0.02
_PATIENCE_SECS: Final = 3.0
"""How long to try again what Windows refuses while another process, a virus scanner too, has a file open."""

_BINARY: Final = getattr(os, "O_BINARY", 0)
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)
"""A named pipe that lies under a file's name must not stop the process that opens it."""

_HALF: Final = re.compile(r"(.+)\.[0-9a-f]{16}\.tmp(?:-wal|-shm|-journal)?", re.ASCII | re.DOTALL)
"""A name from :func:`temporary_name`, and what SQLite puts beside it."""


class OutcomeUnknown(OSError):
    """The new file has its name, but whether that outlives a power cut is not known."""


# --- writing a file as a whole ---


_ZEROS_BYTES: Final = 1024 * 1024


def start_error(message: str, error: OSError) -> ConfigurationError | StartError:
    """Return the error of a start that cannot write or make something: one that is tried again if it may pass."""
    return (StartError if error.errno in MAY_PASS else ConfigurationError)(message)


def replace(
    path: Path, chunks: Iterable[bytes], *, mode: int = 0o600, renaming: AbstractContextManager[Any] | None = None
) -> None:
    """Put a new file in the place of the one at ``path``, as :func:`write_whole` does.

    Raises:
        StorageFull: no space; the old file is untouched.
        StorageFailed: anything else; ``outcome_known`` is False when the new
            file is in place but perhaps not for good.
    """
    try:
        write_whole(path, chunks, mode=mode, renaming=renaming)
    except OSError as error:
        known = not isinstance(error, OutcomeUnknown)
        raise storage_error(f"Cannot write {path}", error, outcome_known=known) from error


def write_whole(
    path: Path,
    chunks: Iterable[bytes],
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    follow: bool = True,
    renaming: AbstractContextManager[Any] | None = None,
) -> None:
    """Replace the file at ``path`` by a new one, durably; after an error the old one is still there.

    Args:
        path: its folder must exist.
        chunks: the new content, piece by piece.
        mode: the new file's permission bits, whatever the umask says; also where the old file had others.
        owner: user and group number; without it, and when run by root, the new file belongs to the owner of the
            old one, else of the folder, so that a command run by root does not lock out a broker of another user.
        follow: whether a symbolic link leads to the file that is replaced, as long as its folder is not
            :func:`untrusted`; without it the link itself is replaced.
        renaming: entered when the new file is whole, left when its name is durable. An error in it ends the
            writing, and the old file stays.

    Raises:
        OutcomeUnknown: the new file is there, but syncing its folder failed.
        OSError: anything else; the old file is untouched and no half is left.
    """
    if follow:
        path = _target(path)
    with _Folder(path.parent) as folder, contextlib.ExitStack() as until_durable:
        name = temporary_name(path.name)
        renamed = False
        try:
            with folder.create(name, mode) as file:
                descriptor = file.fileno()
                _give(descriptor, owner or _owner(folder.status(path.name), folder.status()))
                _fill(descriptor, file.write, file.flush, chunks)
                if renaming is not None:
                    until_durable.enter_context(renaming)
                if sys.platform != "win32":
                    # Renamed while it is open: its lock keeps a sweep of another process from it.
                    folder.rename(name, path.name)
                    renamed = True
            if not renamed:
                folder.rename(name, path.name)
                renamed = True
        finally:
            if not renamed:
                with contextlib.suppress(OSError):
                    folder.unlink(name)
        try:
            folder.sync()
        except OSError as error:
            raise OutcomeUnknown(error.errno, error.strerror, str(path)) from error


def temporary_name(name: str) -> str:
    """Return a new name for what is to become the file ``name``; :func:`sweep` knows it."""
    return f"{name}.{secrets.token_hex(8)}.tmp"


def settle(temporary: Path, path: Path) -> None:
    """Rename a finished file, written under a :func:`temporary_name` in the same folder, to its name; both synced.

    Raises:
        OSError: it cannot be synced or renamed.
    """
    sync_file(temporary)
    patiently(lambda: os.replace(temporary, path))  # noqa: PTH105 - as everywhere here
    sync_folder(path.parent)


def sweep(folder: Path, is_ours: Callable[[str], bool]) -> list[Path]:
    """Remove the halves that a crash left of files in a folder, and return their paths.

    Those that a living process writes are left alone, as far as the system can tell.

    Args:
        folder: need not exist.
        is_ours: whether a file or folder of this name is one that the caller makes.
    """
    swept = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            half = _HALF.fullmatch(path.name)
            if half is None or not is_ours(half[1]) or path.is_symlink() or _is_being_written(path):
                continue
            with contextlib.suppress(OSError):  # Windows keeps what is open elsewhere
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                swept.append(path)
    return swept


def patiently(act: Callable[[], None]) -> None:
    """Rename or remove something; on Windows again and again for a few seconds while another process has it open.

    Raises:
        OSError: it cannot be done.
    """
    end = time.monotonic() + (_PATIENCE_SECS if sys.platform == "win32" else 0.0)
    while True:
        try:
            act()
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(_PAUSE_SECS)
        else:
            return


def gently(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield chunks with a short sleep behind each: long work in one thread must not slow the requests of others.

    Without it a thread that computes keeps the interpreter's lock for 5 ms each time that another one wants it.
    """
    for chunk in chunks:
        yield chunk
        time.sleep(_BREATH_SECS)


def _fill(
    descriptor: int, write: Callable[[bytes], object], flush: Callable[[], object], chunks: Iterable[bytes]
) -> None:
    unsynced = 0
    for chunk in chunks:
        write(chunk)
        unsynced += len(chunk)
        if unsynced >= SYNC_EVERY_BYTES:
            flush()
            os.fsync(descriptor)
            unsynced = 0
    flush()
    os.fsync(descriptor)


def _is_being_written(path: Path) -> bool:
    if sys.platform == "win32":  # an open file cannot be removed there
        return path.is_dir() and _is_taken(windows.folder_mutex(path))
    import fcntl

    try:
        flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR  # a lock on NFS needs a writable file
        descriptor = os.open(path, flags | NO_LINK | NO_WAIT)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def is_private(mode: int) -> bool:
    """Whether a mode gives rights to the owner alone."""
    return not mode & (stat.S_IRWXG | stat.S_IRWXO)


if sys.platform == "win32":

    def _is_taken(mutex: windows.Mutex) -> bool:
        try:
            if not mutex.acquire(0):
                return True
            mutex.release()
            return False
        finally:
            mutex.close()


class _Folder:
    """An open folder: files are made and renamed in it, also when its path leads elsewhere meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        if sys.platform != "win32":
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def create(self, name: str, mode: int) -> BinaryIO:
        """Create a file that was not there, open for writing, its lock taken."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK | _BINARY
        if sys.platform == "win32":
            descriptor = _create(self._at(name), flags, mode)
        else:
            descriptor = os.open(self._at(name), flags, mode, dir_fd=self._descriptor)
        file = os.fdopen(descriptor, "wb", buffering=256 * 1024)
        try:
            if sys.platform != "win32":
                import fcntl

                os.fchmod(descriptor, mode)
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:  # interrupted, too, no descriptor stays open
            file.close()
            raise
        return file

    def status(self, name: str | None = None) -> os.stat_result | None:
        """Return what the system knows of a name in it, or of the folder itself; None if there is no such name."""
        if name is None:
            return self._path.stat() if self._descriptor is None else os.fstat(self._descriptor)
        try:
            return os.stat(self._at(name), dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def rename(self, old: str, new: str) -> None:
        """Rename, replacing what has the new name."""
        patiently(
            lambda: os.replace(self._at(old), self._at(new), src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        )

    def unlink(self, name: str) -> None:
        """Remove a name."""
        os.unlink(self._at(name), dir_fd=self._descriptor)

    def sync(self) -> None:
        """Make the names in it durable."""
        if self._descriptor is not None:  # NTFS journals its names itself
            os.fsync(self._descriptor)

    def _at(self, name: str) -> str:
        return name if self._descriptor is not None else str(self._path / name)


# --- files that stay open ---


def open_private(
    path: Path, flags: int, *, mode: int = 0o600, owner_of: Path | None = None, tighten: bool = False
) -> int:
    """Open a file of the broker's own, made when ``flags`` have ``O_CREAT``, and return its descriptor.

    A new file's name is not durable until :func:`sync_folder`.

    Args:
        path: is never followed when it is a symbolic link.
        flags: of :func:`os.open`.
        mode: permission bits of a new file.
        owner_of: to whose owner a new file is given when run by root; the folder's without it.
        tighten: whether a file that was there loses permission bits that are not in ``mode``.

    Raises:
        OSError: it cannot be opened; or it is a link, no regular file, or, in an :func:`untrusted` folder, has a
            second name. None of these was written to.
    """
    flags |= NO_LINK | NO_WAIT | _BINARY | getattr(os, "O_CLOEXEC", 0)
    descriptor, new = _open_or_create(path, flags, mode)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_nlink > 1 and untrusted(path.parent):
            raise OSError(errno.EMLINK, "it has a second name, in a folder that another user may write to", str(path))
        if new:
            adopt_owner(descriptor, owner_of or path.parent)
        elif flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
        if sys.platform != "win32" and tighten and found.st_mode & 0o7777 & ~mode:
            os.fchmod(descriptor, found.st_mode & mode)
        if sys.platform == "win32" and tighten and not new and is_private(mode) and windows.who_may(path):
            windows.make_private(path)
    except BaseException:  # interrupted, too, no descriptor stays open
        os.close(descriptor)
        raise
    return descriptor


def open_to_others(path: Path) -> bool:
    """Return whether others than its owner (and, on Windows, Administrators and SYSTEM) can use a file.

    Raises:
        OSError: it is not there, or the system does not tell.
    """
    if sys.platform == "win32":
        return bool(windows.who_may(path))
    return not is_private(path.stat().st_mode)


def _create(path: str | Path, flags: int, mode: int) -> int:
    """Create a file that was not there; on Windows a mode for the owner alone becomes an access control list."""
    if sys.platform == "win32" and is_private(mode):
        return windows.create_private(path, flags)
    return os.open(path, flags | os.O_EXCL, mode)


def _open_or_create(path: Path, flags: int, mode: int) -> tuple[int, bool]:
    """Return a descriptor, and whether this call made the file: only then may it be given away."""
    if flags & os.O_EXCL:
        return _create(path, flags, mode), True
    while True:
        try:
            return os.open(path, flags & ~os.O_CREAT & ~os.O_TRUNC), False
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        with contextlib.suppress(FileExistsError):  # another process was faster
            return _create(path, flags | os.O_EXCL, mode), True


def process_owner() -> tuple[int, int] | None:
    """Return the user and group number of this process; None where there are none."""
    return None if sys.platform == "win32" else (os.geteuid(), os.getegid())


def adopt_owner(descriptor: int, path: Path) -> None:
    """When run by root, give a new file to the owner of ``path``, or else of its folder."""
    if sys.platform != "win32" and os.geteuid() == 0:
        try:
            before = path.stat()
        except FileNotFoundError:
            before = path.parent.stat()
        _give(descriptor, (before.st_uid, before.st_gid))


def untrusted(folder: Path) -> bool:
    """Return whether another user than root may write to a folder; always False unless run by root.

    A link in such a folder may be a trap, to make root write somewhere else.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return False
    found = folder.stat()
    return found.st_uid != 0 or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _target(path: Path) -> Path:
    """Return the path of the file that ``path`` stands for.

    Raises:
        OSError: it is a link that must not be followed.
    """
    if not path.is_symlink():
        return path
    if untrusted(path.parent):
        raise OSError(errno.ELOOP, "it is a link, in a folder that another user may write to", str(path))
    return Path(os.path.realpath(path))


def _owner(file: os.stat_result | None, folder: os.stat_result | None) -> tuple[int, int] | None:
    """Return the owner of a new file: that of the one before; not of one that may have been linked there."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    before = file if file is not None and stat.S_ISREG(file.st_mode) and file.st_nlink == 1 else folder
    return None if before is None else (before.st_uid, before.st_gid)


def _give(descriptor: int, owner: tuple[int, int] | None) -> None:
    if sys.platform != "win32" and owner is not None:
        found = os.fstat(descriptor)
        if (found.st_uid, found.st_gid) != owner:
            os.fchown(descriptor, *owner)


# --- folders, names ---


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other process inside the same ``with`` on this folder meanwhile.

    Raises:
        OSError: the folder cannot be opened, or another process is inside for 10 seconds.
    """
    if sys.platform == "win32":  # a folder cannot be opened there
        mutex = windows.folder_mutex(folder)
        try:
            if not mutex.acquire(_ALONE_SECS):
                raise OSError(errno.EBUSY, "another process is changing files there", str(folder))
            try:
                yield
            finally:
                mutex.release()
        finally:
            mutex.close()
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        left = _ALONE_SECS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if left <= 0:
                    raise OSError(errno.EBUSY, "another process is changing files there", str(folder)) from None
            except OSError:
                break  # a file system without locks
            left -= _PAUSE_SECS
            time.sleep(_PAUSE_SECS)
        yield
    finally:
        os.close(descriptor)


def make_folder(folder: Path, owner_of: Path | None = None, *, mode: int = 0o700) -> None:
    """Make a folder and those above it if they are not there, durably.

    Args:
        folder: may be there already.
        owner_of: to whose owner it is given when run by root; without it nothing is given away.
        mode: its permission bits, if it is made; those above it get 0755.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    if folder.is_dir():
        with contextlib.suppress(OSError):  # one above that may only be passed through
            sync_folder(folder.parent)  # the process that made it may have been killed before this
        return
    make_folder(folder.parent, owner_of, mode=0o755)
    try:
        folder.mkdir(mode=mode)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | NO_LINK)
        try:
            os.fchmod(descriptor, mode)  # the starter's umask is not asked
            if owner_of is not None:
                adopt_owner(descriptor, owner_of)
        finally:
            os.close(descriptor)
    elif is_private(mode):
        windows.make_private(folder, folder=True)
    sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Remove a file for good; it need not be there.

    Raises:
        OSError: it is there and cannot be removed.
    """
    patiently(lambda: path.unlink(missing_ok=True))
    sync_folder(path.parent)  # also when it was gone: the process that removed it may have been killed before this


def rename(old: Path, new: Path) -> None:
    """Rename a file, or a folder whose files are synced, durably; replaces a file that has the new name.

    Raises:
        OSError: it cannot be done.
    """
    patiently(lambda: os.replace(old, new))  # noqa: PTH105 - as everywhere here
    sync_folder(new.parent)
    if old.parent != new.parent:
        sync_folder(old.parent)


def overwrite(descriptor: int, start: int = 0) -> None:
    """Overwrite a file with zeros from a place to its end, and sync it.

    Raises:
        OSError: it cannot be written.
    """
    end, at = os.fstat(descriptor).st_size, start
    os.lseek(descriptor, start, os.SEEK_SET)
    while at < end:
        at += os.write(descriptor, bytes(min(_ZEROS_BYTES, end - at)))
    os.fsync(descriptor)


@contextmanager
def overwriting(path: Path) -> Iterator[None]:
    """Overwrite what a file was before the block put another one in its place, unless it has another name, too.

    On Windows it is only removed: a file that is open cannot be replaced there.

    Raises:
        Unavailable: it cannot be opened or written.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise storage_error(f"Cannot overwrite {path}", error) from None
    try:
        yield
        if os.fstat(descriptor).st_nlink == 0:
            overwrite(descriptor)
    except OSError as error:
        raise storage_error(f"Cannot overwrite what {path} was", error) from None
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable, through whichever descriptor it was written.

    Raises:
        OSError: it cannot be opened or synced.
    """
    descriptor = os.open(path, os.O_RDWR | _BINARY | NO_LINK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """Return the error of ours that an operating system's error while writing means."""
    reason = error.strerror or str(error)
    if error.errno == errno.EBUSY:  # a file that is a mount itself can be written, but not replaced
        reason += "; if the file itself is mounted, as in a container, mount its folder instead"
    result = StorageFull if error.errno in NO_SPACE and outcome_known else StorageFailed
    raised = result(f"{what}: {reason}")
    raised.outcome_known = outcome_known
    return raised

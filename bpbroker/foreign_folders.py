"""Root in folders of other users: no link there is followed, nothing is given away or removed by its name alone.

A folder that another user may write to can hold a link to any file of this
machine, and what lies under a name may be another file a moment later. So
folders are opened one in the other, each without following a link that another
user may have made, and files are changed by their descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from bpbroker import windows
from bpbroker.files import NO_LINK, NO_WAIT, is_private, make_folder


def exposed(path: Path, trusted: Iterable[int] = (0,)) -> Path | None:
    """Return what another user may write to: a file or folder, or one of those above it; None if there is nothing.

    Args:
        path: need not exist; a link is followed, and the folders that hold links are looked at, too.
        trusted: numbers of the users who may.
    """
    if sys.platform == "win32":
        return None
    trusted = frozenset(trusted)
    for place in _places(path):
        for part in (place, *place.parents):
            try:
                found = part.lstat()
            except OSError:
                continue
            writers = stat.S_IWOTH | (stat.S_IWGRP if found.st_gid != 0 else 0)
            open_to_others = not stat.S_ISLNK(found.st_mode) and bool(found.st_mode & writers)
            # In a sticky folder, such as /tmp, no user can rename files of another user.
            if found.st_uid not in trusted or (open_to_others and (part == place or not found.st_mode & stat.S_ISVTX)):
                return part
    return None


def _places(path: Path) -> Iterator[Path]:
    """Yield a path, what it leads to when its first link is followed, and so on: the last is the real one.

    A user who can replace one of these links decides where the path leads.
    """
    here = path.absolute()
    for _ in range(_LINKS_MAX):
        yield here
        link = next((part for part in (*reversed(here.parents), here) if part.is_symlink()), None)
        if link is None:
            return
        here = Path(os.path.normpath(link.parent / link.readlink() / here.relative_to(link)))


def open_folder(path: Path, *, create: bool = False) -> int:
    """Open a folder step by step, and return its descriptor, which stays with this folder if its path changes.

    A symbolic link on the way is followed only where no other user could have put it.

    Args:
        path: absolute.
        create: whether what is missing is made, with mode 0755.

    Raises:
        OSError: it is not there, or no folder, or a link that must not be followed.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    here = os.open(path.anchor, flags)
    names = list(path.parts[1:])
    links = 0
    try:
        while names:
            name = names.pop(0)
            try:
                following = os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
            except FileNotFoundError:
                if not create:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=here)
                    os.fsync(here)
                names.insert(0, name)
                continue
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                target = _link(name, here)
                if target is None:
                    raise
                links += 1
                if links > _LINKS_MAX or not _is_ours(os.fstat(here)):
                    why = "there is a link on its way, in a folder that another user may write to"
                    raise OSError(errno.ELOOP, why, str(path)) from None
                names[:0] = target.parts
                if not target.is_absolute():
                    continue
                following = os.open(names.pop(0), flags)
            os.close(here)
            here = following
    except BaseException:  # interrupted, too, no descriptor stays open
        os.close(here)
        raise
    return here


_LINKS_MAX: Final = 40


def _link(name: str, folder: int) -> Path | None:
    try:
        return Path(os.readlink(name, dir_fd=folder))
    except OSError:
        return None


def _is_ours(folder: os.stat_result) -> bool:
    """Whether only root and this process's user may write to a folder."""
    return folder.st_uid in (0, os.geteuid()) and not folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def permit_folder(path: Path, mode: int, owner: tuple[int, int] | None) -> bool:
    """Give a folder its mode and owner, and make it if it is not there; return whether anything changed.

    Args:
        path: absolute; never followed through a link of another user's.
        mode: permission bits.
        owner: user and group number.

    Raises:
        OSError: it cannot be done.
    """
    if sys.platform == "win32":
        there = path.is_dir()
        make_folder(path, mode=mode)
        if there and is_private(mode) and windows.who_may(path):
            windows.make_private(path, folder=True)
            return True
        return not there
    there = path.is_dir()
    descriptor = open_folder(path, create=True)
    try:
        found = os.fstat(descriptor)
        changed = not there
        if found.st_mode & 0o7777 != mode:
            os.fchmod(descriptor, mode)
            changed = True
        if owner is not None and (found.st_uid, found.st_gid) != owner:
            os.fchown(descriptor, *owner)
            changed = True
    finally:
        os.close(descriptor)
    return changed


def give_file(path: Path, owner: tuple[int, int]) -> bool:
    """Give a regular file of one name to another user; return whether it was not that user's and is now.

    A link, or a file that has a second name, is left alone: it may be any file of this machine.

    Args:
        path: absolute.
        owner: user and group number.

    Raises:
        OSError: it cannot be done.
    """
    folder = open_folder(path.parent)
    try:
        seen = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(seen.st_mode):
            return False
        descriptor = os.open(path.name, os.O_RDONLY | NO_LINK | NO_WAIT | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid == owner[0]:
            return False
        os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)
    return True


def remove_all(path: Path, *, only_if_empty: bool = False) -> bool:
    """Remove a file, a link, or a folder with what is in it; return whether there was one.

    Args:
        path: absolute; no link of another user's is followed on its way.
        only_if_empty: a folder with something in it stays, and False is returned.

    Raises:
        OSError: it cannot be done.
    """
    if sys.platform == "win32":
        return _remove_by_name(path, only_if_empty=only_if_empty)
    try:
        folder = open_folder(path.parent)
    except FileNotFoundError:
        return False
    try:
        found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        if only_if_empty:
            with contextlib.suppress(OSError):
                os.rmdir(path.name, dir_fd=folder)
                return True
            return False
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path.name, dir_fd=folder)  # novm: the client removes no folder
        else:
            os.unlink(path.name, dir_fd=folder)
    except FileNotFoundError:
        return False
    finally:
        os.close(folder)
    return True


def _remove_by_name(path: Path, *, only_if_empty: bool) -> bool:
    if only_if_empty:
        with contextlib.suppress(OSError):
            path.rmdir()
            return True
        return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return True
    there = path.exists() or path.is_symlink()
    path.unlink(missing_ok=True)
    return there

"""Control groups for what extension calls start, where the system lets this broker make some (Linux, cgroup v2).

A process cannot leave its control group by forking, by a session of its own or
by the death of its parent, and the kernel kills a whole group at once. Each
child process has a group that holds nothing but itself and what the call in
hand has started: what a call that went well left running, such as a daemon,
keeps the group that it is in, and the child gets a fresh one before its next
call. So an ordinary call costs one look at a file and moves nothing.

The broker moves itself into a leaf beside those groups, because a group that has
groups below it must hold no process once a controller is on (cgroups(7)).

::

    system.slice/bpbroker.service/            the group that systemd gives us (Delegate=yes)
        bpbroker-1234                         the broker
        extension-ossec-1234-1                a child, and what its call has started
        extension-ossec-1234-0                what an earlier call has left running
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final, Self

logger = logging.getLogger(__name__)

_OURS: Final = re.compile(r"bpbroker-([0-9]+)|extension-.*-([0-9]+)-[0-9]+")
_LEAF: Final = re.compile(r"bpbroker-[0-9]+")
_OF_SYSTEMD: Final = (".service", ".scope", ".slice")
_ROUNDS_MAX: Final = 200
"""On a kernel without ``cgroup.kill``: what a group forks faster than it is killed is chased so often."""
_PAUSE_SECS: Final = 0.001


def own_folder(groups: str, mounts: str) -> tuple[Path, bool] | None:
    """Return the folder of this process's group, and whether it is the topmost that can be seen here.

    Args:
        groups: what ``/proc/self/cgroup`` says.
        mounts: what ``/proc/self/mountinfo`` says.

    Returns:
        None without a cgroup v2, or when the group is outside of what is mounted.
    """
    own = next((line[3:] for line in groups.splitlines() if line.startswith("0::/")), None)
    if own is None or own.endswith(" (deleted)") or ".." in own.split("/"):
        return None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] != "cgroup2":
            continue
        root, point = (_unescaped(field) for field in before.split(" ")[3:5])
        if PurePosixPath(own).is_relative_to(root):
            return Path(point) / PurePosixPath(own).relative_to(root), own == root
    return None


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


class Groups:
    """The group that was given to this broker, in which it makes those of its extension calls.

    Args:
        folder: its folder; a test names one, :meth:`enter` finds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leaf = folder / f"bpbroker-{os.getpid()}"
        self._numbers = itertools.count()
        self._left: list[Path] = []
        """Groups in which something runs that an earlier call has left behind; removed when they are empty."""

    @classmethod
    def enter(cls) -> Self | None:
        """Move this process into a leaf of its group; None where no groups can or may be made.

        That is so outside of Linux, without cgroup v2, in a group that this
        user cannot write, and in one that the service manager keeps for itself.
        """
        if sys.platform != "linux":
            return None
        try:
            found = own_folder(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
        except (OSError, UnicodeError):
            return None
        if found is None:
            return None
        folder, topmost = found
        if not topmost and _LEAF.fullmatch(folder.name):  # a broker that started this one has made that
            folder = folder.parent
        if not _is_given(folder, topmost=topmost):
            return None
        groups = cls(folder)
        try:
            groups.move_in()
        except OSError as error:
            logger.info("No control groups for what extension calls start: %s: %s", folder, error.strerror)
            return None
        logger.info("What extension calls start is kept together by control groups below %s", folder)
        return groups

    def move_in(self) -> None:
        """Make the leaf and move this process into it, with all its threads.

        Raises:
            OSError: the group does not allow it; nothing is left behind.
        """
        for old in self._stale():
            _remove(old)
        with suppress(FileExistsError):
            self._leaf.mkdir()
        try:
            _write(self._leaf / "cgroup.procs", "0")  # the one that writes it
        except OSError:
            _remove(self._leaf)
            raise

    def leave(self) -> None:
        """Move this process back and remove the groups that are empty: at the broker's end."""
        with suppress(OSError):  # a controller was switched on meanwhile; the next broker removes the leaf
            _write(self._folder / "cgroup.procs", "0")
        self.tidy()
        _remove(self._leaf)

    def hold(self, namespace: str, pid: int) -> Tree | None:
        """Put a child process that has started nothing yet into a group of its own; None when that fails."""
        try:
            return Tree(self, namespace, pid)
        except OSError as error:
            logger.warning("No control group for a process of %s: %s", namespace, error.strerror)
            return None

    def make(self, namespace: str) -> Path:
        """Make a fresh group.

        Raises:
            OSError: there can be no more, or the folder was taken away.
        """
        self.tidy()
        folder = self._folder / f"extension-{namespace[:100]}-{os.getpid()}-{next(self._numbers)}"
        folder.mkdir()
        return folder

    def give_back(self, folder: Path) -> None:
        """Remove a group, now or when what runs in it has ended."""
        if not _remove(folder):
            self._left.append(folder)

    def tidy(self) -> None:
        """Remove the groups that have become empty."""
        for folder in list(self._left):
            if _remove(folder):
                with suppress(ValueError):  # another thread has seen it, too
                    self._left.remove(folder)

    def _stale(self) -> Iterator[Path]:
        """Yield groups of brokers that run no more."""
        for entry in self._folder.iterdir():
            found = _OURS.fullmatch(entry.name)
            if found is not None and not Path("/proc", found[1] or found[2]).exists():
                yield entry


class Tree:
    """One child process and what the call in hand has started: everything in its group.

    Raises:
        OSError: no group can be made.
    """

    def __init__(self, groups: Groups, namespace: str, pid: int) -> None:
        self._groups = groups
        self._namespace = namespace
        self._pid = pid
        self._folder = self._made()

    def _made(self) -> Path:
        folder = self._groups.make(self._namespace)
        try:
            _write(folder / "cgroup.procs", str(self._pid))
        except OSError:
            _remove(folder)
            raise
        return folder

    def begin(self) -> None:
        """Check that the child is alone in its group: processes that were started before do not belong to later calls.

        Raises:
            OSError: it is not, and no other group can be made.
        """
        # A folder has two links, and one for each folder in it.
        if _pids(self._folder) == [self._pid] and self._folder.stat().st_nlink <= 2:
            return
        before, self._folder = self._folder, self._made()
        self._groups.give_back(before)

    def kill(self) -> None:
        """Kill everything in the group, the child as well; from any thread, in any state of theirs."""
        try:
            _write(self._folder / "cgroup.kill", "1")
        except OSError:  # Linux before 5.14, or it is gone
            kill_one_by_one(self._folder)

    def close(self) -> None:
        """Remove the group, when the child has been reaped."""
        self._groups.give_back(self._folder)


def kill_one_by_one(folder: Path) -> None:
    """Kill all processes of a group and of those below it, on a kernel that cannot do so at once.

    They are frozen first, so that none forks, ends or gives its number away meanwhile
    (Linux 5.2); on an older one they are chased.
    """
    with suppress(OSError):
        _write(folder / "cgroup.freeze", "1")
        for _ in range(_ROUNDS_MAX):
            if "frozen 1" in (folder / "cgroup.events").read_text().splitlines():
                break
            time.sleep(_PAUSE_SECS)
    for _ in range(_ROUNDS_MAX):
        held: dict[int, int] = {}
        try:
            for pid in _pids_below(folder):
                with suppress(OSError):
                    held[pid] = os.pidfd_open(pid)
            # Only a number that is still there belongs to the process that is held.
            for pid in _pids_below(folder):
                if pid in held:
                    with suppress(OSError):
                        signal.pidfd_send_signal(held[pid], signal.SIGKILL)
        finally:
            for descriptor in held.values():
                os.close(descriptor)
        if not held:
            break
        time.sleep(_PAUSE_SECS)
    with suppress(OSError):
        _write(folder / "cgroup.freeze", "0")


def _is_given(folder: Path, *, topmost: bool) -> bool:
    """Return whether we may make groups in this one.

    What a service manager has not delegated is its own, even if root could write
    there. systemd marks what it delegates; what this user can write below
    something that he cannot was given to him as well.
    """
    if not (folder / "cgroup.type").exists():  # the root of the tree has no type, and belongs to the system
        return False
    if not _writable(folder) or not _writable(folder / "cgroup.procs"):
        return False
    if topmost or not folder.name.endswith(_OF_SYSTEMD) or not _writable(folder.parent):
        return True
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _pids(folder: Path) -> list[int]:
    """Return the processes of a group; those that are outside of our PID namespace are not shown."""
    try:
        return [pid for pid in map(int, (folder / "cgroup.procs").read_bytes().split()) if pid]
    except OSError:
        return []


def _pids_below(folder: Path) -> list[int]:
    return [pid for each, _, _ in os.walk(folder) for pid in _pids(Path(each))]


def _remove(folder: Path) -> bool:
    """Remove a group and those below it; return whether it is gone: one with processes stays."""
    for each, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            Path(each).rmdir()
    return not folder.exists()


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)

"""One broker per configuration file, by an OS lock on ``<file>.lock``.

The kernel releases it when its process dies, however that happens, so there
is nothing stale to clean up. The lock file's content is a note about the
running broker for the local ``bpbroker`` command: pid, port, address,
certificate fingerprint and a control token. It is readable by the owner only
and means nothing while the lock is free.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from bpbroker import files, windows
from bpbroker.errors import ConfigurationError, InUse, StartError
from bpbroker.text import command_line

_TRIES = 20
_PAUSE_SECS = 0.02
"""A look at the lock takes it for a moment; a process that wants it for good tries a little longer than that."""

_NOTE_BYTES = 4096


class FileLock:
    """The lock of one configuration file."""

    def __init__(self, config_file: Path) -> None:
        self._config_file = config_file
        self._path = lock_path(config_file)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            InUse: another process holds it; the message names it and says what to do.
            ConfigurationError: the lock file cannot be made, or is a link.
        """
        try:
            # Its note has the control token: a file that others could read so far is closed to them first.
            descriptor = files.open_private(
                self._path, os.O_RDWR | os.O_CREAT, owner_of=self._config_file, tighten=True
            )
        except OSError as error:
            raise self._cannot_write(error) from None
        for attempt in range(_TRIES):
            if _try_lock(descriptor, alone=True):
                self._descriptor = descriptor
                try:
                    self.describe(**process_note())
                except OSError as error:
                    self.release()
                    raise self._cannot_write(error) from None
                return
            if attempt < _TRIES - 1:
                time.sleep(_PAUSE_SECS)
        note = _read_note(descriptor)
        os.close(descriptor)
        who = f"process {note['pid']}" if "pid" in note else "another process"
        stop = command_line("bpbroker", "--config", str(self._config_file), "stop")
        raise InUse(f"{self._config_file} is in use by {who}; stop that broker first: {stop}")

    def _cannot_write(self, error: OSError) -> ConfigurationError | StartError:
        """Return the error for a lock file that cannot be written; a full disk or table may have room again later."""
        return files.start_error(f"Cannot write {self._path}: {error.strerror}", error)

    def describe(self, **note: Any) -> None:
        """Write the note, replacing the one before. Only while the lock is held."""
        if self._descriptor is None:
            raise RuntimeError("describe() without the lock")
        text = json.dumps(note).encode().ljust(_NOTE_BYTES)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, text)  # in one piece and always as long: a reader sees no half of it

    def release(self) -> None:
        """Release the lock; to do so twice does no harm."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def machine_secs() -> float:
    """Return the seconds since the machine was started, those asleep included where the system counts them."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def process_note() -> dict[str, Any]:
    """Return what a note says of this process: its id, and what tells it later from another process with that id."""
    return {"pid": os.getpid(), "process": _identity(os.getpid())}


def is_process_of(note: Mapping[str, Any]) -> bool:
    """Whether the process id in a note is that of the process that wrote it.

    A number means nothing in another PID namespace (a container), after a boot,
    or when its process has ended and another one has got it. Where the system
    does not say more, the number has to be enough.
    """
    pid = note.get("pid")
    return isinstance(pid, int) and pid > 0 and note.get("process", "") == _identity(pid)


def _identity(pid: int) -> str:
    """Return PID namespace, boot and start time of a process in one word; empty where the system does not tell."""
    if sys.platform == "win32":
        began = windows.started(pid)
        return "" if began is None else f"started {began}"
    try:
        namespace = Path("/proc/self/ns/pid").readlink()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        # The name in the second field may hold anything; the start time is the 20th behind it (proc(5)).
        started = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError, ValueError):
        return ""
    return f"{namespace} {boot} {started}"


def lock_path(config_file: Path) -> Path:
    """Return the lock file of a configuration file."""
    return config_file.with_name(f"{config_file.name}.lock")


def holder(config_file: Path) -> dict[str, Any] | None:
    """Return the note of the broker that runs on this file, or None when none does.

    Raises:
        ConfigurationError: the lock file is there but may not be read by this user.
    """
    try:
        descriptor = files.open_private(lock_path(config_file), os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError as error:
        advice = "" if error.errno in files.MAY_PASS else "; try as its owner"
        raise files.start_error(f"Cannot read {lock_path(config_file)}: {error.strerror}{advice}", error) from None
    try:
        if _try_lock(descriptor, alone=False):
            return None
        note = _read_note(descriptor)
        # Who takes the lock has it a moment before its note is there: what stands there then is of a broker that died.
        return {} if sys.platform == "win32" and _is_of_the_dead(note) else note
    finally:
        os.close(descriptor)


def _is_of_the_dead(note: Mapping[str, Any]) -> bool:
    return bool(note.get("process")) and _identity(note.get("pid", 0)) not in ("", note["process"])


def _read_note(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        note = json.loads(os.read(descriptor, _NOTE_BYTES))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


if sys.platform == "win32":
    _BEYOND = 1 << 30  # Windows locks bytes; this one is past the note, which stays readable

    def _try_lock(descriptor: int, *, alone: bool) -> bool:
        return windows.try_lock(descriptor, _BEYOND, alone=alone)
else:
    import fcntl

    def _try_lock(descriptor: int, *, alone: bool) -> bool:
        # flock, not lockf: it belongs to the open file, so it survives the daemoniser's forks,
        # and closing another descriptor of the same file does not release it.
        # Those who only look share it, so that two of them do not take each other for a broker.
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

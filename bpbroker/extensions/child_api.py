"""What an extension's module finds in its process beside ``rh``: configuration, lock, log."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any, Never

from bpbroker import windows


class ReadOnly(dict[str, Any]):
    """A dict that refuses to be changed; unlike other read-only mappings it can be given to ``json.dumps``."""

    @classmethod
    def of(cls, value: Any) -> Any:
        """Return a JSON value with every object in it read-only."""
        if isinstance(value, dict):
            return cls({key: cls.of(item) for key, item in value.items()})
        return [cls.of(item) for item in value] if isinstance(value, list) else value

    def _refuse(self, *_: Any, **__: Any) -> Never:
        raise TypeError("the broker's configuration is read-only here; a changed copy is made with dict(…)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # copies are plain


class SharedLock:
    """``bpbroker.config.rlock`` where several processes run calls: excludes threads here and the other processes.

    Record locks belong to a process, so all children can lock the same open
    file; on Windows it is a mutex of the same name. The kernel releases it when
    a process dies.

    Args:
        lock: descriptor of the file, or the mutex's name.
    """

    def __init__(self, lock: int | str) -> None:
        self._others: _Mutex | _RecordLock = _Mutex(lock) if isinstance(lock, str) else _RecordLock(lock)
        self._threads = threading.RLock()
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; ``timeout`` counts for the threads of this process only."""
        if not self._threads.acquire(blocking, timeout):
            return False
        if self._depth == 0 and not self._others.acquire(blocking):
            self._threads.release()
            return False
        self._depth += 1
        return True

    def release(self) -> None:
        """Release the lock once."""
        if self._depth == 1:
            self._others.release()
        self._depth -= 1
        self._threads.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _RecordLock:
    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor

    def acquire(self, blocking: bool) -> bool:
        import fcntl

        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        import fcntl

        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


class _Mutex:
    def __init__(self, name: str) -> None:
        if sys.platform == "win32":
            self._mutex = windows.Mutex(name)

    def acquire(self, blocking: bool) -> bool:
        return sys.platform == "win32" and self._mutex.acquire(None if blocking else 0)

    def release(self) -> None:
        if sys.platform == "win32":
            self._mutex.release()


class _PriorityFormatter(logging.Formatter):
    """Marks each line with its level as sd-daemon(3) does; the broker reads it back."""

    def format(self, record: logging.LogRecord) -> str:
        number = 3 if record.levelno >= logging.ERROR else 4 if record.levelno >= logging.WARNING else 6
        if record.levelno < logging.INFO:
            number = 7
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())


def log_to_broker(namespace: str) -> logging.Logger:
    """Send what the module logs, by whatever logger, to standard error; return the logger for ``rh.log``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PriorityFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.raiseExceptions = False
    return logging.getLogger(namespace)

"""The Unix socket beside a configuration file, at which commands on this machine reach the broker that runs on it.

It works where no loopback address is: in a network namespace without ``lo``,
or when the broker listens on another address that is not up. Its owner alone
may connect (mode 0600). Windows has none; there, and where one cannot be made,
commands use TCP.

A socket's path may have 107 bytes, so it is reached through its folder's
descriptor.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PATH_MAX_BYTES: Final = 100
_BACKLOG: Final = 64


def socket_path(config_file: Path) -> Path:
    """Return the path of the socket of the broker that runs on a configuration file."""
    return config_file.with_name(f"{config_file.name}.sock")


def bind(config_file: Path) -> socket.socket | None:
    """Make the socket, not blocking and listening; None where there can be none. Only under the file's lock.

    Raises:
        OSError: it cannot be made.
    """
    if sys.platform == "win32":
        return None
    path = socket_path(config_file)
    remove(config_file)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as short:
            # Linux makes the file with the mode that the socket has: nothing is changed by name, where another user who
            # may write to the folder could have put a link meanwhile.
            with contextlib.suppress(OSError):
                os.fchmod(sock.fileno(), 0o600)
            sock.bind(short)
        if path.lstat().st_mode & 0o077 and os.chmod in os.supports_follow_symlinks:
            path.chmod(0o600, follow_symlinks=False)  # macOS; nothing can connect before it listens
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def remove(config_file: Path) -> None:
    """Remove the socket, if there is one; what is no socket stays."""
    path = socket_path(config_file)
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def connect(config_file: Path, timeout_secs: float) -> socket.socket | None:
    """Return a connection to the broker; None where it has no socket or accepts no connection."""
    if sys.platform == "win32":
        return None
    path = socket_path(config_file)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_secs)
    try:
        with _short(path) as short:
            sock.connect(short)
    except OSError:
        sock.close()
        return None
    return sock


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a path of the same socket that is short enough for the system."""
    if len(os.fsencode(path)) <= _PATH_MAX_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)

"""What differs between systems: which tests are for one of them, who may read a file, how listening is ended."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bpbroker import windows


def posix_only(reason: str) -> pytest.MarkDecorator:
    """Return the mark of a test that is about something which Windows does not have: ``reason`` names it."""
    return pytest.mark.skipif(sys.platform == "win32", reason=f"POSIX only: {reason}")


def windows_only(reason: str) -> pytest.MarkDecorator:
    """Return the mark of a test that is about Windows alone."""
    return pytest.mark.skipif(sys.platform != "win32", reason=f"Windows only: {reason}")


def slow_under_wine(secs: int) -> pytest.MarkDecorator:
    """Return the mark of a test that takes long under Wine, and is about nothing that systems do differently.

    Args:
        secs: about how long it takes there.
    """
    skipped = is_wine() and not os.environ.get("BPBROKER_LONG")
    return pytest.mark.skipif(skipped, reason=f"{secs} s under Wine: only with BPBROKER_LONG=1")


def is_root() -> bool:
    """Return whether this process may become any user, give files away, chroot: no user of Windows may."""
    return sys.platform != "win32" and os.geteuid() == 0


def is_wine() -> bool:
    """Return whether this Windows is Wine's approximation."""
    if sys.platform == "win32":
        import ctypes

        return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")
    return False


def is_private(path: Path) -> bool:
    """Return whether a file or folder is open to its owner alone: by its mode, or by its list on Windows."""
    if sys.platform == "win32":
        return windows.who_may(path) == ()
    return path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def end_listening(listening: socket.socket) -> None:
    """Close a listening socket, so that a thread which waits in ``accept`` gets an :class:`OSError`."""
    with suppress(OSError):  # what wakes the thread on Linux, and is no call for such a socket on Windows
        listening.shutdown(socket.SHUT_RDWR)
    listening.close()

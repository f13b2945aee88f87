"""The PID file of a service: written when the broker is ready, removed at its end.

Only for init scripts. The broker itself relies on the lock of its
configuration file, so what an old PID file says never keeps it from starting.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bpbroker import files


def write_pid(path: Path) -> None:
    """Write this process's id, whatever the file said before.

    Raises:
        ConfigurationError, StartError: it cannot be written.
    """
    try:
        files.write_whole(path, [b"%d\n" % os.getpid()], mode=0o644, owner=files.process_owner(), follow=False)
    except OSError as error:
        raise files.start_error(f"Cannot write the PID file {path}: {error.strerror}", error) from None


def remove_pid(path: Path) -> None:
    """Remove the file if it still is this process's."""
    with suppress(OSError, ValueError):
        if int(path.read_text(encoding="ascii")) == os.getpid():
            path.unlink()

"""Whether another user can run the Python of these tests: one in root's home cannot be reached."""

from __future__ import annotations

import functools
import subprocess
import sys


@functools.cache
def can_run_python(user: int) -> bool:
    """Return whether a process of this user can import the product and its libraries."""
    ended = subprocess.run(
        ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", sys.executable, "-c",
         "import bpbroker.cli, ifaddr"],
        cwd="/", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return ended.returncode == 0

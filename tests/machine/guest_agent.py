"""Runs inside the machine and carries out commands that the host sends over a virtio-serial port.

It needs no network. A line from the host is a JSON object with ``id``,
``command`` (for ``/bin/sh``) and ``timeout_secs``; the reply has the same ``id``,
``code``, ``out`` and ``err``. At its start it says hello with the boot's id.

:mod:`tests.machine.image` copies this file into the image; it uses the standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PORT_NAME = "bpbroker.agent"
ROOTS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_port() -> Path:
    """Return the device of the virtio-serial port; wait until the kernel knows it."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT_NAME:
                return Path("/dev") / name.parent.name
        time.sleep(0.1)


def lines_of(port: int) -> Iterator[bytes]:
    """Yield lines; a read of nothing means that the host is not connected now."""
    rest = b""
    while True:
        read = os.read(port, 65536)
        if not read:
            time.sleep(0.1)
            continue
        *lines, rest = (rest + read).split(b"\n")
        yield from lines


def carry_out(command: str, timeout_secs: float) -> dict[str, object]:
    """Run a command in a session of its own; 124 is the code of one that took too long."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_secs,
            check=False,
            start_new_session=True,
            env={**os.environ, "PATH": ROOTS_PATH},
        )
    except subprocess.TimeoutExpired:
        return {"code": 124, "out": "", "err": f"no end within {timeout_secs} s"}
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def main() -> None:
    """Say hello, then carry out one command after the other, for ever."""
    port = os.open(find_port(), os.O_RDWR)

    def send(message: dict[str, object]) -> None:
        unsent = json.dumps(message).encode() + b"\n"
        while unsent:
            unsent = unsent[os.write(port, unsent) :]

    send({"hello": Path("/proc/sys/kernel/random/boot_id").read_text().strip()})
    for line in lines_of(port):
        try:
            wanted = json.loads(line)
        except ValueError:
            continue  # half a line from before a reset
        send({"id": wanted["id"], **carry_out(wanted["command"], wanted["timeout_secs"])})


if __name__ == "__main__":
    main()

"""A machine on which our bundle is installed and the broker is a service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.machine.image import Image
from tests.machine.vm import Machine
from tests.machine.writers import Api, Writers, await_broker, entries

TOP = Path(__file__).parents[2]
UP_SECS = 300.0
"""The interpreter alone takes seconds to start in software."""

FILES = "/usr/local/bpbroker/etc"


def build_bundle(folder: Path) -> Path:
    """Build the bundle for networks without an index; return it as a disk that a machine can read."""
    bundle = folder / "bundle.tar.gz"
    environ = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([TOP / "deploy/build-bundle", bundle], env=environ, check=True, timeout=300, capture_output=True)
    with bundle.open("ab") as file:
        file.truncate(-(-file.tell() // 4096) * 4096)  # a disk has whole sectors; gzip reads over zeros at the end
    return bundle


def install(image: Image, folder: Path, bundle: Path, accel: str) -> Path:
    """Install the bundle and the service on a machine without a network card, as an operator does; return its disk."""
    devices = ("-drive", f"file={bundle},format=raw,if=virtio,readonly=on")
    machine = Machine(image, folder, devices=devices, network=False, accel=accel)
    try:
        machine.switch_on()
        machine.run("tar -xzf /dev/vdb -C /root && /root/bpbroker-offline/install", timeout_secs=1200.0)
        machine.run("rm -r /root/bpbroker-offline && bpbroker install-service", timeout_secs=600.0)
        machine.switch_off()
    finally:
        machine.kill()
    return machine.disk


class Host:
    """An installed machine, with what a test asks of its broker."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.writers = Writers()
        self.systemd = machine.image.init == "systemd"
        self.run = machine.run

    def service(self, action: str) -> str:
        """Start, stop, restart the service as an operator of this init system does."""
        words = f"{action} bpbroker" if self.systemd else f"bpbroker {action}"
        done = self.machine.try_to(f"{'systemctl' if self.systemd else 'service'} {words}")
        assert done.code == 0, f"{self.machine.name}: {action} failed: {done.out}{done.err}\n{self.log}"
        return done.out

    @property
    def log(self) -> str:
        """The end of the broker's log."""
        where = "journalctl -b -u bpbroker --no-pager -o cat" if self.systemd else "cat /var/log/bpbroker/*.log"
        return self.machine.try_to(f"{where} | grep -v bpbroker.access | tail -n 40").out

    def await_up(self) -> Any:
        """Wait until the broker is well, seen from outside; return its health."""
        try:
            return await_broker(self.machine.port, UP_SECS)
        except AssertionError as error:
            files = self.machine.try_to(f"ls -l {FILES}; systemctl status bpbroker --no-pager -n 0; df -h /").out
            raise AssertionError(f"{self.machine.name}: {error}\n{files}\n{self.log}") from None

    @contextmanager
    def written_to(self) -> Iterator[Writers]:
        """Have writers write as fast as they can."""
        with self.writers.running(self.machine.port):
            yield self.writers

    def check(self) -> None:
        """See that everything acknowledged is there."""
        self.writers.check(entries(self.machine.port))

    def call(self, method: str, **parameters: Any) -> tuple[int, Any]:
        """Call a method of the broker from outside."""
        api = Api(self.machine.port)
        try:
            return api.call(method, **parameters)
        finally:
            api.close()

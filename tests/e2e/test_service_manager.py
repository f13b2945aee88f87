"""What a broker tells systemd while it runs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import START_SECS, RunningBroker

WATCHDOG_SECS = 2.0


class Manager:
    """A service manager that starts a broker and hears what it says."""

    def __init__(self, broker: RunningBroker) -> None:
        self.broker = broker
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(0.5)
        path = broker.home / "manager"
        self.socket.bind(str(path))
        environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(WATCHDOG_SECS * 1_000_000))}
        with broker.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*broker.program, "start", "--listen-port", "0"],
                env={**broker.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def hear(self, wanted: str) -> list[str]:
        """Wait for a message that has a line which begins so; return its lines."""
        until = time.monotonic() + START_SECS
        while True:
            try:
                lines = self.socket.recv(65536).decode().split("\n")
            except TimeoutError:
                assert self.process.poll() is None, self.broker.text
                assert time.monotonic() < until, self.broker.text
                continue
            if any(line.startswith(wanted) for line in lines):
                return lines


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """Return the manager of a broker that is starting and has one module that cannot be used."""
    broker = RunningBroker(tmp_path / "home", {"_global": {"healthcheck_freq_sec": 1}})
    (broker.lib / "broken.py").write_text("this is no Python\n")
    made = Manager(broker)
    yield made
    made.process.kill()
    made.process.wait()
    made.socket.close()


def test_the_status_line_says_how_the_broker_is(manager: Manager) -> None:
    status = next(line for line in manager.hear("READY=1") if line.startswith("STATUS="))
    port = manager.broker.note["port"]
    assert status == f"STATUS=Serves on port {port} (TCP and UDP); extensions: none"
    manager.broker.config.write_text(json.dumps({**json.loads(manager.broker.config.read_text()), "broken": {}}))
    manager.process.send_signal(signal.SIGHUP)
    assert "STATUS=Reloads" in manager.hear("RELOADING=1")
    assert any("extension broken" in line for line in manager.hear("STATUS=Not well: "))
    manager.process.send_signal(signal.SIGTERM)
    assert f"STATUS=Stopping: writes {manager.broker.config}" in manager.hear("STOPPING=1")
    assert manager.process.wait(START_SECS) == 0


def test_the_watchdog_hears_from_a_broker_more_than_twice_within_its_limit(manager: Manager) -> None:
    manager.hear("READY=1")
    manager.hear("WATCHDOG=1")
    for _ in range(4):
        before = time.monotonic()
        manager.hear("WATCHDOG=1")
        # A quarter of the limit, and as much again for a slow machine.
        assert time.monotonic() - before < WATCHDOG_SECS

"""The commands for the running broker, on a machine without a loopback address, and with its socket in the way."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.support.running import RunningBroker

_APART = ("unshare", "--net")
"""A network namespace in which nothing is up, not even loopback."""


def _can_be_apart() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*_APART, "true"], check=False).returncode == 0


@pytest.mark.skipif(not _can_be_apart(), reason="needs the right to make network namespaces")
def test_the_broker_is_looked_after_without_any_network(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker()
    broker.prefix = _APART
    broker.start()
    path = broker.config.with_name("bpbroker.json.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    for command in (("status",), ("reload",), ("backup",), ("key", "add", "ci", "--allow", "ping.*"), ("key", "list")):
        done = broker.bpbroker(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert json.loads(broker.bpbroker("status", "--format", "json").stdout)["ok"] is True
    assert broker.bpbroker("stop").returncode == 0
    assert broker.wait() == 0
    assert not path.exists()


def test_where_the_socket_cannot_be_made_tcp_will_do(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker()
    broker.config.with_name("bpbroker.json.sock").mkdir()
    broker.start()
    assert broker.bpbroker("status").returncode == 0
    assert "commands use TCP" in broker.text
    assert broker.stop() == 0


def test_after_a_kill_the_next_broker_has_its_own_socket(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker().start()
    broker.kill()
    broker.start()
    # Nothing listens at this port: were TCP used, the command would fail.
    note = broker.note
    lock = broker.config.with_name("bpbroker.json.lock")
    lock.write_text(json.dumps({**note, "address": "127.0.0.1", "port": 1}).ljust(4096))
    assert broker.bpbroker("status").returncode == 0
    assert broker.stop() == 0

"""What stands beside the registry may fail; the registry serves, health says what failed, a reload does the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import RunningBroker

Make = Callable[..., RunningBroker]


def part(broker: RunningBroker, name: str) -> dict[str, object]:
    report = json.loads(broker.bpbroker("status", "--format", "json").stdout)
    (found,) = [each for each in report["parts"] if each["name"] == name]
    assert isinstance(found, dict)
    return found


def test_a_log_that_cannot_be_opened_anew_does_not_keep_a_key_from_being_enforced(
    make_broker: Make, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "broker.log"
    broker = make_broker({}, "--log-file", str(log)).start()
    log.rename(log.with_name("moved"))
    log.mkdir()  # as a file of root's is for a broker of another user
    document = json.loads(broker.config.read_text())
    document["services"]["_access_key"] = "secret"
    broker.config.write_text(json.dumps(document))
    done = broker.bpbroker("reload")
    assert done.returncode == 1, done.stderr
    assert f"the log file {log} cannot be opened" in done.stderr
    assert broker.get("x").status == 401
    assert "Reloaded" in log.with_name("moved").read_text()
    assert part(broker, "log")["state"] == "fail"
    health = broker.request("/health", "GET")
    assert (health.status, health.json["data"]["state"]) == (200, "warning")
    assert str(log.parent) not in health.body.decode()
    assert broker.bpbroker("status").returncode == 1
    log.rmdir()
    assert broker.bpbroker("reload").returncode == 0
    assert part(broker, "log")["state"] == "ok"
    assert "Reloaded" in log.read_text()


def test_requests_are_logged_where_a_reload_says(make_broker: Make, tmp_path: Path) -> None:
    broker = make_broker({"api": {"access_log": "off"}}).start()

    def reload(where: str) -> subprocess.CompletedProcess[str]:
        document = json.loads(broker.config.read_text())
        document["api"]["access_log"] = where
        broker.config.write_text(json.dumps(document))
        return broker.bpbroker("reload")

    broker.get("one")
    own = tmp_path / "access"
    assert reload(str(own)).returncode == 0
    broker.get("two")
    done = reload(str(tmp_path))  # a folder
    assert done.returncode == 1, done.stderr
    assert f"Cannot write the access log {tmp_path}: " in done.stderr
    broker.get("three")
    assert reload("same").returncode == 0
    broker.get("four")
    assert broker.stop() == 0
    apart = [json.loads(line)["name"] for line in own.read_text().splitlines()]
    assert [name for name in apart if name] == ["two", "three"]
    assert "name=four" in broker.text
    assert not [name for name in ("one", "two", "three") if f"name={name}" in broker.text]
    assert "{" not in broker.text


def test_nothing_reads_standard_error(make_broker: Make) -> None:
    broker = make_broker({"api": {"listen_ip": "127.0.0.1"}}, "--log-level", "debug")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * (1 << 20))  # as much as it takes
    os.set_blocking(writer, True)
    pid_file = broker.home / "pid"
    words = [*broker.program, "start", "--listen-port", "0", "--pid-file", str(pid_file)]
    with subprocess.Popen(words, env=broker.environ, stderr=writer, stdout=subprocess.DEVNULL) as process:
        os.close(writer)
        try:
            while "token" not in _note(broker):
                assert process.poll() is None
            broker.port = broker.note["port"]
            assert broker.register("x").status == 200
            assert "nothing reads it" in str(part(broker, "log")["detail"])
            done = broker.bpbroker("stop", "--timeout", "20")
            assert done.returncode == 0, done.stderr
            assert process.wait(30) == 0
        finally:
            process.send_signal(signal.SIGKILL)
            os.close(reader)
    assert "x" in json.loads(broker.config.read_text())["services"]


def _note(broker: RunningBroker) -> dict[str, object]:
    try:
        return broker.note
    except (OSError, ValueError):
        return {}


@pytest.mark.parametrize("log", ["/dev/full", "/dev/stdout", "fifo"])
def test_a_log_to_no_plain_file(make_broker: Make, tmp_path: Path, log: str) -> None:
    if log == "fifo":
        log = str(tmp_path / "fifo")
        os.mkfifo(log)
    broker = make_broker({}, "--log-file", log).start()
    assert broker.register("x").status == 200
    assert broker.bpbroker("reload").returncode == 0
    assert part(broker, "log")["state"] == ("fail" if log == "/dev/full" else "ok")
    assert broker.stop() == 0

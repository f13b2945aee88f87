"""install-service for real, on this very machine: only when asked for with BPBROKER_SYSTEM_TESTS=1, as root."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker import __file__ as package
from tests.support.extension import gone
from tests.support.ports import free_port

HOME = Path("/usr/local/bpbroker")
SCRIPT = Path("/etc/init.d/bpbroker")
PID_FILE = Path("/var/run/bpbroker/bpbroker.pid")
LOGS = Path("/var/log/bpbroker")
BIN = Path(sys.executable).parent

pytestmark = [
    pytest.mark.skipif(os.environ.get("BPBROKER_SYSTEM_TESTS") != "1", reason="changes this machine: not asked for"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can install a service"),
    pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs here"),
]


def run(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BPBROKER")}
    return subprocess.run(
        words, env=environ, input=stdin, capture_output=True, text=True, timeout=120, check=False, cwd="/"
    )


def bpbroker(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run(BIN / "bpbroker", *words, stdin=stdin)


def service(action: str) -> int:
    return run("/usr/sbin/service", "bpbroker", action).returncode


def traces() -> set[str]:
    found = {str(path) for folder in Path("/etc").glob("rc?.d") for path in folder.glob("*bpbroker*")}
    return found | {str(path) for path in (HOME, SCRIPT, PID_FILE.parent, LOGS) if path.exists()}


@pytest.fixture
def port() -> Iterator[int]:
    """Yield the port of a service that is configured but not installed yet; it is gone without a trace afterwards."""
    assert not traces(), "a bpbroker is installed on this machine; this test does not touch it"
    port = free_port()
    try:
        done = bpbroker("configure", stdin=json.dumps({"api": {"listen_port": port, "listen_ip": "127.0.0.1"}}))
        assert done.returncode == 0, done.stderr
        yield port
    finally:
        done = bpbroker("uninstall-service", "--purge")
    assert done.returncode == 0, done.stderr
    assert not traces()


@pytest.fixture
def _reachable() -> Iterator[None]:
    """Let every user reach the interpreter and the package, which may lie in folders that only root may enter."""
    places = (Path(sys.executable), Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib")), Path(package))
    modes = {folder: folder.stat().st_mode & 0o7777 for place in places for folder in place.parents}
    try:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o011)
        yield
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


def client(port: int, *words: str) -> str:
    done = run(BIN / "bpclient", "-b", f"127.0.0.1:{port}", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_life_of_a_service(port: int) -> None:
    assert bpbroker("install-service").returncode == 0
    assert SCRIPT.stat().st_mode & 0o7777 == 0o755
    assert len([path for path in traces() if "/rc" in path]) == 7  # every runlevel starts or stops it
    assert (HOME / "etc" / "bpbroker.key").stat().st_mode & 0o7777 == 0o600
    assert json.loads((HOME / "etc" / "bpbroker.json").read_text())["api"]["listen_port"] == port
    assert service("status") == 3  # it was not started
    again = bpbroker("install-service")
    assert again.returncode == 0
    assert "write" not in again.stdout

    assert service("start") == 0
    assert service("status") == 0
    assert service("start") == 0
    first = PID_FILE.read_text()
    client(port, "service", "register", "--name", "foo", "--data", "bar")
    assert service("reload") == 0
    assert PID_FILE.read_text() == first
    assert service("restart") == 0
    assert PID_FILE.read_text() != first
    assert client(port, "service", "get", "--name", "foo") == "bar\n"
    assert "is ready" in (LOGS / "bpbroker.log").read_text()

    assert service("stop") == 0
    assert service("status") == 3
    assert service("stop") == 0
    assert service("reload") == 7
    assert json.loads((HOME / "etc" / "bpbroker.json").read_text())["services"]["foo"]["_str"] == "bar"

    assert service("start") == 0
    assert bpbroker("uninstall-service").returncode == 0
    assert traces() == {str(HOME), str(LOGS)}
    assert bpbroker("stop").stderr.startswith("No broker runs")
    nothing = bpbroker("uninstall-service")
    assert nothing.returncode == 0
    assert "No service named bpbroker is installed" in nothing.stderr


def test_a_stranger_in_the_pid_file_is_left_alone(port: int) -> None:
    assert bpbroker("install-service").returncode == 0
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            PID_FILE.parent.mkdir(exist_ok=True)
            PID_FILE.write_text(f"{stranger.pid}\n")
            assert service("status") == 1
            assert service("stop") == 0
            assert service("start") == 0
            assert PID_FILE.read_text() != f"{stranger.pid}\n"
            assert client(port, "ping", "--data", "x") == "x\n"
            assert service("stop") == 0
            PID_FILE.write_text("rubbish")
            assert service("status") == 1
            assert service("start") == 0
            broker = int(PID_FILE.read_text())
            os.kill(broker, 9)
            assert gone(broker)
            assert service("status") == 1
            assert service("start") == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_start_that_fails_says_so(port: int) -> None:
    assert bpbroker("install-service").returncode == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = run("/usr/sbin/service", "bpbroker", "start")
        assert done.returncode == 1
        assert f"{port}" in done.stderr
        assert "TCP" in done.stderr
    assert service("status") == 3


@pytest.mark.usefixtures("_reachable")
def test_it_runs_as_the_user_asked_for(port: int) -> None:
    assert bpbroker("install-service", "--user", "daemon").returncode == 0
    assert service("start") == 0
    pid = int(PID_FILE.read_text())
    assert "\nUid:\t1\t1\t1\t1\n" in Path(f"/proc/{pid}/status").read_text()
    client(port, "service", "register", "--name", "foo", "--data", "bar")
    assert bpbroker("backup").returncode == 0
    assert service("stop") == 0
    assert bpbroker("configure", stdin='{"later": {}}').returncode == 0  # by root, beside the user's files
    assert {path.stat().st_uid for path in (HOME / "etc").iterdir()} == {1}
    assert service("start") == 0
    assert client(port, "service", "get", "--name", "foo") == "bar\n"


@pytest.mark.usefixtures("_reachable")
def test_a_change_of_user_moves_everything_but_not_under_a_running_broker(port: int) -> None:
    assert bpbroker("install-service").returncode == 0
    assert service("start") == 0
    client(port, "service", "register", "--name", "foo", "--data", "bar")
    files = [*(HOME / "etc").iterdir(), *LOGS.iterdir()]
    done = bpbroker("install-service", "--user", "daemon")
    assert done.returncode == 1
    assert "Stop it first" in done.stderr
    assert {path.stat().st_uid for path in files} == {0}
    client(port, "service", "replace", "--name", "foo", "--data", "later")
    assert service("stop") == 0
    assert bpbroker("install-service", "--user", "daemon").returncode == 0
    assert service("start") == 0  # it can append to the log that was root's
    assert client(port, "service", "get", "--name", "foo") == "later\n"
    assert {path.stat().st_uid for path in (*(HOME / "etc").iterdir(), *LOGS.iterdir())} == {1}
    assert service("stop") == 0
    assert bpbroker("install-service", "--user", "root").returncode == 0
    assert service("start") == 0
    assert client(port, "service", "get", "--name", "foo") == "later\n"


@pytest.mark.usefixtures("port", "_reachable")
def test_only_root_may() -> None:
    done = run("runuser", "-u", "daemon", "--", BIN / "bpbroker", "install-service")
    assert done.returncode == 1
    assert "Only root" in done.stderr
    assert not SCRIPT.exists()
    assert bpbroker("install-service").returncode == 0  # its folders are closed to others
    done = run("runuser", "-u", "daemon", "--", BIN / "bpbroker", "install-service")
    assert done.returncode == 1
    assert "Only root" in done.stderr
    done = run("runuser", "-u", "daemon", "--", BIN / "bpbroker", "doctor")
    assert done.returncode == 1
    assert "as root or the service's user" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("_reachable")
def test_a_second_broker_of_another_user_beside_it(port: int) -> None:
    config = HOME / "second" / "b.json"
    second = free_port()
    extra = json.dumps({"api": {"listen_port": second, "listen_ip": "127.0.0.1"}})
    try:
        assert bpbroker("install-service").returncode == 0
        assert bpbroker("configure", "-c", str(config), stdin=extra).returncode == 0
        done = bpbroker("install-service", "--name", "bpbroker2", "--user", "daemon", "-c", str(config))
        assert done.returncode == 0, done.stderr
        assert service("start") == 0
        done = run("/usr/sbin/service", "bpbroker2", "start")
        assert done.returncode == 0, done.stderr
        client(port, "service", "register", "--name", "foo", "--data", "1")
        client(second, "service", "register", "--name", "foo", "--data", "2")
        assert service("stop") == 0
        assert client(second, "service", "get", "--name", "foo") == "2\n"
        assert config.with_suffix(".key").stat().st_uid == 1  # a pair of its own
    finally:
        done = bpbroker("uninstall-service", "--name", "bpbroker2", "--purge", "-c", str(config))
    assert done.returncode == 0, done.stderr
    assert not config.parent.exists()
    assert (HOME / "etc" / "bpbroker.json").exists()

"""What a process inherits is not trusted: descriptors, signals, streams, home, umask of whoever starts it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.other_user import can_run_python
from tests.support.running import RunningBroker

BROKER = " ".join(RunningBroker.command("bpbroker"))
CLIENT = " ".join(RunningBroker.command("bpbroker.client"))


def shell(broker: RunningBroker, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script of a shell; a command that hangs fails the test."""
    return subprocess.run(
        ["bash", "-c", script],
        env={**broker.environ, **environ},
        cwd=broker.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def idle(make_broker: Callable[..., RunningBroker]) -> RunningBroker:
    """Return a broker that is not started; whatever a test starts on its file is stopped."""
    return make_broker({"api": {"listen_port": 0, "listen_ip": "127.0.0.1"}})


@pytest.fixture
def stopped(idle: RunningBroker) -> Iterator[RunningBroker]:
    yield idle
    shell(idle, f"{BROKER} stop")


# --- descriptors ---


def test_the_background_process_holds_no_lock_of_its_starter(stopped: RunningBroker) -> None:
    done = shell(stopped, f"(flock -n 9 && {BROKER} start --daemon) 9>held; flock -n held echo free")
    assert done.stdout == "free\n", done.stderr


def test_who_waits_for_a_descriptor_of_the_starter_is_not_kept(stopped: RunningBroker) -> None:
    done = shell(stopped, f"X=$({{ {BROKER} start --daemon; }} 3>&1); echo over")
    assert done.stdout == "over\n", done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_matter_in_the_background(stopped: RunningBroker, closed: str) -> None:
    done = shell(stopped, f"{BROKER} start --daemon {closed}; echo $?")
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    assert shell(stopped, f"{BROKER} status").returncode == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_become_files_in_the_foreground(stopped: RunningBroker, closed: str) -> None:
    wait = "for i in $(seq 300); do [ -s pid ] && break; sleep .1; done"
    shell(stopped, f"{BROKER} start --pid-file pid > log 2>&1 {closed} & {wait}")
    pid = (stopped.home / "pid").read_text().strip()
    for number in (0, 1, 2):
        target = str(Path(f"/proc/{pid}/fd/{number}").readlink())
        assert target == "/dev/null" or target == str(stopped.home / "log"), (number, target)
    assert shell(stopped, f"{BROKER} stop").returncode == 0


@pytest.mark.parametrize(
    "words", ["configure <&-", "configure --dry-run <&- 2>&-", "--version >&-", "backups >&- 2>&-"]
)
def test_closed_streams_of_commands(stopped: RunningBroker, words: str) -> None:
    done = shell(stopped, f"{BROKER} {words}; echo $?")
    assert "Traceback" not in done.stdout + done.stderr
    assert "Error" not in done.stderr
    assert done.stdout.splitlines()[-1] in ("0", "1", "78")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("service register --name x --data - <&-", 2, "Standard input is closed"),
        ("-a - service get --name x <&-", 2, "Standard input is closed"),
        ("ping >&-", 1, "standard output is closed"),
        ("-q service delete --name x 2>&-", 0, ""),
        ("--help > /dev/full", 1, "No space left on device"),
        ("ping --data x > /dev/full", 1, "No space left on device"),
        ("service list -h > /dev/full", 1, "No space left on device"),
    ],
)
def test_streams_of_the_client(broker: RunningBroker, words: str, code: int, says: str) -> None:
    done = shell(broker, f"{CLIENT} -b 127.0.0.1:{broker.port} {words}")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [f"{CLIENT} --help", f"{BROKER} --help", f"{BROKER} start --help"])
def test_a_reader_that_went_away_is_no_error(broker: RunningBroker, command: str) -> None:
    done = shell(broker, f"{command} | true; echo ${{PIPESTATUS[0]}}")
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")


def test_a_full_disk_below_the_output_is_told_from_the_brokers(broker: RunningBroker) -> None:
    for words in ("status", "--help", "certificate", "key list"):
        done = shell(broker, f"{BROKER} {words} > /dev/full")
        said = "bpbroker: The result cannot be written to standard output: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, said), words


def test_a_value_for_a_reader_that_went_away_is_no_error(broker: RunningBroker) -> None:
    broker.call("/services/Register/", name="x", data="y" * 200_000)
    done = shell(broker, f"{CLIENT} -q -b 127.0.0.1:{broker.port} service get --name x | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("141\n", "")


# --- signals ---


def test_ignored_children_do_not_matter(stopped: RunningBroker) -> None:
    (stopped.lib / "demo.py").write_text("def Hello(rh):\n    rh.data = 'hello'\n")
    stopped.config.write_text(json.dumps({"api": {"listen_port": 0}, "demo": {}}))
    done = shell(stopped, f"trap '' CHLD; {BROKER} start --daemon")
    assert done.returncode == 0, done.stderr
    called = shell(stopped, f"{CLIENT} -q -b 127.0.0.1:{stopped.note['port']} execute --method demo.Hello")
    assert called.stdout == "hello", called.stderr


def test_a_blocked_sigterm_still_stops_it(stopped: RunningBroker) -> None:
    program = (
        "import signal, subprocess, sys; signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {9, 19});"
        "sys.exit(subprocess.call(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *RunningBroker.command("bpbroker", "start", "--daemon")],
        env=stopped.environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert shell(stopped, f"{BROKER} stop").returncode == 0


# --- home, user, umask, environment ---


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody unknown")
def test_no_home_and_an_unknown_user(tmp_path: Path) -> None:
    if not can_run_python(54321):
        pytest.skip("other users cannot reach this Python")
    folder = tmp_path / "own"
    folder.mkdir()
    for above in (folder, *list(folder.parents)[:5]):
        above.chmod(above.stat().st_mode | 0o755)
    os.chown(folder, 54321, 54321)
    clean = ["env", "-i", f"PATH={os.environ['PATH']}", "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    file = folder / "bpbroker.json"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*clean, *words], capture_output=True, text=True, timeout=60, check=False, cwd="/")

    start = run(*RunningBroker.command("bpbroker"), "-c", str(file), "start", "--daemon", "--listen-port", "0")
    assert start.returncode == 0, start.stderr
    try:
        port = json.loads((folder / "bpbroker.json.lock").read_text())["port"]
        done = run(*RunningBroker.command("bpbroker.client"), "-b", f"127.0.0.1:{port}", "ping", "--data", "x")
        assert (done.returncode, done.stdout) == (0, "x\n"), done.stderr
        assert "Traceback" not in done.stderr
    finally:
        stop = run(*RunningBroker.command("bpbroker"), "-c", str(file), "stop")
    assert stop.returncode == 0, stop.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is somebody else in another's home")
def test_root_leaves_nothing_of_its_own_in_another_users_home(broker: RunningBroker, tmp_path: Path) -> None:
    home = tmp_path / "theirs"
    home.mkdir()
    os.chown(home, 54321, 54321)
    environ = {k: v for k, v in broker.environ.items() if k != "BPBROKER_KNOWN_BROKERS" and not k.startswith("XDG")}
    done = subprocess.run(
        [*RunningBroker.command("bpbroker.client"), "-b", f"127.0.0.1:{broker.port}", "ping"],
        env={**environ, "HOME": str(home)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    owners = {path: path.stat().st_uid for path in home.rglob("*")}
    assert set(owners.values()) <= {54321}, owners


def test_a_strict_umask_does_not_hide_the_lib_folder(tmp_path: Path, stopped: RunningBroker) -> None:
    home = tmp_path / "fresh"
    done = shell(stopped, f"umask 077; {BROKER} start --daemon --listen-port 0; {BROKER} stop", BPBROKER_HOME=str(home))
    assert done.returncode == 0, done.stderr
    for folder in (home, home / "etc", home / "lib"):  # an extension's _user has to get there
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755, folder
    assert stat.S_IMODE((home / "etc" / "bpbroker.json").stat().st_mode) == 0o600


def test_variables_that_kubernetes_sets(stopped: RunningBroker) -> None:
    done = shell(
        stopped,
        f"{BROKER} start --daemon",
        BPBROKER_PORT="tcp://10.0.0.1:20443",
        BPBROKER_SERVICE_HOST="10.0.0.1",
        BPBROKER_LISTEN_PORT="tcp://10.0.0.1:20443",
    )
    assert done.returncode == 0, done.stderr


def test_without_a_temporary_folder(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"demo": {}})
    (broker.lib / "demo.py").write_text("def Hello(rh):\n    rh.data = 'hello'\n")
    broker.environ["TMPDIR"] = "/proc"
    broker.program = (
        sys.executable,
        "-c",
        "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc']; from bpbroker.cli import main; main()",
    )
    broker.start()
    assert broker.request("/demo/Hello/").body == b"hello"

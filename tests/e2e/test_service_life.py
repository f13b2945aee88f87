"""A broker's life as an operator sees it: background, PID file, signals, ports in use, reload, stop, backups."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from bpbroker.discovery.jointoken import parse_token
from tests.support.ports import free_port
from tests.support.running import RunningBroker

Make = Callable[..., RunningBroker]


@pytest.fixture
def background(make_broker: Make, tmp_path: Path) -> Iterator[RunningBroker]:
    """Yield a broker that is not started, for starts with --daemon; whatever runs on it at the end is stopped."""
    broker = make_broker({})
    broker.environ["BPBROKER_PID_FILE"] = str(tmp_path / "pid")
    broker.environ["BPBROKER_LISTEN_PORT"] = "0"
    yield broker
    broker.bpbroker("stop")


def write_all_the_time(broker: RunningBroker) -> tuple[dict[str, str], Callable[[], list[str]]]:
    """Register names until told to stop; gives what was acknowledged, and what stops it and gives refusals."""
    acknowledged: dict[str, str] = {}
    refused: list[str] = []
    over = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            name = f"{writer}-{number}"
            try:
                answer = broker.register(name, name)
            except (OSError, HTTPException) as error:
                refused.append(repr(error))
                continue
            if answer.status == 200:
                acknowledged[name] = name
            else:
                refused.append(str(answer.status))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()

    def stop() -> list[str]:
        over.set()
        for thread in threads:
            thread.join(60)
        return refused

    return acknowledged, stop


def wait_for(count: int, acknowledged: dict[str, str]) -> None:
    end = time.monotonic() + 60
    while len(acknowledged) < count:
        assert time.monotonic() < end, len(acknowledged)
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


# --- S1, S2 ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_s1_a_signal_in_the_middle_of_writes_loses_nothing(broker: RunningBroker, number: int) -> None:
    acknowledged, stop = write_all_the_time(broker)
    try:
        wait_for(20, acknowledged)
        began = time.monotonic()
        broker.signal(number)
        assert broker.wait() == 0, broker.text
        assert time.monotonic() - began < 50  # 10 s on a quiet machine
    finally:
        stop()
    document = json.loads(broker.config.read_text())
    for name, data in acknowledged.items():
        assert document["services"][name]["_str"] == data
    checked = broker.bpbroker("check")
    assert checked.returncode == 0, checked.stdout
    assert "0 changed entries" in checked.stdout  # the journal is empty


def test_s2_a_reload_in_the_middle_of_writes_fails_no_request(broker: RunningBroker) -> None:
    acknowledged, stop = write_all_the_time(broker)
    try:
        wait_for(20, acknowledged)
        for _ in range(3):
            seen = len(acknowledged)
            done = broker.bpbroker("reload")
            assert done.returncode == 0, done.stderr
            wait_for(seen + 5, acknowledged)
    finally:
        refused = stop()
    assert not refused
    assert broker.text.count("Reloaded") == 3
    for name in acknowledged:
        assert broker.get(name).status == 200


def test_a_reload_takes_settings_up(broker: RunningBroker) -> None:
    document = json.loads(broker.config.read_text())
    document["services"]["_access_key"] = "secret"
    document["api"]["workers"] = 3
    document["_registry"] = {"max_sessions": 9}
    broker.config.write_text(json.dumps(document))
    assert broker.bpbroker("reload").returncode == 0
    assert broker.get("x").status == 401
    (left,) = (line for line in broker.text.splitlines() if "at the next start" in line)
    assert left.endswith("of the broker: api.workers")


def test_a_reload_of_a_broken_file_says_what_is_wrong_and_changes_nothing(broker: RunningBroker) -> None:
    good = broker.config.read_text()
    broker.config.write_text(good.replace('"listen_port": 20443', '"listen_port": 99999'))
    done = broker.bpbroker("reload")
    assert done.returncode == 78
    assert "api.listen_port is 99999" in done.stderr
    assert broker.register("still", "here").status == 200
    broker.config.write_text(good)
    assert broker.bpbroker("reload").returncode == 0


# --- the background, S3, S4 ---


def test_in_the_background_it_is_ready_when_the_command_ends(background: RunningBroker, tmp_path: Path) -> None:
    done = background.bpbroker("start", "--daemon")
    assert (done.returncode, done.stdout) == (0, "")
    note = background.note
    log = background.config.with_suffix(".log")
    assert done.stderr == f"bpbroker runs in the background: process {note['pid']}, port {note['port']}, log {log}\n"
    background.port = note["port"]
    assert (tmp_path / "pid").read_text() == f"{note['pid']}\n"
    assert note["pid"] != os.getpid()
    assert os.getsid(note["pid"]) != os.getsid(0)
    assert background.register("foo").status == 200
    for descriptor in ("1", "2"):
        assert Path(f"/proc/{note['pid']}/fd/{descriptor}").resolve() == background.config.with_suffix(".log")
    stopped = background.bpbroker("stop")
    assert stopped.returncode == 0
    assert not (tmp_path / "pid").exists()
    assert has_ended(note["pid"])
    assert "foo" in json.loads(background.config.read_text())["services"]


@pytest.mark.parametrize("daemon", [False, True])
def test_s4_a_port_in_use_is_named_with_its_protocol(background: RunningBroker, daemon: bool) -> None:
    options = ["--daemon"] if daemon else []
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        port = free_port()  # none of those that the system gives to clients: there the other protocol may be taken
        tcp.bind(("127.0.0.1", port))
        tcp.listen()
        words = ("start", *options, "--listen-ip", "127.0.0.1", "--listen-port")
        began = time.monotonic()
        done = background.bpbroker(*words, str(port))
        assert done.returncode == 1
        assert str(port) in done.stderr
        assert "TCP" in done.stderr
        assert "Traceback" not in done.stderr
        port = free_port()
        udp.bind(("127.0.0.1", port))
        done = background.bpbroker(*words, str(port))
        assert done.returncode == 1
        assert str(port) in done.stderr
        assert "UDP" in done.stderr
        assert time.monotonic() - began < 20  # 2 s each on a quiet machine
    assert background.bpbroker("start", "--daemon").returncode == 0  # nothing was left behind


def test_a_start_in_the_background_that_fails_has_its_exit_code(background: RunningBroker) -> None:
    background.config.write_text("{")
    done = background.bpbroker("start", "--daemon")
    assert done.returncode == 78
    assert "line 1" in done.stderr
    assert background.config.read_text() == "{"


@pytest.mark.parametrize("content", ["", "rubbish", "999999999"])
def test_s3_an_old_pid_file_keeps_nothing_from_starting(
    background: RunningBroker, tmp_path: Path, content: str
) -> None:
    (tmp_path / "pid").write_text(content)
    assert background.bpbroker("start", "--daemon").returncode == 0
    assert (tmp_path / "pid").read_text() == f"{background.note['pid']}\n"


def test_s3_a_stranger_is_never_signalled(background: RunningBroker, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (tmp_path / "pid").write_text(f"{stranger.pid}\n")
        # What a lock file says means nothing while nobody holds the lock.
        lock = background.config.with_name(f"{background.config.name}.lock")
        lock.write_text(json.dumps({"pid": stranger.pid, "port": 1}))
        done = background.bpbroker("stop")
        assert done.returncode == 0
        assert "No broker runs" in done.stderr
        assert stranger.poll() is None
        assert background.bpbroker("start", "--daemon").returncode == 0
        assert background.bpbroker("stop").returncode == 0
        assert stranger.poll() is None
        stranger.kill()


def test_the_log_follows_logrotate(background: RunningBroker, tmp_path: Path) -> None:
    log = tmp_path / "broker.log"
    assert background.bpbroker("start", "--daemon", "--log-file", str(log), "--log-format", "json").returncode == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("is ready" in line["message"] for line in lines)
    log.rename(tmp_path / "broker.log.1")
    assert background.bpbroker("reload").returncode == 0
    pid = background.note["pid"]
    assert background.bpbroker("stop").returncode == 0
    assert "Reloaded" in log.read_text()
    assert has_ended(pid)


def test_two_brokers_live_side_by_side(make_broker: Make) -> None:
    first, second = make_broker({}).start(), make_broker({}).start()
    first.register("a", "1")
    second.register("a", "2")
    assert first.bpbroker("stop").returncode == 0
    assert first.wait() == 0
    assert second.get("a").json["data"]["_str"] == "2"
    assert second.bpbroker("status").returncode == 0
    status = first.bpbroker("status")
    assert status.returncode == 1
    assert "No broker runs" in status.stderr


def test_c9_a_second_broker_on_the_same_file(broker: RunningBroker) -> None:
    done = broker.bpbroker("start", "--listen-port", "0")
    assert done.returncode == 1
    assert str(broker.pid) in done.stderr
    done = broker.bpbroker("configure", stdin='{"ext": {}}')
    assert done.returncode == 1
    assert str(broker.pid) in done.stderr


# --- commands that ask the running broker ---


def test_status(broker: RunningBroker) -> None:
    done = broker.bpbroker("status")
    assert done.returncode == 0, done.stderr
    assert f"process {broker.pid}" in done.stdout
    assert broker.note["token"] not in done.stdout
    report = json.loads(broker.bpbroker("status", "--format", "json").stdout)
    assert report["ok"] is True
    assert report["pid"] == broker.pid
    assert report["fingerprint"] == broker.note["fingerprint"]
    assert {"registry", "config store", "backup", "discovery"} <= {part["name"] for part in report["parts"]}
    assert "token" not in json.dumps(report)


def test_backup_list_restore(broker: RunningBroker) -> None:
    broker.register("foo", "one")
    path = Path(broker.bpbroker("backup").stdout.strip())
    assert path.is_file()
    broker.request("/services/Replace/", name="foo", data="two")
    broker.register("bar", "x")
    assert broker.bpbroker("key", "add", "ops", "--allow", "services:get").returncode == 0
    listed = json.loads(broker.bpbroker("backups", "--format", "json").stdout)
    assert listed[0]["path"] == str(path)
    assert listed[0]["entries"] == 1
    assert "good" in broker.bpbroker("backups").stdout
    refused = broker.bpbroker("restore", str(path))
    assert refused.returncode == 1
    assert str(broker.pid) in refused.stderr
    broker.stop()
    before = broker.config.read_bytes()
    would = broker.bpbroker("restore", path.name, "--dry-run")
    assert would.returncode == 0, would.stderr
    assert "entries changed: 1 (foo)" in would.stdout
    assert "entries removed: 1 (bar)" in would.stdout
    assert "named access keys removed: 1 (ops)" in would.stdout
    assert broker.config.read_bytes() == before
    done = broker.bpbroker("restore", path.name)
    assert done.returncode == 0, done.stderr
    kept = Path(done.stderr.splitlines()[0].rpartition(" ")[2])
    assert "bar" in json.loads(kept.read_text())["services"]
    broker.start()
    assert broker.get("foo").json["data"]["_str"] == "one"
    assert broker.get("bar").status == 404


def test_install_extension_and_enable_it_beside_a_running_broker(broker: RunningBroker, tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text("def Hello(rh):\n    rh.data = 'one'\n")
    assert broker.request("/mine/Hello").status == 401
    done = broker.bpbroker("install-extension", "--script", str(module), "--enable")
    assert done.returncode == 0, done.stderr
    assert "enabled mine" in done.stdout
    end = time.monotonic() + 60
    while broker.request("/mine/Hello").status != 200:
        assert time.monotonic() < end, broker.text
    assert broker.request("/mine/Hello").body == b"one"
    module.write_text("def Hello(rh):\n    rh.data = 'two'\n")
    assert broker.bpbroker("install-extension", "--script", str(module), "--enable").returncode == 0
    assert broker.bpbroker("reload").returncode == 0
    assert broker.request("/mine/Hello").body == b"two"
    listed = json.loads(broker.bpbroker("extensions", "--format", "json").stdout)
    (mine,) = [each for each in listed if each["namespace"] == "mine"]
    assert mine["enabled"] is True
    assert mine["methods"] == ["Hello"]
    assert mine["running"]["ok"] is True
    assert "mine" in broker.bpbroker("extensions").stdout
    ran = broker.bpbroker("run-extension", "mine.Hello")
    assert (ran.returncode, ran.stdout) == (0, "two")
    assert broker.bpbroker("uninstall-extension", "mine").returncode == 0
    assert not (broker.lib / "mine.py").exists()


# --- certificate, token, doctor ---


def test_certificate_and_token(make_broker: Make) -> None:
    broker = make_broker({"services": {"_access_key": "canary"}}).start()
    fingerprint = broker.note["fingerprint"]
    shown = broker.bpbroker("certificate")
    assert shown.returncode == 0, shown.stderr
    assert fingerprint in shown.stdout
    word = broker.bpbroker("token").stdout.strip()
    token = parse_token(word)
    registry = json.loads(broker.config.read_text())["_state"]["registry"]
    assert (len(registry), token.registry) == (32, registry)
    other = make_broker({"services": {"_access_key": "other"}}).start()
    elsewhere = other.bpclient(
        "--fingerprint", other.note["fingerprint"], "--token", word, "service", "get", "--name", "x"
    )
    assert (elsewhere.returncode, elsewhere.stdout) == (5, "")
    assert "The join token is for another registry" in elsewhere.stderr
    assert (token.fingerprints, token.key) == ((fingerprint.replace(":", "").lower(),), "canary")
    renewed = broker.bpbroker("certificate", "--renew", "--host", "broker.example.org", "--format", "json")
    assert renewed.returncode == 0, renewed.stderr
    assert "pin" in renewed.stderr
    fresh = json.loads(renewed.stdout)
    assert fresh["fingerprint"] != fingerprint
    assert {"broker.example.org", "localhost", "127.0.0.1"} <= set(fresh["names"])  # a further one
    found = {each["what"]: each for each in json.loads(broker.bpbroker("doctor", "--format", "json").stdout)}
    assert found["certificate file"]["level"] == "warning"
    assert "reload" in found["certificate file"]["advice"]
    assert broker.note["fingerprint"] == fingerprint  # until the reload
    assert broker.config.with_suffix(".key").stat().st_mode & 0o777 == 0o600
    assert broker.config.with_name("bpbroker.key.old").stat().st_mode & 0o777 == 0o600
    assert broker.bpbroker("reload").returncode == 0
    assert broker.note["fingerprint"] == fresh["fingerprint"]
    assert broker.bpbroker("status").returncode == 0
    assert "canary" not in broker.text


def test_a_token_names_no_address_on_which_nothing_listens(make_broker: Make) -> None:
    broker = make_broker({}, "--listen-ip", "127.0.0.1").start()
    made = broker.bpbroker("token")
    assert parse_token(made.stdout.strip()).addresses == (f"127.0.0.1:{broker.port}",)
    why = "the broker listens on 127.0.0.1 alone, so no other machine can join: start the broker without --listen-ip"
    assert f"warning: {why}" in made.stderr
    joining = broker.bpbroker("join-command")
    assert (joining.returncode, joining.stdout) == (78, "")
    assert f"{why} and BPBROKER_LISTEN_IP; or give --address HOST:PORT" in joining.stderr
    assert broker.stop() == 0
    broker.options = ()
    document = json.loads(broker.config.read_text())
    document["api"] |= {"listen_ip": "127.0.0.1", "listen_port": 20443}
    broker.config.write_text(json.dumps(document))
    made = broker.bpbroker("token")
    assert parse_token(made.stdout.strip()).addresses == ("127.0.0.1:20443",)
    assert (
        f"so no other machine can join: set api.listen_ip in {broker.config} to an address of this host" in made.stderr
    )
    given = broker.bpbroker("token", "--address", "192.0.2.1:443")
    assert parse_token(given.stdout.strip()).addresses == ("192.0.2.1:443",)
    assert "join:" not in given.stderr


def test_somebody_elses_certificate_is_not_renewed(broker: RunningBroker, tmp_path: Path) -> None:
    cert, key = broker.config.with_suffix(".crt"), broker.config.with_suffix(".key")
    cert.rename(tmp_path / "a.crt")
    key.rename(tmp_path / "a.key")
    document = json.loads(broker.config.read_text())
    document["api"] |= {"ssl_cert": str(tmp_path / "a.crt"), "ssl_key": str(tmp_path / "a.key")}
    broker.config.write_text(json.dumps(document))
    before = (tmp_path / "a.crt").read_bytes()
    done = broker.bpbroker("certificate", "--renew")
    assert done.returncode == 78
    assert "was not made by bpbroker" in done.stderr
    assert (tmp_path / "a.crt").read_bytes() == before


def test_doctor(broker: RunningBroker) -> None:
    done = broker.bpbroker("doctor", "--format", "json")
    assert done.returncode == 0, done.stdout
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    for what in (
        "configuration",
        "journal",
        "file",
        "disk",
        "broker",
        "TCP",
        "certificate",
        "expiry",
        "health",
        "clock",
    ):
        assert found[what]["level"] == "ok", found[what]
    for what in ("access", "UDP", "parts"):
        assert found[what]["level"] == "ok", found[what]
    assert found["keys"]["level"] == "warning"
    assert broker.note["token"] not in done.stdout
    text = broker.bpbroker("doctor").stdout
    assert "-> give them an _access_key" in text
    document = broker.config.read_text()
    broker.config.write_text(document.replace('"ping": {}', '"ping": {}, "nothere": {}'))
    assert broker.bpbroker("reload").returncode == 0
    end = time.monotonic() + 60
    while "part extension nothere" not in (done := broker.bpbroker("doctor")).stdout:
        assert time.monotonic() < end, done.stdout
    assert done.returncode == 1
    assert "are well" not in done.stdout.replace("the broker is well", "")
    broker.config.write_text(document)
    assert broker.bpbroker("reload").returncode == 0
    broker.config.write_text("{")
    done = broker.bpbroker("doctor")
    assert done.returncode == 1
    assert "fail     configuration" in done.stdout
    assert f"runs as process {broker.pid}" in done.stdout  # which is looked at all the same
    assert "ok       health" in done.stdout
    assert "Traceback" not in done.stderr
    broker.config.write_text(document)
    broker.stop()
    document = broker.config.read_text()
    broker.config.write_text(document.replace('"listen_port": 20443', '"listen_port": 0'))  # others may listen there
    assert broker.bpbroker("doctor").returncode == 0
    key = broker.config.with_suffix(".key")
    key.chmod(0o644)
    assert f"-> chmod 600 {key}" in broker.bpbroker("doctor").stdout
    key.unlink()
    done = broker.bpbroker("doctor")
    assert done.returncode == 1
    assert f"fail     certificate file: Cannot read the private key {key}" in done.stdout
    start = broker.bpbroker("start", "--listen-port", "0")
    assert start.returncode == 78
    renew = f"bpbroker --config {broker.config} certificate --renew"
    assert renew in start.stderr
    assert broker.bpbroker("certificate", "--renew").returncode == 0
    broker.start()

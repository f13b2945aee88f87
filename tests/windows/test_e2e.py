"""A broker on Windows from end to end: client, extension, many connections, kill under writers, restore, service."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="it is about Windows")

if sys.platform == "win32":
    from bpbroker import windows
    from bpbroker.errors import BpbrokerError
    from bpbroker.storage.lock_file import holder
    from bpbroker.testing import BrokerProcess
    from tests.support import heartbeat

    NSSM = Path(r"C:\nssm\nssm.exe")

    EXTENSION = r"""
import os, subprocess, sys, time

def Echo(rh):
    rh.data = rh.qs.get("data")

def Print(rh):
    print("printed \u017e \u65e5\u672c")
    rh.log.info("logged \u017e")
    rh.data = "ok"

def Hang(rh):
    subprocess.Popen([sys.executable, "-c", BEAT, rh.qs["data"]], stdin=subprocess.DEVNULL)
    time.sleep(60)

def Crash(rh):
    os._exit(7)

def Count(rh):
    from bpbroker.config import rlock
    with rlock:
        with open(rh.qs["data"]) as file:
            number = int(file.read())
        time.sleep(0.2)
        with open(rh.qs["data"], "w") as file:
            file.write(str(number + 1))
    rh.data = str(os.getpid())

def Pid(rh):
    time.sleep(0.5)
    rh.data = str(os.getpid())
"""

    def bpbroker(broker: BrokerProcess, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        environ = {**os.environ, "BPBROKER_HOME": str(broker.home)}
        return subprocess.run(
            [sys.executable, "-m", "bpbroker", *words],
            env=environ, capture_output=True, timeout=120, check=False, **options,
        )  # fmt: skip

    def bpclient(broker: BrokerProcess, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "bpbroker.client", "--token", broker.token, *words]
        return subprocess.run(command, capture_output=True, timeout=120, check=False)

    def live(broker: BrokerProcess) -> bytes:
        host, _, port = broker.address.partition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            context.wrap_socket(plain) as sock,
        ):
            sock.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return sock.recv(100)

    @pytest.fixture
    def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
        module = tmp_path / "demo.py"
        module.write_text(f"BEAT = {heartbeat.CODE!r}\n{EXTENSION}", encoding="utf-8")
        settings = {"demo": {"_timeout_secs": 8, "_workers": 2, "_access_key": ""}}
        with BrokerProcess(tmp_path / "hömé with space", settings, [module]) as made:
            yield made

    def test_client_extension_and_what_it_started(broker: BrokerProcess, tmp_path: Path) -> None:
        assert bpclient(broker, "service", "register", "--name", "a", "--data", '{"x": "ž日"}').returncode == 0
        shown = bpclient(broker, "service", "get", "--name", "a")
        assert json.loads(shown.stdout)["x"] == "ž日"
        assert bpclient(broker, "execute", "demo.Echo", "--data", "hello").stdout.strip() == b"hello"
        assert bpclient(broker, "execute", "demo.Print").returncode == 0
        beat = tmp_path / "beat"
        late = bpclient(broker, "execute", "demo.Hang", "--data", str(beat))
        assert late.returncode != 0
        assert heartbeat.size(beat)
        assert heartbeat.ends(beat)
        crashed = bpclient(broker, "execute", "demo.Crash")
        assert crashed.returncode != 0
        log = broker.log.read_text(encoding="utf-8")
        assert "printed ž 日本" in log
        assert "logged ž" in log
        assert "ended its process: exit code 7" in log
        # the broker's death ends it too
        threading.Thread(
            target=bpclient, args=(broker, "execute", "demo.Hang", "--data", str(beat)), daemon=True
        ).start()
        assert heartbeat.goes_on(beat)
        broker.kill()
        assert heartbeat.ends(beat)

    def test_two_processes_of_an_extension_share_its_lock(tmp_path: Path) -> None:
        module, count = tmp_path / "demo.py", tmp_path / "count"
        module.write_text(EXTENSION, encoding="utf-8")
        count.write_text("0")
        settings = {"demo": {"_workers": 2, "_access_key": ""}}
        with BrokerProcess(tmp_path / "home", settings, [module]) as broker, ThreadPoolExecutor(6) as pool:
            words = ("execute", "demo.Count", "--data", str(count))
            done = list(pool.map(lambda _: bpclient(broker, *words), range(6)))
        assert [each.returncode for each in done] == [0] * 6, done[0].stderr.decode()
        assert count.read_text() == "6"
        assert len({each.stdout for each in done}) == 2

    def test_ctrl_break_ends_it_in_order(tmp_path: Path) -> None:
        program = """
import signal, sys, threading, time
from pathlib import Path
from bpbroker.client import Client
from bpbroker.storage.lock_file import holder

def end() -> None:
    while "fingerprint" not in (note := holder(Path(sys.argv[2])) or {}):
        time.sleep(0.05)
    with Client(f"127.0.0.1:{note['port']}", fingerprint=note["fingerprint"]) as client:
        client.register("kept", "x")
    signal.raise_signal(signal.SIGBREAK)

threading.Thread(target=end, daemon=True).start()
from bpbroker.cli import main
main(sys.argv[1:])
"""
        config = tmp_path / "a.json"
        config.write_text('{"api": {"listen_port": 0, "listen_ip": "127.0.0.1"}}')
        environ = {**os.environ, "BPBROKER_HOME": str(tmp_path), "BPBROKER_KNOWN_BROKERS": str(tmp_path / "pins")}
        words = [sys.executable, "-c", program, "-c", str(config), "start"]
        done = subprocess.run(words, env=environ, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert "kept" in config.read_text(encoding="utf-8")  # the file is written at an end in order only

    @pytest.mark.parametrize("place", [r"\\bpbroker\share", "drive"])
    def test_a_configuration_wherever_it_is(tmp_path: Path, place: str) -> None:
        """On another machine's share; on a drive of a lower-case letter, with slashes."""
        own = tmp_path / "sp ace ž" / "a.json"
        said = (str(own)[0].lower() + str(own)[1:]).replace("\\", "/")
        if place != "drive":
            own = Path(place) / "sp ace ž" / "a.json"
            said = own.as_posix()
            if not own.parent.parent.is_dir():
                pytest.skip("there is no such share; under Wine tests/windows/run makes it")
            shutil.rmtree(own.parent, ignore_errors=True)
        own.parent.mkdir()
        own.write_text('{"api": {"listen_port": 0, "listen_ip": "127.0.0.1"}}')
        environ = {**os.environ, "BPBROKER_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "bpbroker", "-c", said]
        with subprocess.Popen([*command, "start"], env=environ, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            try:
                end = time.monotonic() + 60
                while "fingerprint" not in (holder(own) or {}):  # the same file by its usual name
                    assert process.poll() is None, process.stderr.read().decode()
                    assert time.monotonic() < end
                    time.sleep(0.1)
                second = subprocess.run([*command, "start"], env=environ, capture_output=True, timeout=120, check=False)
                assert second.returncode != 0
                assert b"in use by process" in second.stderr
                assert subprocess.run([*command, "stop"], env=environ, timeout=120, check=False).returncode == 0
                process.communicate(timeout=60)
                assert process.returncode == 0
            finally:
                process.kill()

    def test_600_connections(broker: BrokerProcess) -> None:
        host, _, port = broker.address.partition(":")
        open_ones = []
        try:
            for number in range(600):
                sock = socket.socket()
                sock.settimeout(20)
                sock.bind((f"127.0.0.{2 + number % 20}", 0))
                sock.connect((host, int(port)))
                open_ones.append(sock)
            assert live(broker).startswith(b"HTTP/1.1 200")
        finally:
            for sock in open_ones:
                sock.close()
        assert live(broker).startswith(b"HTTP/1.1 200")
        assert bpbroker(broker, "status").returncode == 0

    def test_killed_under_writers_nothing_acknowledged_is_lost(broker: BrokerProcess) -> None:
        broker.client.register("before", {"n": 0})
        acknowledged: list[str] = []

        def write() -> None:
            number = 0
            while True:
                name = f"w/{number}"
                try:
                    broker.client.register(name, {"n": number})
                except BpbrokerError:
                    return
                acknowledged.append(name)
                number += 1

        for _ in range(2):
            acknowledged.clear()
            writer = threading.Thread(target=write)
            writer.start()
            time.sleep(1)
            broker.kill()
            writer.join(60)
            assert acknowledged
            broker.start()
            entries = broker.client.list("")
            assert set(acknowledged) <= set(entries)
            for name in entries:
                broker.client.delete(name)

    def test_backup_restore_and_words_for_this_shell(broker: BrokerProcess) -> None:
        broker.client.register("kept", {"n": "ž"})
        assert bpbroker(broker, "backup").returncode == 0
        broker.client.delete("kept")
        broker.stop()
        newest = json.loads(bpbroker(broker, "backups", "--format", "json").stdout)[0]
        done = bpbroker(broker, "restore", newest["path"])
        assert done.returncode == 0, done.stderr.decode()
        assert b"\xef\xbf\xbd" not in done.stderr + done.stdout
        broker.start()
        assert broker.client.get("kept")["n"] == "ž"
        config = broker.home / "etc" / "bpbroker.json"
        refused = bpbroker(broker, "--config", str(config), "configure", input=b"{}")
        assert f'bpbroker --config "{config}" stop'.encode() in refused.stderr

    def test_private_files(broker: BrokerProcess) -> None:
        broker.client.register("a", {})
        etc = broker.home / "etc"
        private = [etc / f"bpbroker.{end}" for end in ("key", "json.journal", "json.journal-wal", "json.lock")]
        assert [path.name for path in private if windows.who_may(path)] == []
        assert bpbroker(broker, "backup").returncode == 0
        found = json.loads(bpbroker(broker, "doctor", "--format", "json").stdout)
        assert [each for each in found if each["what"] == "access to files"] == []

    def test_utf16_of_powershell(broker: BrokerProcess) -> None:
        broker.stop()
        document = broker.home / "enable.json"
        document.write_text('{"other": {}}', encoding="utf-16")
        assert bpbroker(broker, "configure", "--config-file", str(document)).returncode == 0

    def test_a_reader_that_leaves_early_is_no_error(broker: BrokerProcess) -> None:
        environ = {**os.environ, "BPBROKER_HOME": str(broker.home)}
        process = subprocess.Popen(
            [sys.executable, "-m", "bpbroker", "status"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        assert b"Invalid argument" not in said
        assert process.wait(60) == 141

    def test_discovery_on_loopback(broker: BrokerProcess) -> None:
        broker.client.register("found", {})
        port = broker.address.rpartition(":")[2]
        found = bpclient(broker, "--interface", "127.0.0.1", "--port", port, "discover", "--name", "found")
        assert found.returncode == 0, found.stderr.decode()
        assert found.stdout.decode().strip() == broker.address

    @pytest.mark.skipif(not NSSM.exists(), reason="nssm is not there")
    def test_service(tmp_path: Path) -> None:
        home = tmp_path / "program files" / "bpbroker"
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "nssm.exe").write_bytes(NSSM.read_bytes())
        config = home / "etc" / "second.json"
        config.parent.mkdir()
        config.write_text('{"api": {"listen_port": 0, "listen_ip": "127.0.0.1"}}')
        environ = {**os.environ, "BPBROKER_HOME": str(home)}

        def run(*words: str) -> subprocess.CompletedProcess[bytes]:
            # To files: the service manager that starts with the first service would hold pipes open.
            command = [sys.executable, "-m", "bpbroker", *words]
            out, err = tmp_path / "out", tmp_path / "err"
            with out.open("wb") as stdout, err.open("wb") as stderr:
                done = subprocess.run(command, env=environ, stdout=stdout, stderr=stderr, timeout=120, check=False)
            return subprocess.CompletedProcess(command, done.returncode, out.read_bytes(), err.read_bytes())

        def until_status(code: int) -> None:
            end = time.monotonic() + 60
            while run("--config", str(config), "status").returncode != code:
                assert time.monotonic() < end, (home / "logs" / "second.log").read_bytes()[-2000:]
                time.sleep(0.3)

        done = run("--config", str(config), "install-service", "--name", "second")
        try:
            assert done.returncode == 0, done.stderr.decode()
            assert b"netsh advfirewall firewall add rule" in done.stderr
            for verb in ("start", "restart"):
                subprocess.run([str(NSSM), verb, "second"], capture_output=True, timeout=120, check=False)
                until_status(0)
            again = run("install-service", "--name", "second", "--dry-run")
            assert str(config).encode() in again.stdout  # what it was installed with counts
        finally:
            gone = run("uninstall-service", "--name", "second", "--purge")
        assert gone.returncode == 0, gone.stderr.decode()
        assert not config.exists()

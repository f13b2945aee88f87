"""An operator and clients at work, for the recorder of :mod:`tests.support.power_cut`.

Usage: ``python power_driver.py HOME SCENARIO``. Runs real brokers and commands in HOME and notes, in the file
``notes`` beside it, what is asked and what was acknowledged:

* ``{"ask": NAME, "value": VALUE}``, before a request that gives an entry this value; None to delete it
* ``{"ok": NAME, "value": VALUE, "port": PORT}``, when it was answered with success
* ``{"done": COMMAND, …}``, when a command ended well, with what it promised: a ``section`` of the settings, a
  ``module`` with its ``content``, the content of both modules of a ``package``, the path of a ``backup``, the
  certificate's ``fingerprint``
* ``{"keyed": KEY, "port": PORT}``, when a call with an idempotency key was answered
* ``{"restoring": PATH, "entries": {NAME: VALUE, …}}``, before a backup takes the place of everything
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.running import RunningBroker

LONG: Final = os.environ.get("BPBROKER_LONG") == "1"
SETTINGS: dict[str, Any] = {
    "api": {"listen_ip": "127.0.0.1", "listen_port": 0},
    "services": {"_access_key": "key"},
    "_config": {"backup_retain_n": 2},
}


class BareBroker(RunningBroker):
    """A broker whose folders are made by the broker itself; its log and sockets are beside them."""

    def __init__(self, home: Path) -> None:
        beside = home.with_name("beside")
        super().__init__(beside)
        self.lib = home / "lib"
        self.config = home / "etc" / "bpbroker.json"
        self.environ["BPBROKER_HOME"] = str(home)


class Driver:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.broker = BareBroker(home)
        self._notes = os.open(home.with_name("notes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, **value: Any) -> None:
        os.write(self._notes, f"{json.dumps(value)}\n".encode())

    # --- a client ---

    def write(self, name: str, *values: str | None) -> None:
        """Give an entry these values, one after the other, on one connection."""
        connection = self.broker.connect()
        try:
            connection.connect()
            for value in values:
                self._write(connection, name, value)
        finally:
            connection.close()

    def _write(self, connection: http.client.HTTPSConnection, name: str, value: str | None) -> None:
        what = {"name": name, "access_key": "key"}
        method = "Delete" if value is None else "Replace"
        self.note(ask=name, value=value)
        headers = {"Content-Type": "application/json"}
        body = json.dumps(what if value is None else {**what, "data": {"v": value}})
        connection.request("POST", f"/services/{method}", body, headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise AssertionError((response.status, content))
        self.note(ok=name, value=value, port=connection.sock.getsockname()[1])

    def crowd(self, writers: int, writes: int) -> None:
        """Let several clients write at once."""
        values = [[str(number) * 50 if number % 5 else None for number in range(1, writes)] for _ in range(writers)]
        threads = [
            threading.Thread(target=self.write, args=(f"crowd-{index}", *each)) for index, each in enumerate(values)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # --- an operator ---

    def run(self, *words: str, stdin: str = "", **promised: Any) -> str:
        done = self.broker.bpbroker(*words, stdin=stdin)
        if done.returncode != 0:
            raise AssertionError(done)
        self.note(done=words[0], **promised)
        return done.stdout

    def configure(self, section: str) -> None:
        self.run("configure", stdin=json.dumps({section: {"x": 1}}), section=section)

    def backup(self) -> str:
        made = self.broker.bpbroker("backup")
        if made.returncode != 0:
            raise AssertionError(made)
        path = made.stdout.strip()
        self.note(done="backup", backup=path)
        return path

    def install(self, result: int, *words: str) -> None:
        """Install a module with this content."""
        module = self.home.with_name("sums.py")
        module.write_text(f'"""Sums."""\n\n\ndef Add(rh):\n    rh.data = "{result}"\n')
        promised = {"section": "sums"} if words else {}
        self.run(
            "install-extension", "--script", str(module), *words,
            module=module.name, content=module.read_text(), **promised,
        )  # fmt: skip

    def install_package(self, result: int) -> None:
        """Install a package of two modules with the same content."""
        package = self.home.with_name("pkg")
        package.mkdir(exist_ok=True)
        for name in ("__init__.py", "more.py"):
            (package / name).write_text(f'"""Package."""\n\n\ndef Add(rh):\n    rh.data = "{result}"\n')
        self.run("install-extension", "--script", str(package), package=(package / "more.py").read_text())

    def call(self, key: str) -> None:
        """Call the extension with an idempotency key."""
        connection = self.broker.connect()
        try:
            connection.connect()
            connection.request("POST", "/sums/Add", "", {"Idempotency-Key": key, "Content-Length": "0"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise AssertionError((response.status, content))
            self.note(keyed=key, port=connection.sock.getsockname()[1])
        finally:
            connection.close()

    def certificate(self, *words: str) -> None:
        shown = self.broker.bpbroker("certificate", "--format", "json", *words)
        if shown.returncode != 0:
            raise AssertionError(shown)
        self.note(done="certificate", fingerprint=json.loads(shown.stdout)["fingerprint"])


def life(driver: Driver) -> None:
    """A first start, writes, a backup, a clean stop; another start, writes, killed; a third start."""
    broker = driver.broker
    driver.run("configure", stdin=json.dumps(SETTINGS), section="services")
    broker.start()
    driver.certificate()
    driver.write("first", "1", "2", None, "3")
    driver.crowd(3, 5)
    for _ in range(3):
        driver.backup()
    driver.write("after", "backup")
    assert broker.stop() == 0
    broker.start()
    driver.write("first", "second start")
    driver.write("x" * 200, "y" * 9000, None)
    broker.kill()
    broker.start()
    driver.write("first", "third start", "and more")
    assert broker.stop() == 0


def bare(driver: Driver) -> None:
    """The first start of all, with nothing configured; the first second after it."""
    driver.broker.start()
    driver.certificate()
    driver.write("first", "1", "2")
    driver.broker.kill()


def again(driver: Driver) -> None:
    """A start on what is there, and a write."""
    driver.broker.start()
    driver.write("again", "1", "2")
    driver.broker.kill()


def cut(driver: Driver) -> None:
    """First starts that are killed, each a little later, with nothing of the one before on the disk yet."""
    broker = driver.broker
    ordinary = broker.program
    broker.program = (sys.executable, str(Path(__file__).with_name("dying.py")))
    for number in range(1, 50) if LONG else (3, 9, 14, 20):
        broker.environ["DIES_AT"] = str(number)
        with suppress(AssertionError):  # it was killed
            broker.start()
        broker.kill()
    broker.program = ordinary
    broker.start()
    driver.certificate()
    driver.write("first", "1")
    broker.kill()


def commands(driver: Driver) -> None:
    """Everything that an operator changes without a broker and beside one."""
    broker = driver.broker
    driver.run("configure", stdin=json.dumps(SETTINGS), section="services")
    broker.start()
    driver.certificate()
    driver.write("kept", "1")
    broker.kill()
    driver.configure("one")
    backup = driver.backup()
    driver.certificate("--renew")
    broker.start()
    driver.write("kept", "2")
    driver.install(1, "--enable")
    driver.call("first")
    driver.call("second")
    driver.install_package(1)
    driver.install_package(2)
    driver.certificate("--renew")
    driver.run("reload")
    driver.write("kept", "in the journal")
    broker.kill()
    driver.note(restoring=backup, entries={"kept": "1"})
    driver.run("restore", backup)
    driver.install(2)
    broker.start()
    driver.write("kept", "3")
    driver.run("uninstall-extension", "pkg", package="")
    assert broker.stop() == 0


SCENARIOS: dict[str, Callable[[Driver], None]] = {each.__name__: each for each in (again, bare, cut, life, commands)}


if __name__ == "__main__":
    own = Driver(Path(sys.argv[1]))
    try:
        SCENARIOS[sys.argv[2]](own)
    finally:
        own.broker.kill()

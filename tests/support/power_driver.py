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
* ``{"client": C, "call": KIND, "args": …}``, before a call of :mod:`tests.support.coordination`; client C makes one
  after the other, with names of its own: ``of/C/…``, and sessions ``C-…``
* ``{"client": C, "answer": [STATUS, WHAT COUNTS], "revision": R, "port": PORT}``, when it was answered
* ``{"once": NAME, "output": TEXT}``, when a host was told that this was done
* ``{"erased": true}``, when this broker had overwritten what was acknowledged
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.contents import contents
from tests.support.coordinating import meaning, parameters_of
from tests.support.running import RunningBroker

LONG: Final = os.environ.get("BPBROKER_LONG") == "1"
SECRET: Final = "SECRET"
"""What a value that nobody but its receiver may see begins with."""
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

    def crowd_of(self, *works: Callable[[Node], None]) -> None:
        """Let nodes work at once."""
        nodes = [Node(self, f"c{number}") for number in range(len(works))]
        failed: list[BaseException] = []

        def work(node: Node, each: Callable[[Node], None]) -> None:
            try:
                each(node)
            except BaseException as error:  # for the main thread
                failed.append(error)
                raise

        threads = [threading.Thread(target=work, args=pair) for pair in zip(nodes, works, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def once(self, name: str, output: str, script: str) -> None:
        """Have something done once."""
        made = self.broker.bpclient(
            "-q", "--access-key", "key", "once", "--name", name, "--ttl", "60s", "--output", "--", "sh", "-c", script
        )
        if (made.returncode, made.stdout) != (0, output):
            raise AssertionError(made)
        self.note(once=name, output=output)

    def await_erased(self, *secrets: str) -> None:
        """Wait until this broker has overwritten what was taken."""
        end = time.monotonic() + 60
        while any(secret in self.text_of_all() for secret in secrets):
            if time.monotonic() > end:
                raise AssertionError("not erased")
            time.sleep(0.02)
        self.run("reload")  # behind it: by the same thread
        self.note(erased=True)

    def text_of_all(self) -> str:
        return b"".join(contents(self.home).values()).decode("latin-1")

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


class Node:
    """A client that coordinates: one call after the other, on one connection, with names of its own."""

    def __init__(self, driver: Driver, client: str) -> None:
        self._driver = driver
        self._client = client
        self._connection = driver.broker.connect()
        self._connection.connect()

    def secret(self, name: str) -> str:
        """Return what is registered for one receiver."""
        return f"{SECRET}-{self._client}-{name}-{'x' * 24}"

    def name(self, name: str) -> str:
        return f"of/{self._client}/{name}"

    def session(self, name: str) -> str:
        return f"{self._client}-{name}"

    def ask(self, kind: str, expected: int = 200, **args: Any) -> Any:
        """Call, see that the status is the expected one, and return what counts of the answer."""
        self._driver.note(client=self._client, call=kind, args=args)
        method, sent = parameters_of(kind, args)
        self._connection.request(
            "POST",
            f"/services/{method}",
            json.dumps({**sent, "access_key": "key"}),
            {"Content-Type": "application/json"},
        )
        response = self._connection.getresponse()
        document = json.loads(response.read())
        if response.status != expected:
            raise AssertionError((kind, args, response.status, document))
        answer = meaning(kind, response.status, document)
        port = self._connection.sock.getsockname()[1]
        self._driver.note(client=self._client, answer=answer, revision=document.get("revision") or 0, port=port)
        return answer[1]

    def expired(self, session: str, name: str) -> None:
        """Wait until the broker has ended a session, which is as if it were closed, and noted what its entry was."""
        self._driver.note(client=self._client, call="Close", args={"session": session}, lost=name)
        what = json.dumps({"name": name, "access_key": "key"})
        end = time.monotonic() + 60
        while True:
            self._connection.request("POST", "/services/Get", what, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            response.read()
            if response.status == 404:
                break
            if time.monotonic() > end:
                raise AssertionError(f"{name} did not end with its session")
            time.sleep(0.1)
        port = self._connection.sock.getsockname()[1]
        self._driver.note(client=self._client, answer=[200, None], revision=0, port=port)

    def fenced(self, lock: str, token: int) -> None:
        """Write what a lock protects."""
        self.ask("Replace", name=self.name("a"), value=token, lock=f"{lock}:{token}")

    def allocate(self, owner: str) -> int:
        number: int = self.ask("Allocate", pool=self.name("pool"), owner=owner, **{"from": 1, "to": 9})
        return number

    def pair(self, value: int) -> None:
        """Write two entries, and take a number, together."""
        operations = [["Replace", {"name": self.name(each), "value": value}] for each in "xy"]
        pool = {"pool": self.name("pool"), "owner": f"of{value}", "from": 1, "to": 9}
        self.ask("Batch", id=f"{self._client}-{value}", operations=[*operations, ["Allocate", pool]])


def begin(node: Node) -> None:
    """Sessions, a lock, numbers, a secret that is taken, a batch."""
    lock, secret = node.name("lock"), node.name("secret")
    node.ask("Open", session=node.session("s1"))
    node.ask("Open", session=node.session("s2"))
    node.fenced(lock, node.ask("Lock", name=lock, session=node.session("s1")))
    node.ask("Lock", 409, name=lock, session=node.session("s2"))
    node.ask("Register", name=node.name("mine"), value=1, session=node.session("s1"))
    node.ask("Register", name=secret, value=node.secret("early"))
    for owner in ("o1", "o2", "o3"):
        node.allocate(owner)
    node.ask("Release", pool=node.name("pool"), owner="o2", quarantine=3600)
    node.pair(1)
    node.ask("Next", name=node.name("count"), owner="x")
    node.ask("Next", name=node.name("count"))
    node.ask("Take", name=secret, receiver="r1")


def go_on(node: Node) -> None:
    """What was begun is still so; the secret is destroyed, the session ends, the other one gets the lock."""
    lock, secret = node.name("lock"), node.name("secret")
    token = node.ask("Lock", name=lock, session=node.session("s1"))
    node.pair(1)  # again: nothing happens
    node.ask("Take", 409, name=secret, receiver="r2")
    node.ask("Take", name=secret, receiver="r1")
    node.ask("Ack", name=secret, receiver="r1")
    node.ask("Register", name=secret, value=node.secret("late"))
    node.ask("Take", name=secret, receiver="r2")
    node.ask("Next", name=node.name("count"), owner="x")
    node.ask("Close", session=node.session("s1"))
    node.ask("Replace", 412, name=node.name("a"), value=0, lock=f"{lock}:{token}")
    node.fenced(lock, node.ask("Lock", name=lock, session=node.session("s2")))
    node.allocate("o2")  # its number rests
    node.ask("Ack", name=secret, receiver="r2")
    node.pair(2)
    operations = [["Replace", {"name": node.name("x"), "value": 3}], ["Register", {"name": node.name("y"), "value": 3}]]
    node.ask("Batch", 409, operations=operations)


def end(node: Node) -> None:
    """Locks and numbers once more."""
    lock = node.name("lock")
    node.ask("Unlock", name=lock, session=node.session("s2"))
    node.fenced(lock, node.ask("Lock", name=lock, session=node.session("s2")))
    node.ask("Release", pool=node.name("pool"), owner="o1")
    node.allocate("o5")
    node.ask("Next", name=node.name("count"))


def expire(node: Node) -> None:
    """A session ends by itself, and its entry with it."""
    session, name = node.session("dying"), node.name("dying")
    node.ask("Open", session=session, ttl=2)
    node.ask("Register", name=name, value=1, session=session)
    node.expired(session, name)


def together(driver: Driver) -> None:
    """Nodes coordinate: two at once, before and after a kill; what was taken is erased."""
    broker, many = driver.broker, 4 if LONG else 2
    broker.start()
    driver.crowd_of(*[begin] * many)
    driver.once("of/once", "made\n", "echo made")
    broker.kill()
    broker.start()
    driver.crowd_of(*[go_on] * many)
    driver.await_erased(*(f"{SECRET}-c{number}-" for number in range(many)))
    if LONG:
        driver.once("of/once", "made\n", "echo again")
        assert broker.stop() == 0
        broker.start()
    driver.crowd_of(*[end] * many, *[expire] * LONG)
    assert broker.stop() == 0


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


SCENARIOS: dict[str, Callable[[Driver], None]] = {
    each.__name__: each for each in (again, bare, cut, life, commands, together)
}


if __name__ == "__main__":
    own = Driver(Path(sys.argv[1]))
    try:
        SCENARIOS[sys.argv[2]](own)
    finally:
        own.broker.kill()

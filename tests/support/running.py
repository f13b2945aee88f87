"""A real ``bpbroker`` process, for end-to-end tests and benchmarks."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.support.ports import kept_port

START_SECS = 60.0
"""Wide: shared machines are five times slower from one minute to the next."""
_ANSWER_SECS = 150.0
"""For one answer: longer than any test lets a call wait, and than the broker takes to end one that hangs."""
_PORTS_TRIED = 3
_SOCKET_PATH_MAX = 100
"""Longer ones some systems do not take."""


class Answer(NamedTuple):
    """What came back over HTTPS."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Socket(ssl.SSLSocket):
    """A TLS socket that is closed, too, if its peer was gone before the handshake: Python leaves it open (3.11)."""

    def __del__(self) -> None:
        if "_connected" not in vars(self):
            self.close()
        super().__del__()  # type: ignore[misc]  # it is there, and warns of sockets that were not closed


def untrusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _Socket
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Connection(http.client.HTTPSConnection):
    """A connection that is made where ``inside`` leads to, such as on another host."""

    def __init__(self, port: int, timeout_secs: float, inside: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__("127.0.0.1", port, timeout=timeout_secs, context=untrusting())
        self._inside = inside

    def connect(self) -> None:
        with self._inside():
            super().connect()


class RunningBroker:
    """One broker with its own home, on a free port; :meth:`start` it, :meth:`stop` it, as often as you like."""

    def __init__(self, home: Path, settings: Mapping[str, Any] | None = None, *options: str) -> None:
        self.home = home
        self.lib = home / "lib"
        self.lib.mkdir(parents=True, exist_ok=True)
        self.config = home / "etc" / "bpbroker.json"
        self.config.parent.mkdir(exist_ok=True)
        if settings is not None and not self.config.exists():
            self.config.write_text(json.dumps(settings))
        self.log = home / "broker.log"
        self.options = options
        self.prefix: tuple[str, ...] = ()
        """Words in front of the command, such as ``ip netns exec NAME``."""
        self.inside: Callable[[], AbstractContextManager[None]] = nullcontext
        """Where its loopback address is."""
        self.program: tuple[str, ...] = tuple(self.command("bpbroker"))
        """What is started; a test may name a program of its own that runs the broker's command line."""
        self.port = 0
        self._give_back: Callable[[], object] = lambda: None
        self.notify = home / "notify"
        """The socket on which it tells how it is."""
        if len(str(self.notify)) > _SOCKET_PATH_MAX:
            folder = tempfile.mkdtemp(prefix="notify-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.notify = Path(folder, "notify")
        self.process: subprocess.Popen[bytes] | None = None
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BPBROKER")},
            "BPBROKER_HOME": str(home),
            "BPBROKER_KNOWN_BROKERS": str(home / "known_brokers"),
            "PYTHONWARNINGS": "error",
        }

    # --- life ---

    def start(self, *, wait: bool = True) -> RunningBroker:
        """Start it, and wait until it says that it is ready."""
        if self.port:  # it is started again
            return self._start(wait=wait)
        for more in reversed(range(_PORTS_TRIED)):
            self._take_port()
            try:
                return self._start(wait=wait)
            except AssertionError:  # another process may have taken the port just then
                if not more or "Address already in use" not in self.text:
                    raise
        raise AssertionError("the last one returns or raises")

    def _take_port(self) -> None:
        """Take a free port, which stays this broker's also while it is dead."""
        self.port, kept = kept_port()
        self._give_back()
        self._give_back = weakref.finalize(self, kept.close)

    def _start(self, *, wait: bool) -> RunningBroker:
        self.notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log.open("ab") as log:
            ready.bind(str(self.notify))
            self.process = subprocess.Popen(
                [*self.prefix, *self.program, "start", "--listen-port", str(self.port), *self.options],
                env={**self.environ, "NOTIFY_SOCKET": str(self.notify)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            if wait:
                self._await_ready(ready)
        if wait:
            self.port = self.note["port"]
        return self

    def _await_ready(self, ready: socket.socket) -> None:
        assert self.process is not None
        ready.settimeout(0.1)
        left = START_SECS
        while left > 0:
            with suppress(TimeoutError):
                if b"READY=1" in ready.recv(4096):
                    return
            left -= 0.1
            assert self.process.poll() is None, f"the broker ended with {self.process.returncode}:\n{self.text}"
        raise AssertionError(f"the broker was not ready in time:\n{self.text}")

    @property
    def note(self) -> dict[str, Any]:
        """What the lock file says of the running broker."""
        note: dict[str, Any] = json.loads(self.config.with_name(f"{self.config.name}.lock").read_text())
        return note

    @property
    def text(self) -> str:
        """Everything that it has logged."""
        return self.log.read_text(errors="replace")

    def await_logged(self, text: str) -> None:
        """Wait until its log has this: what an extension prints comes there a moment after the call's answer."""
        deadline = time.monotonic() + START_SECS
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.text}"
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_secs: float = 60.0) -> int:
        assert self.process is not None
        code = self.process.wait(timeout_secs)
        self.process = None
        return code

    def stop(self) -> int:
        """End it as an operator does; gives its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> RunningBroker:
        assert self.stop() == 0, self.text
        return self.start()

    # --- talk ---

    def connect(self, timeout_secs: float = 30.0) -> http.client.HTTPSConnection:
        return Connection(self.port, timeout_secs, self.inside)

    def connected(self) -> http.client.HTTPSConnection | None:
        """Return a connection that is there, so that a call that was begun was sent; None when there can be none."""
        connection = self.connect()
        try:
            connection.connect()
        except (OSError, ssl.SSLError):
            connection.close()
            return None
        connection.auto_open = 0
        return connection

    def request(
        self,
        path: str,
        method: str = "POST",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        **parameters: str,
    ) -> Answer:
        """Send one request on a connection of its own; parameters go into the query string as 0.22 sends them."""
        connection = self.connect(_ANSWER_SECS)
        try:
            target = f"{path}?{urlencode(parameters)}" if parameters else path
            connection.request(method, target, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.reason, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def call(self, path: str, headers: Mapping[str, str] | None = None, **parameters: Any) -> Answer:
        """Send parameters as a JSON body."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        return self.request(path, "POST", json.dumps(parameters), sent)

    def register(self, name: str, data: str = "x") -> Answer:
        return self.request("/services/Register/", name=name, data=data)

    def get(self, name: str) -> Answer:
        return self.request("/services/Get/", name=name)

    def token(self, *arguments: str) -> str:
        """Return a join token, as ``bpbroker token`` prints it."""
        printed = self.bpbroker("token", *arguments)
        assert printed.returncode == 0, printed.stderr
        return printed.stdout.strip()

    @property
    def discovery_secret(self) -> str:
        """What signs its discovery datagrams."""
        secret: str = json.loads(self.config.read_text())["_discovery"]["secret"]
        return secret

    def bpbroker(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the ``bpbroker`` command with this broker's home."""
        return self._run("bpbroker", arguments, stdin)

    def bpclient(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``bpclient`` against this broker."""
        return self._run("bpbroker.client", ("-b", f"127.0.0.1:{self.port}", *arguments), stdin)

    @staticmethod
    def command(module: str, *arguments: str) -> list[str]:
        """Return the words that run one of the two commands from this very interpreter."""
        return [sys.executable, "-m", module, *arguments]

    def _run(self, module: str, arguments: tuple[str, ...], stdin: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(module, *arguments),
            env=self.environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def is_closed(client: socket.socket) -> bool:
    """Whether the broker has closed a connection; anything that it said before is dropped."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        pass
    return True

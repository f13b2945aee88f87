"""A real broker for your own tests.

With pytest, say in ``conftest.py`` that there is one::

    pytest_plugins = ["bpbroker.testing"]

and take it as a fixture::

    def test_my_installer(broker):
        install(broker.address, broker.token)
        assert broker.client.get("node-7")["role"] == "replica"

Each test has a broker of its own: on free ports of the loopback address, in a
temporary home, with an access key that is made for it. :func:`make_broker` takes
settings and extension modules. Elsewhere :class:`BrokerProcess` does the same as
a context manager.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from bpbroker.client import Client
from bpbroker.discovery.jointoken import JoinToken, make_token
from bpbroker.errors import StartError
from bpbroker.storage.lock_file import holder

START_SECS: Final = 60.0
"""The longest that a start may take; wide, because machines that run tests are busy."""
_STOP_SECS: Final = 30.0
_LOOK_SECS: Final = 0.02


class BrokerProcess:
    """One broker in a process of its own.

    Args:
        home: a folder for its files; its parent must exist.
        settings: sections of the configuration, laid over what the broker needs here. Give
            ``services`` an ``_access_key`` of its own, or an empty one to need none.
        modules: extension modules or package folders, copied into the broker's lib folder; each needs a section in
            ``settings`` to be enabled.

    Attributes:
        home: the folder.
        key: access key of ``services``; empty when none is needed.
        log: the file with everything that the broker has logged.
    """

    def __init__(
        self, home: Path, settings: Mapping[str, Mapping[str, Any]] | None = None, modules: Iterable[Path] = ()
    ) -> None:
        self.home = home
        self.log = home / "broker.log"
        self._config = home / "etc" / "bpbroker.json"
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        self._config.parent.mkdir(parents=True)
        lib = home / "lib"
        lib.mkdir()
        for module in modules:
            if module.is_dir():
                shutil.copytree(module, lib / module.name)
            else:
                shutil.copy(module, lib)
        document: dict[str, dict[str, Any]] = {
            "api": {"listen_ip": "127.0.0.1"},
            "services": {"_access_key": secrets.token_urlsafe(16)},
        }
        for name, section in (settings or {}).items():
            document[name] = {**document.get(name, {}), **section}
        keys = document["services"]["_access_key"]
        self.key = str(keys if isinstance(keys, str) else next(iter(keys), ""))
        self._config.write_text(json.dumps(document), encoding="utf-8")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it and wait until it serves; after :meth:`stop` on the same port, with the entries it had.

        Raises:
            StartError: it ended at once, or is not there in time; the message has its log.
        """
        environ = {name: value for name, value in os.environ.items() if not name.startswith("BPBROKER")}
        environ["BPBROKER_HOME"] = str(self.home)
        environ.pop("NOTIFY_SOCKET", None)
        words = (sys.executable, "-m", "bpbroker", "start", "--listen-port", str(self._port))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(words, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - our own words
        try:
            self._port = self._await_ready()["port"]
        except BaseException:  # interrupted, too, no broker stays behind
            self.kill()
            raise
        return self

    def _await_ready(self) -> dict[str, Any]:
        assert self._process is not None  # noqa: S101 - it was just started
        deadline = time.monotonic() + START_SECS
        while time.monotonic() < deadline:
            note = self._note()
            if note.get("pid") == self._process.pid:
                return note
            code = self._process.poll()
            if code is not None:
                raise StartError(f"The broker ended with {code}:\n{self.log.read_text(errors='replace')}")
            time.sleep(_LOOK_SECS)
        raise StartError(f"The broker was not there in {START_SECS:g} s:\n{self.log.read_text(errors='replace')}")

    def _note(self) -> dict[str, Any]:
        """Return what the running broker wrote into its lock file; empty as long as it does not serve."""
        note = holder(self._config) or {}
        return note if "fingerprint" in note else {}

    @property
    def address(self) -> str:
        """``127.0.0.1:port``, as ``bpclient -b`` and :class:`bpbroker.client.Client` take it."""
        return f"127.0.0.1:{self._port}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the running broker's certificate, 64 hexadecimal digits."""
        return str(self._note()["fingerprint"]).replace(":", "").lower()

    @property
    def token(self) -> str:
        """The join token: all that ``bpclient`` and :class:`bpbroker.client.Client` need."""
        return make_token(JoinToken([self.address], [self.fingerprint], self.key))

    @property
    def client(self) -> Client:
        """A client of this broker, for one thread; it is closed with the broker."""
        if self._client is None:
            self._client = Client(self.address, token=self.token, known_brokers=self.home / "known_brokers")
        return self._client

    def stop(self) -> None:
        """Stop it as an operator does, and wait for its end."""
        self._end(self._stop_by_command if sys.platform == "win32" else subprocess.Popen.terminate)

    def _stop_by_command(self, _process: subprocess.Popen[bytes]) -> None:
        """Windows: to terminate a process there is to kill it."""
        words = (sys.executable, "-m", "bpbroker", "--config", str(self._config), "stop")
        subprocess.run(words, capture_output=True, check=False)  # noqa: S603 - our own words

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(subprocess.Popen.kill)

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        process, self._process = self._process, None
        if process is None:
            return
        how(process)
        try:
            process.wait(_STOP_SECS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[MakeBroker]:
    """Start brokers: ``make_broker(settings, modules)`` returns a :class:`BrokerProcess`. All end with the test."""
    made: list[BrokerProcess] = []

    def make(settings: Mapping[str, Mapping[str, Any]] | None = None, modules: Iterable[Path] = ()) -> BrokerProcess:
        made.append(BrokerProcess(tmp_path / f"bpbroker{len(made)}", settings, modules))
        return made[-1].start()

    yield make
    for broker in made:
        broker.stop()


@pytest.fixture
def broker(make_broker: MakeBroker) -> BrokerProcess:
    """Return a running broker with an empty registry."""
    return make_broker()

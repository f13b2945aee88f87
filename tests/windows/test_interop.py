"""Windows and Linux together: each one's client at the other's broker, and the client of 0.22 at that of Windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from bpbroker.testing import BrokerProcess
from tests.support.systems import windows_only

NOTE = os.environ.get("BPBROKER_BESIDE", "")
EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = '{"x": "ž日 \\" %PATH% ^&|"}'

pytestmark = [
    windows_only("its client and its broker meet those of Linux"),
    pytest.mark.skipif(not NOTE, reason="nothing of Linux runs beside it: tests/windows/run starts that"),
]


class Beside:
    """What runs on Linux; see tests/windows/beside.py."""

    def __init__(self) -> None:
        self._note = json.loads(Path(NOTE).read_text())
        self.token: str = self._note["token"]

    def run(self, which: str, *words: str, content: str = "") -> tuple[int, str, str]:
        """Run bpclient there: ``new`` or ``0.22`` at the broker that the words name, ``broker`` at the one of Linux."""
        with Client(tuple(self._note["address"]), authkey=bytes.fromhex(self._note["key"])) as there:
            there.send((which, words, content.encode()))
            done = there.recv()
        if done is None:
            pytest.skip("the client of 0.22 is not to be had: no Python 2.7, or its package is not there")
        code, out, err = done
        return code, out.decode(), err.decode()


@pytest.fixture
def linux() -> Beside:
    return Beside()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    settings = {"example_extension_module": {"_access_key": "secret"}, "services": {"_access_key": ""}}
    with BrokerProcess(tmp_path / "home", settings, [EXAMPLES / "example_extension_module.py"]) as made:
        yield made


def here(token: str, *words: str, content: str = "") -> tuple[int, str, str]:
    command = [sys.executable, "-m", "bpbroker.client", "--token", token, *words]
    done = subprocess.run(command, input=content.encode(), capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_client_of_windows_at_a_broker_of_linux(linux: Beside) -> None:
    code, _, err = here(linux.token, "service", "register", "--name", "win", "--data", "-", content=TEXT)
    assert code == 0, err
    assert json.loads(linux.run("broker", "service", "get", "--name", "win")[1])["x"] == json.loads(TEXT)["x"]
    assert here(linux.token, "service", "register", "--name", "win", "--data", "y")[0] == 4
    assert here(linux.token, "service", "get", "--name", "nope")[0] == 3
    answer = here(linux.token, "execute", "--method", "example_extension_module.Test", "--data", "h")
    assert json.loads(answer[1]) == {"data": "h", "from": "127.0.0.1"}
    waiting = [sys.executable, "-m", "bpbroker.client", "--token", linux.token]
    waiting += ["--timeout", "60s", "service", "get", "--name", "late", "--wait", "60s"]
    with subprocess.Popen(waiting, stdout=subprocess.PIPE) as waiter:
        assert linux.run("broker", "service", "register", "--name", "late", "--data", "come")[0] == 0
        assert waiter.communicate(timeout=120)[0].split() == [b"come"]


def test_a_client_of_linux_at_a_broker_of_windows(linux: Beside, broker: BrokerProcess) -> None:
    words = ("--token", broker.token)
    code, _, err = linux.run("new", *words, "service", "register", "--name", "lin", "--data", "-", content=TEXT)
    assert code == 0, err
    assert broker.client.get("lin")["x"] == json.loads(TEXT)["x"]
    assert linux.run("new", *words, "service", "register", "--name", "lin", "--data", "y")[0] == 4
    assert linux.run("new", *words, "service", "update", "--name", "lin", "--data", '{"y": 2}')[0] == 0
    assert broker.client.get("lin")["y"] == 2
    method = ("execute", "--method", "example_extension_module.Test", "--data", "h")
    assert json.loads(linux.run("new", *words, "-a", "secret", *method)[1]) == {"data": "h", "from": "127.0.0.1"}
    assert linux.run("new", *words, "-a", "wrong", *method)[0] == 5
    broker.client.register("found", {})
    port = broker.address.rpartition(":")[2]
    found = linux.run("new", "--interface", "127.0.0.1", "--port", port, "discover", "--name", "found")
    assert (found[0], found[1].strip()) == (0, broker.address), found


def test_the_client_of_022_at_a_broker_of_windows(linux: Beside, broker: BrokerProcess) -> None:
    def old(*words: str) -> tuple[int, str, str]:
        return linux.run("0.22", "-b", broker.address, *words)

    assert old("ping", "--data", "foo")[:2] == (0, "foo\n")
    assert old("service", "register", "--name", "foo", "--data", "bar")[:2] == (0, "bar\n")
    again = old("service", "register", "--name", "foo", "--data", "bar")
    assert again[0] != 0
    assert "Fatal error: Entry 'foo' already exists" in again[2]
    assert old("service", "get", "--name", "foo")[:2] == (0, "bar\n")
    assert json.loads(old("service", "replace", "--name", "foo", "--data", '{"key": "x"}')[1])["key"] == "x"
    assert json.loads(old("service", "update", "--name", "foo", "--data", '{"new": "y"}')[1])["new"] == "y"
    assert "Fatal error: Entry 'nope' not found" in old("service", "get", "--name", "nope")[2]
    called = old("-a", "secret", "execute", "--method", "example_extension_module.Test", "--data", "h")
    assert json.loads(called[1]) == {"data": "h", "from": "127.0.0.1"}
    assert old("service", "delete", "--name", "foo")[:2] == (0, "")
    assert broker.client.list("") == {}

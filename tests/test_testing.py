"""The broker that other people's tests get from us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bpbroker.client import Client, Entry
from bpbroker.errors import CannotConnect, StartError, Unauthorized
from bpbroker.testing import BrokerProcess

pytestmark = pytest.mark.system

USERS_TEST = '''
"""As the documentation shows it."""

pytest_plugins = ["bpbroker.testing"]


def test_a_registration(broker):
    broker.client.register("node-7", {"role": "replica"})
    assert broker.client.get("node-7")["role"] == "replica"


def test_each_test_has_its_own(broker):
    assert broker.client.list() == {}


def test_settings_and_modules(make_broker, tmp_path):
    module = tmp_path / "hello.py"
    module.write_text("def Hello(rh):\\n    rh.data = 'hello'\\n")
    first, second = make_broker({"hello": {}}, [module]), make_broker()
    assert first.address != second.address
    assert first.client.execute("hello.Hello").text == "hello"
'''


def test_the_fixtures_work_in_another_project(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["bpbroker.testing"]\n')
    (tmp_path / "test_it.py").write_text(USERS_TEST.replace('pytest_plugins = ["bpbroker.testing"]\n', ""))
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            tmp_path,
            tmp_path,
        ],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_it_keeps_its_entries_and_its_port_over_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "home") as broker:
        broker.client.register("a", "x")
        before = broker.address, broker.token
        broker.kill()
        with pytest.raises(CannotConnect):
            Client(broker.address, token=before[1], retries=0, timeout_secs=2).get("a")
        broker.start()
        assert (broker.address, broker.token) == before
        assert broker.client.list() != {}


def test_it_needs_its_key_unless_told_otherwise(tmp_path: Path) -> None:
    def as_stranger(broker: BrokerProcess) -> dict[str, Entry]:
        with Client(broker.address, fingerprint=broker.fingerprint) as stranger:
            return stranger.list()

    with BrokerProcess(tmp_path / "home") as broker, pytest.raises(Unauthorized):
        as_stranger(broker)
    with BrokerProcess(tmp_path / "open", {"services": {"_access_key": ""}}) as broker:
        assert as_stranger(broker) == {}


def test_what_keeps_it_from_starting_is_said(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"(?s)ended with 78:.*api\.listen_port is"):
        BrokerProcess(tmp_path / "home", {"api": {"listen_port": "none"}}).start()

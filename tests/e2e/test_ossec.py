"""``examples/ossec.py`` through a real broker, against a made-up OSSEC manager."""

from __future__ import annotations

import http.client
import importlib.util
import json
import logging
import re
import shutil
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Answer, RunningBroker, untrusting

EXAMPLES = Path(__file__).parents[2] / "examples"
LINE = re.compile(r"(\d{3,}) (\S+) (\S+) ([0-9a-f]{64})")

CONTROL = """#!/bin/sh
cd "$(dirname "$0")/.."
mkdir restarting || echo overlap >> log
echo "$1 $(wc -l < etc/client.keys)" >> log
sleep 0.02
[ -e broken ] && echo "canary-7391 is down" && rmdir restarting && exit 1
(sleep 30 &)  # a daemon that keeps the output open
rmdir restarting
"""


class Manager:
    """An OSSEC manager's folder, and a broker that serves it."""

    def __init__(self, folder: Path, broker: RunningBroker) -> None:
        self.folder = folder
        self.keys = folder / "etc" / "client.keys"
        self.broker = broker

    def add(self, name: str, source: str = "127.0.0.1", key: str = "") -> Answer:
        """Call ``ossec.AddAgent`` as the host at ``source``."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.broker.port, timeout=120, context=untrusting(), source_address=(source, 0)
        )
        try:
            headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
            connection.request("POST", "/ossec/AddAgent/", json.dumps({"data": name}), headers)
            response = connection.getresponse()
            return Answer(response.status, response.reason, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    @property
    def lines(self) -> list[str]:
        return self.keys.read_text().splitlines()

    @property
    def log(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def make_manager(tmp_path: Path, make_broker: Callable[..., RunningBroker]) -> Callable[..., Manager]:
    def make(**section: Any) -> Manager:
        folder = tmp_path / "ossec"
        for name in ("etc", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "etc" / "client.keys").touch(0o640)
        control = folder / "bin" / "ossec-control"
        control.write_text(CONTROL)
        control.chmod(0o755)
        settings = json.loads((EXAMPLES / "ossec.json").read_text())
        settings["ossec"].update({"ossec_dir": str(folder), **section})
        broker = make_broker(settings)
        shutil.copy(EXAMPLES / "ossec.py", broker.lib)
        return Manager(folder, broker.start())

    return make


@pytest.fixture
def manager(make_manager: Callable[..., Manager]) -> Manager:
    return make_manager()


def test_an_agent_gets_its_key(manager: Manager) -> None:
    done = manager.broker.bpclient("execute", "--method", "ossec.AddAgent", "--data", "host-1.example")
    assert done.returncode == 0, done.stderr
    found = LINE.fullmatch(done.stdout.strip())
    assert found is not None
    assert found.groups()[:3] == ("001", "host-1.example", "127.0.0.1")
    assert manager.lines == [done.stdout.strip()]
    assert manager.log == ["restart 1"]
    assert manager.keys.stat().st_mode & 0o777 == 0o640
    second = manager.add("host-2", "127.0.0.2")
    assert (second.status, second.headers["Content-Type"]) == (200, "text/plain")
    assert second.body.startswith(b"002 host-2 127.0.0.2 ")


@pytest.mark.parametrize(
    "name", ["", "x", "a b", "a\nb", "../x", "-a", "a" * 129, "a;id", "ü-host", "host\n", "a/b", '"a"', "$(id)"]
)
def test_a_name_that_is_none_is_refused(manager: Manager, name: str) -> None:
    answer = manager.add(name)
    assert (answer.status, answer.json["message"]) == (400, "Invalid source host name content")
    assert manager.lines == []


def test_an_address_or_a_name_in_use_is_refused(manager: Manager) -> None:
    removed = "007 #*removed 127.0.0.9 " + "0" * 64
    network = "008 other 127.0.0.x0 " + "1" * 64  # what is in a line is no pattern
    manager.keys.write_text(f"{removed}\n{network}\n")
    assert manager.add("host", "127.0.0.10").status == 200
    taken = manager.add("another", "127.0.0.10")
    assert (taken.status, taken.json["message"]) == (409, "Unable to add requested host IP in use")
    assert taken.reason == taken.json["message"]
    assert manager.add("HOST", "127.0.0.11").status == 409
    assert manager.add("freed", "127.0.0.9").body.startswith(b"010 freed 127.0.0.9 ")
    assert manager.lines[:2] == [removed, network]


def test_a_failed_restart_adds_no_agent(manager: Manager) -> None:
    (manager.folder / "broken").touch()
    refused = manager.add("host")
    assert (refused.status, refused.json["message"]) == (
        500,
        "OSSEC could not be restarted, so the agent was not added",
    )
    assert manager.lines == []
    manager.broker.await_logged("canary-7391 is down")
    (manager.folder / "broken").unlink()
    assert manager.add("host").body.startswith(b"001 host ")


def test_without_a_manager_nothing_is_made(manager: Manager) -> None:
    shutil.rmtree(manager.folder)
    answer = manager.add("host")
    assert (answer.status, answer.json["message"]) == (500, "There is no OSSEC manager here")
    assert str(manager.folder) not in answer.body.decode()
    manager.broker.await_logged(f"{manager.folder}/")
    assert not manager.folder.exists()


def test_a_repeat_with_its_key_adds_one_agent(manager: Manager) -> None:
    first = manager.add("host", key="k1")
    assert first.status == 200
    assert manager.add("host", key="k1").body == first.body
    manager.broker.restart()
    assert manager.add("host", key="k1").body == first.body
    assert len(manager.lines) == 1


@pytest.mark.parametrize("workers", [1, 8])
def test_a_storm_of_200_agents(make_manager: Callable[..., Manager], workers: int) -> None:
    manager = make_manager(_workers=workers)
    begin = time.monotonic()
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda number: manager.add(f"host-{number}", f"127.0.1.{number}"), range(1, 201)))
    secs = time.monotonic() - begin
    assert [answer.status for answer in answers] == [200] * 200
    agents = [LINE.fullmatch(line) for line in manager.lines]
    assert all(agents)
    for column in range(4):
        assert len({agent.groups()[column] for agent in agents if agent}) == 200
    assert sorted(answer.body.decode() for answer in answers) == sorted(manager.lines)
    assert "overlap" not in manager.log
    assert manager.log[-1] == "restart 200"
    assert len(manager.log) == 200 if workers == 1 else len(manager.log) < 200
    assert secs < 100, "20 s on a quiet machine; five times that is allowed"
    print(f"{workers} workers: {secs:.1f} s, {len(manager.log)} restarts")  # noqa: T201 - the figure that is reported


@pytest.mark.parametrize("unit", ["ossec", "wazuh-manager", ""])
def test_where_systemd_runs_it_restarts_the_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    spec = importlib.util.spec_from_file_location("ossec", EXAMPLES / "ossec.py")
    assert spec is not None
    assert spec.loader is not None
    ossec = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ossec)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("systemctl", "systemd-run"):
        program = programs / name
        program.write_text(
            f'#!/bin/sh\n[ "$1" = cat ] && exec test "$2" = "{unit}.service"\necho "$0 $*" >>{tmp_path}/calls\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(ossec, "SYSTEMD", tmp_path)
    (tmp_path / "etc").mkdir()
    rh = types.SimpleNamespace(
        config={"ossec_dir": str(tmp_path), "ossec_unit": unit if unit != "ossec" else ""},
        qs={"data": "node-7"},
        log=logging.getLogger("test"),
        RequestingHost=lambda: "10.0.0.7",
    )
    ossec.AddAgent(rh)
    (call,) = (tmp_path / "calls").read_text().splitlines()
    if unit:
        assert call == f"{programs}/systemctl restart {unit}.service"
    else:
        assert call.startswith(f"{programs}/systemd-run ")
        assert call.endswith(f" --service-type=forking --property=GuessMainPID=no {tmp_path}/bin/ossec-control restart")
    assert LINE.fullmatch(rh.data)

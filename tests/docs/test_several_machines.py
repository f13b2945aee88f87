"""docs/several-machines.md, command by command, on machines in network namespaces."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from bpbroker.config import schema
from tests.support.etcd_cluster import needs_etcd
from tests.support.network import Network, needs_namespaces
from tests.support.pages import ROOT, Shell, Step, alike, blocks, steps, with_scripts

pytestmark = [needs_etcd, needs_namespaces]

PAGE: Final = ROOT / "docs" / "several-machines.md"
TEXT: Final = PAGE.read_text()
ADDRESSES: Final = {"a": "10.0.0.5", "b": "10.0.0.6", "c": "10.0.0.7"}
SAID_TO_PEOPLE: Final = ("Fatal error: ", "This was so ")


def machine_steps() -> Iterator[Step]:
    for block in blocks(PAGE):
        if block.language == "shell" and block.not_run is None:
            yield from steps(block)


class Machine(Shell):
    """A shell on a host of its own, in a folder of its own."""

    def __init__(self, network: Network, name: str, folder: Path) -> None:
        folder.mkdir()
        network.host(name)
        network.cable(name, "eth0", "switch", f"{ADDRESSES[name]}/24")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("BPBROKER", "ETCD"))}
        own = {"BPBROKER_HOME": str(folder / "home"), "BPBROKER_KNOWN_BROKERS": str(folder / "known_brokers")}
        environ = with_scripts(Path(sys.executable).parent, {**environ, **own})
        super().__init__(folder, environ, network.words(name))
        network.run(self.process)
        assert self.type("set -m")[0] == 0  # as a shell that a person types into: jobs are process groups

    def leave(self) -> None:
        """Close it; its jobs are still there."""
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    network = Network("rm")
    made: dict[str, Machine] = {}
    try:
        network.switch("switch")
        for name in ADDRESSES:
            made[name] = Machine(network, name, tmp_path / name)
        yield made
    finally:
        for machine in made.values():
            machine.leave()
        for name in ADDRESSES:  # members and brokers outlive their shell
            pids = subprocess.run(
                ["ip", "netns", "pids", f"{network.tag}{name}"], capture_output=True, text=True, check=False
            ).stdout
            subprocess.run(["kill", "-KILL", *pids.split()], capture_output=True, check=False)
        network.close()


def check(step: Step, code: int, out: str, err: str) -> None:
    """See that a command did what the page shows."""
    told = [line for line in step.shown if line.startswith(SAID_TO_PEOPLE)]
    printed = [line for line in step.shown if line not in told]
    assert (code == 0) is not any(line.startswith("Fatal error: ") for line in told), (step.command, out, err)
    assert len(out.splitlines()) == len(printed), (step.command, out, err)
    assert all(map(alike, out.splitlines(), printed)), (step.command, out)
    said = re.sub(r"\d+ s ago", "7 s ago", err).splitlines()
    assert all(line in said for line in told), (step.command, err)


def test_every_command_does_what_it_shows(machines: dict[str, Machine]) -> None:
    if not (Path(sys.executable).parent / "bpclient").exists():
        pytest.skip("the package is not installed beside this interpreter")
    typed = 0
    for step in machine_steps():
        for name in step.where:
            check(step, *machines[name].type(step.command))
        typed += 1
        if "ca.key" in step.command and "done" in step.command:  # "copy ca.crt and each machine's own pair there"
            made = machines["a"].folder
            for name in "bc":
                for file in (made / "ca.crt", *made.glob(f"{ADDRESSES[name]}.*")):
                    shutil.copy(file, machines[name].folder)
        if "discovery.secret)" in step.command and step.where == "a":
            shutil.copy(machines["a"].folder / "discovery.secret", machines["b"].folder)
        for file, to in re.findall(r"> (\S+)  # copy it to ([abc])$", step.command):
            shutil.copy(machines[step.where].folder / file, machines[to].folder)
    assert typed >= 20


def test_what_it_installs_is_there() -> None:
    (packages,) = re.findall(r"^\$ apt-get install (.*)$", TEXT, re.MULTILINE)
    for package in packages.split():
        found = subprocess.run(["dpkg", "-s", package], capture_output=True, check=False)
        assert found.returncode == 0, package
    assert "\n$ .venv/bin/pip install '.[etcd]'\n" in TEXT
    assert "etcd" in (metadata.metadata("bpbroker").get_all("Provides-Extra") or ())


def test_every_setting_is_named() -> None:
    """Those of the store are on this page, those of any registry on the page of all settings."""
    configuration = (ROOT / "docs" / "configuration.md").read_text()
    for key in schema.KNOWN["_registry"]:
        assert f"`{key}`" in TEXT + configuration, key

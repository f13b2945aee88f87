"""What the README says: its Quickstart runs as it stands, and it knows every command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import RunningBroker

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICKSTART = README[README.index("## Quickstart") : README.index("## The registry")]


def session() -> Iterator[tuple[str, list[str]]]:
    """Yield each command of the Quickstart's shell blocks with the output that the README shows."""
    for block in re.findall(r"```shell\n(.*?)```", QUICKSTART, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.strip().split("\n")
            yield command, shown


def alike(printed: str, shown: str) -> bool:
    """Whether a line is what the README shows, but for what differs from run to run: addresses and times."""
    varying = re.compile(r"\d+\.\d+\.\d+\.\d+|\b1[0-9]{9}\b")
    return varying.sub("#", printed) == varying.sub("#", shown)


def test_the_quickstart_runs_as_it_stands(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    if not (scripts / "bpclient").exists():
        pytest.skip("the package is not installed beside this interpreter")
    broker = RunningBroker(tmp_path / "home").start()
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environ = {
        **broker.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "BPBROKER_LISTEN_PORT": str(broker.port),
    }
    commands = 0
    try:
        for command, shown in session():
            on_this_port = command.replace("-b 127.0.0.1 ", f"-b 127.0.0.1:{broker.port} ").replace(
                "bpclient discover", f"bpclient --port {broker.port} discover"
            )
            done = subprocess.run(
                ["bash", "-c", on_this_port],
                cwd=tmp_path,
                env=environ,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, (command, done.stderr)
            printed = done.stdout.splitlines()
            if shown:
                assert len(printed) == len(shown), (command, printed)
                assert all(map(alike, printed, shown)), (command, printed)
            commands += 1
    finally:
        subprocess.run(["bash", "-c", "bpbroker stop"], env=environ, check=False, capture_output=True, timeout=60)
        broker.kill()
    assert commands >= 10


def test_what_it_shows_in_python_runs_as_it_stands(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPBROKER_KNOWN_BROKERS", str(broker.home / "known_brokers"))
    section = README[README.index("## From Python") : README.index("## What it promises")]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    broker.register("db", '{"role": "master"}')
    assert "10.0.0.5:20443" in block
    exec(block.replace("10.0.0.5:20443", f"127.0.0.1:{broker.port}"), {})  # noqa: S102 - our own README
    assert broker.get("node-7").json["data"]["role"] == "replica"


@pytest.mark.parametrize("module", ["bpbroker", "bpbroker.client"])
def test_every_command_has_its_place(module: str) -> None:
    listed = subprocess.run(
        RunningBroker.command(module, "--help"), capture_output=True, text=True, check=True, timeout=60
    ).stdout
    commands = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", listed, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert re.search(rf"\b{re.escape(command)}\b", README), f"{command} is not in the README"


def test_every_section_key_is_in_the_readme() -> None:
    from bpbroker.config import schema

    for section in ("api", "_global", "_config"):
        for key in schema.KNOWN[section]:
            assert f"`{key}`" in README or f'"{key}"' in README, f"{section}.{key} is not in the README"
    for key in schema.EXTENSION:
        assert f"`{key}`" in README, f"{key} is not in the README"


def test_the_test_commands_are_there_for_ci() -> None:
    assert "    python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest\n" in README
    assert "    .venv/bin/pytest -m system\n" in README
    assert "    python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/bpbroker start\n" in README


def test_the_example_for_authors_works_as_it_stands(tmp_path: Path) -> None:
    section = README[README.index("## Extensions") : README.index("## From Python")]
    (source,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "inventory.py").write_text(source)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "inventory.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert checked.returncode == 0, checked.stdout
    broker = RunningBroker(tmp_path / "home").start()
    try:
        said = []
        for line in re.findall(r"^    (bp(?:broker|client) .*)$", section, re.MULTILINE):
            program, *words = line.replace("--lib .", f"--lib {tmp_path}").replace("-b 127.0.0.1 ", "").split()
            words = [str(tmp_path / word) if word == "inventory.py" else word for word in words]
            done = broker.bpbroker(*words) if program == "bpbroker" else broker.bpclient(*words)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
        assert said[0] == said[2] == '{"welcome": "node7"}'
        assert broker.get("host-node7").json["data"]["address"] == "127.0.0.1"
        again = broker.bpclient("execute", "--method", "inventory.AddHost", "--data", "node7")
        assert (again.returncode, again.stderr.splitlines()[-1]) == (
            4,
            "Fatal error: Entry 'host-node7' already exists",
        )
        bad = broker.bpclient("execute", "--method", "inventory.AddHost", "--data", "node 7")
        assert (bad.returncode, bad.stderr) == (1, "Fatal error: The host name must be an identifier\n")
        broker.await_logged("bpbroker.extension.inventory: added node7")
    finally:
        broker.kill()

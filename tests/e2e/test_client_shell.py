"""``bpclient`` in shell scripts, and three hundred of it at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.running import RunningBroker

SCRIPT = Path(__file__).with_name("client_in_scripts.sh")
STORM = 300 if os.environ.get("BPBROKER_LONG") else 100
WAVE = 25


def shells() -> set[str]:
    """Return the shells that are here, each once: sh is often one of the others."""
    found = {name: shutil.which(name) for name in ("bash", "dash", "sh")}
    return set({Path(program).resolve(): name for name, program in found.items() if program}.values())


def test_installation_scripts(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> None:
    command = tmp_path / "bin" / "bpclient"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {" ".join(RunningBroker.command("bpbroker.client"))} -q "$@"\n')
    command.chmod(0o755)

    def run(shell: str, broker: RunningBroker) -> tuple[str, str, int]:
        folder = tmp_path / shell
        folder.mkdir()
        done = subprocess.run(
            [shell, str(SCRIPT)],
            env={
                **broker.environ,
                "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
                "BPBROKER": f"127.0.0.1:{broker.port}",
            },
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.stdout, done.stderr, done.returncode

    # All at once, each with a broker of its own: what takes long is the start of seventy clients.
    brokers = {shell: make_broker().start() for shell in shells()}
    with ThreadPoolExecutor() as pool:
        ended = dict(zip(brokers, pool.map(run, brokers, brokers.values()), strict=True))
    assert ended == dict.fromkeys(brokers, ("all is well\n", "", 0))


def test_a_storm_of_servers_that_boot_at_once(broker: RunningBroker) -> None:
    broker.register("foo-cluster1")
    for start in range(0, STORM, WAVE):
        words = ("-q", "--port", str(broker.port), "--discover", "foo-cluster1", "service", "register")
        wave = [
            subprocess.Popen(
                broker.command("bpbroker.client", *words, "--name", f"node-{number:03}", "--data", str(number)),
                env=broker.environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(start, min(start + WAVE, STORM))
        ]
        for number, process in enumerate(wave, start):
            assert (*process.communicate(timeout=120), process.returncode) == (f"{number}\n", "", 0)
    listed = broker.bpclient("-q", "service", "list", "--prefix", "node-", "--keys").stdout.splitlines()
    assert listed == [f"node-{number:03}" for number in range(STORM)]
    pins = Path(broker.environ["BPBROKER_KNOWN_BROKERS"]).read_text().splitlines()
    assert len(pins) == len(set(pins)) <= 3

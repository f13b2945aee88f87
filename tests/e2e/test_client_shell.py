"""``bpclient`` in shell scripts, and three hundred of it at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running import RunningBroker

SCRIPT = Path(__file__).with_name("client_in_scripts.sh")
STORM = 300 if os.environ.get("BPBROKER_LONG") else 100
WAVE = 25


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_installation_scripts(shell: str, broker: RunningBroker, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    command = tmp_path / "bin" / "bpclient"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {" ".join(broker.command("bpbroker.client"))} -q "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        [program, str(SCRIPT)],
        env={
            **broker.environ,
            "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
            "BPBROKER": f"127.0.0.1:{broker.port}",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("all is well\n", "", 0)


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

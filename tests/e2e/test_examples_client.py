"""The example scripts, as they stand, against a real broker."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import RunningBroker

EXAMPLES = Path(__file__).parents[2] / "examples"
FIND = EXAMPLES / "find_master_ip" / "find_master_ip.sh"
REGISTER = EXAMPLES / "register_node" / "register_node.sh"

Script = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["sh", "bash", "dash"])
def script(request: pytest.FixtureRequest, broker: RunningBroker, tmp_path: Path) -> Script:
    """Return a starter of a script with ``bpclient`` in its path; the broker holds ``foo``."""
    shell = shutil.which(request.param)
    if shell is None:
        pytest.skip(f"{request.param} is not installed")
    command = tmp_path / "bin" / "bpclient"
    command.parent.mkdir()
    python = " ".join(broker.command("bpbroker.client"))
    command.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    command.chmod(0o755)
    broker.register("foo", "{}")
    environ = {
        **broker.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "BPBROKER_PORT": "tcp://10.0.0.1:20443",  # as Kubernetes sets it
        "PORT": str(broker.port),
        "WAIT": "60s",
    }

    def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [shell, str(path), *arguments], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return start


def test_replicas_find_the_master_in_whatever_order(script: Script, broker: RunningBroker) -> None:
    early = script(FIND, "foo", "replica")
    assert script(FIND, "foo", "master").communicate(timeout=90)[0] == broker_sees_us(broker)
    assert early.communicate(timeout=90)[0] == broker_sees_us(broker)
    again = script(FIND, "foo", "master")
    assert again.communicate(timeout=90)[0] == broker_sees_us(broker)
    assert again.returncode == 0


def broker_sees_us(broker: RunningBroker) -> str:
    return f"{broker.get('foo-master').json['data']['last_write_ip']}\n"


def test_a_second_master_is_refused(script: Script, broker: RunningBroker) -> None:
    broker.register("foo-master", '{"role": "other"}')
    second = script(FIND, "foo", "master")
    out, err = second.communicate(timeout=90)
    assert (out, second.returncode) == ("", 4)
    assert "already exists" in err


def test_nodes_register_and_wait_for_each_other(script: Script, broker: RunningBroker) -> None:
    nodes = [script(REGISTER, "foo", f"node-{number}", "3") for number in (1, 2, 3)]
    for node in nodes:
        assert node.communicate(timeout=90)[0] == "foo/node-1\nfoo/node-2\nfoo/node-3\n"
        assert node.returncode == 0
    assert broker.get("foo/node-2").json["data"]["cpus"] == os.sysconf("SC_NPROCESSORS_ONLN")


@pytest.mark.parametrize("path", [FIND, REGISTER])
def test_wrong_words_are_said(script: Script, path: Path) -> None:
    # Also when nobody answers: what is wrong is said before anything is waited for.
    for words in (["foo"], ["nobody", "oops"]):
        wrong = script(path, *words)
        out, err = wrong.communicate(timeout=30)
        assert (out, wrong.returncode) == ("", 2)
        assert "usage:" in err


@pytest.mark.parametrize("path", [FIND, REGISTER])
def test_shellcheck_has_no_complaint(path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(path)], check=True, timeout=60)

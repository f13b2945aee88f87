"""The lines of docs/windows.md, typed into cmd one after the other, as an administrator of an empty server does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.systems import is_wine, windows_only

PAGE = Path(__file__).parents[2] / "docs" / "windows.md"
HOME = Path(r"C:\Program Files\bpbroker")
NSSM = Path(r"C:\nssm\nssm.exe")
WHEELS = Path(os.environ.get("BPBROKER_WHEELS", ""))

pytestmark = [
    windows_only("its page"),
    pytest.mark.skipif(not is_wine(), reason="it installs and removes a service: only where all is thrown away"),
]


def lines() -> list[str]:
    """Return what is to be typed: the lines that are set off."""
    return re.findall(r"^ {7}(\S.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def code() -> str:
    """Return the module that the page shows."""
    (found,) = re.findall(r"^```python hello\.py\n((?:.*\n)*?)```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return str(found)


class Cmd:
    """A window of cmd: what is typed runs in one folder, with one environment."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._out = folder / "typed"

    def type(self, line: str) -> tuple[int, str]:
        """Run a line; return its exit code and all that it wrote."""
        # To a file: a service manager that a line starts would hold a pipe open.
        with self._out.open("wb") as out:
            done = subprocess.run(
                f"cmd /c {line}", cwd=self._folder, env=self._environ, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, timeout=120, check=False,
            )  # fmt: skip
        return done.returncode, self._out.read_text(encoding="utf-8", errors="replace")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def cmd(tmp_path: Path, port: int) -> Iterator[Cmd]:
    shutil.rmtree(HOME, ignore_errors=True)
    folder = tmp_path / "Администратор"
    folder.mkdir()
    (folder / "nssm.exe").write_bytes(NSSM.read_bytes())
    (folder / "hello.py").write_text(code(), encoding="utf-8")
    installed = tmp_path / "python"
    python = Path(sys.executable).parent
    environ = {
        **os.environ,
        # as "Add python.exe to PATH" does
        "PATH": os.pathsep.join([str(installed / "Scripts"), str(python), os.environ["PATH"]]),
        # pip finds this project's wheel instead of the one on PyPI, and leaves this Python as it is
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(WHEELS),
        "PIP_PREFIX": str(installed),
        "PIP_NO_WARN_SCRIPT_LOCATION": "1",
        "PYTHONPATH": str(installed / "Lib" / "site-packages"),
        "BPBROKER_NETSH": str(folder / "netsh"),
        "BPBROKER": f"127.0.0.1:{port}",
        "BPBROKER_KNOWN_BROKERS": str(folder / "known_brokers"),
    }
    made = Cmd(folder, environ)
    yield made
    made.type("bpbroker uninstall-service --purge")
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.mark.skipif(not WHEELS.name, reason="tests/windows/run builds the wheel")
def test_every_line_does_what_the_page_says(cmd: Cmd, tmp_path: Path, port: int) -> None:
    said = {}
    for line in lines():
        end = time.monotonic() + 60
        while True:
            # The source in a folder is Linux's here: run has made its wheel, as pip would do.
            result, said[line] = cmd.type(line.replace("pip install .", "pip install bpbroker"))
            if result == 0 or line != "bpbroker status" or time.monotonic() > end:
                break  # who types it sees the service a moment after it was started
            time.sleep(0.5)
        assert result == 0, (line, said[line])
        if line.startswith("mkdir "):  # the port of the page may be another's on this machine
            own = HOME / "etc" / "bpbroker.json"
            own.parent.mkdir()
            own.write_text(json.dumps({"api": {"listen_port": port, "listen_ip": "127.0.0.1"}}))
    assert (tmp_path / "python" / "Scripts" / "bpbroker.exe").exists()
    assert f"port {port}" in said["bpbroker status"]
    assert said["bpclient execute hello.World"].splitlines()[-1] == "hello, world"
    assert not (HOME / "etc").exists()  # --purge

    netsh = (tmp_path / "Администратор" / "netsh").read_text(encoding="utf-8-sig").splitlines()
    asked = [line.partition(" advfirewall firewall ")[2] for line in netsh]
    opened = [
        f'add rule "name=bpbroker ({protocol})" dir=in action=allow protocol={protocol} localport={port}'
        for protocol in ("TCP", "UDP")
    ]
    closed = [f'delete rule "name=bpbroker ({protocol})"' for protocol in ("TCP", "UDP")]
    # Those that an older installation left are replaced.
    assert asked == [*closed, *opened, *closed], (netsh, said)  # a program that could not be run is told of there


def test_the_page_has_lines_to_type() -> None:
    assert len(lines()) >= 9
    assert "def World" in code()

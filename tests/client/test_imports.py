"""What starting the client loads: that is most of what a one-shot call costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVER = {"pykka", "cherrypy", "cheroot", "OpenSSL", "cryptography", "sqlite3"}
COSTLY = {
    "http.client",
    "email",
    "urllib.request",
    "asyncio",
    "logging",
    "tempfile",
    "random",
    "csv",
    "ctypes",
    "dataclasses",
}


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["bpbroker.client", "bpbroker.client.cli"])
def test_nothing_of_the_server_is_loaded(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(SERVER)
    ours = {name for name in loaded if name.startswith("bpbroker.") and not name.startswith("bpbroker.client")}
    assert ours == {
        "bpbroker.errors",
        "bpbroker.entry",
        "bpbroker.datagram",
        "bpbroker.jointoken",
        "bpbroker.interfaces",
    }


def test_the_library_loads_nothing_that_a_call_does_not_need() -> None:
    loaded = loaded_by("import bpbroker.client")
    assert loaded.isdisjoint({*COSTLY, "click", "ssl", "threading"})


def test_the_command_line_loads_nothing_costly_of_its_own() -> None:
    ours = loaded_by("import click\nbefore = set(sys.modules)\nimport bpbroker.client.cli")
    assert ours.isdisjoint({*COSTLY, "ssl"})

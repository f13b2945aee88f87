"""The Linux side of tests that run under Wine: a broker, the clients of today and of 0.22, started by ``run``.

It runs what a test asks for through :mod:`multiprocessing.connection`, for whoever knows the random key in the file
that only this user may read.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from bpbroker.testing import BrokerProcess
from tests.e2e.test_interop_022 import find_python2

OLD = "bpbroker==0.22"


def bpclient(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "bpbroker.client", *words]


def old_client(folder: Path, words: list[str]) -> list[str]:
    """Return the command line of the client of 0.22, which is installed once; none where there is no Python 2.7."""
    python = find_python2()
    if python is None:
        return []
    if not (folder / "bin" / "bpclient").exists():
        subprocess.run([python, "-m", "pip", "install", "-q", "--target", str(folder), OLD], check=True, timeout=240)
    return [python, str(folder / "bin" / "bpclient"), *words]


def run(asked: Any, folder: Path, broker: BrokerProcess) -> tuple[int, bytes, bytes] | None:
    """Run what was asked for; None where it is not to be had."""
    which, words, content = asked
    environ = {**os.environ, "BPBROKER_KNOWN_BROKERS": str(folder / "known_brokers")}
    command = bpclient(words)
    if which == "0.22":
        try:
            command = old_client(folder / "old", words)
        except subprocess.SubprocessError:
            command = []
        environ["PYTHONPATH"] = str(folder / "old")
    elif which == "broker":
        command = bpclient(["--token", broker.token, *words])
    if not command:
        return None
    done = subprocess.run(command, env=environ, input=content, capture_output=True, timeout=240, check=False)
    return done.returncode, done.stdout, done.stderr


def main(note: Path, module: Path) -> None:
    key = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory() as made, Listener(("127.0.0.1", 0), authkey=key) as listener:
        folder = Path(made)
        with BrokerProcess(folder / "home", {"example_extension_module": {"_access_key": ""}}, [module]) as broker:
            half = note.with_suffix(".half")
            half.touch(0o600)
            half.write_text(json.dumps({"address": listener.address, "key": key.hex(), "token": broker.token}))
            half.rename(note)
            while True:
                with contextlib.suppress(EOFError, OSError), listener.accept() as caller:
                    caller.send(run(caller.recv(), folder, broker))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the broker is stopped
    main(Path(sys.argv[1]), Path(sys.argv[2]))

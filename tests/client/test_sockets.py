"""With socket and ssl, as a Python takes them whose C modules are not known, a call ends as with the C modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpbroker.client import sockets
from tests.support.fake_broker import FakeBroker, success
from tests.support.ports import refusing_port

ROOT = Path(__file__).parents[2]

CALLS = """
import sys

implementation, port, fingerprint, nobody = sys.argv[1:]
sys.implementation.name = implementation

from bpbroker.client import Client
from bpbroker.errors import BpbrokerError

def call(address, fingerprint, times=1):
    try:
        with Client(address, fingerprint=fingerprint, timeout_secs=30, retries=0) as client:
            for _ in range(times):
                print(client.get("a"))
    except BpbrokerError as error:
        print(type(error).__name__, error)

call(f"127.0.0.1:{port}", fingerprint, 2)
call(f"localhost:{port}", fingerprint, 2)
call(f"127.0.0.1:{port}", "ab" * 32)
call(f"127.0.0.1:{nobody}", fingerprint)

from bpbroker.client import sockets, tls, transport
import socket
import ssl

assert (sockets.Socket is socket.socket, tls.Settings is ssl.SSLContext) == (not sockets.BARE, not sockets.BARE)
assert (transport.native, transport.Socket) == (sockets.native, sockets.Socket)
print(sockets.BARE)
"""


def said(fake: FakeBroker, implementation: str, nobody: int) -> list[str]:
    """Return what the calls come to where Python has this name."""
    before = len(fake.requests), fake.connections
    fake.answers = [success({"n": number}) for number in range(4)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CALLS, implementation, str(fake.port), fake.fingerprint, str(nobody)],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if name in ("BPBROKER_KNOWN_BROKERS", "SYSTEMROOT")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (len(fake.requests) - before[0], fake.connections - before[1]) == (4, 3)
    return done.stdout.splitlines()


@pytest.mark.usefixtures("known_brokers")
def test_a_call_ends_the_same_with_socket_and_ssl(fake: FakeBroker) -> None:
    with refusing_port() as nobody:
        *bare, kind = said(fake, sys.implementation.name, nobody)
        *other, other_kind = said(fake, "another", nobody)
    assert (kind, other_kind) == (str(sockets.BARE), "False")
    assert bare == other
    assert bare[:4] == [str({"n": number}) for number in range(4)]
    assert [line.partition(" ")[0] for line in bare[4:]] == ["NotTrusted", "NotReached"]

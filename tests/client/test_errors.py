"""What a Python program that knows nothing of ours may expect to catch."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

import bpbroker.client
from bpbroker import errors
from bpbroker.actors.base import wait_for
from bpbroker.client import Client
from bpbroker.errors import BpbrokerError
from tests.support.fake_broker import FakeBroker, failure, read_request

WRONG = "SHA256:" + "0" * 64


def kinds(base: type[BaseException]) -> set[str]:
    return {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BpbrokerError) and issubclass(value, base)
    }


def test_timeouts_and_trouble_with_the_connection_are_pythons_own_kinds_too() -> None:
    assert kinds(TimeoutError) == {"TimedOut", "WaitTimeout", "LockTimeout", "BarrierTimeout"}
    assert kinds(ConnectionError) == {"CannotConnect", "NotTrusted"}
    assert kinds(OSError) == kinds(TimeoutError) | kinds(ConnectionError)


def test_they_keep_their_words_and_what_they_know() -> None:
    error = errors.LockTimeout("It is held", [{"data": "x"}])
    assert (str(error), error.message, error.holders, error.exit_code) == (
        "It is held",
        "It is held",
        [{"data": "x"}],
        124,
    )
    assert str(errors.CannotConnect("There is no broker")) == "There is no broker"


def test_every_error_that_a_client_meets_is_a_public_name() -> None:
    met = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type)
        and issubclass(value, (errors.ClientError, errors.RequestError))
        and not issubclass(value, (errors.Misdirected, errors.MethodNotAllowed, errors.HeadersTooLarge))
        and name not in ("NotShown", "StorageFull", "StorageFailed", "ExtensionFailed", "Overloaded", "Gone")
    }
    assert met <= set(bpbroker.client.__all__)
    for name in bpbroker.client.__all__:
        assert getattr(bpbroker.client, name).__name__ == name


def test_asking_for_the_errors_loads_nothing_else() -> None:
    code = (
        "import sys, bpbroker.client as c\n"
        "c.CannotConnect, c.WaitTimeout, c.NotFound\n"
        "print(*sorted(n for n in sys.modules if n.startswith('bpbroker')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == ["bpbroker", "bpbroker.client", "bpbroker.errors"]


# Each of these is raised inside code that turns an OSError into something else.


def test_another_certificate_is_told_as_that_and_not_as_a_broken_connection(
    fake: FakeBroker, known_brokers: Path
) -> None:
    assert not known_brokers.exists()
    with (
        pytest.raises(ConnectionError, match="not the expected one") as raised,
        Client(fake.address, fingerprint=WRONG) as c,
    ):
        c.get("a")
    assert type(raised.value) is errors.NotTrusted


def test_no_time_left_is_a_timeout_and_not_a_broken_connection(fake: FakeBroker, known_brokers: Path) -> None:
    assert not known_brokers.exists()
    with Client(fake.address, fingerprint=fake.fingerprint) as client, pytest.raises(errors.WaitTimeout):
        client.connect(0.0)


def test_a_broker_that_is_silent_is_a_timeout(make_client: Callable[..., Client], fake: FakeBroker) -> None:

    def silent(sock: ssl.SSLSocket) -> None:
        read_request(sock)
        sock.recv(1)

    fake.handler = silent
    with pytest.raises(TimeoutError, match="did not answer within"):
        make_client(timeout_secs=0.3, retries=0).get("a")


def test_a_closed_port_is_a_connection_error(known_brokers: Path) -> None:
    assert not known_brokers.exists()
    with pytest.raises(ConnectionError, match="refused"), Client("127.0.0.1:1", retries=0, timeout_secs=5) as client:
        client.get("a")


def test_the_brokers_own_timeout_is_one(make_client: Callable[..., Client], fake: FakeBroker) -> None:
    fake.answers = [failure(504, "No answer in time")]
    with pytest.raises(TimeoutError, match="No answer in time"):
        make_client().execute("a.B")


def test_the_actors_own_word_of_a_timeout_is_not_taken_for_silence() -> None:
    reply: Future[None] = Future()
    reply.set_exception(errors.TimedOut("The call took longer than 3 s"))
    with pytest.raises(errors.TimedOut, match="longer than 3 s"):
        wait_for(reply, 10)

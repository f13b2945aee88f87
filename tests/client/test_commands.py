"""What commands of ``bpclient`` say beside their result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpbroker.client.cli import _run
from tests.client.fake_broker import FakeBroker, answer

ENTRY = {"role": "master"}


def old(data: Any, age_secs: float) -> bytes:
    return answer(200, {"success": True, "message": "Success", "data": data, "age_secs": age_secs})


@pytest.fixture
def run(fake: FakeBroker, known_brokers: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command against the made-up broker; gives exit code, standard output and standard error."""
    known_brokers.parent.mkdir()
    known_brokers.write_text(f"{fake.address} SHA256:{fake.fingerprint}\n")

    def run_it(*words: str) -> tuple[int, str, str]:
        code = _run(["-b", fake.address, *words])
        out, err = capfd.readouterr()
        return code, out, err

    return run_it


GET = ("service", "get", "--name", "db", "--consistency", "local")


def test_what_is_old_is_said_beside_the_value(fake: FakeBroker, run: Any) -> None:
    fake.answers = [old(ENTRY, 12.34)]
    assert run(*GET) == (0, '{"role": "master"}\n', "This was so 12 s ago\n")
    assert run(*GET, "--field", "role") == (0, "master\n", "This was so 12 s ago\n")
    assert run("-q", *GET) == (0, '{"role": "master"}\n', "")
    code, out, _ = run(*GET, "--raw")
    assert (code, '"age_secs": 12.34' in out) == (0, True)
    assert [request.json["consistency"] for request in fake.requests] == ["local"] * 4


def test_a_list_says_it_too(fake: FakeBroker, run: Any) -> None:
    fake.answers = [old({}, 90.0)]
    assert run("service", "list", "--consistency=local") == (0, "", "This was so 90 s ago\n")
    assert run("service", "list", "--consistency=local", "--keys", "-q") == (0, "", "")
    assert {request.json["consistency"] for request in fake.requests} == {"local"}


def test_what_is_fresh_needs_no_word(fake: FakeBroker, run: Any) -> None:
    fake.answers = [old(ENTRY, 1.0), answer(200, {"success": True, "message": "Success", "data": ENTRY})]
    for words in (GET, GET[:-2]):
        assert run(*words) == (0, '{"role": "master"}\n', "")
    assert "consistency" not in fake.requests[1].json


@pytest.mark.parametrize("age", ["12", None, True, {"secs": 12}])
def test_an_age_that_is_none_is_not_said(fake: FakeBroker, run: Any, age: Any) -> None:
    fake.answers = [old(ENTRY, age)]
    assert run(*GET) == (0, '{"role": "master"}\n', "")

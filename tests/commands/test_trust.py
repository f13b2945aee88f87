from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import Ran


@pytest.mark.parametrize(
    ("namespace", "why"),
    [
        ("nope", "is no section"),
        ("_global", "is no namespace that clients can call"),
        ("api", "is no namespace that clients can call"),
        ("", "is no section"),
    ],
)
def test_a_token_for_no_namespace_names_those_that_there_are(
    bpbroker: Callable[..., Ran], tmp_path: Path, namespace: str, why: str
) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"inventory": {"_access_key": "canary"}}))
    done = bpbroker("-c", file, "token", "--namespace", namespace)
    assert (done.code, done.out) == (78, "")
    assert done.err == (
        f"bpbroker: {namespace!r} {why} of {file}; --namespace takes one of: services, ping, inventory\n"
    )

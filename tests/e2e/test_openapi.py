"""The description of the API against the API: what schemathesis makes of ``/openapi.json``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import RunningBroker
from tests.support.witness import LONG

# No body or query asks the broker to wait: that would only make the test slow.
HOOKS = """
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    for given in (case.body, case.query):
        if isinstance(given, dict):
            given.pop("wait", None)
"""
# Not that everything valid is accepted: limits in bytes and reserved keys cannot be written in JSON Schema. Nor that
# all else is refused: as in a query, a number in text counts as that number, and a number for text as its digits.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,missing_required_header,unsupported_method"
)


def test_the_description_names_every_method(broker: RunningBroker) -> None:
    answer = broker.request("/openapi.json", "GET")
    assert answer.headers["Content-Type"] == "application/json"
    paths = answer.json["paths"]
    methods = {path: sorted(operations) for path, operations in paths.items()}
    assert methods == {
        "/ping/Ping/": ["get", "post"],
        **{f"/services/{method}/": ["post"] for method in ("Register", "Replace", "Update")},
        **{f"/services/{method}/": ["get", "post"] for method in ("Get", "List")},
        "/services/Delete/": ["delete", "post"],
        "/metrics": ["get"],
        **{f"/services/{method}/": ["get", "post"] for method in ("Holder", "Watch")},
        **{
            f"/services/{method}/": ["post"]
            for method in (
                "Open", "Renew", "Close", "Lock", "Unlock", "Allocate", "Release", "Next", "Take", "Ack", "Batch",
            )
        },
    }  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_schemathesis_finds_no_difference(broker: RunningBroker, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    url = f"https://127.0.0.1:{broker.port}/openapi.json"
    options = ["--checks", CHECKS, "-n", "300" if LONG else "10", "--tls-verify=false", "--continue-on-failure"]
    # A command of its own: it changes warnings, hypothesis' profile and much else in the process it is in.
    ended = subprocess.run(
        [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", url, *options],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    assert "Tested: 27" in ended.stdout, json.dumps(ended.stdout[-2000:])
    assert "Traceback" not in broker.text
    assert broker.register("still-here").status == 200

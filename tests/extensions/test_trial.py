from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpbroker.config import layers
from bpbroker.errors import ExtensionFailed, TimedOut, Unauthorized, UsageError
from bpbroker.extensions.trial import run_extension
from bpbroker.frontend.extension_calls import understand
from bpbroker.messages import CallResult
from tests.support import registry_extension

MODULE = """
import os, time
from bpbroker.extensions import Error
def Echo(rh): rh.data = {"qs": rh.qs, "from": rh.RequestingHost(), "own": rh.config}
def Refuse(rh): raise Error(409, "In use")
def Raise(rh): raise ValueError("seen by the author")
def Exit(rh): os._exit(3)
def Sleep(rh): time.sleep(1000)
def Entries(rh):
    rh.registry.register("one", {"a": 1})
    rh.registry.update("one", {"b": 2})
    rh.registry.replace("two", "text")
    rh.registry.delete("given")
    rh.data = rh.registry.list()
def Taken(rh): rh.registry.register("given", {})
def _hidden(rh): pass
"""


def run(tmp_path: Path, method: str, module: str = MODULE, **section: Any) -> CallResult:
    (tmp_path / "demo.py").write_text(module)
    settings = {**layers.DEFAULTS, "demo": section}
    entries = {"given": {"x": 1}}
    return run_extension(
        method,
        {"data": "d"},
        source="10.0.0.7",
        lib=tmp_path,
        settings=settings,
        understand=understand,
        entries=entries,
    )


def test_the_answer_is_as_in_the_broker(tmp_path: Path) -> None:
    result = run(tmp_path, "demo.Echo", colour="blue")
    assert json.loads(result.body) == {"qs": {"data": "d"}, "from": "10.0.0.7", "own": {"colour": "blue"}}
    assert (run(tmp_path, "demo.Refuse").status, run(tmp_path, "demo.Refuse").message) == (409, "In use")


def test_the_registry_is_made_up(tmp_path: Path) -> None:
    found = json.loads(run(tmp_path, "demo.Entries").body)
    assert sorted(found) == ["one", "two"]
    assert {"a": 1, "b": 2, "last_write_ip": "10.0.0.7"}.items() <= found["one"].items()
    assert run(tmp_path, "demo.Taken").message == "Entry 'given' already exists"


@pytest.mark.parametrize(("method", "answer"), registry_extension.ANSWERS.items())
def test_the_made_up_registry_can_all_that_the_real_one_can(tmp_path: Path, method: str, answer: Any) -> None:
    found = json.loads(run(tmp_path, f"demo.{method}", Path(registry_extension.__file__).read_text()).body)
    found.pop("given", None) if isinstance(found, dict) else found.remove("given") if "given" in found else None
    assert found == answer


def test_the_author_sees_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(ExtensionFailed, match="seen by the author"):
        run(tmp_path, "demo.Raise")
    with pytest.raises(ExtensionFailed, match="exit code 3"):
        run(tmp_path, "demo.Exit")
    with pytest.raises(TimedOut, match=r"longer than 0\.5 s"):
        run(tmp_path, "demo.Sleep", _timeout_secs=0.5)
    with pytest.raises(Unauthorized, match="it offers Echo, Entries"):
        run(tmp_path, "demo._hidden")
    for method in ("Echo", "nothing.F", "demo.", "os.system", "../demo.Echo"):
        with pytest.raises(UsageError):
            run(tmp_path, method)

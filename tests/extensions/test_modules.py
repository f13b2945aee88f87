from __future__ import annotations

import gc
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bpbroker.extensions import Error, modules
from bpbroker.extensions.modules import Status, catalogue, look_at, name_problem, offered, signature


def test_methods_are_public_functions_of_the_top_level() -> None:
    source = b"""
import os
from os import system
X = 1
class C:
    def inner(self): pass
def Plain(rh):
    def nested(): yield
    return nested
def _hidden(rh): pass
async def Later(rh): pass
def Many(rh):
    if rh: yield 1
if X:
    def Conditional(rh): pass
else:
    def Else(rh): pass
try:
    def Tried(rh): pass
except OSError:
    def Excepted(rh): pass
"""
    assert offered(source) == ("Plain", "Conditional", "Else", "Tried", "Excepted")


def test_many_can_look_at_the_same_time() -> None:
    """Each namespace's actor does at a reload; syntax trees made by several threads fail now and then (Python 3.11)."""
    source = "".join(f"def F{number}(rh):\n    rh.data = [{{'a': rh.qs}}, 1 + 2]\n" for number in range(20)).encode()

    def give_way(_phase: str, _info: object) -> None:
        time.sleep(0.0001)

    before = gc.get_threshold()
    gc.callbacks.append(give_way)
    gc.set_threshold(20)  # so that other threads go on in the middle of whatever allocates memory
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: len(offered(source)), range(20))) == [20] * 20
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(give_way)


@pytest.mark.parametrize("name", ["ossec", "pkg.module", "a1_b"])
def test_names_that_can_be_an_extensions(name: str) -> None:
    assert name_problem(name) == ""


@pytest.mark.parametrize(
    "name",
    ["", "_x", "a.", ".a", "a._b", "a..b", "../a", "a/b", "é", "a b", "a\n", "if", "pkg.class", "os", "os.path", "api"],
)
def test_names_that_cannot(name: str) -> None:
    assert name_problem(name)
    assert look_at(name, Path("/nowhere")).status is Status.REFUSED


def test_a_package_goes_before_a_module(tmp_path: Path) -> None:
    (tmp_path / "demo.py").write_text("def Module(rh): pass\n")
    assert look_at("demo", tmp_path).methods == ("Module",)
    (tmp_path / "demo").mkdir()
    assert look_at("demo", tmp_path).methods == ("Module",)
    (tmp_path / "demo" / "__init__.py").write_text("def Package(rh): pass\n")
    assert look_at("demo", tmp_path).methods == ("Package",)


def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_at("demo", tmp_path).problem == "there is no demo.py in the lib folder"
    (tmp_path / "demo.py").write_text("x = (\n")
    assert look_at("demo", tmp_path).problem == "it does not parse: '(' was never closed, line 1"
    (tmp_path / "demo.py").write_bytes(b"\0")  # as what a power cut leaves; there is no line to name
    assert re.fullmatch(r"it does not parse: [^,]*null bytes[^,]*", look_at("demo", tmp_path).problem)
    (tmp_path / "demo.py").write_bytes(b"\0")
    assert look_at("demo", tmp_path).status is Status.BROKEN
    monkeypatch.setattr(modules, "SOURCE_MAX_BYTES", 10)
    (tmp_path / "demo.py").write_text("x = 1\n" * 10)
    assert "larger" in look_at("demo", tmp_path).problem


def test_the_catalogue_has_what_is_enabled_and_what_is_there(tmp_path: Path) -> None:
    for name in ("there", "both", "helper", "os"):
        (tmp_path / f"{name}.py").write_text("X = 1\n" if name == "helper" else "def F(rh): pass\n")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "sub.py").write_text("def G(rh): pass\n")
    (tmp_path / "broken.py").write_text("no python\n")
    settings: dict[str, dict[str, object]] = {"both": {}, "missing": {}, "services": {}, "_config": {}, "os": {}}
    found = {
        record.namespace: (record.enabled, record.status, record.methods) for record in catalogue(settings, tmp_path)
    }
    assert found == {
        "both": (True, Status.USABLE, ("F",)),
        "broken": (False, Status.BROKEN, ()),
        "missing": (True, Status.MISSING, ()),
        "os": (True, Status.REFUSED, ()),
        "pkg.sub": (False, Status.USABLE, ("G",)),
        "there": (False, Status.USABLE, ("F",)),
    }
    assert catalogue({}, tmp_path / "nowhere") == ()


def test_the_signature_changes_with_any_file(tmp_path: Path) -> None:
    seen = {signature(tmp_path)}
    (tmp_path / "a.py").write_text("1")
    seen.add(signature(tmp_path))
    assert signature(tmp_path) in seen
    os.utime(tmp_path / "a.py", ns=(1, 1))
    seen.add(signature(tmp_path))
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "b.py").write_text("")
    seen.add(signature(tmp_path))
    assert len(seen) == 4
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("")
    assert signature(tmp_path) in seen


def test_the_error_for_authors() -> None:
    error = Error(409, "In use")
    assert (error.status, error.message, str(error)) == (409, "In use", "In use")

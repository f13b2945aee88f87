"""What the operator and the author are told by ``install-extension``, ``extensions``, ``run-extension``, ``status``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import RunningBroker
from tests.support.witness import eventually

Run = Callable[..., Any]

MODULE = """
def Hello(rh):
    rh.data = {"hello": rh.qs.get("data"), "from": rh.RequestingHost()}
def Fail(rh):
    raise KeyError("canary-7391")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "demo.py"
    path.write_text(MODULE)
    return path


def test_installing_without_a_broker(bpbroker: Run, home: Path, script: Path) -> None:
    done = bpbroker("install-extension", "--script", script)
    target = home / "lib" / "demo.py"
    assert (done.code, done.out) == (0, f"installed {target}\ndemo: Hello, Fail\n")
    assert '{"demo": {}}' in done.err
    again = bpbroker("install-extension", "--script", script, "--enable")
    assert again[:2] == (0, f"{target} is the same already\ndemo: Hello, Fail\nenabled demo\n")
    assert "warning: demo is open to everybody: it has no _access_key" in again.err
    assert json.loads((home / "etc" / "bpbroker.json").read_text())["demo"] == {}
    script.write_text(f"{MODULE}# newer\n")
    newer = bpbroker("install-extension", "--script", script, "--enable")
    assert newer.out.endswith("demo was enabled already\n")
    assert f"kept as {target}.old" in newer.err
    there = bpbroker("install-extension", "--script", script)
    assert there == (0, f"{target} is the same already\ndemo: Hello, Fail\ndemo was enabled already\n", "")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "def Hello(rh): pass\nimport nothing_of_this_name\n",
            "demo cannot be imported: ModuleNotFoundError of nothing_of_this_name, line 2 (ModuleNotFoundError: No mod",
        ),
        ("def Hello(rh): pass\n\nraise ValueError('why')\n", "ValueError, line 3 (ValueError: why)"),
        ("def Hello(rh): pass\nimport os\nos._exit(3)\n", "importing it ended its process (exit code 3)"),
        ("def Hello(rh): pass\nimport neighbour\n", "ModuleNotFoundError of neighbour, line 2"),
        ("def _hidden(rh): pass\n", "demo.py has no method for clients"),
        ("from os import system\n", "demo.py has no method for clients"),
        ("def Hello(rh: pass\n", "demo.py, line 1: "),
    ],
)
def test_a_module_that_cannot_work_is_installed_by_force_only(
    bpbroker: Run, home: Path, script: Path, source: str, reason: str
) -> None:
    lib = home / "lib"
    assert bpbroker("install-extension", "--script", script).code == 0
    script.with_name("neighbour.py").write_text("")  # of the author's folder; it is not installed along
    script.write_text(source)
    refused = bpbroker("install-extension", "--script", script, "--enable")
    assert (refused.code, refused.out) == (2, "")
    assert reason in refused.err
    assert "nothing was installed" in refused.err
    assert [path.name for path in lib.iterdir()] == ["demo.py"]
    assert (lib / "demo.py").read_text() == MODULE
    assert "demo" not in json.loads((home / "etc" / "bpbroker.json").read_text() if (home / "etc").exists() else "{}")
    assert bpbroker("install-extension", "--script", script, "--force").code == 0
    assert (lib / "demo.py").read_text() == source
    assert bpbroker("install-extension", "--script", script).code == 2  # it is there, and works no more than before


def test_a_module_may_import_what_is_installed_already(bpbroker: Run, home: Path, script: Path) -> None:
    (home / "lib").mkdir(exist_ok=True, parents=True)
    (home / "lib" / "helper.py").write_text("def helped(f): return f\n")
    script.write_text("import helper\n@helper.helped\ndef Hello(rh): pass\n")
    assert bpbroker("install-extension", "--script", script).code == 0
    package = script.with_name("pkg")
    package.mkdir()
    (package / "one.py").write_text("from pkg import two\ndef Hello(rh): pass\n")
    (package / "two.py").write_text("raise OSError\n")
    refused = bpbroker("install-extension", "--script", package)
    assert "pkg.one cannot be imported: OSError, line 1 (OSError); nothing was installed" in refused.err
    (package / "two.py").write_text("")
    assert bpbroker("install-extension", "--script", package).code == 0


def test_uninstalling_with_its_section(bpbroker: Run, home: Path, script: Path) -> None:
    config = home / "etc" / "bpbroker.json"

    def sections() -> set[str]:
        return set(json.loads(config.read_text())) & {"demo", "demo2", "pkg", "pkg.one"}

    assert bpbroker("install-extension", "--script", script, "--enable").code == 0
    settings = {**json.loads(config.read_text()), "demo2": {}, "pkg": {}, "pkg.one": {"_access_key": "canary-7391"}}
    config.write_text(json.dumps({**settings, "services": {"foo": {"_str": "bar"}}}))
    assert bpbroker("uninstall-extension", "demo", "--disable")[:2] == (
        0,
        f"disabled demo\nremoved {home / 'lib' / 'demo.py'}\n",
    )
    assert sections() == {"demo2", "pkg", "pkg.one"}
    gone = bpbroker("uninstall-extension", "pkg", "--disable")  # no module of it was ever there
    assert gone == (0, "disabled pkg\ndisabled pkg.one\n", "")
    assert sections() == {"demo2"}
    assert json.loads(config.read_text())["services"]["foo"]["_str"] == "bar"
    before = config.read_bytes()
    for name in ("demo", "services", "api", "_registry", "demo2.x"):
        assert bpbroker("uninstall-extension", name, "--disable").code != 0, name
    assert config.read_bytes() == before


def test_uninstalling_with_its_section_beside_a_running_broker(
    make_broker: Callable[..., RunningBroker], script: Path
) -> None:
    broker = make_broker().start()
    assert broker.bpbroker("install-extension", "--script", str(script), "--enable").returncode == 0
    assert broker.request("/demo/Hello").status == 200
    done = broker.bpbroker("uninstall-extension", "demo", "--disable")
    assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (0, "disabled demo", "")
    assert broker.request("/demo/Hello").json["message"].startswith("Unauthorized package")
    assert "demo" not in json.loads(broker.config.read_text())
    assert "extension demo" not in broker.bpbroker("status").stdout
    assert broker.bpbroker("reload").returncode == 0


def test_trying_a_method(bpbroker: Run, script: Path) -> None:
    words = ("run-extension", "--lib", script.parent)
    done = bpbroker(*words, "demo.Hello", "--data", "x", "--from", "10.0.0.7")
    assert (done.code, json.loads(done.out)) == (0, {"hello": "x", "from": "10.0.0.7"})
    assert done.err.startswith("status 200 OK, application/json")
    data = script.with_name("data")
    data.write_bytes(b"from a file\n")
    assert json.loads(bpbroker(*words, "demo.Hello", "--data", f"@{data}").out)["hello"] == "from a file\n"
    assert json.loads(bpbroker(*words, "demo.Hello", "--data", "-", stdin="from input").out)["hello"] == "from input"
    missing = bpbroker(*words, "demo.Hello", "--data", "@/no/such")
    assert (missing.code, "/no/such" in missing.err) == (2, True)
    failed = bpbroker(*words, "demo.Fail")
    assert (failed.code, failed.out) == (1, "")
    assert "KeyError: 'canary-7391'" in failed.err
    refused = bpbroker(*words, "demo.Hello", "--from", "10.0.0.x")
    assert refused == (2, "", "bpbroker: --from '10.0.0.x' is no IP address\n")


def test_the_tables_of_a_running_broker(make_broker: Callable[..., RunningBroker], script: Path) -> None:
    broker = make_broker().start()
    done = broker.bpbroker("install-extension", "--script", str(script), "--enable")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "enabled demo")
    assert broker.request("/demo/Fail").status == 500
    time.sleep(1.1)
    assert broker.bpbroker("reload").returncode == 0
    # On a busy machine a ping may take longer than who asks for the health is made to wait.
    eventually(lambda: "last error: Fail failed: KeyError, request " in broker.bpbroker("extensions").stdout)
    assert "canary" not in broker.bpbroker("extensions").stdout
    (listed,) = json.loads(broker.bpbroker("extensions", "--format", "json").stdout)
    assert listed["running"]["figures"]["failures"] == 1
    table = broker.bpbroker("status")
    assert table.returncode == 0
    assert ", up 0s," not in table.stdout  # a reload is no start
    (row,) = [line for line in table.stdout.splitlines() if line.startswith("extension demo ")]
    assert f"last_error_at {time.strftime('%Y-')}" in row
    assert (
        "B" in next(line for line in table.stdout.splitlines() if line.startswith("registry ")).split("disk_free ")[1]
    )

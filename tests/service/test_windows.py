"""Windows: plans with its paths, and an executable that records its arguments in nssm's place."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path, PureWindowsPath

import pytest

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.service import windows
from bpbroker.service.execute import execute
from bpbroker.service.steps import MakeFolder, Plan, Run, Service
from tests.support.systems import posix_only

HOME = PureWindowsPath(r"C:\Program Files\bpbroker")
SERVICE = Service(
    name="bpbroker",
    program=(r"C:\Python 3\python.exe", "-P", "-m", "bpbroker"),
    config=HOME / "etc" / "bpbroker.json",
    home=HOME,
)
NSSM = windows.nssm_path(HOME)


plan_install = partial(windows.plan_install, port=20443, firewall=False)


def commands(plan: Plan) -> list[tuple[str, ...]]:
    return [step.argv[1:] for step in plan.steps if isinstance(step, Run) and step.argv[0] == str(NSSM)]


def test_nssm_is_where_the_seed_says() -> None:
    assert str(NSSM) == r"C:\Program Files\bpbroker\bin\nssm.exe"


def test_install() -> None:
    plan = plan_install(NSSM, SERVICE, installed=False)
    said = commands(plan)
    assert said[0] == ("install", "bpbroker", r"C:\Python 3\python.exe")
    settings = {words[2]: words[3:] for words in said[1:] if words[0] == "set" and words[2] != "AppExit"}
    arguments = r'-P -m bpbroker --config "C:\Program Files\bpbroker\etc\bpbroker.json" start'
    assert settings["Application"] == (r"C:\Python 3\python.exe",)
    assert settings["AppParameters"] == (arguments,)
    assert settings["AppDirectory"] == (str(HOME),)
    assert settings["Start"] == ("SERVICE_AUTO_START",)
    assert settings["AppStdout"] == settings["AppStderr"] == (r"C:\Program Files\bpbroker\logs\bpbroker.log",)
    assert settings["AppRotateFiles"] == ("1",)
    assert settings["AppEnvironmentExtra"] == ("PYTHONUNBUFFERED=1", rf"BPBROKER_HOME={HOME}")
    assert ("set", "bpbroker", "AppExit", "Default", "Restart") in said
    assert ("set", "bpbroker", "AppExit", "78", "Exit") in said
    assert not any("start" in words for words in said)
    folders = [str(step.path) for step in plan.steps if isinstance(step, MakeFolder)]
    assert folders == [str(HOME), *(rf"{HOME}\{name}" for name in ("lib", "etc", "backups", "logs"))]
    assert any(step.argv[-1] == "prepare" for step in plan.steps if isinstance(step, Run))
    assert any("net start bpbroker" in note for note in plan.notes)


def test_configuration_backups_and_logs_are_not_for_all_users() -> None:
    plan = plan_install(NSSM, SERVICE, installed=False)
    modes = {step.path.name: step.mode for step in plan.steps if isinstance(step, MakeFolder)}
    assert modes == {"bpbroker": 0o755, "lib": 0o755, "etc": 0o700, "backups": 0o700, "logs": 0o700}


def test_the_firewall_is_opened_when_asked_and_else_said_how() -> None:
    plan = windows.plan_install(NSSM, SERVICE, installed=False, port=4711, firewall=True)
    words = [step.argv for step in plan.steps if isinstance(step, Run) and step.argv[0] == "netsh"]
    adds = [argv for argv in words if "add" in argv]
    assert [argv[-2:] for argv in adds] == [("protocol=TCP", "localport=4711"), ("protocol=UDP", "localport=4711")]
    assert [argv[5] for argv in words if "delete" in argv] == [argv[5] for argv in adds]  # again: no second rule
    told = "\n".join(plan_install(NSSM, SERVICE, installed=False).notes)
    assert 'netsh advfirewall firewall add rule "name=bpbroker (UDP)"' in told.replace("'", '"')
    assert not any("netsh" in note for note in plan.notes)
    gone = [step.argv for step in windows.plan_uninstall(NSSM, SERVICE, installed=True).steps if isinstance(step, Run)]
    assert [argv[5] for argv in gone if argv[0] == "netsh"] == [argv[5] for argv in adds]


@pytest.mark.parametrize(
    ("parameters", "config"),
    [
        (r'-P -m bpbroker --config "C:\Program Files\x y\b.json" start', r"C:\Program Files\x y\b.json"),
        ("--config D:\\b.json start\r\n", "D:\\b.json"),
    ],
)
def test_what_a_service_runs_on_is_known_from_its_arguments(parameters: str, config: str) -> None:
    found = windows.recorded(parameters)
    assert found is not None
    assert found.config == PureWindowsPath(config)
    assert windows.recorded("something else") is None


def test_again_it_is_set_up_anew_but_not_made() -> None:
    first = commands(plan_install(NSSM, SERVICE, installed=False))
    again = commands(plan_install(NSSM, SERVICE, installed=True))
    assert again == first[1:]


def test_another_name() -> None:
    said = commands(plan_install(NSSM, replace(SERVICE, name="second"), installed=False))
    assert {words[1] for words in said} == {"second"}


def test_uninstall_stops_and_removes() -> None:
    assert commands(windows.plan_uninstall(NSSM, SERVICE, installed=True)) == [
        ("stop", "bpbroker"),
        ("remove", "bpbroker", "confirm"),
    ]
    nothing = windows.plan_uninstall(NSSM, SERVICE, installed=False)
    assert not nothing.steps
    assert "No service named bpbroker" in nothing.notes[0]


def test_a_user_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"services\.msc"):
        plan_install(NSSM, replace(SERVICE, user="me"), installed=False)


def test_a_missing_nssm_says_where_to_put_it() -> None:
    assert r"C:\Program Files\bpbroker\bin\nssm.exe is missing" in str(windows.missing(NSSM))


@pytest.fixture
def nssm(tmp_path: Path) -> Path:
    """Return a program that records its arguments as JSON, and fails as nssm does when told to."""
    path = tmp_path / "nssm.exe"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "from pathlib import Path\n"
        f"folder = Path({str(tmp_path)!r})\n"
        'with (folder / "calls").open("a") as file: file.write(json.dumps(sys.argv[1:]) + "\\n")\n'
        'if (folder / "fail").exists(): sys.stdout.buffer.write("Access denied!".encode("utf-16-le")); sys.exit(5)\n'
    )
    path.chmod(0o755)
    return path


@posix_only("a script that stands for nssm; the real one is in tests/windows")
def test_nssm_gets_every_argument_whole(tmp_path: Path, nssm: Path) -> None:
    plan = plan_install(PureWindowsPath("nssm"), SERVICE, installed=False)
    runs = tuple(
        replace(step, argv=(str(nssm), *step.argv[1:]))
        for step in plan.steps
        if isinstance(step, Run) and step.argv[0] == "nssm"
    )
    execute(Plan(runs), Path("/"), lambda _: None)
    received = [tuple(json.loads(line)) for line in (tmp_path / "calls").read_text().splitlines()]
    assert received == commands(plan_install(NSSM, SERVICE, installed=False))


@posix_only("a script that stands for nssm")
def test_what_nssm_says_when_it_fails_is_shown(tmp_path: Path, nssm: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(StartError, match=r"exit code 5 and said: Access denied!"):
        execute(Plan((Run((str(nssm), "remove"), "remove it"),)), Path("/"), lambda _: None)
    execute(Plan((Run((str(nssm), "stop"), "stop it", may_fail=True),)), Path("/"), lambda _: None)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="Could not remove it"):
        execute(Plan((Run((str(tmp_path / "nope"),), "remove it"),)), Path("/"), lambda _: None)
    said: list[str] = []
    execute(Plan((Run((str(tmp_path / "nope"),), "close the firewall", may_fail=True),)), Path("/"), said.append)
    assert len(said) == 1
    assert said[0].startswith("could not close the firewall: ")

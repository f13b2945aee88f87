"""What the pages for users say runs as it stands, and every command is on one of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpbroker.config import schema
from tests.support.pages import PAGES, ROOT, Block, Shell, alike, blocks, steps, with_scripts
from tests.support.running import RunningBroker

SCRIPTS = Path(sys.executable).parent
ALL = [block for page in PAGES for block in blocks(page)]
TEXT = "\n".join(page.read_text() for page in PAGES)
NOT_RUN = {
    "changes the system, needs root": 1,
    "goes back to an earlier state": 1,
    "installs packages of the system": 1,
    "needs pip's index, and root to install": 1,
    "needs Ansible and a host": 1,
}
"""Why blocks are not typed, and how many of them."""
MACHINES = "several-machines.md"
"""It has a test of its own, with a network."""

needs_programs = pytest.mark.skipif(
    not (SCRIPTS / "bpclient").exists(), reason="the package is not installed beside this interpreter"
)


def typed(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "shell" and block.not_run is None]


def on_port(command: str, port: int) -> str:
    """Return a command for a broker that does not have the port of the pages."""
    command = command.replace("127.0.0.1:20443", f"127.0.0.1:{port}").replace("-b 127.0.0.1 ", f"-b 127.0.0.1:{port} ")
    return re.sub(r"bpclient (--discover|discover)\b", rf"bpclient --port {port} \1", command)


@needs_programs
@pytest.mark.parametrize(
    "page", [page for page in PAGES if typed(page) and page.name != MACHINES], ids=lambda page: page.name
)
def test_every_command_does_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    # As the README leaves it: with an access key, which it makes itself.
    settings = None if page.name == "README.md" else {"services": {"_access_key": "4f1de0c6a08d35b97c2f"}}
    broker = RunningBroker(tmp_path / "home", settings).start()
    for folder in ("examples", "deploy", "bpbroker"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for block in blocks(page):
        if block.language == "python" and block.note:
            (tmp_path / block.note).write_text(block.text)
    environ = with_scripts(SCRIPTS, {**broker.environ, "BPBROKER_LISTEN_PORT": str(broker.port)})
    del environ["PYTHONWARNINGS"]
    shell = Shell(tmp_path, environ)
    commands = 0
    try:
        if page.name != "README.md":  # which makes the token itself; the other pages say that it is set
            assert shell.type('export BPBROKER_TOKEN="$(bpbroker token)"')[0] == 0
        for step in (step for block in typed(page) for step in steps(block)):
            code, out, err = shell.type(on_port(step.command, broker.port))
            assert code == 0, (step.command, err)
            printed = out.splitlines()
            assert len(printed) == len(step.shown) or not step.shown, (step.command, printed, err)
            assert all(map(alike, printed, step.shown)), (step.command, printed, err)
            commands += 1
    finally:
        shell.type("bpbroker stop")
        shell.leave()
        broker.kill()
    assert commands >= 3


def test_every_block_is_tested_or_says_why_not() -> None:
    kinds = {"shell", "sh", "python", "json", "text"}
    assert not [(block.page.name, block.language) for block in ALL if block.language not in kinds]
    reasons = [block.not_run for block in ALL if block.not_run is not None]
    assert {reason: reasons.count(reason) for reason in reasons} == NOT_RUN
    assert not [block.page.name for block in ALL if block.language == "sh" and not block.note]
    for page in PAGES:  # a fence that is not closed, or odd, is not lost in silence
        assert page.read_text().count("```") == 2 * len(blocks(page)), page.name


def test_commands_outside_of_blocks_are_those_that_ci_types() -> None:
    """An indented line that could be typed stands only where ``.ci/run`` takes it from."""
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'eval "${fast##* && }"' in ci
    assert 'eval "$rest"' in ci
    assert 'bash -c "$start"' in ci
    for page in PAGES:
        outside = re.sub(r"^```(.*\n)*?```$", "", page.read_text(), flags=re.MULTILINE)
        lines = re.findall(r"(?<=\n\n)    (\S.*)$", outside, re.MULTILINE)
        usage = [line for line in lines if re.match(r"(bpclient|bpbroker) \[", line)]
        expected = [
            "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/bpbroker start",
            "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
            ".venv/bin/pytest -m system",
        ]
        assert [line for line in lines if line not in usage] == (expected if page.name == "README.md" else [])


def test_no_page_or_example_uses_what_cron_and_sh_do_not_set() -> None:
    """HOSTNAME is bash's: in sh and cron all nodes would register the same name."""
    files = [*PAGES, *(path for path in (ROOT / "examples").rglob("*") if path.is_file() and path.suffix != ".pyc")]
    assert not [path.name for path in files if re.search(r"\$\{?HOSTNAME\b", path.read_text())]


def test_the_readme_is_one_page() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 130


def test_every_page_is_named_in_the_readme() -> None:
    readme = PAGES[0].read_text()
    assert not [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in readme]


@pytest.mark.parametrize("module", ["bpbroker", "bpbroker.client"])
def test_every_command_has_its_place(module: str) -> None:
    listed = subprocess.run(
        RunningBroker.command(module, "--help"), capture_output=True, text=True, check=True, timeout=60
    ).stdout
    commands = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", listed, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert re.search(rf"\b{re.escape(command)}\b", TEXT), f"{command} is on no page"


def test_the_configuration_that_is_shown_is_one() -> None:
    shown = [block for block in ALL if block.language == "json"]
    assert shown
    for block in shown:
        document = json.loads(block.text)
        assert not [*schema.problems(document), *schema.warnings(document)]


def test_what_it_shows_in_python_runs_as_it_stands(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPBROKER_KNOWN_BROKERS", str(broker.home / "known_brokers"))
    (block,) = (block for block in ALL if block.note == "client.py")
    broker.register("db", '{"role": "master"}')
    assert "10.0.0.5:20443" in block.text
    exec(block.text.replace("10.0.0.5:20443", f"127.0.0.1:{broker.port}"), {})  # noqa: S102 - our own page
    assert broker.get("node-7").json["data"]["role"] == "replica"


def test_the_example_for_authors_is_well_typed_and_refuses_as_it_says(broker: RunningBroker, tmp_path: Path) -> None:
    (block,) = (block for block in ALL if block.note == "inventory.py")
    (tmp_path / "inventory.py").write_text(block.text)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "inventory.py"],
        cwd=tmp_path,
        env={**broker.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert checked.returncode == 0, checked.stdout
    assert broker.bpbroker("install-extension", "--script", str(tmp_path / "inventory.py"), "--enable").returncode == 0
    method = ("execute", "--method", "inventory.AddHost", "--data")
    assert broker.bpclient(*method, "node7").returncode == 0
    assert broker.get("host-node7").json["data"]["address"] == "127.0.0.1"
    again = broker.bpclient(*method, "node7")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (4, "Fatal error: Entry 'host-node7' already exists")
    bad = broker.bpclient(*method, "node 7")
    assert (bad.returncode, bad.stderr) == (2, "Fatal error: The host name must be an identifier\n")
    broker.await_logged("bpbroker.extension.inventory: added node7")


@needs_programs
@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [("bpbroker", "bpbroker install-s", "install-service"), ("bpclient", "bpclient service rep", "replace")],
)
def test_bash_completes_as_the_page_says(program: str, words: str, offered: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert "_BPCLIENT_COMPLETE" in page
    (line,) = re.findall(r"^\| bash \| `(.*)` \|$", page, re.MULTILINE)
    line = line.replace("_BPBROKER", f"_{program.upper()}").replace("source bpbroker", f"source {program}")
    last = len(words.split()) - 1
    asked = f"COMP_WORDS=({words}); COMP_CWORD={last}; _{program}_completion {program}; echo $COMPREPLY"
    environ = with_scripts(SCRIPTS, {"HOME": str(tmp_path), "BPBROKER_HOME": str(tmp_path)})
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{line}\n{asked}"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == f"{offered}\n", done.stderr

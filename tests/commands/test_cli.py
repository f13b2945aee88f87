"""The command line as a whole: help, usage, where options may stand, and what becomes of errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bpbroker import __version__, stamp
from bpbroker.cli import SECTIONS, cli
from tests.support.systems import posix_only

ALL = [name for commands in SECTIONS.values() for name in commands]


def run(*words: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BPBROKER")}
    return subprocess.run(
        [sys.executable, "-m", "bpbroker", *words],
        env={**clean, "BPBROKER_HOME": str(home), **environ},
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.program
def test_alone_it_prints_its_usage(tmp_path: Path) -> None:
    done = run(home=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: bpbroker [OPTIONS] COMMAND")
    assert not list(tmp_path.iterdir())


def test_the_seeds_five_commands_come_first_in_its_order() -> None:
    assert ALL[:5] == ["start", "install-service", "uninstall-service", "install-extension", "configure"]


@pytest.mark.program
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(tmp_path: Path, flag: str) -> None:
    done = run(flag, home=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ALL:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_help_and_the_shared_options(name: str) -> None:
    context = click.Context(cli)
    command = cli.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert command.help
    text = command.get_help(click.Context(command, parent=context, info_name=name))
    assert "--config" in text
    assert "--debug" in text
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


@pytest.mark.program
def test_version(tmp_path: Path) -> None:
    done = run("--version", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"bpbroker {stamp.version()}\n")
    assert done.stdout.startswith(f"bpbroker {__version__} (commit ")


@pytest.mark.program
@pytest.mark.parametrize(
    "words",
    [("nonsense",), ("start", "--nonsense"), ("install-extension",), ("start", "--listen-port", "x"), ("restore",)],
)
def test_wrong_use_is_exit_code_2_and_does_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(*words, home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.program
@pytest.mark.parametrize(
    "words", [("--config", "FILE", "validate"), ("validate", "-c", "FILE"), ("-c", "FILE", "validate")]
)
def test_config_may_stand_before_or_after_the_command(tmp_path: Path, words: tuple[str, ...]) -> None:
    file = tmp_path / "own.json"
    file.write_text('{"api": {"listen_port": "x"}}')
    done = run(*(str(file) if word == "FILE" else word for word in words), home=tmp_path / "home")
    assert done.returncode == 78
    assert f"{file}: api.listen_port" in done.stderr


@pytest.mark.program
def test_a_flag_beats_the_environment(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text("[]")
    good.write_text("{}")
    environ = {"BPBROKER_CONFIG": str(bad)}
    assert run("validate", home=tmp_path, **environ).returncode == 78
    assert run("--config", str(good), "validate", home=tmp_path, **environ).returncode == 0
    assert run("validate", "--config", str(good), home=tmp_path, **environ).returncode == 0
    assert run("--config", str(bad), "validate", "--config", str(good), home=tmp_path).returncode == 0


@pytest.mark.program
def test_an_error_is_a_sentence_and_with_debug_a_traceback_too(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text("{nonsense")
    plain = run("--config", str(file), "validate", home=tmp_path)
    assert plain.returncode == 78
    assert plain.stderr.startswith("bpbroker: ")
    assert "Traceback" not in plain.stderr
    for words in (("--debug", "validate"), ("validate", "--debug")):
        debug = run("--config", str(file), *words, home=tmp_path)
        assert debug.returncode == 78
        assert "Traceback" in debug.stderr


@pytest.mark.program
def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    done = run("--config", str(tmp_path), "check", home=tmp_path)
    assert done.returncode == 2
    assert "is a directory" in done.stderr


@pytest.mark.program
@posix_only("a file in place of a folder is an error of its own")
def test_an_unforeseen_error_is_a_sentence_too(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("no folder")
    done = run("validate", home=tmp_path)
    assert done.returncode in (1, 78)
    assert done.stderr.startswith("bpbroker: ")
    assert str(tmp_path / "etc") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.program
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(tmp_path: Path, shell: str) -> None:
    script = run(home=tmp_path, _BPBROKER_COMPLETE=f"{shell}_source")
    assert script.returncode == 0
    assert "_BPBROKER_COMPLETE" in script.stdout


PROGRAMS = {"bpbroker": "bpbroker", "bpclient": "bpbroker.client"}


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A PATH with both programs first."""
    for name, module in PROGRAMS.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        script.chmod(0o755)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


@pytest.mark.program
@pytest.mark.program
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_real_shell_takes_the_line_of_the_page(tmp_path: Path, programs: str, shell: str, program: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    table = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    line = next(row for row in table.splitlines() if row.startswith(f"| {shell} |")).split("`")[1]
    line = line.replace("\\|", "|").replace("bpbroker", program).replace("_BPBROKER", f"_{program.upper()}")
    function = f"_{program}_completion"
    quiet, begin, asked, expected = {
        "bash": (["--norc"], "", f"complete -p {program}", f"-F {function} {program}"),
        "zsh": (["-f"], "autoload -U compinit && compinit -u -D;", f"print $_comps[{program}]", function),
        "fish": (["--no-config"], "", f"complete -C '{program} --vers'", "--version"),
    }[shell]
    environ = {"PATH": programs, "HOME": str(tmp_path), "TERM": "dumb", "BPBROKER_HOME": str(tmp_path)}
    done = subprocess.run(
        [shell, *quiet, "-c", f"{begin} {line}\n{asked}"], env=environ, capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert expected in done.stdout
    source = subprocess.run(
        [program], env={**environ, f"_{program.upper()}_COMPLETE": f"{shell}_source"}, capture_output=True, check=True
    )
    checked = subprocess.run([shell, "-n"], input=source.stdout, env=environ, capture_output=True, check=False)
    assert (checked.stderr, checked.returncode) == (b"", 0)


@pytest.mark.program
def test_completion_offers_commands_and_options(tmp_path: Path) -> None:
    offered = run(home=tmp_path, _BPBROKER_COMPLETE="bash_complete", COMP_WORDS="bpbroker inst", COMP_CWORD="1")
    assert offered.stdout.split() == ["plain,install-service", "plain,install-extension"]
    offered = run(home=tmp_path, _BPBROKER_COMPLETE="bash_complete", COMP_WORDS="bpbroker start --pid", COMP_CWORD="2")
    assert offered.stdout.split() == ["plain,--pid-file"]

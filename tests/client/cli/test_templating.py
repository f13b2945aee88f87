"""A template makes text, or it is said why not: also of one that would compute, write or fill memory without an end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bpbroker.client.cli import templating
from bpbroker.client.cli.templating import Missing, Template
from bpbroker.errors import UsageError
from bpbroker.recipes.coordination import Entry
from tests.support.systems import posix_only

pytest.importorskip("jinja2")

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return what makes text of a template, with little time and room."""
    monkeypatch.setattr(templating, "CPU_SECS", 1)
    monkeypatch.setattr(templating, "OUTPUT_BYTES", 1_000_000)
    entries = {"a/1": Entry({"n": {"x": 1}, "last_write_ts": 5}), "a/2": Entry({"n": {"x": "\ud800é"}})}
    return lambda source: Template(source, "mine").text(entries)


def test_it_makes_text(text: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "a/")
    source = '{% for name, each in entries(env("CLUSTER")).items() %}{{ name }}={{ each | json }};{% endfor %}\n'
    assert text(source) == 'a/1={"n": {"x": 1}};a/2={"n": {"x": "\ud800é"}};\n'
    assert text("{{ field('a/1', 'n.x') + 1 }} {{ entry('a/2').n | shell }} ü") == """2 '{"x": "\\ud800\\u00e9"}' ü"""
    assert len(text("{{ 'x' * 999999 }}")) == 999_999


@pytest.mark.parametrize("source", ["{{ entry('b') }}", "{{ field('a/1', 'n.y') }}"])
def test_it_says_what_is_missing(text: Callable[[str], str], source: str) -> None:
    with pytest.raises(Missing, match="The template 'mine' needs"):
        text(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("\n{% for %}", "is wrong in line 2"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without an end"),
        ("{{ 'x' * 10**10 }}", "MiB of memory"),
        ("{{ entry('a/1').n.x * 'x' * 10**10 }}", "MiB of memory"),
        ("{{ '%9999999999d' % 1 }}", "MiB of memory"),
        ("{{ '{:>9999999999}'.format(1) }}", "MiB of memory|Too many decimal digits"),
        ("{{ 'x' | center(10**10) }}", "MiB of memory"),
        (
            "{% set ns = namespace(x='x') %}{% for a in range(50) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "MiB of memory",
        ),
        ("{{ 'x' * 1000001 }}", "makes more than 1000000 bytes"),
        ("{% for a in range(99999) %}{{ 'é' * 1000 }}{% endfor %}", "makes more than 1000000 bytes"),
        (ENDLESS, "more than 1 s of computing"),
    ],
)
def test_it_says_why_a_template_cannot_be_used(text: Callable[[str], str], source: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        text(source)
    assert raised.value.exit_code == 2
    assert "mine" in str(raised.value)


def test_it_is_not_waited_for_without_an_end(text: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What bounds it where computing time cannot be limited, or is not used."""
    monkeypatch.setattr(templating, "WALL_SECS", 0.2)
    monkeypatch.setattr(templating, "_limit", lambda *_: None)
    with pytest.raises(UsageError, match="took more than"):
        text("{{ 9 ** (9 ** 9) }}")


def test_no_process_is_left(text: Callable[[str], str]) -> None:
    text("x")
    with pytest.raises(UsageError):
        text("{{ 1 / 0 }}")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_it_has_no_limit_of_its_own_in_this_process(text: Callable[[str], str]) -> None:
    resource: Any = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_CPU)
    text("x")
    assert (resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_CPU)) == before


WITH_LITTLE_TIME = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
from bpbroker.client.cli.templating import Template
print(Template("x{{ 1 }}", "mine").text({}), end="")
"""

KILLED_BEFORE_IT_READS = """
import os, signal
from multiprocessing.connection import Connection
from bpbroker.client.cli.templating import Template
template = Template("{{ 'x' * 500000 }}", "mine")
Connection.poll = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
template.text({})
"""


def run(code: str) -> tuple[int, str, str]:
    """Run code in another process; return its exit code and what it wrote, once all that had its streams have ended."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


@posix_only("limits of the system")
def test_a_lower_limit_of_the_system_is_kept() -> None:
    assert run(WITH_LITTLE_TIME) == (0, "x1", "")


@posix_only("signals")
def test_no_process_is_left_when_this_one_is_killed() -> None:
    """What is written to a pipe that is full waits until it is read, or nobody has its other end any more."""
    assert run(KILLED_BEFORE_IT_READS) == (-9, "", "")

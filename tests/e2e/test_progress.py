"""Each command that may take long shows on a terminal how far it is, and nothing of that to a script."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.running import RunningBroker
from tests.support.terminal import Terminal

ENTRIES = 40_000
AT_ONCE = """
from bpbroker import progress
progress._PATIENCE_SECS = progress._FLICKER_SECS = 0.0  # a second would need a file fifty times as large
progress._STEP_SECS = 0.001
progress.Telling.__init__.__defaults__ = (0.0,)  # what runs in the background tells each step

# The thread that paints may miss what lasts a moment: each news is painted by the one that brings it, too.
painted = ""

def paint(terminal, work):
    global painted
    with terminal._painting:
        text = ": ".join(map(str, terminal._works))
        if text and text != painted:
            painted = text
            terminal._paint("")

def begin(terminal, work, begin=progress.Terminal.begin):
    begin(terminal, work)
    paint(terminal, work)

def change(work, name, value):
    object.__setattr__(work, name, value)
    if name == "what" and isinstance(getattr(work, "_display", None), progress.Terminal):
        paint(work._display, work)

progress.Terminal.begin, progress.Terminal.step, progress.Work.__setattr__ = begin, paint, change
"""
SERVER = AT_ONCE + "from bpbroker.cli import main\nmain()"
CLIENT = AT_ONCE + "from bpbroker.client.cli.main import main\nmain()"
LINE = re.compile(r"\r\x1b\[K([^\r\n]*)")


@pytest.fixture
def large(make_broker: Callable[..., RunningBroker]) -> Iterator[RunningBroker]:
    entries = {f"node-{number}": {"role": "replica", "text": "x" * 50} for number in range(ENTRIES)}
    broker = make_broker({"services": entries, "api": {"listen_ip": "127.0.0.1", "listen_port": 0}})
    yield broker
    broker.bpbroker("stop")


def shown(broker: RunningBroker, code: str, *words: str, out: Path | None = None, expected: int = 0) -> list[str]:
    """Run a command at a terminal; return the lines that it painted over."""
    with Terminal([sys.executable, "-c", code, *words], broker.environ, columns=200, out=out) as terminal:
        assert terminal.ended() == expected, terminal.written
    lines = LINE.findall(terminal.written)
    if lines:  # the last one is what stays: after the line was cleared
        assert " … " not in lines[-1], terminal.written
        assert " … " not in terminal.written.rpartition("\x1b[K")[2]
    return [line for line in lines if " … " in line]


def has(lines: list[str], wanted: str) -> None:
    assert any(re.search(wanted, line) for line in lines), (wanted, lines)


def test_what_is_done_with_a_stopped_broker(large: RunningBroker) -> None:
    has(shown(large, SERVER, "check"), r"^Reading .*bpbroker\.json, \d+ % … 0 s")
    has(shown(large, SERVER, "validate"), r"^Reading .*bpbroker\.json, \d+ %")
    lines = shown(large, SERVER, "backup")
    has(lines, r"^Reading .*bpbroker\.json, \d+ %")
    has(lines, r"^Writing a backup")
    has(shown(large, SERVER, "backups"), r"^Backup 1 of 1: Reading .*backups.*, \d+ %")
    name = Path(json.loads(large.bpbroker("backups", "--format", "json").stdout)[0]["path"]).name
    has(shown(large, SERVER, "restore", name), r"^Reading .*backups.*, \d+ %")
    extra = large.home / "extra.json"
    extra.write_text('{"_config": {"backup_retain_n": 3}}')
    has(shown(large, SERVER, "configure", "--config-file", str(extra)), r"^Writing .*bpbroker\.json")


def test_what_is_done_with_a_running_one(large: RunningBroker) -> None:
    lines = shown(large, SERVER, "start", "--daemon")
    has(lines, r"^The broker starts: reading .*bpbroker\.json")
    has(lines, r"^The broker starts: taking the entries into memory, [1-9]\d* %")
    has(shown(large, SERVER, "backup"), r"^Waiting for the broker \(process \d+\)(: making a backup(, \d+ %)?)? … ")
    has(shown(large, SERVER, "reload"), r"^Waiting for the broker \(process \d+\)")
    out = large.home / "status.txt"
    shown(large, SERVER, "status", out=out)
    assert "\x1b" not in out.read_text()
    has(shown(large, SERVER, "stop"), r"^(Waiting for the broker to end|The broker is writing)")


def test_a_script_sees_nothing_of_it(large: RunningBroker) -> None:
    for words in (("check",), ("start", "--daemon"), ("backup",), ("stop",)):
        ended = large.bpbroker(*words)
        assert ended.returncode == 0, ended.stderr
        assert "\r" not in ended.stdout + ended.stderr
        assert "\x1b" not in ended.stdout + ended.stderr
        assert " … " not in ended.stderr


def test_an_extension_that_is_tried(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.5)\n\ndef Hi(rh):\n    return 'hi'\n")
    has(shown(make_broker(), SERVER, "install-extension", "--script", str(tmp_path / "slow.py")), r"^Importing slow … ")


def test_many_entries_of_bpclient(broker: RunningBroker, tmp_path: Path) -> None:
    where = ("-b", f"127.0.0.1:{broker.port}")
    broker.register("pinned")
    assert broker.bpclient("service", "list").returncode == 0
    lines = "".join(json.dumps({"name": f"n{number}", "data": {"a": number}}) + "\n" for number in range(1500))
    (tmp_path / "entries").write_text(lines)
    code = f"import os; os.dup2(os.open({str(tmp_path / 'entries')!r}, os.O_RDONLY), 0)\n{CLIENT}"
    out = tmp_path / "out"
    has(shown(broker, code, *where, "service", "import", out=out), r"^Waiting for broker .*, \d+ % … 0 s")
    has(shown(broker, CLIENT, *where, "service", "export", out=out), r"^Waiting for broker")
    assert len(out.read_text().splitlines()) == 1501
    delete = ("service", "delete", "--prefix", "n")
    has(shown(broker, CLIENT, *where, *delete, out=out), r"^Waiting for broker .*, \d+ % … 0 s")
    assert shown(broker, CLIENT, "-q", *where, "service", "export", out=out) == []

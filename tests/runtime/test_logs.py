"""Logs: formats, files, reopening, rotation, standard streams."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker.errors import ConfigurationError
from bpbroker.runtime import log_files
from bpbroker.runtime.logs import JournalFormatter, JsonFormatter, LogOptions, TextFormatter, reopen_logs, setup_logging
from tests.support import own_logging
from tests.support.systems import posix_only

logger = logging.getLogger("bpbroker.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with own_logging.restored():
        yield


def record(message: str, *args: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("bpbroker.x", level, "file", 1, message, args, None)
    made.created = 1420068290.25
    made.__dict__.update(extra)
    return made


def failing() -> logging.LogRecord:
    try:
        raise ValueError("canary")
    except ValueError:
        made = record("broke", level=logging.ERROR)
        made.exc_info = sys.exc_info()
        return made


def test_text() -> None:
    assert TextFormatter().format(record("is %s", "up")) == "2014-12-31T23:24:50.250Z INFO    bpbroker.x: is up"


def test_colour_only_when_asked_for() -> None:
    coloured = TextFormatter(colour=True).format(record("x", level=logging.ERROR))
    assert "\x1b[31mERROR  \x1b[0m" in coloured
    assert "\x1b" not in TextFormatter().format(record("x", level=logging.ERROR))


def test_a_message_is_one_line_whatever_a_client_sent() -> None:
    line = TextFormatter().format(record("name %s", "a\n2014 INFO fake\r\x1b[2J\u2028\x85"))
    assert line.endswith(r"name a\n2014 INFO fake\r\x1b[2J\u2028\x85")
    assert len(line.splitlines()) == 1


def test_a_traceback_is_indented_below() -> None:
    first, *rest = TextFormatter().format(failing()).splitlines()
    assert first.endswith("bpbroker.x: broke")
    assert rest[-1] == "    ValueError: canary"
    assert all(line.startswith("    ") for line in rest)


def test_journal_lines_have_a_priority_each_and_no_time() -> None:
    assert JournalFormatter().format(record("up")) == "<6>bpbroker.x: up"
    lines = JournalFormatter().format(failing()).splitlines()
    assert len(lines) > 2
    assert all(line.startswith("<3>") for line in lines)
    assert JournalFormatter().format(record("x", level=logging.WARNING)).startswith("<4>")
    assert JournalFormatter().format(record("x", level=logging.DEBUG)).startswith("<7>")
    assert JournalFormatter().format(record("x", level=logging.CRITICAL)).startswith("<2>")


def test_json() -> None:
    line = JsonFormatter().format(record("is %s", "\nup", status=200, path=Path("/x")))
    assert json.loads(line) == {
        "time": "2014-12-31T23:24:50.250Z",
        "level": "info",
        "logger": "bpbroker.x",
        "message": "is \nup",
        "status": 200,
        "path": str(Path("/x")),
    }
    assert "\n" not in line
    assert "ValueError: canary" in json.loads(JsonFormatter().format(failing()))["error"]


def test_to_a_file_with_a_level(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "broker.log"
    setup_logging(LogOptions(path, level="warning"))
    logger.info("no")
    logger.warning("yes \udcff")
    assert path.read_text().endswith("WARNING bpbroker.test: yes \\udcff\n")
    assert len(path.read_text().splitlines()) == 1
    assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o640


def test_set_up_again_it_takes_the_place_of_what_was(tmp_path: Path) -> None:
    setup_logging(LogOptions(tmp_path / "a"))
    setup_logging(LogOptions(tmp_path / "b", format="json"))
    logger.info("x")
    assert (tmp_path / "a").read_text() == ""
    assert json.loads((tmp_path / "b").read_text())["message"] == "x"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path))):
        setup_logging(LogOptions(tmp_path))


@posix_only("an open file that is renamed")
def test_a_file_moved_away_is_let_go_at_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "log"
    setup_logging(LogOptions(path))
    logger.info("one")
    path.rename(tmp_path / "log.old")
    logger.info("two")
    reopen_logs()
    logger.info("three")
    assert [line.split()[-1] for line in (tmp_path / "log.old").read_text().splitlines()] == ["one", "two"]
    assert path.read_text().split()[-1] == "three"


def test_it_rotates_by_size_and_keeps_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "FILE_MAX_BYTES", 2000)
    path = tmp_path / "log"
    setup_logging(LogOptions(path))
    for number in range(500):
        logger.info("%0100d", number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", *(f"log.{n}" for n in range(1, log_files.FILES_KEPT + 1))]
    assert all(0 < file.stat().st_size <= 2000 for file in files)
    assert path.read_text().split()[-1] == f"{499:0100d}"


@posix_only("an open file that is renamed")
def test_standard_streams_follow_a_log_that_they_point_to(tmp_path: Path) -> None:
    program = f"""
import logging, os
from pathlib import Path
from bpbroker.runtime import logs
path = Path({str(tmp_path / "log")!r})
descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(descriptor, 1)
logs.setup_logging(logs.LogOptions(path))
os.write(1, b"first\\n")
path.rename(path.with_name("moved"))
logs.reopen_logs()
os.write(1, b"second\\n")
logging.getLogger().handlers[-1].doRollover()
os.write(1, b"third\\n")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True)
    assert (tmp_path / "moved").read_text() == "first\n"
    assert (tmp_path / "log.1").read_text() == "second\n"
    assert (tmp_path / "log").read_text() == "third\n"


def test_other_standard_streams_are_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogOptions(tmp_path / "log"))
    reopen_logs()
    os.write(1, b"still here")
    assert capfd.readouterr().out == "still here"


def test_a_thread_that_ends_with_an_error_is_logged(tmp_path: Path) -> None:
    setup_logging(LogOptions(tmp_path / "log"))
    thread = threading.Thread(target=lambda: 1 / 0, name="mine")
    thread.start()
    thread.join()
    text = (tmp_path / "log").read_text()
    assert "The thread mine ended with an error" in text
    assert "ZeroDivisionError" in text


def test_warnings_go_to_the_log(tmp_path: Path) -> None:
    setup_logging(LogOptions(tmp_path / "log"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    assert "old thing" in (tmp_path / "log").read_text()


def test_standard_error_on_no_terminal_has_no_colour_and_in_a_journal_a_priority(tmp_path: Path) -> None:
    program = (
        "import logging; from bpbroker.runtime import logs; logs.setup_logging(logs.LogOptions()); logging.error('x')"
    )
    plain = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert plain.stdout == ""
    assert plain.stderr.endswith("ERROR   root: x\n")
    with (tmp_path / "journal").open("wb") as journal:
        state = os.fstat(journal.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{state.st_dev}:{state.st_ino}"}
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stderr=journal, env=environ)
    assert (tmp_path / "journal").read_text() == "<3>root: x\n"


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
@posix_only("pseudo terminals")
def test_colour_on_a_terminal(no_colour: str, coloured: bool) -> None:
    leader, follower = os.openpty()
    program = (
        "import logging; from bpbroker.runtime import logs; logs.setup_logging(logs.LogOptions()); logging.error('x')"
    )
    try:
        environ = {**os.environ, "NO_COLOR": no_colour}
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stderr=follower, env=environ)
        said = os.read(leader, 1000)
    finally:
        os.close(leader)
        os.close(follower)
    assert (b"\x1b[31m" in said) is coloured

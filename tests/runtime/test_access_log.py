"""Where requests are logged: as all else, nowhere, or in a file of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker.errors import ConfigurationError
from bpbroker.frontend import access_log
from bpbroker.frontend.access_log import Line
from bpbroker.runtime.logs import LogOptions, reopen_logs, set_access_log, setup_logging
from tests.support import own_logging
from tests.support.systems import posix_only


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Return the log of this process, which is a file now."""
    with own_logging.restored():
        setup_logging(LogOptions(tmp_path / "log"))
        yield tmp_path / "log"


def answered(name: str) -> None:
    access_log.write(Line("10.0.0.7", 200, 1, name=name))
    access_log.flush()


def test_requests_go_where_the_setting_says(log: Path, tmp_path: Path) -> None:
    own = tmp_path / "own" / "access"
    answered("one")
    set_access_log(str(own))
    answered("two")
    set_access_log("off")
    answered("three")
    set_access_log("same")
    answered("four")
    assert re.findall(r"name=\S+", log.read_text()) == ["name=one", "name=four"]
    assert json.loads(own.read_text())["name"] == "two"


@posix_only("an open file that is renamed")
def test_a_file_of_its_own_is_opened_anew_and_does_not_depend_on_the_level(log: Path, tmp_path: Path) -> None:
    setup_logging(LogOptions(log, level="error"))
    own = tmp_path / "access"
    set_access_log(str(own))
    answered("one")
    own.rename(tmp_path / "moved")
    assert reopen_logs() == ""
    set_access_log(str(own))  # nothing changed
    answered("two")
    assert [json.loads(path.read_text())["name"] for path in (tmp_path / "moved", own)] == ["one", "two"]


def test_a_file_that_cannot_be_opened_leaves_requests_where_they_went(log: Path, tmp_path: Path) -> None:
    own = tmp_path / "access"
    set_access_log(str(own))
    with pytest.raises(ConfigurationError, match="Cannot write the access log"):
        set_access_log(str(tmp_path))
    answered("one")
    assert json.loads(own.read_text())["name"] == "one"
    set_access_log(str(log))  # the log's own file: two that rotate it would lose lines
    answered("two")
    assert "name=two" in log.read_text()

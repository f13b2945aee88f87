"""The PID file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bpbroker.errors import ConfigurationError
from bpbroker.runtime.pidfile import remove_pid, write_pid


@pytest.mark.parametrize("before", [None, "", "rubbish", "1\n"])
def test_it_is_written_whatever_was_there_and_removed(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "pid"
    if before is not None:
        path.write_text(before)
    write_pid(path)
    assert path.read_text() == f"{os.getpid()}\n"
    remove_pid(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["1\n", "", "rubbish"])
def test_somebody_elses_is_not_removed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pid"
    path.write_text(content)
    remove_pid(path)
    assert path.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nope" / "pid"
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        write_pid(path)

"""The ``bpbroker`` command line, run inside the test's process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from bpbroker.cli import main
from tests.support import own_logging


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home of the test's own that does not exist yet."""
    home = tmp_path / "home"
    monkeypatch.setenv("BPBROKER_HOME", str(home))
    return home


@pytest.fixture
def bpbroker(
    home: Path,  # noqa: ARG001 - no command may see the real one
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Ran]:
    """Return what runs ``bpbroker`` with these words."""

    def run(*words: str | Path, stdin: str = "") -> Ran:
        capfd.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with own_logging.restored(), pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        code = ended.value.code
        assert isinstance(code, int)
        return Ran(code, *capfd.readouterr())

    return run

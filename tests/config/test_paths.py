"""Which folder is the home, for root and for a plain user."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bpbroker.config import paths
from bpbroker.config.paths import find_home
from tests.support.other_user import can_run_python
from tests.support.systems import is_root, posix_only

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = 65534
"""The user nobody."""
_RUN = """\
import os, sys
from pathlib import Path
from bpbroker.config import paths
system = Path(sys.argv.pop(1))
paths.system_home = lambda environ: system
from bpbroker.cli import main
main()
"""


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the system's home, which is there."""
    system = tmp_path / "system"
    (system / "etc").mkdir(parents=True)
    monkeypatch.setattr(paths, "system_home", lambda _: system)
    return system


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return what makes this process a plain user who may not write to a folder."""
    real = os.access

    def close(folder: Path) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: PLAIN)
        monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (folder, os.W_OK) and real(path, mode))

    return close


@posix_only("users' numbers and XDG folders")
def test_a_home_that_may_not_be_written_to_is_passed_over(
    system: Path, closed: Callable[[Path], None], tmp_path: Path
) -> None:
    environ = {"XDG_DATA_HOME": str(tmp_path / "data")}
    assert find_home(environ) == paths.Home(system)
    closed(system / "etc")
    found = find_home(environ)
    assert (found.folder, found.passed_over) == (tmp_path / "data" / "bpbroker", system)
    assert str(system) in found.notice
    assert str(found.folder) in found.notice
    # A service of a user of its own has its file elsewhere, and its modules here.
    assert find_home(environ, for_file=True) == paths.Home(system)
    assert find_home({"BPBROKER_HOME": "x"}) == paths.Home(system)


@posix_only("users' numbers and XDG folders")
def test_the_folder_of_the_configuration_counts(system: Path, closed: Callable[[Path], None], tmp_path: Path) -> None:
    closed(system)  # root's, with etc the service user's
    assert find_home({"XDG_DATA_HOME": str(tmp_path)}) == paths.Home(system)


@posix_only("users' numbers and XDG folders")
def test_who_can_write_nowhere_hears_of_the_systems_folder(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: PLAIN)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert find_home({"XDG_DATA_HOME": "/nonexistent"}) == paths.Home(system)


@pytest.mark.skipif(not is_root(), reason="becomes another user")
def test_a_plain_user_is_told_once_which_folder_is_used() -> None:
    if not can_run_python(PLAIN):
        pytest.skip("the user nobody cannot run this Python")
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are root's alone
        top = Path(made)
        top.chmod(0o755)
        _configure_as_plain_user(top / "system", top / "data")


def _configure_as_plain_user(system: Path, data: Path) -> None:
    system.mkdir()
    data.mkdir()
    os.chown(data, PLAIN, PLAIN)
    done = subprocess.run(
        ["setpriv", f"--reuid={PLAIN}", f"--regid={PLAIN}", "--clear-groups",
         sys.executable, "-c", _RUN, system, "configure"],
        env={"XDG_DATA_HOME": str(data), "PATH": os.environ["PATH"]},
        input='{"_config": {"backup_retain_n": 5}}', cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("may not be written to by this user") == 1
    assert (data / "bpbroker" / "etc" / "bpbroker.json").exists()
    assert not list(system.iterdir())

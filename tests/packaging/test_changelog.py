"""``.ci/changelog``: what users can notice needs a line for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "changelog"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_what_users_notice_needs_a_line(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    def commit(message: str, *names: str) -> None:
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(message)
        git("add", "-A")
        git("commit", "-q", "-m", message)

    def look() -> tuple[int, str]:
        words = [str(tmp_path / ".ci/changelog"), "base"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stderr

    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    git("init", "-q")
    commit("begin", "CHANGELOG.md", "bpbroker/x.py")
    git("tag", "base")
    commit("inside only", "bpbroker/x.py")
    assert look() == (0, "")
    commit("a spelling\n\nChangelog: none", "deploy/man/bpbroker.1")
    assert look() == (0, "")
    # What is named there must be there: a file that has moved would not be looked at any more.
    names = re.search(r"^set -- ((?:.*\\\n)*.*)$", SCRIPT.read_text(), re.MULTILINE)
    assert names is not None
    assert [name for name in names[1].replace("\\", "").split() if not (SCRIPT.parents[1] / name).exists()] == []
    for name in ("deploy/man/bpbroker.1", "docs/monitoring.md", "bpbroker/frontend/pages/templates/keys.html"):
        commit(f"a change of {name}", name)
        code, said = look()
        assert code == 1
        assert f"a change of {name}: users notice this" in said
        commit(f"say it of {name}", "CHANGELOG.md")
        assert look() == (0, "")
        git("tag", "-f", "base")

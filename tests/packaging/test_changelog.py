"""``.ci/changelog``: what users can notice needs a line for them."""

from __future__ import annotations

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
    commit("a new option", "deploy/man/bpbroker.1")
    code, said = look()
    assert code == 1
    assert "a new option: users notice this" in said
    commit("say it", "CHANGELOG.md")
    assert look() == (0, "")

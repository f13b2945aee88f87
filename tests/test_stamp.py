"""What ``--version`` says of the build: from a wheel's stamp, from git's files, or that it is not known."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from bpbroker import __version__, stamp

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHORT = "0123456789ab"


def checkout(folder: Path, head: str, **files: str) -> Path:
    for name, content in {"HEAD": head, **files}.items():
        file = folder / ".git" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return folder


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert stamp.commit_of(tmp_path) == ""
    assert stamp.commit_of(checkout(tmp_path / "detached", COMMIT)) == SHORT
    on_branch = checkout(tmp_path / "branch", "ref: refs/heads/main", refs__heads__main=COMMIT)
    assert stamp.commit_of(on_branch) == SHORT
    packed = checkout(tmp_path / "packed", "ref: refs/heads/main")
    (packed / ".git/packed-refs").write_text(
        f"# pack-refs with: peeled\n{'f' * 40} refs/heads/x\n{COMMIT} refs/heads/main\n"
    )
    assert stamp.commit_of(packed) == SHORT
    assert stamp.commit_of(checkout(tmp_path / "empty", "ref: refs/heads/main")) == ""
    assert stamp.commit_of(checkout(tmp_path / "odd", "nonsense")) == ""


def test_a_worktree_reads_the_branches_of_its_repository(tmp_path: Path) -> None:
    main = checkout(tmp_path / "main", "ref: refs/heads/main", refs__heads__other=COMMIT)
    own = main / ".git/worktrees/other"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/other\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.git").write_text(f"gitdir: {own}\n")
    assert stamp.commit_of(tmp_path / "other") == SHORT


@pytest.mark.parametrize(
    ("stamped", "said"),
    [
        (b"0123456789ab 2026-11-27\n", "commit 0123456789ab, built 2026-11-27"),
        (b"unknown 2026-11-27\n", "commit unknown, built 2026-11-27"),
        (b"", "commit unknown, built unknown"),
    ],
)
def test_a_build_says_what_was_stamped(stamped: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pkgutil, "get_data", lambda *_: stamped)
    assert stamp.version() == f"{__version__} ({said})"


def test_a_stamp_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    monkeypatch.delenv("BPBROKER_COMMIT", raising=False)
    assert stamp.stamp(tmp_path) == "unknown 1970-01-02\n"
    assert stamp.stamp(checkout(tmp_path, COMMIT)) == f"{SHORT} 1970-01-02\n"
    monkeypatch.setenv("BPBROKER_COMMIT", "fedcba9876543210")
    assert stamp.stamp(tmp_path) == "fedcba987654 1970-01-02\n"


def test_this_one_says_what_it_is() -> None:
    assert re.fullmatch(r"commit ([0-9a-f]{12}|unknown), (not built|built \S+)", stamp.build())

"""Two files that are always a pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpbroker import files
from bpbroker.server import host_certificate, own_pair


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "b.crt", tmp_path / "b.key"


class Death(BaseException):
    """The process ends here."""


def dying(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process end after so many steps that change a name."""
    left = [steps]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Death
            left[0] -= 1
            return function(*arguments, **options)

        return call

    for name in ("write_whole", "rename", "remove"):
        patch.setattr(files, name, counted(getattr(files, name)))


@pytest.mark.parametrize("first", [True, False])
def test_whenever_its_making_is_cut_off_the_old_or_the_new_one_is_there(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    seen = set()
    for steps in range(20):
        for path in pair:
            path.unlink(missing_ok=True)
        if not first:
            host_certificate.make_pair(*pair)
        before = host_certificate.fingerprint(pair[0]) if not first else ""
        with monkeypatch.context() as patch:
            dying(steps, patch)
            try:
                host_certificate.make_pair(*pair)
            except Death:
                finished = False
            else:
                finished = True
        for again in range(3):  # and its mending, too
            with monkeypatch.context() as patch:
                dying(again, patch)
                try:
                    own_pair.heal(*pair)
                except Death:
                    continue
                break
        own_pair.heal(*pair)
        assert {path.name for path in pair[0].parent.iterdir()} <= {"b.crt", "b.key"}
        if pair[0].exists() or pair[1].exists():
            host_certificate.check_pair(*pair)
            seen.add(host_certificate.fingerprint(pair[0]) == before)
        else:
            assert first
            assert not finished
            seen.add(True)
        if finished:
            break
    assert seen == {True, False}


def test_what_is_no_pair_is_removed(pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    host_certificate.make_pair(*pair)
    before = host_certificate.fingerprint(pair[0])
    other = pair[0].with_name("other.crt"), pair[0].with_name("other.key")
    host_certificate.make_pair(*other)
    other[0].rename(own_pair.staged(pair[0]))
    own_pair.staged(pair[1]).write_bytes(b"junk")
    own_pair.heal(*pair)
    assert "there is no key for it" in caplog.text
    assert not own_pair.staged(pair[0]).exists()
    assert not own_pair.staged(pair[1]).exists()
    assert host_certificate.fingerprint(pair[0]) == before


def test_two_that_renew_at_once_leave_a_pair(pair: tuple[Path, Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: host_certificate.make_pair(*pair), range(12)))
    host_certificate.check_pair(*pair)
    assert {path.name for path in pair[0].parent.iterdir()} == {"b.crt", "b.key"}

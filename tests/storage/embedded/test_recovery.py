"""Files that belong together are taken together; all others are told apart and never mixed in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpbroker.errors import DamagedFile
from bpbroker.storage.config_file import Origin, read_content, write
from bpbroker.storage.embedded.journal import JournalState
from bpbroker.storage.embedded.recovery import match, merged

OURS, OTHER = "1" * 32, "2" * 32
CHANGES = {"a": b"{}", "gone": None}
NONE: dict[str, bytes | None] = {}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "bpbroker.json"
    path.write_text("{}")
    return path


def journal(changes: dict[str, bytes | None], sequence: int, base: int, registry: str = OURS) -> JournalState:
    return JournalState(changes, sequence, 0, registry, base)


@pytest.mark.parametrize(
    ("origin", "state", "counts", "commit"),
    [
        (Origin(OURS, 5), journal(CHANGES, 7, 5), CHANGES, 7),  # a crash
        (Origin(OURS, 6), journal(CHANGES, 7, 5), CHANGES, 7),  # a crash between writing the file and forgetting
        (Origin(OURS, 7), journal(NONE, 7, 7), NONE, 7),  # a clean stop
        (Origin(OURS, 7), JournalState({}, 0), NONE, 7),  # no journal
        (None, JournalState({}, 0), NONE, 0),  # a first start
        (None, journal(NONE, 7, 7), NONE, 7),  # a file of the operator's beside a clean stop
        (Origin(OURS, 7, intact=False), journal(NONE, 7, 7), NONE, 7),  # an edit beside a clean stop
        (None, journal(CHANGES, 7, 0, ""), CHANGES, 7),  # of an earlier version
        (Origin(OURS, 3), journal(CHANGES, 7, 0, ""), CHANGES, 7),
    ],
)
def test_what_belongs_together_is_taken_together(
    own: Path, origin: Origin | None, state: JournalState, counts: dict[str, bytes | None], commit: int
) -> None:
    fit = match(own, origin, state)
    assert (fit.changes, fit.commit, fit.edited, fit.warning) == (counts, commit, False, "")


@pytest.mark.parametrize(
    ("origin", "state", "why"),
    [
        (None, journal(CHANGES, 7, 5), "no broker wrote this file"),
        (Origin(OTHER, 5), journal(CHANGES, 7, 5), f"the file is of registry {OTHER}"),
        (Origin(OURS, 4), journal(CHANGES, 7, 5), "the file is older: it ends with commit 4"),
    ],
)
def test_strangers_are_refused_with_the_way_on(own: Path, origin: Origin | None, state: JournalState, why: str) -> None:
    with pytest.raises(DamagedFile) as caught:
        match(own, origin, state)
    assert why in str(caught.value)
    assert f"bpbroker --config {own} restore {own}" in str(caught.value)


@pytest.mark.parametrize(
    ("origin", "state", "counts", "says"),
    [
        (Origin(OURS, 9), journal(CHANGES, 7, 5), NONE, "is newer (commit 9)"),
        (Origin(OURS, 6, intact=False), journal(CHANGES, 7, 5), CHANGES, "was edited after its broker had crashed"),
        (Origin(OURS, 4), journal(NONE, 7, 7), NONE, "is older (commit 4)"),
        (Origin(OTHER, 4), journal(NONE, 7, 7), NONE, "is of another registry"),
    ],
)
def test_what_wins_is_said(
    own: Path, origin: Origin, state: JournalState, counts: dict[str, bytes | None], says: str
) -> None:
    fit = match(own, origin, state)
    assert fit.changes == counts
    assert says in fit.warning


def test_changes_and_deletions_are_merged() -> None:
    before = {"gone": b"{}", "kept": b"{}"}
    assert merged(before, CHANGES) == {"a": b"{}", "kept": b"{}"}
    assert before == {"gone": b"{}", "kept": b"{}"}


def test_a_file_tells_whose_it_is_and_whether_it_was_edited(tmp_path: Path) -> None:
    path = tmp_path / "bpbroker.json"
    settings = {"api": {"listen_port": 1}, "services": {"_access_key": "k"}}
    write(path, settings, {"a": b'{"_str": "x"}'}, origin=Origin(OURS, 12))
    assert read_content(path) == (settings, {"a": b'{"_str": "x"}'}, Origin(OURS, 12))
    path.write_text(path.read_text().replace('"x"', '"y"'))
    assert read_content(path).origin == Origin(OURS, 12, intact=False)
    write(path, settings, {})
    assert read_content(path).origin is None


@pytest.mark.parametrize("state", ['"x"', "{}", '{"registry": 1, "commit": 2}', '{"registry": "a", "commit": -1}'])
def test_an_origin_that_makes_no_sense_is_none(own: Path, state: str) -> None:
    own.write_text(f'{{"api": {{}}, "_state": {state}}}')
    assert read_content(own) == ({"api": {}}, {}, None)

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker.errors import BadRequest, ExtensionFailed, Overloaded, RequestError, StorageFull, Unavailable
from bpbroker.extensions import idempotency
from bpbroker.extensions.idempotency import Answers, Keyed, Now
from bpbroker.messages import Call, CallResult
from tests.support.systems import is_private

DAY_SECS = idempotency.KEPT_SECS
OLD_SCHEMA = """
CREATE TABLE answers (
    namespace TEXT NOT NULL, key TEXT NOT NULL, request BLOB NOT NULL, begun REAL NOT NULL,
    ok INTEGER, status INTEGER, message TEXT, content_type TEXT, body BLOB,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX age ON answers (begun);
"""
RESULT = CallResult(200, "OK", "text/plain", b"\x00body")


def keyed(key: str = "k", method: str = "F", source: str = "10.0.0.7") -> Keyed:
    found = Keyed.of("demo", Call(method, {"data": "x"}, source, "id", key))
    assert found is not None
    return found


class Clocks:
    """The clocks of a machine, as a test sets them."""

    def __init__(self) -> None:
        self.boot, self.uptime, self.wall = "first", 1000.0, 1_800_000_000.0

    def look(self) -> Now:
        return Now(self.boot, self.uptime, self.wall)

    def wait(self, secs: float) -> None:
        self.uptime += secs
        self.wall += secs

    def restart(self, off_secs: float = 60.0) -> None:
        self.boot += "+"
        self.uptime = 5.0
        self.wall += off_secs


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def kept(tmp_path: Path, clocks: Clocks) -> Iterator[Answers]:
    found = Answers(tmp_path / "answers", clocks.look)
    yield found
    found.close()


def test_an_answer_is_found_by_whoever_opens_the_file_later(kept: Answers, tmp_path: Path) -> None:
    assert kept.find(keyed()) is None
    kept.begin(keyed())
    kept.finish(keyed(), RESULT)
    other = Answers(tmp_path / "answers")
    assert other.find(keyed()) == RESULT
    assert other.find(keyed("k2")) is None
    other.close()
    assert is_private(tmp_path / "answers")


def test_a_failure_is_kept_with_its_status(kept: Answers) -> None:
    kept.begin(keyed())
    kept.finish(keyed(), ExtensionFailed("it crashed"))
    found = kept.find(keyed())
    assert isinstance(found, RequestError)
    assert (found.status, str(found)) == (500, "it crashed")


def test_a_call_without_an_answer_was_cut_off(kept: Answers) -> None:
    kept.begin(keyed())
    found = kept.find(keyed())
    assert isinstance(found, RequestError)
    assert not found.outcome_known


def test_a_key_is_begun_once(kept: Answers) -> None:
    kept.begin(keyed())
    with pytest.raises(Unavailable):
        kept.begin(keyed())


@pytest.mark.parametrize("other", [keyed(method="G"), keyed(source="10.0.0.8")])
def test_nobody_else_gets_the_answer(kept: Answers, other: Keyed) -> None:
    kept.begin(keyed())
    kept.finish(keyed(), RESULT)
    with pytest.raises(BadRequest):
        kept.find(other)


def test_answers_are_kept_for_a_day(kept: Answers, clocks: Clocks) -> None:
    kept.begin(keyed())
    kept.finish(keyed(), RESULT)
    clocks.wait(DAY_SECS - 1)
    assert kept.find(keyed()) == RESULT
    clocks.wait(1)
    assert kept.find(keyed()) is None
    kept.begin(keyed())


@pytest.mark.parametrize("days", [1000, -1000])
def test_a_calendar_that_jumps_changes_no_age(kept: Answers, clocks: Clocks, days: int) -> None:
    kept.begin(keyed())
    kept.finish(keyed(), RESULT)
    clocks.wall += days * DAY_SECS
    assert kept.find(keyed()) == RESULT
    kept.begin(keyed("later"))
    clocks.restart()
    clocks.wall += days * DAY_SECS
    assert kept.find(keyed()) == RESULT
    with pytest.raises(Unavailable):
        kept.begin(keyed())
    kept.tidy()
    clocks.wait(DAY_SECS)
    assert kept.find(keyed()) is None
    assert kept.tidy().keys == 0


def test_the_time_between_two_starts_of_the_machine_counts_as_far_as_it_is_sure(kept: Answers, clocks: Clocks) -> None:
    kept.begin(keyed())
    kept.finish(keyed(), RESULT)
    clocks.restart(off_secs=10 * DAY_SECS)
    assert kept.find(keyed()) == RESULT
    clocks.wait(DAY_SECS / 2)
    kept.begin(keyed("other"))
    clocks.restart()
    clocks.wait(DAY_SECS / 2 - 11)  # and twice 5 s of uptime when it was looked at first
    assert kept.find(keyed()) == RESULT
    clocks.wait(1)
    assert kept.find(keyed()) is None


def test_a_file_from_another_machine_forgets_nothing_early(kept: Answers, clocks: Clocks) -> None:
    kept.begin(keyed())
    kept.finish(keyed(), RESULT)
    clocks.boot, clocks.uptime = "another", 1000 * DAY_SECS
    clocks.wait(60)
    assert kept.find(keyed()) == RESULT


def test_a_calm_broker_notes_the_time(kept: Answers, clocks: Clocks) -> None:
    kept.begin(keyed())
    kept.finish(keyed(), RESULT)
    clocks.wait(DAY_SECS - 1)
    assert kept.tidy().keys == 1
    clocks.restart()
    clocks.wait(1)
    assert kept.find(keyed()) is None


def test_a_file_of_an_earlier_version_is_taken_up(tmp_path: Path, clocks: Clocks) -> None:
    """Its ages are Unix time; one of them is of a calendar that was years ahead."""
    old = sqlite3.connect(tmp_path / "answers", isolation_level=None)
    old.execute("PRAGMA journal_mode=WAL")
    old.executescript(OLD_SCHEMA)
    for key, begun in (("over", -2 * DAY_SECS), ("k", -60.0), ("ahead", 1000 * DAY_SECS)):
        row = ("demo", key, keyed(key).request, clocks.wall + begun, 1, 200, "OK", "text/plain", b"\x00body")
        old.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    old.close()
    kept = Answers(tmp_path / "answers", clocks.look)
    assert kept.find(keyed("ahead")) == RESULT
    assert kept.tidy().keys == 1
    clocks.wait(DAY_SECS)
    assert kept.tidy().keys == 0
    kept.close()


def test_a_key_costs_the_same_however_many_are_kept(kept: Answers) -> None:
    def cost(key: str) -> int:
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        assert kept._connection is not None
        kept._connection.set_progress_handler(step, 1)  # each step of SQLite's machine, whatever the disk does
        kept.begin(keyed(key))
        kept.finish(keyed(key), RESULT)
        assert kept.find(keyed(key)) == RESULT
        kept.tidy()
        kept._connection.set_progress_handler(None, 1)
        return steps

    kept.begin(keyed("first"))
    few = cost("a")
    assert kept._connection is not None
    kept._connection.execute("BEGIN")
    kept._connection.executemany(
        "INSERT INTO answers (namespace, key, request, begun) SELECT 'demo', ?, x'00', max(begun) FROM answers",
        [(f"many-{number}",) for number in range(3000)],
    )
    kept._connection.execute("COMMIT")
    assert cost("b") <= few + 20
    assert kept.tidy().keys == 3003


def test_a_key_can_be_used_again_after_a_day_however_many_are_over(kept: Answers, clocks: Clocks) -> None:
    for number in range(idempotency.FORGOTTEN_AT_ONCE):
        kept.begin(keyed(f"k{number}"))
    clocks.wait(1)
    kept.begin(keyed("last"))
    clocks.wait(DAY_SECS)
    assert kept.find(keyed("last")) is None
    kept.begin(keyed("last"))


def test_too_many_keys_are_refused_and_none_is_forgotten(kept: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "KEYS_MAX", 2)
    monkeypatch.setattr(idempotency, "_PART_OF_ONE_CLIENT", 1)
    for key in ("a", "b"):
        kept.begin(keyed(key))
        kept.finish(keyed(key), RESULT)
    with pytest.raises(
        Overloaded, match=r"2 calls of demo with an .* was done; the oldest is forgotten in 24 h .* without a key"
    ):
        kept.begin(keyed("c"))
    assert kept.find(keyed("a")) == kept.find(keyed("b")) == RESULT
    monkeypatch.setattr(idempotency, "KEYS_MAX", 100)
    monkeypatch.setattr(idempotency, "BYTES_MAX", 1)
    with pytest.raises(Overloaded):
        kept.begin(keyed("d"))


def test_no_client_and_no_namespace_takes_the_keys_of_others(kept: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "KEYS_MAX", 20)
    monkeypatch.setattr(idempotency, "_RESERVED", 10)

    def fill(source: str, namespace: str = "demo") -> int:
        for number in range(100):
            found = Keyed.of(namespace, Call("F", {}, source, "id", f"{source} {number}"))
            assert found is not None
            try:
                kept.begin(found)
            except Overloaded:
                return number
        raise AssertionError("it has no limit")

    assert fill("10.0.0.1") == 10  # half of all
    assert fill("2001:db8::1") == 10
    assert fill("2001:db8::2") == 0  # the same network, so the same client
    assert [fill(f"10.0.1.{last}") for last in range(11)] == [2] * 10 + [0]  # a few for each that comes later
    assert fill("10.0.0.1", "other") == 10


def test_a_file_of_before_there_were_quotas_is_used_on(tmp_path: Path, clocks: Clocks) -> None:
    path = tmp_path / "old"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.executescript(idempotency._SCHEMA)
        row = ("demo", "k", keyed().request, clocks.look().wall, 1, 200, "OK", "text/plain", b"old")
        old.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    answers = Answers(path, clocks.look)
    assert answers.find(keyed()) == CallResult(200, "OK", "text/plain", b"old")
    answers.begin(keyed("new"))
    assert answers.tidy().keys == 2
    answers.close()


def test_old_answers_make_room_for_new_ones_and_no_call_runs_twice(
    kept: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "BYTES_MAX", 400_000)
    large = CallResult(200, "OK", "text/plain", b"x" * 50_000)
    kept.begin(keyed("small"))
    kept.finish(keyed("small"), RESULT)
    for number in range(20):
        kept.begin(keyed(f"k{number}"))
        kept.finish(keyed(f"k{number}"), large)
        assert kept.find(keyed(f"k{number}")) == large
    assert kept.find(keyed("small")) == RESULT  # it takes no room worth having
    before = kept.find(keyed("k0"))
    assert isinstance(before, RequestError)
    assert (before.status, before.outcome_known) == (500, True)
    assert "ran and ended with 200 OK; its answer made room" in str(before)
    with pytest.raises(BadRequest):
        kept.find(keyed("k0", method="G"))
    with pytest.raises(Unavailable):
        kept.begin(keyed("k0"))


def test_what_is_over_goes_without_another_call(kept: Answers, clocks: Clocks) -> None:
    assert kept.tidy() == idempotency.Usage(0, 0)
    for number in range(idempotency.FORGOTTEN_AT_ONCE + 1):
        kept.begin(keyed(f"k{number}"))
    clocks.wait(1)
    kept.begin(keyed("last"))
    assert kept.tidy().keys == idempotency.FORGOTTEN_AT_ONCE + 2
    clocks.wait(DAY_SECS - 1)
    assert kept.tidy().keys == 2
    assert kept.tidy().keys == 1


def test_looking_after_no_file_makes_none(tmp_path: Path) -> None:
    assert Answers(tmp_path / "answers").tidy() == idempotency.Usage(0, 0)
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize(("keys", "warned"), [(79, False), (80, True)])
def test_it_is_said_well_before_keys_are_refused(keys: int, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "KEYS_MAX", 100)
    assert bool(idempotency.Usage(keys, 0).warning) is warned


def test_a_full_disk_is_said(kept: Answers) -> None:
    kept.begin(keyed("a"))
    assert kept._connection is not None
    pages = kept._connection.execute("PRAGMA page_count").fetchone()[0]
    kept._connection.execute(f"PRAGMA max_page_count = {pages}")
    big = CallResult(200, "OK", "text/plain", b"x" * 1_000_000)
    with pytest.raises(StorageFull):
        kept.finish(keyed("a"), big)
    kept.finish(keyed("a"), RESULT)  # there is space again
    assert kept.find(keyed("a")) == RESULT


def test_a_damaged_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_bytes(b"this is no database" * 100)
    before = path.read_bytes()
    kept = Answers(path)
    with pytest.raises(Unavailable):
        kept.find(keyed())
    assert path.read_bytes() == before
    kept.close()


def test_no_key_is_no_key() -> None:
    assert Keyed.of("demo", Call("F", {}, "10.0.0.7", "id")) is None
    for key in ("", " k", "k ", "a\x7f", "x" * 256):
        with pytest.raises(BadRequest):
            Keyed.of("demo", Call("F", {}, "10.0.0.7", "id", key))


def test_a_file_belongs_to_one_registry(tmp_path: Path, clocks: Clocks) -> None:
    path = tmp_path / "answers"
    ours, theirs = Answers(path, clocks.look, "a" * 32), Answers(path, clocks.look, "b" * 32)
    with contextlib.closing(ours), contextlib.closing(theirs):
        ours.begin(keyed())
        with pytest.raises(Unavailable):
            theirs.find(keyed())
        with pytest.raises(Unavailable):
            theirs.begin(keyed("other"))
    assert idempotency.owner_of(path) == "a" * 32
    idempotency.disown(path)
    with contextlib.closing(theirs):
        assert theirs.find(keyed()) is not None
    assert idempotency.owner_of(path) == "b" * 32


def test_a_file_that_does_not_say_whose_it_is_goes_on_counting(tmp_path: Path, clocks: Clocks) -> None:
    path = tmp_path / "answers"
    assert idempotency.owner_of(path) == ""
    assert not path.exists()
    with contextlib.closing(Answers(path, clocks.look)) as before:
        before.begin(keyed())
    assert idempotency.owner_of(path) == ""
    with contextlib.closing(Answers(path, clocks.look, "a" * 32)) as later:
        assert later.find(keyed()) is not None
    assert idempotency.owner_of(path) == "a" * 32


def test_what_one_caller_got_is_not_for_another() -> None:
    calls = [Call("F", {"data": "x"}, "10.0.0.7", "id", "k", caller) for caller in ("", "ci", "other")]
    found = {Keyed.of("demo", call) for call in calls}
    assert len(found) == 3
    assert keyed() in found

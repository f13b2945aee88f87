"""Each system call of a write, a backup and a clean exit fails once: with EIO, with ENOSPC, by SIGKILL.

The calls are counted in one calm run; then a run for each call and fault, with
``strace --inject``. Whatever happens: what was acknowledged is there, what was
refused is not, the rest is wholly old or wholly new, and the next start works.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bpbroker.storage import backups, config_file
from bpbroker.storage.embedded.journal import journal_path, read_journal
from bpbroker.storage.embedded.store import EmbeddedStore
from tests.support.changes import without_revisions
from tests.support.fault_driver import COORDINATION

LONG = os.environ.get("BPBROKER_LONG") == "1"
DRIVER = Path(__file__).parents[1] / "support" / "fault_driver.py"
CALLS = "openat,write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,mkdir"
FAULTS = ("error=EIO", "error=ENOSPC", "signal=KILL")
PHASES = ("write a 1", "write c 5", "backup", "save", "exit")
"""Of a save, the last one: it belongs to the clean exit."""
LINE = re.compile(r"^(?P<thread>\d+) +(?P<call>\w+)\((?P<rest>.*)$")
START = {"_config": {"backup_freq_secs": 100_000}, "services": {"old": {"v": 0}}}


@dataclass(frozen=True)
class Target:
    """The ``number``-th call of this name in some thread; strace counts in each thread for itself."""

    call: str
    number: int


@dataclass(frozen=True)
class Run:
    file: Path
    steps: tuple[str, ...]
    code: int
    complaints: str


def run(home: Path, *strace: str, part: Sequence[str] = ()) -> Run:
    """Run the driver, or one part of it, on a fresh home under strace."""
    file = home / "etc" / "b.json"
    file.parent.mkdir(parents=True)
    config_file.write(file, {**START, "services": {}}, {"old": b'{"v": 0}'})
    backups.make(file, config_file.chunks({"services": {}}, {}))  # so that none is due when the driver starts
    EmbeddedStore(journal_path(file), dict).load()
    done = subprocess.run(
        ["strace", "-f", "-qq", *strace, sys.executable, str(DRIVER), str(file), *part],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    return Run(file, tuple(done.stdout.splitlines()), done.returncode, done.stderr)


def targets(trace: Path, home: Path) -> Iterator[tuple[str, Target]]:
    """Yield the calls on files below ``home``, each with the step that it belongs to."""
    phase, counts = "start", Counter[tuple[str, str]]()
    for line in trace.read_text(errors="replace").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        thread, call, rest = match.groups()
        counts[thread, call] += 1
        said = re.search(r'"begin ([^"\\]*)', rest)
        if call == "writev" and said:
            phase = said[1]
        elif str(home) in rest:
            yield phase, Target(call, counts[thread, call])


def possible(steps: tuple[str, ...]) -> dict[str, set[str | None]]:
    """Return the values that each name may have, by what the driver was told."""
    states: dict[str, set[str | None]] = {"a": {None}, "b": {None}, "c": {None}}
    for step in steps:
        outcome, _, rest = step.partition(" ")
        words = rest.split()
        if words[:1] != ["write"]:
            continue
        _, name, value = words
        after = None if value == "gone" else value
        if outcome == "ok":
            states[name] = {after}
        elif outcome in ("begin", "unknown"):
            states[name] |= {after}
        elif outcome == "refused":
            states[name] -= {after}
    return states


def entries_of(file: Path) -> Mapping[str, bytes]:
    store = EmbeddedStore(journal_path(file), lambda: config_file.read(file)[1])
    try:
        return store.load()
    finally:
        store.close()


def check(result: Run, killed: bool) -> None:
    said = "\n".join(result.steps)
    assert "Traceback" not in result.complaints, said + result.complaints
    assert "stuck" not in result.steps
    if not killed:
        assert result.steps[-1] in ("end", "no start 1", "no start 78"), said + result.complaints
        assert result.code == 0
    read_journal(journal_path(result.file))
    entries = without_revisions(entries_of(result.file))
    assert entries["old"] == b'{"v": 0}'
    for name, values in possible(result.steps).items():
        found = str(json.loads(entries[name])["v"]) if name in entries else None
        assert found in values, f"{name} is {found}, not one of {values}:\n{said}"
    assert set(entries) <= {"old", "a", "b", "c", "d", "s", "pool", "_taken/s", "_batch/b1"}
    # A batch is never half: the entries, the number, and what was taken.
    whole = {"c", "d", "pool", "_taken/s", "_batch/b1"}
    assert whole & set(entries) in (whole, set()), entries
    assert "s" not in entries or "c" not in entries
    assert [checked.problem for checked in map(backups.check, backups.found(result.file))] == [""] * len(
        backups.found(result.file)
    )
    if "ok backup" in result.steps:
        assert len(backups.found(result.file)) == 2


def calm_run(folder: Path, check: Callable[[Run, bool], None], *part: str) -> list[tuple[str, Target]]:
    """Return the calls of a run in which nothing fails, with their steps."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = folder / "trace"
    calm = run(folder / "calm", "-y", "-s", "256", "-o", str(trace), "-e", f"trace={CALLS}", part=part)
    if "ptrace" in calm.complaints.lower():
        pytest.skip("this machine does not let strace trace")
    assert calm.steps[-1] == "end", calm.complaints
    check(calm, False)
    assert read_journal(journal_path(calm.file)).changes == {}
    return list(targets(trace, folder / "calm"))


def sweep(
    folder: Path, cases: Sequence[tuple[Target, str]], check: Callable[[Run, bool], None], *part: str
) -> list[str]:
    """Let one call fail in each run; return what was wrong then."""

    def one(case: tuple[int, tuple[Target, str]]) -> str | None:
        number, (target, fault) = case
        home = folder / f"case-{number}"
        inject = f"inject={target.call}:{fault}:when={target.number}"
        try:
            strace = ("-o", "/dev/null", "-e", f"trace={target.call}", "-e", inject)
            check(run(home, *strace, part=part), "KILL" in fault)
        except Exception as error:  # noqa: BLE001 - of several threads; told below
            return f"{inject}: {error!r}"
        shutil.rmtree(home)
        return None

    with ThreadPoolExecutor(2) as pool:
        return [failure for failure in pool.map(one, enumerate(cases)) if failure]


@pytest.fixture
def traced(tmp_path: Path) -> list[tuple[str, Target]]:
    """The calls of a calm run, with their steps."""
    return calm_run(tmp_path, check)


def test_each_system_call_fails_once(traced: list[tuple[str, Target]], tmp_path: Path) -> None:
    last_save = max(number for number, (phase, _) in enumerate(traced) if phase == "save")
    first_backup = min(number for number, (phase, _) in enumerate(traced) if phase == "backup")
    wanted = [
        target
        for number, (phase, target) in enumerate(traced)
        if LONG or (phase in PHASES and (phase != "save" or first_backup < number <= last_save))
    ]
    assert {"pwrite64", "fdatasync", "write", "fsync", "openat"} <= {target.call for target in wanted}
    cases = [(target, fault) for target in dict.fromkeys(wanted) for fault in FAULTS]
    assert len(cases) > 60
    failed = sweep(tmp_path, cases, check)
    assert not failed, "\n".join(failed)


# --- sessions, locks, numbers, taking ---

UNTOUCHED: Mapping[str, Any] = {"sessions": (), "mine": False, "lock": (), "numbers": {}, "count": 0, "secret": ""}


def after(step: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a step of the driver leads to: all of it or nothing, and nothing if one before it is missing."""
    kind, _, who = step.removesuffix(" again").partition(" ")
    sessions, lock, numbers = state["sessions"], state["lock"], state["numbers"]
    changed: dict[str, Any] = {}
    if kind == "open":
        changed = {"sessions": tuple(sorted({*sessions, who}))}
    elif kind == "register":
        changed = {"mine": state["mine"] or "s1" in sessions}
    elif kind == "lock" and who in sessions and not lock:
        changed = {"lock": (who,)}
    elif kind == "unlock":
        changed = {"lock": tuple(each for each in lock if each != who)}
    elif kind == "expire":
        left = tuple(each for each in lock if each != who)
        changed = {"sessions": tuple(each for each in sessions if each != who), "mine": False, "lock": left}
    elif kind == "number" and who not in numbers:
        changed = {"numbers": {**numbers, who: min({1, 2} - set(numbers.values()))}}
    elif kind == "release":
        changed = {"numbers": {owner: number for owner, number in numbers.items() if owner != who}}
    elif kind == "count":
        changed = {"count": 1}
    elif kind == "make":
        changed = {"secret": "there"}
    elif (kind, state["secret"]) in (("take", "there"), ("ack", "taken")):
        changed = {"secret": "taken" if kind == "take" else ""}
    return {**state, **changed}


SHORT = ("lock s2", "expire s1", "number o2", "take")
"""The steps whose calls fail in CI."""


def stored(entries: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what is stored, in the words of :func:`after`."""
    found = {name: json.loads(value) for name, value in entries.items()}
    secret = "taken" if "_taken/secret" in found else "there" if "secret" in found else ""
    assert not {"_taken/secret", "secret"} <= set(found)
    # A counter and what its owner has of it are one change.
    assert found.get("count", {"value": 0})["value"] == found.get("_counter/count/o1", {"number": 0})["number"]
    return {
        "sessions": tuple(sorted(name.partition("/")[2] for name in found if name.startswith("_session/"))),
        "mine": "mine" in found,
        "lock": tuple(place["session"] for place in found.get("_lock/l", {"places": ()})["places"]),
        "numbers": {who: number for who, number in found.get("numbers", {}).items() if not who.startswith("last_")},
        "count": found.get("count", {"value": 0})["value"],
        "secret": secret,
    }


def check_coordination(result: Run, killed: bool) -> None:
    said = "\n".join(result.steps)
    assert "Traceback" not in result.complaints, said + result.complaints
    assert "stuck" not in result.steps
    if not killed:
        assert result.steps[-1] in ("end", "no start 1", "no start 78"), said + result.complaints
        assert result.code == 0
    states = before = [dict(UNTOUCHED)]
    newest = 0
    for step in result.steps:
        outcome, _, what = step.partition(" ")
        if outcome == "revision":
            newest = max(newest, int(what))
        elif what not in COORDINATION:
            continue
        elif outcome == "begin":
            before = states
            states = before + [after(what, state) for state in before]
        elif outcome == "ok":
            states = [after(what, state) for state in before]
        elif outcome == "refused":
            states = before
    store = EmbeddedStore(journal_path(result.file), lambda: config_file.read(result.file)[1])
    try:
        found = stored(without_revisions(store.load()))
        assert found in states, f"{found}, not one of {states}:\n{said}"
        # A token is a revision: none that was told is given again.
        assert store.sequence >= newest, said
    finally:
        store.close()


def test_each_system_call_of_coordination_fails_once(tmp_path: Path) -> None:
    traced = calm_run(tmp_path, check_coordination, "coordination")
    assert {step for step, _ in traced} >= set(COORDINATION)
    faults = FAULTS if LONG else ("error=EIO", "signal=KILL")
    wanted = dict.fromkeys(target for step, target in traced if LONG or step in SHORT)
    assert {"pwrite64", "fdatasync"} <= {target.call for target in wanted}
    failed = sweep(
        tmp_path, [(target, fault) for target in wanted for fault in faults], check_coordination, "coordination"
    )
    assert not failed, "\n".join(failed)

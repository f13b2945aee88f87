"""The power goes: whatever is missing of what was not synced, a start works by itself and nothing promised is gone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import pytest

from bpbroker.config.paths import Home
from bpbroker.runtime.identity_files import IdentityFiles
from bpbroker.storage import config_file, offline
from tests.support import power_cut, power_driver
from tests.support.coming_up import Found, come_up, is_state, plain, records_of, secrets_in, state_of
from tests.support.coordination import UNKNOWN, State, outcomes
from tests.support.power_cut import Crash, Note, Recording

pytestmark = [pytest.mark.system, pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")]

LONG: Final = os.environ.get("BPBROKER_LONG") == "1"
"""Whether more states are tried: ten minutes instead of half a one."""


# --- what was promised ---


@dataclass
class Node:
    """What was said to a node that coordinates: what may be so, and the call that has no answer yet."""

    states: list[State] = field(default_factory=lambda: [{}])
    call: tuple[str, Mapping[str, Any]] | None = None
    losing: str = ""
    """The entry that is lost if the call happens."""
    secrets: dict[str, str] = field(default_factory=dict)
    """Name to what was written there for one receiver."""

    def begin(self, note: Mapping[str, Any]) -> None:
        self.call = note["call"], note["args"]
        self.losing = note.get("lost", "")
        if str(note["args"].get("value", "")).startswith(power_driver.SECRET):
            self.secrets[note["args"]["name"]] = note["args"]["value"]

    def end(self, answer: tuple[int, Any]) -> None:
        assert self.call is not None
        kind, args = self.call
        self.states = [after for state in self.states for after in outcomes(state, kind, args, answer)]
        assert self.states, (kind, args, answer)  # the broker was wrong before the power went
        self.call = None

    @property
    def possible(self) -> list[State]:
        """What may be found."""
        if self.call is None:
            return self.states
        return [*self.states, *(after for state in self.states for after in outcomes(state, *self.call, UNKNOWN))]


@dataclass
class Promises:
    """What was said to clients and operators up to a moment."""

    entries: dict[str, list[str | None]] = field(default_factory=dict)
    """Name to what it may be: what was acknowledged last, and what was asked for since."""
    sections: set[str] = field(default_factory=set)
    of_backup: dict[str, tuple[set[str], str]] = field(default_factory=dict)
    """Path of a backup to the sections and the certificate that were promised then."""
    backup: str = ""
    module: str = ""
    package: str = ""
    keyed: set[str] = field(default_factory=set)
    fingerprint: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)
    revision: int = 0
    """The highest one that was told, tokens of locks included."""
    destroyed: set[str] = field(default_factory=set)
    """Secrets that were acknowledged."""
    erased: set[str] = field(default_factory=set)
    """Of these the ones that were overwritten."""
    once: dict[str, str] = field(default_factory=dict)
    """Name of what was done once to its output."""
    gone: frozenset[str] = frozenset()
    """Sections that a restore takes away."""
    restoring: str = ""
    before: Promises | None = None
    """What was promised before the restore that is under way."""

    def take(self, note: Mapping[str, Any]) -> None:
        """Add what a note says."""
        name = note.get("ask", note.get("ok"))
        if "ask" in note:
            self.entries.setdefault(str(name), [None]).append(note["value"])
        elif "ok" in note:
            values = self.entries[str(name)]
            del values[: values.index(note["value"])]
        if "call" in note:
            self.nodes.setdefault(note["client"], Node()).begin(note)
        elif "answer" in note:
            self._answered(self.nodes[note["client"]], tuple(note["answer"]), note["revision"])
        if "erased" in note:
            self.erased |= self.destroyed
        if "once" in note:
            self.once[note["once"]] = note["output"]
        self.package = note.get("package", self.package)
        if "keyed" in note:
            self.keyed.add(note["keyed"])
        self.module = note.get("content", self.module)
        self.fingerprint = note.get("fingerprint", self.fingerprint)
        if "section" in note:
            self.sections.add(note["section"])
        if "backup" in note:
            self.backup = note["backup"]
            self.of_backup[self.backup] = set(self.sections), self.fingerprint
        if "restoring" in note:
            self.before = deepcopy(self)
            self.restoring = note["restoring"]
            self.entries = {name: [note["entries"].get(name)] for name in self.entries}
            kept, self.fingerprint = self.of_backup[self.restoring]
            self.sections, self.gone = set(kept), frozenset(self.sections - kept)
        elif note.get("done") == "restore":
            self.before, self.restoring = None, ""

    def _answered(self, node: Node, answer: tuple[int, Any], revision: int) -> None:
        assert node.call is not None
        kind, args = node.call
        if kind == "Ack":
            self.destroyed.add(node.secrets[args["name"]])
        self.revision = max(self.revision, revision, answer[1] if kind == "Lock" and answer[0] == 200 else 0)
        node.end(answer)


def broken(found: Found, promises: Promises, later: Mapping[str, Any]) -> Iterator[str]:
    """Yield each promise that does not hold; ``later`` has what will be promised next, so may be there already."""
    if found.problem:
        yield found.problem
    for name, allowed in promises.entries.items():
        if found.entries.get(name) not in allowed:
            yield f"{name} is {found.entries.get(name)!r:.80}, not one of {allowed!r:.200}"
    for name in found.entries.keys() - promises.entries.keys():
        yield f"{name} is there, which was never asked for"
    if promises.gone & found.sections:
        yield f"settings are back: {promises.gone & found.sections}"
    if not promises.sections <= found.sections:
        yield f"settings are missing: {promises.sections - found.sections}"
    if promises.fingerprint and found.fingerprint not in (promises.fingerprint, later.get("fingerprint")):
        yield f"the certificate is {found.fingerprint}, neither the old nor the new one"
    if promises.module and not set(found.modules) & {promises.module, later.get("content")}:
        yield "the extension is missing or half"
    packages = [content for content in (promises.package, later.get("package")) if content is not None]
    if found.package not in [(content, content) if content else () for content in packages]:
        yield "the package is missing or half"
    if not promises.keyed <= found.answered:
        yield f"a call was answered, but not its repeat: {promises.keyed - found.answered}"
    yield from broken_to_nodes(found, promises)
    if promises.backup and not (promises.backup in found.backups or len(found.backups) >= 2):
        yield f"the backup {promises.backup} is missing"


def broken_to_nodes(found: Found, promises: Promises) -> Iterator[str]:
    """Yield each promise to nodes that coordinate that does not hold."""
    if found.problem:
        return
    for client, node in promises.nodes.items():
        now = state_of(found.records, client)
        if not any(is_state(now, each) for each in node.possible):
            yield f"{client} finds {now}, which is none of {node.possible}"
        if node.losing and (node.losing in found.records) is (f"_lost/{node.losing}" in found.records):
            yield f"{client}: nothing tells of the entry that is lost"
    if found.revision < promises.revision:
        yield f"revision {promises.revision} was given out, and will be again after {found.revision}"
    if promises.destroyed & found.secrets:
        yield f"what was acknowledged is in a file: {promises.destroyed & found.secrets}"
    for name, output in promises.once.items():
        told = json.loads(found.records[name].json) if name in found.records else {}
        if (told.get("state"), told.get("output")) != ("done", output):
            yield f"{name} was done, and is {told} now"


class Trial:
    """Starts on every state of a recording; the same state is started on once."""

    def __init__(self, recording: Recording, home: Path, earlier: Sequence[Note] = ()) -> None:
        self.home = home
        self._earlier = earlier
        self._notes = recording.notes
        self._known: dict[bytes, Found] = {}
        self.warnings: set[str] = set()
        self.tried = 0

    @property
    def started(self) -> int:
        return len(self._known)

    def broken(self, crash: Crash) -> list[str]:
        """Return the promises that a crash breaks."""
        self.tried += 1
        promises = Promises()
        for note in self._before(crash):
            promises.take(note.value)
        later: dict[str, Any] = {}
        for note in reversed(self._notes):
            if note.at >= crash.at:
                later.update(note.value)
        contents = (content for content in crash.tree.values() if content is not None)
        if promises.erased and promises.erased & (left := secrets_in(contents)):
            return [f"what was overwritten is in a file: {promises.erased & left}"]
        found = self.found(crash)
        self.warnings |= found.warnings
        if promises.restoring and found.problem:
            # Cut off in the middle: the same command again is what helps, and the start says so.
            if "was cut off; do it again" not in found.problem:
                return [found.problem]
            power_cut.put(crash.tree, self.home)
            own = self.home / "etc" / "bpbroker.json"
            offline.restore(own, Path(promises.restoring), identity=IdentityFiles(own, Home(self.home)))
            found = come_up(self.home)
        reasons = list(broken(found, promises, later))
        # A restore that is under way: all of what was there before is as good, a mixture is not.
        return reasons if promises.before is None else reasons and list(broken(found, promises.before, later))

    def _before(self, crash: Crash) -> Iterator[Note]:
        return chain(self._earlier, (note for note in self._notes if note.at < crash.at))

    def found(self, crash: Crash) -> Found:
        """Start on a state."""
        digest = hashlib.sha256()
        for name in sorted(crash.tree):
            content = crash.tree[name]
            digest.update(f"{name} {None if content is None else len(content)}\0".encode() + (content or b""))
        key = digest.digest()
        if key not in self._known:
            power_cut.put(crash.tree, self.home)
            self._known[key] = come_up(self.home)
        return self._known[key]


# --- the tests ---


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder in memory, where syncing costs nothing."""
    folder = Path(f"/dev/shm/bpbroker-power-{os.getpid()}")  # noqa: S108 - of this process
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def recorded(scenario: str, place: Path) -> Recording:
    home = place / "home"
    home.mkdir(exist_ok=True)
    command = [sys.executable, power_driver.__file__, str(home), scenario]
    recording, code = power_cut.record(command, home, place / "trace", stdout=subprocess.DEVNULL, timeout=240)
    assert code == 0, (place / "beside" / "broker.log").read_text(errors="replace")
    return recording


NEAR, MORE, SEEDS, KILLS, REAL, AGAIN = (5, 40, 3, 1, 12, 8) if LONG else (2, 1, 1, 2, 1, 1)
"""How many states are tried: see :func:`tests.support.power_cut.states`, and of the kills every second one, of the real
starts one, of the starts that are cut off themselves one. Where nodes coordinate, of the states every third one."""


@pytest.mark.parametrize("scenario", ["bare", "cut", "life", "commands"])
def test_killed_or_without_power_at_any_moment_nothing_promised_is_lost(scenario: str, place: Path) -> None:
    recording = recorded(scenario, place)
    assert recording.notes
    trial = Trial(recording, place / "home")
    try_all(trial, recording)
    assert trial.started > 3 * len(recording.syncs) ** 0.5
    see_real_starts(trial, recording)


def see_real_starts(trial: Trial, recording: Recording) -> None:
    """See that a real broker finds on some states what a start in this process does."""
    for crash in some(recording, REAL):
        found = trial.found(crash)
        if not found.problem:
            entries = really_started(crash, trial.home)
            assert plain(entries) == found.entries
            records = records_of(entries, found.revision)
            for client in {note.value["client"] for note in recording.notes if "client" in note.value}:
                assert state_of(records, client) == state_of(found.records, client)


def test_what_nodes_were_told_holds_whenever_the_power_goes(place: Path) -> None:
    """Sessions, locks and their tokens, numbers, what was taken and erased, batches, what was done once."""
    config = place / "home" / "etc" / "bpbroker.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(power_driver.SETTINGS))
    recording = recorded("together", place)
    trial = Trial(recording, place / "home")
    try_all(trial, recording, (4, 10, 1, 1, 1) if LONG else (1, 0, 1, 8, 3))
    assert trial.started > len(recording.syncs)
    see_real_starts(trial, recording)


def test_the_power_goes_again_while_a_start_recovers(place: Path) -> None:
    first = recorded("life" if LONG else "bare", place)
    for crash in some(first, AGAIN):
        power_cut.put(crash.tree, place / "home")
        (place / "notes").unlink()
        recording = recorded("again", place)
        try_all(Trial(recording, place / "home", [note for note in first.notes if note.at < crash.at]), recording)


def some(recording: Recording, count: int) -> list[Crash]:
    """Return some of the states that are least like what the programs themselves saw."""
    crashes = [crash for crash in power_cut.states(recording, 0, NEAR, MORE) if crash.lost]
    return random.Random(0).sample(crashes, count)  # noqa: S311 - not for secrets


def try_all(
    trial: Trial, recording: Recording, extent: tuple[int, int, int, int, int] = (NEAR, MORE, SEEDS, KILLS, 1)
) -> None:
    """Start on every state and see that every promise holds, and that nothing alarming is said."""
    near, more, seeds, nth_kill, nth_state = extent
    failures: dict[str, Crash] = {}
    for seed in range(1, seeds + 1):
        kills = islice(power_cut.kills(recording), seed % nth_kill, None, nth_kill)
        cuts = islice(power_cut.states(recording, seed, near, more), 0, None, nth_state)
        for crash in chain(kills, cuts):
            for reason in trial.broken(crash):
                failures.setdefault(reason.partition("\n")[0], crash)
    assert not failures, _shown(failures)
    assert not {warning for warning in trial.warnings if "was cut off" not in warning}


def really_started(crash: Crash, home: Path) -> Mapping[str, bytes]:
    """Start and stop a real broker on a state; return the entries and records that it leaves."""
    power_cut.put(crash.tree, home)
    broker = power_driver.BareBroker(home)
    try:
        broker.start()
        assert broker.stop() == 0, broker.text
    finally:
        broker.kill()
    return config_file.read(broker.config)[1]


def _shown(failures: Mapping[str, Crash]) -> str:
    lines = [f"{len(failures)} promises do not hold when the power goes"]
    for reason, crash in list(failures.items())[:12]:
        lines.append(f"- {reason}\n    before {crash.before[:150]}")
        lines += [f"    lost{' (zeros)' if crash.zeros else ''}: {text[:150]}" for text in crash.lost[-6:]]
    return "\n".join(lines)

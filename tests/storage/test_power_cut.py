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
from tests.support.coming_up import Found, come_up
from tests.support.power_cut import Crash, Note, Recording

pytestmark = [pytest.mark.system, pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")]

LONG: Final = os.environ.get("BPBROKER_LONG") == "1"
"""Whether more states are tried: ten minutes instead of half a one."""


# --- what was promised ---


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
    if promises.backup and not (promises.backup in found.backups or len(found.backups) >= 2):
        yield f"the backup {promises.backup} is missing"


class Trial:
    """Starts on every state of a recording; the same state is started on once."""

    def __init__(self, recording: Recording, home: Path, earlier: Sequence[Note] = ()) -> None:
        self._home = home
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
        found = self.found(crash)
        self.warnings |= found.warnings
        if promises.restoring and found.problem:
            # Cut off in the middle: the same command again is what helps, and the start says so.
            if "was cut off; do it again" not in found.problem:
                return [found.problem]
            power_cut.put(crash.tree, self._home)
            own = self._home / "etc" / "bpbroker.json"
            offline.restore(own, Path(promises.restoring), identity=IdentityFiles(own, Home(self._home)))
            found = come_up(self._home)
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
            power_cut.put(crash.tree, self._home)
            self._known[key] = come_up(self._home)
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
starts one, of the starts that are cut off themselves one."""


@pytest.mark.parametrize("scenario", ["bare", "cut", "life", "commands"])
def test_killed_or_without_power_at_any_moment_nothing_promised_is_lost(scenario: str, place: Path) -> None:
    recording = recorded(scenario, place)
    assert recording.notes
    trial = Trial(recording, place / "home")
    try_all(trial, recording)
    assert trial.started > 3 * len(recording.syncs) ** 0.5
    for crash in some(recording, REAL):
        found = trial.found(crash)
        if not found.problem:
            assert really_started(crash, place / "home") == found.entries


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


def try_all(trial: Trial, recording: Recording) -> None:
    """Start on every state and see that every promise holds, and that nothing alarming is said."""
    failures: dict[str, Crash] = {}
    for seed in range(1, SEEDS + 1):
        kills = islice(power_cut.kills(recording), seed % KILLS, None, KILLS)
        for crash in chain(kills, power_cut.states(recording, seed, NEAR, MORE)):
            for reason in trial.broken(crash):
                failures.setdefault(reason.partition("\n")[0], crash)
    assert not failures, _shown(failures)
    assert not {warning for warning in trial.warnings if "was cut off" not in warning}


def really_started(crash: Crash, home: Path) -> Mapping[str, str]:
    """Start and stop a real broker on a state; return the entries that it leaves."""
    power_cut.put(crash.tree, home)
    broker = power_driver.BareBroker(home)
    try:
        broker.start()
        assert broker.stop() == 0, broker.text
    finally:
        broker.kill()
    entries = config_file.read(broker.config)[1]
    return {name: json.loads(value)["v"] for name, value in entries.items()}


def _shown(failures: Mapping[str, Crash]) -> str:
    lines = [f"{len(failures)} promises do not hold when the power goes"]
    for reason, crash in list(failures.items())[:12]:
        lines.append(f"- {reason}\n    before {crash.before[:150]}")
        lines += [f"    lost{' (zeros)' if crash.zeros else ''}: {text[:150]}" for text in crash.lost[-6:]]
    return "\n".join(lines)

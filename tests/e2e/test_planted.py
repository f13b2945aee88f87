"""Root runs every command in a folder of another user, who has put links and hard links at every path in it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="it is about root")

UID = 12345

# One process that has loaded everything, and forks for each command: what a command costs then is what it does, and
# it works where the other user may not read this Python.
RUN_ALL = """
import json, os, sys
import _strptime, encodings.ascii, encodings.idna, encodings.utf_8_sig, encodings.latin_1, zoneinfo
import bpbroker.broker, bpbroker.storage.offline, bpbroker.extensions.trial
import bpbroker.commands.trust, bpbroker.commands.backups, bpbroker.commands.check, bpbroker.commands.extension
import bpbroker.commands.stop, bpbroker.commands.reload, bpbroker.commands.status
from bpbroker.server.own_pair import *
from bpbroker.cli import main
for words in json.load(sys.stdin):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *words, flush=True)
"""

NAMES = (
    *(f"b.json{end}" for end in (".lock", ".journal", ".journal-wal", ".journal-shm", ".journal-mark", ".answers")),
    *(f"b.{kind}{end}" for kind in ("crt", "key") for end in ("", ".old", ".staged")),
    *("b.log", "b.json.sock", "pid", "lib/demo.py", "lib/demo"),
)

EXTENSION = "def Hello(rh):\n    rh.data = 'x'\n"


class Place:
    """A folder of another user's, with a broker's configuration in it, and one that is root's alone."""

    def __init__(self, folder: Path) -> None:
        self.theirs = folder / "theirs"
        self.roots = folder / "roots"
        self.config = self.theirs / "b.json"
        for made in (self.theirs, self.theirs / "lib", self.roots):
            made.mkdir(0o755)
        self.config.write_text(json.dumps({"services": {"foo": {"_str": "bar"}}}))
        for path in (self.theirs, self.theirs / "lib", self.config):
            os.chown(path, UID, UID)
        self.config.chmod(0o600)
        (self.roots / "file").write_text("root's own")
        (self.roots / "file").chmod(0o644)
        (self.roots / "folder").mkdir(0o755)
        self.script = folder / "demo.py"
        self.script.write_text(EXTENSION)

    def commands(self) -> list[list[str]]:
        """Give every command that reads or writes there; each may refuse."""
        words = (
            ("prepare",), ("backup",), ("backups",), ("check",), ("extensions",), ("token",), ("certificate",),
            ("certificate", "--renew"), ("install-extension", "--script", str(self.script), "--enable"),
            ("uninstall-extension", "demo"), ("restore", "b.json"), ("status",), ("reload",), ("stop",),
            ("start", "--listen-port", "0", "--pid-file", str(self.theirs / "pid")), ("start", "--daemon"),
        )  # fmt: skip
        return [["-c", str(self.config), *each] for each in words]

    def run(self) -> tuple[dict[str, int], str]:
        """Run them all, and give the exit code of each, and what they said."""
        done = subprocess.run(
            [sys.executable, "-c", RUN_ALL],
            input=json.dumps(self.commands()), capture_output=True, text=True, timeout=120, check=True,
            env={**os.environ, "BPBROKER_HOME": str(self.theirs)}, cwd=self.roots,
        )  # fmt: skip
        lines = [line.split(" ", 4) for line in done.stdout.splitlines() if line.startswith("code ")]
        assert "Traceback" not in done.stderr, done.stderr
        return {line[4]: int(line[1]) for line in lines}, done.stderr

    def outside(self) -> list[tuple[str, int, int, int, str]]:
        """Give what is root's: path, mode, owner, group and content of each."""
        seen = []
        for path in (self.roots, *sorted(self.roots.rglob("*"))):
            found = path.lstat()
            content = path.read_text() if stat.S_ISREG(found.st_mode) else ""
            seen.append((str(path), found.st_mode, found.st_uid, found.st_gid, content))
        return seen


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp())  # where the other user can go, unlike a test's own folder
    folder.chmod(0o755)
    yield Place(folder)
    shutil.rmtree(folder)


def plant(place: Place, put: Callable[[Path], None]) -> None:
    for name in NAMES:
        put(place.theirs / name)


def test_without_a_trap_the_commands_work_and_start_refuses(place: Place) -> None:
    codes, said = place.run()
    assert codes["backup"] == codes["prepare"] == codes["token"] == codes["certificate --renew"] == 0, said
    assert codes["certificate"] == codes["stop"] == codes["uninstall-extension demo"] == 0, said
    assert {code for words, code in codes.items() if words.startswith("start")} == {1}
    made = [path for path in place.theirs.rglob("*") if path.lstat().st_uid != UID]
    assert made == []


@pytest.mark.parametrize("target", ["file", "not-there"])
def test_links_lead_root_nowhere(place: Place, target: str) -> None:
    plant(place, lambda path: path.symlink_to(place.roots / target))
    before = place.outside()
    place.run()
    assert place.outside() == before


def test_a_folder_that_is_a_link_leads_root_nowhere(place: Place) -> None:
    (place.theirs / "backups").symlink_to(place.roots / "folder")
    before = place.outside()
    place.run()
    assert place.outside() == before


def test_second_names_of_roots_files_are_not_written_to_nor_given_away(place: Place) -> None:
    plant(place, lambda path: path.hardlink_to(place.roots / "file"))
    before = place.outside()
    place.run()
    assert place.outside() == before


def test_start_says_how_to_run_it_as_the_folders_owner(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bpbroker", "-c", str(place.config), "start"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"runuser -u '#{UID}' -- bpbroker --config {place.config} start" in done.stderr
    assert sorted(path.name for path in place.theirs.iterdir()) == ["b.json", "lib"]


def test_stop_signals_no_process_that_the_folders_owner_noted(place: Place) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        note = f"""
import fcntl, json, os, sys, time
from bpbroker.storage import lock_file
file = open({str(place.config)!r} + ".lock", "w+")
os.fchown(file.fileno(), {UID}, {UID})
fcntl.flock(file, fcntl.LOCK_EX)
file.write(json.dumps({{"pid": {bystander.pid}, "process": lock_file._identity({bystander.pid})}}).ljust(4096))
file.flush()
print("held", flush=True)
time.sleep(60)
"""
        with subprocess.Popen([sys.executable, "-c", note], stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            done = subprocess.run(
                [sys.executable, "-m", "bpbroker", "-c", str(place.config), "stop", "--timeout", "1"],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            holder.kill()
        assert done.returncode == 1
        assert "may not end" in done.stderr
        assert bystander.poll() is None
        bystander.kill()

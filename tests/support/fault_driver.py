"""The storage side of a broker, from start to clean exit, for tests that make its system calls fail.

Usage: ``python fault_driver.py CONFIG [coordination]``: plain writes, or sessions, locks, numbers and taking.
What became of each step is said on standard output, a line each, at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from bpbroker.actors import base
from bpbroker.actors.backup import Backup
from bpbroker.actors.config_store import ConfigStore
from bpbroker.actors.ownership import Owned
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.errors import BpbrokerError, RequestError
from bpbroker.messages import BackupNow, Delete, Get, List, Register, Replace, Save
from bpbroker.registry.requests import Ack, Allocate, Batch, Expire, Lock, Next, Open, Release, Take, Unlock
from bpbroker.storage import config_file
from bpbroker.storage.embedded.journal import journal_path
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.sources import Sources

WAIT_SECS = 30
COORDINATION = {
    "open s1": Open("s1", 86_400, "i"),
    "open s2": Open("s2", 86_400, "i"),
    "register mine": Register("mine", {"v": 1}, "i", session="s1"),
    "lock s1": Lock("l", "s1", "i"),
    "unlock s1": Unlock("l", "s1"),
    "lock s2": Lock("l", "s2", "i"),
    "unlock s2": Unlock("l", "s2"),
    "lock s1 again": Lock("l", "s1", "i"),
    "expire s1": Expire("s1"),
    "number o1": Allocate("numbers", "o1", "i"),
    "number o2": Allocate("numbers", "o2", "i"),
    "release o1": Release("numbers", "o1", "i"),
    "count": Next("count", "i", owner="o1"),
    "make secret": Replace("secret", {"v": 7}, "i"),
    "take": Take("secret", "r"),
    "ack": Ack("secret", "r"),
}
"""Step to the message; tests say what each does to the stored state."""


def say(text: str) -> None:
    os.writev(1, [f"{text}\n".encode()])  # no other call of this name: those that are made to fail are counted


class Driver:
    def __init__(self, file: Path) -> None:
        sources = Sources(file)
        loaded = sources.load()

        def store() -> EmbeddedStore:
            return EmbeddedStore(journal_path(file), lambda: config_file.read(file)[1])

        self.registry = base.ActorAddress("registry", base.launch(Registry, LocalBackend(store), loaded.effective))
        launched = base.launch(ConfigStore, sources, Owned(loaded), self.registry)
        self.config_store = base.ActorAddress("config store", launched)
        self.backup = base.ActorAddress(
            "backup", base.launch(Backup, file, Owned(None), self.config_store, loaded.effective)
        )

    def step(self, what: str, address: base.ActorAddress, message: Any) -> None:
        say(f"begin {what}")
        try:
            reply = base.wait_for(address.ask(message, WAIT_SECS), WAIT_SECS)
        except RequestError as error:
            say(f"{'refused' if error.outcome_known else 'unknown'} {what}")
        else:
            say(f"ok {what}")
            say(f"revision {getattr(reply, 'revision', 0) or 0}")

    def coordinate(self) -> None:
        """Make each kind of change that servers need from each other, by itself."""
        for what, message in COORDINATION.items():
            self.step(what, self.registry, message)
        self.step("save", self.config_store, Save())

    def run(self) -> None:
        self.step("save", self.config_store, Save())
        self.step("write a 1", self.registry, Replace("a", {"v": 1}, "i"))
        self.step("write b 2", self.registry, Replace("b", {"v": 2}, "i"))
        self.step("write a 3", self.registry, Replace("a", {"v": 3}, "i"))
        self.step("write b gone", self.registry, Delete("b"))
        self.step("make s", self.registry, Replace("s", {"v": 9}, "i"))
        together = Replace("c", {"v": 5}, "i"), Replace("d", {"v": 5}, "i"), Allocate("pool", "o1", "i"), Take("s", "r")
        self.step("write c 5", self.registry, Batch("b1", together))
        self.step("backup", self.backup, BackupNow())
        self.step("write a 4", self.registry, Replace("a", {"v": 4}, "i"))
        base.wait_for(self.registry.ask(Get("old"), WAIT_SECS), WAIT_SECS)
        base.wait_for(self.registry.ask(List(), WAIT_SECS), WAIT_SECS)
        self.step("save", self.config_store, Save())
        self.exit()

    def exit(self) -> None:
        say("begin exit")
        for address in (self.backup, self.config_store, self.registry):
            if not address.stop(WAIT_SECS):
                say("stuck")
        say("end")


if __name__ == "__main__":
    try:
        driver = Driver(Path(sys.argv[1]))
    except BpbrokerError as refusal:
        say(f"no start {refusal.exit_code}")
    else:
        if sys.argv[2:] == ["coordination"]:
            driver.coordinate()
            driver.exit()
        else:
            driver.run()

"""An extension actor with real child processes, and what its tests ask of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bpbroker.actors.base import ActorAddress, wait_for
from bpbroker.config import layers
from bpbroker.messages import Call, CallResult, Ping, Pong, SettingsChanged

WAIT_SECS = 30.0
"""For everything that must come; machines may be slow."""

MODULE = Path(__file__).with_name("demo_extension.py").read_text()
"""The module that :class:`Made` has in its lib folder unless a test writes another."""


class Made:
    """An extension actor with its lib folder."""

    def __init__(self, lib: Path, address: ActorAddress, settings: dict[str, Any]) -> None:
        self.lib = lib
        self.address = address
        self.settings = settings
        self.namespace = address.name.partition(" ")[2]

    def begin(self, method: str, source: str = "10.0.0.7", key: str | None = None, **qs: str) -> Future[CallResult]:
        return self.address.ask(Call(method, qs, source, f"id-of-{method}", key), WAIT_SECS)

    def call(self, method: str, source: str = "10.0.0.7", key: str | None = None, **qs: str) -> CallResult:
        return wait_for(self.begin(method, source, key, **qs), WAIT_SECS)

    def body(self, method: str, **qs: str) -> Any:
        return json.loads(self.call(method, **qs).body)

    def health(self) -> Pong:
        return wait_for(self.address.ask(Ping(), WAIT_SECS), WAIT_SECS)  # type: ignore[no-any-return]  # Ping's reply

    def change(self, **section: Any) -> None:
        self.settings = {**self.settings, self.namespace: section}
        self.reload()

    def reload(self) -> str:
        """Have it look at settings and module anew; gives why the module cannot be taken up."""
        told: str = wait_for(self.address.ask(SettingsChanged(layers.freeze(self.settings)), WAIT_SECS), WAIT_SECS)
        return told

    def until(self, seen: Callable[[Pong], bool]) -> Pong:
        deadline = time.monotonic() + WAIT_SECS
        while not seen(pong := self.health()):
            assert time.monotonic() < deadline, pong
            time.sleep(0.01)
        return pong


Make = Callable[..., Made]


def gone(pid: int) -> bool:
    """Whether a process ends, its last thread too; a zombie that waits to be reaped has ended."""
    deadline = time.monotonic() + WAIT_SECS
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z" and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1:
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False

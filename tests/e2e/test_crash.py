"""C1: kill the broker at random moments under 16 writers. What was acknowledged is there; the rest is old or new.

50 rounds; 200 with ``BPBROKER_LONG=1``. Each round: 16 connections call Register, Replace, Update,
Delete and Get on a few names until SIGKILL; a new broker is started on what is left, everything is
read back, and the history of all calls is checked (``tests/support/history.py``).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.history import ABSENT, REFUSED, History, State
from tests.support.running import RunningBroker

LONG = os.environ.get("BPBROKER_LONG") == "1"
ROUNDS = 200 if LONG else 50
WRITERS = 16
NAMES = tuple(f"n{number}" for number in range(12))
KINDS = ("Register", "Replace", "Replace", "Update", "Update", "Delete", "Get")
STAMP = ("last_write_ip", "last_write_ts")

ANSWERS_TOO_EARLY = """
from bpbroker.registry.changes import Committed, Group
from bpbroker.storage.embedded.store import EmbeddedStore

commit = EmbeddedStore.commit
late = {}

def early(store, groups):
    changes = [change for group in groups for change in group.changes]
    late.update((change.name, Group((change,))) for change in changes)
    revision = store._revisions.next(store._sequence)
    store._sequence = revision + max(change.place for change in changes)
    if len(late) >= 8:
        commit(store, list(late.values()))
        late.clear()
    return [Committed(revision, revision)] * len(groups)

EmbeddedStore.commit = early
"""


class Writer(threading.Thread):
    """One connection that calls until it breaks."""

    def __init__(self, broker: RunningBroker, history: History, seed: int) -> None:
        super().__init__(daemon=True)
        self._connection = broker.connect()
        self._history = history
        self._random = random.Random(seed)  # noqa: S311 - for chance, not for secrets
        self._number = seed * 1_000_000
        self.stray: list[str] = []
        """Answers that should not be."""

    def run(self) -> None:
        try:
            while True:
                self._call()
        except (OSError, http.client.HTTPException, ssl.SSLError):
            pass
        finally:
            self._connection.close()

    def _call(self) -> None:
        kind, name = self._random.choice(KINDS), self._random.choice(NAMES)
        self._number += 1
        key = self._random.choice("ab")
        data = {} if kind in ("Delete", "Get") else {key: self._number, f"{key}2": self._number}
        body = {"name": name} if kind in ("Delete", "Get") else {"name": name, "data": data}
        call = self._history.begin(kind, name, data)
        self._connection.request("POST", f"/services/{kind}/", json.dumps(body), {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        if response.status == 200:
            answer: Any = None if kind == "Delete" else own(json.loads(content)["data"])
        elif (kind, response.status) == ("Register", 409):
            answer = REFUSED
        elif (kind, response.status) == ("Get", 404):
            answer = ABSENT
        else:
            self.stray.append(f"{kind}: {response.status} {content[:200]!r}")
            return
        self._history.end(call, answer)


def own(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in STAMP}


def read_back(broker: RunningBroker) -> dict[str, State]:
    found: dict[str, State] = {}
    for name in NAMES:
        answer = broker.get(name)
        assert answer.status in (200, 404)
        if answer.status == 200:
            found[name] = own(answer.json["data"])
    return found


def one_round(broker: RunningBroker, before: dict[str, State], seed: int) -> tuple[History, dict[str, State]]:
    """Write, kill, start, read."""
    history = History(before)
    writers = [Writer(broker, history, seed * WRITERS + number) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    chance = random.Random(seed)  # noqa: S311 - the same moments for the same seed, as far as machines allow
    enough, end = chance.randrange(1, 600), time.monotonic() + 30
    while history.answered < enough and time.monotonic() < end:
        time.sleep(chance.random() * 0.01)
    broker.kill()
    for writer in writers:
        writer.join(30)
        assert not writer.is_alive()
        assert writer.stray == []
    broker.port = 0  # the old one may have been taken meanwhile
    broker.start()
    return history, read_back(broker)


@pytest.mark.timeout(1800 if LONG else 600)
def test_nothing_acknowledged_is_lost(broker: RunningBroker) -> None:
    found: dict[str, State] = {}
    calls = answered = 0
    for seed in range(ROUNDS):
        history, found = one_round(broker, found, seed)
        assert history.problems(found) == [], f"round {seed}"
        calls += len(history.calls)
        answered += history.answered
    assert answered > ROUNDS * 10
    print(f"{ROUNDS} kills, {calls} calls, {calls - answered} of them without an answer")  # noqa: T201 - for -s
    assert broker.stop() == 0
    assert "Traceback" not in broker.text


def test_the_check_finds_a_broker_that_answers_before_the_commit(
    make_broker: Callable[..., RunningBroker], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ANSWERS_TOO_EARLY)
    broker = make_broker()
    broker.environ["PYTHONPATH"] = str(tmp_path)
    broker.start()
    found: dict[str, State] = {}
    for seed in range(20):
        history, found = one_round(broker, found, seed)
        if history.problems(found):
            return
    raise AssertionError("20 kills of a broker that loses what it acknowledged, and nothing was found")

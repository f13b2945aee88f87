"""Clients of several brokers of one registry, all at once, and the history of what they did."""

from __future__ import annotations

import http.client
import json
import random
import re
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from tests.support.history import ABSENT, ANYTHING, NOTHING, REFUSED, UNKNOWN, UNMATCHED, Call, History, State
from tests.support.running import RunningBroker

BLIND = """
from bpbroker.registry.changes import ANYTHING
from bpbroker.storage.etcd.store import EtcdStore
from dataclasses import replace

commit = EtcdStore.commit

def blind(group):
    changes = tuple(change._replace(expects=ANYTHING) for change in group.changes)
    return replace(group, changes=changes, compared=(), empty=())

EtcdStore.commit = lambda store, groups: commit(store, [blind(group) for group in groups])
"""
"""A fault for ``sitecustomize``: commits to etcd that compare nothing."""

NAMES: Final = tuple(f"n{number}" for number in range(8))
KINDS: Final = ("Register", "Replace", "Replace", "Update", "Update", "Delete", "Get", "Get", "Get")
STAMP: Final = ("last_write_ip", "last_write_ts")
PROGRESS_SECS: Final = 60.0
"""Wide: shared machines are five times slower from one minute to the next."""
_NONE_THERE: Final = {"If-None-Match": "*"}
_LEFT_TO_THE_COLLECTOR: Final = re.compile(
    r"Exception ignored in: <ssl\.SSLSocket [^>]*>\nTraceback [^\n]*\n(?: [^\n]*\n)*"
    r"ResourceWarning: unclosed <ssl\.SSLSocket (?![^>]*raddr=)[^>]*>\n"
)
"""What Python itself says when a peer dies between connect and handshake: SSLSocket._create does not close (3.11)."""


def own(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry's own keys."""
    return {key: value for key, value in entry.items() if key not in STAMP}


def meaning(kind: str, status: int, body: bytes) -> Any:
    """Return a registry's answer in the words of the history.

    Raises:
        ValueError: no broker may answer that.
    """
    if status == 200:
        return None if kind == "Delete" else own(json.loads(body)["data"])
    if (kind, status) == ("Register", 409):
        return REFUSED
    if (kind, status) == ("Get", 404):
        return ABSENT
    if status == 412:
        return UNMATCHED
    if status in (503, 504):
        # An answer that is uncertain says so; every other one says that nothing was changed.
        return UNKNOWN if status == 504 or "not known" in json.loads(body)["message"] else NOTHING
    raise ValueError(f"{kind}: {status} {body[:200]!r}")


class Client(threading.Thread):
    """Calls one broker or another until it is told to stop; waits for nobody, gives up on nothing."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(daemon=True)
        self._crowd = crowd
        self._number = number
        self._random = random.Random(number)  # noqa: S311 - for chance, not for secrets
        self._connections: dict[int, http.client.HTTPSConnection] = {}
        self._tags: dict[str, tuple[str, State]] = {}
        """What was last seen of a name, and its tag."""
        self._count = number * 1_000_000

    def run(self) -> None:
        try:
            while not self._crowd.stopping.is_set():
                self.call(self._random.choice(KINDS), self._random.choice(NAMES), self._choose())
        finally:
            for connection in self._connections.values():
                connection.close()

    def _choose(self) -> int:
        return self._random.randrange(len(self._crowd.brokers))

    def call(self, kind: str, name: str, at: int) -> Call | None:
        """Make one call; None if the broker is not there."""
        connection = self._connect(at)
        if connection is None:
            self._crowd.stopping.wait(0.02)
            return None
        self._count += 1
        body: dict[str, Any] = {"name": name}
        data: dict[str, Any] = {}
        if kind not in ("Delete", "Get"):
            key = self._random.choice("ab")
            body["data"] = data = {key: self._count, f"{key}2": self._count}
        headers, expects = self._condition(kind, name)
        call = self._crowd.history.begin(kind, name, data, expects=expects, client=self._number, broker=at)
        try:
            connection.request(
                "POST", f"/services/{kind}/", json.dumps(body), {"Content-Type": "application/json", **headers}
            )
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException, ssl.SSLError):
            self._connections.pop(at).close()
            return call
        try:
            answer = meaning(kind, response.status, content)
        except ValueError as error:
            self._crowd.stray.append(str(error))
            return call
        tag = response.headers.get("ETag")
        if tag and isinstance(answer, dict):
            self._tags[name] = tag, answer
        self._crowd.end(call, answer, content)
        return call

    def _condition(self, kind: str, name: str) -> tuple[dict[str, str], Any]:
        if kind in ("Replace", "Update", "Delete") and self._random.random() < 0.3:
            if kind == "Replace" and self._random.random() < 0.2:
                return _NONE_THERE, None
            if name in self._tags:
                tag, state = self._tags[name]
                return {"If-Match": tag}, state
        return {}, ANYTHING

    def _connect(self, at: int) -> http.client.HTTPSConnection | None:
        if at not in self._connections:
            connection = self._crowd.brokers[at].connected()
            if connection is None:
                return None
            self._connections[at] = connection
        return self._connections[at]


class Crowd:
    """Clients that call while the test does harm; :meth:`check` says whether what happened can be."""

    def __init__(self, brokers: Sequence[RunningBroker], clients: int = 16) -> None:
        self.brokers = brokers
        self.history = History()
        self.stopping = threading.Event()
        self.stray: list[str] = []
        """Answers that should not be."""
        self.refusals: Counter[str] = Counter()
        """What was said when nothing was done, or nobody knows."""
        self.slowest_secs = 0.0
        self._done: dict[object, int] = defaultdict(int)
        self._changed = threading.Condition()
        self._clients = [Client(self, number) for number in range(clients)]

    @contextmanager
    def at_work(self) -> Any:
        """Let all clients call during the block."""
        for client in self._clients:
            client.start()
        try:
            yield self
        finally:
            self.stopping.set()
            for client in self._clients:
                client.join(60)
        assert not any(client.is_alive() for client in self._clients)

    def end(self, call: Call, answer: Any, content: bytes) -> None:
        """Take an answer."""
        if answer is UNKNOWN:
            call.end = float("inf")
        else:
            self.history.end(call, answer)
        with self._changed:
            self.slowest_secs = max(self.slowest_secs, time.monotonic() - call.start)
            if answer in (UNKNOWN, NOTHING):
                self.refusals[json.loads(content)["message"]] += 1
            elif call.kind != "Get":
                self._done[call.broker] += 1
                self._changed.notify_all()

    def await_progress(self, *at: int, writes: int = 20) -> None:
        """Wait until these brokers, or all, have answered so many more writes."""
        wanted = at or range(len(self.brokers))
        with self._changed:
            before = dict(self._done)
            done = self._changed.wait_for(
                lambda: all(self._done[each] >= before.get(each, 0) + writes for each in wanted), PROGRESS_SECS
            )
        assert done, f"no progress: {before} became {dict(self._done)}; {self.refusals}"

    def await_refusals(self, count: int = 20) -> None:
        """Wait until so many more calls have been refused."""
        before = self.refusals.total()
        await_that(lambda: self.refusals.total() >= before + count, f"nothing is refused: {self.refusals}")

    def check(self) -> None:
        """Read everything through every broker; some order of all calls must explain all answers."""
        for at in range(len(self.brokers)):
            reader = Client(self, 100 + at)
            for name in NAMES:
                call = reader.call("Get", name, at)
                assert call is not None
                assert call.answer not in (UNKNOWN, NOTHING), self.refusals
            for connection in reader._connections.values():
                connection.close()
        assert not self.stray, self.stray
        problems = self.history.problems()
        assert not problems, "\n".join(problems)
        for broker in self.brokers:
            traceback = _LEFT_TO_THE_COLLECTOR.sub("", broker.text).partition("Traceback")
            assert not traceback[1], traceback[0][-500:] + "".join(traceback[1:])[:3000]

    def __str__(self) -> str:
        calls = self.history.calls
        unknown = sum(call.answer is UNKNOWN for call in calls)
        return (
            f"{len(calls)} calls, {unknown} of them uncertain, {self.refusals.total()} refused or uncertain by answer,"
            f" slowest {self.slowest_secs:.2f} s; {dict(self.refusals)}"
        )


def await_that(true: Callable[[], bool], otherwise: str, secs: float = PROGRESS_SECS) -> None:
    """Wait until something is true that tells nobody."""
    end = time.monotonic() + secs
    while not true():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


def health(broker: RunningBroker) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a broker's health; 0 if it does not answer."""
    with suppress(OSError, http.client.HTTPException):
        answer = broker.request("/health", "GET")
        return answer.status, answer.json
    return 0, {}

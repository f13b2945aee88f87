"""Clients that coordinate through one broker or several, all at once, and the histories of what they did."""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tests.support.coordination import NOTHING, READING, UNKNOWN, Answer, Call, History, contradiction
from tests.support.crowd import own
from tests.support.running import RunningBroker

_JSON: Final = {"Content-Type": "application/json"}
PROGRESS_SECS: Final = 60.0


def parameters_of(kind: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the method of a call and its parameters as HTTP takes them."""
    if kind == "Batch":
        operations = [{"method": each, **parameters_of(each, own_args)[1]} for each, own_args in args["operations"]]
        return "Batch", {"operations": operations}
    if kind == "Together":
        return "Batch", {"operations": [{"method": "Get", "name": name} for name in args["names"]]}
    sent = {key: value for key, value in args.items() if key != "value"}
    if "value" in args:
        sent["data"] = {"v": args["value"]}
    if kind == "Open":
        sent["ttl"] = 300
    return kind, sent


def meaning(kind: str, status: int, document: Mapping[str, Any]) -> Answer:
    """Return what of an answer counts."""
    if status in (503, 504):
        unknown = status == 504 or "not known" in document["message"]
        return UNKNOWN if unknown else NOTHING
    data = document.get("data") or {}
    if status != 200:
        return status, None
    if kind in ("Get", "Take"):
        return status, own(data)["v"]
    if kind == "Lock":
        return status, data["token"]
    if kind == "Holder":
        holder = next(iter(data["holders"]), None)
        return status, None if holder is None else (holder["session"], holder["token"])
    if kind in ("Allocate", "Next"):
        return status, data["number"]
    if kind == "Together":
        return status, tuple(own(each["data"])["v"] for each in data["results"])
    return status, None


class Island:
    """Names that have to do with each other and with no others, and what is done with them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.history = History()
        self._count = 0
        self._lock = threading.Lock()

    def choose(self, chance: random.Random, tokens: dict[str, int]) -> tuple[str, dict[str, Any]]:
        """Return the next call of a client that knows these tokens."""
        raise NotImplementedError

    def value(self) -> int:
        """Return a value that was never written."""
        with self._lock:
            self._count += 1
            return self._count


class Locks(Island):
    """A lock, its sessions, an entry that it protects, and entries of the sessions."""

    def choose(self, chance: random.Random, tokens: dict[str, int]) -> tuple[str, dict[str, Any]]:
        lock, session = f"{self.name}/lock", f"{self.name}-s{chance.randrange(3)}"
        kind = chance.choice(
            ("Open", "Open", "Renew", "Close", "Lock", "Lock", "Lock", "Lock", "Unlock", "Unlock", "Holder",
             "fenced", "fenced", "Get", "Register", "mine", "mine")
        )  # fmt: skip
        if kind in ("Open", "Renew", "Close"):
            return kind, {"session": session}
        if kind in ("Lock", "Unlock"):
            return kind, {"name": lock, "session": session}
        if kind == "Holder":
            return kind, {"name": lock}
        if kind == "fenced" and lock in tokens:
            return "Replace", {"name": f"{self.name}/a", "value": self.value(), "lock": f"{lock}:{tokens[lock]}"}
        if kind == "Register":
            return kind, {"name": f"{self.name}/b", "value": self.value(), "session": session}
        return "Get", {"name": f"{self.name}/{'b' if kind == 'mine' else 'a'}"}


class Numbers(Island):
    """A pool with fewer numbers than owners, and a counter."""

    def choose(self, chance: random.Random, tokens: dict[str, int]) -> tuple[str, dict[str, Any]]:
        del tokens
        pool, owner = f"{self.name}/pool", f"o{chance.randrange(4)}"
        kind = chance.choice(("Allocate", "Allocate", "Allocate", "Release", "Next", "Next"))
        if kind == "Allocate":
            return kind, {"pool": pool, "owner": owner, "from": 1, "to": 3}
        if kind == "Release":
            return kind, {"pool": pool, "owner": owner}
        named = {"owner": f"once{chance.randrange(30)}"} if chance.random() < 0.5 else {}
        return kind, {"name": f"{self.name}/count", **named}


class Secrets(Island):
    """An entry that is made, taken and acknowledged again and again."""

    def choose(self, chance: random.Random, tokens: dict[str, int]) -> tuple[str, dict[str, Any]]:
        del tokens
        name = f"{self.name}/secret"
        kind = chance.choice(("Register", "Register", "Replace", "Take", "Take", "Take", "Ack", "Get", "Delete"))
        if kind in ("Register", "Replace"):
            return kind, {"name": name, "value": self.value()}
        if kind in ("Take", "Ack"):
            return kind, {"name": name, "receiver": f"r{chance.randrange(2)}"}
        return kind, {"name": name}


class Pairs(Island):
    """Two entries that are only ever written together."""

    def choose(self, chance: random.Random, tokens: dict[str, int]) -> tuple[str, dict[str, Any]]:
        del tokens
        names = (f"{self.name}/x", f"{self.name}/y")
        kind = chance.choice(("write", "write", "race", "race", "free", "read", "read"))
        if kind == "free":
            return "Delete", {"name": f"{self.name}/z"}
        if kind == "read":
            return "Together", {"names": names}
        value = self.value()
        operations: list[tuple[str, Any]] = [("Replace", {"name": name, "value": value}) for name in names]
        if kind == "race":  # one of two wins, and nothing of the other one happens, whichever operation is refused
            operations.insert(chance.randrange(3), ("Register", {"name": f"{self.name}/z", "value": value}))
        return "Batch", {"operations": tuple(operations)}


class _Client(threading.Thread):
    """Calls one broker or another until it is told to stop."""

    def __init__(self, crowd: Coordinating, number: int) -> None:
        super().__init__(daemon=True)
        self._crowd = crowd
        self._number = number
        self._random = random.Random(number)  # noqa: S311 - for chance, not for secrets
        self._connections: dict[int, http.client.HTTPSConnection] = {}
        self._tokens: dict[str, int] = {}

    def run(self) -> None:
        crowd = self._crowd
        try:
            while not crowd.stopping.is_set() and crowd.begin_one():
                island = self._random.choice(crowd.islands)
                kind, args = island.choose(self._random, self._tokens)
                self.call(island, kind, args, self._random.randrange(len(crowd.brokers)))
        finally:
            for connection in self._connections.values():
                connection.close()

    def call(self, island: Island, kind: str, args: Mapping[str, Any], at: int) -> Call | None:
        connection = self._connect(at)
        if connection is None:
            self._crowd.stopping.wait(0.02)
            return None
        method, sent = parameters_of(kind, args)
        call = island.history.begin(kind, args, self._number)
        try:
            connection.request("POST", f"/services/{method}/", json.dumps(sent), _JSON)
            response = connection.getresponse()
            document = json.loads(response.read())
        except (OSError, http.client.HTTPException, ssl.SSLError, ValueError):
            self._connections.pop(at).close()
            return call
        answer = meaning(kind, response.status, document)
        if kind == "Lock" and answer[0] == 200:
            self._tokens[args["name"]] = answer[1]
        island.history.end(call, answer)
        self._crowd.took(at, kind, answer)
        return call

    def _connect(self, at: int) -> http.client.HTTPSConnection | None:
        if at not in self._connections:
            connection = self._crowd.brokers[at].connect()
            try:
                connection.connect()
            except (OSError, ssl.SSLError):
                connection.close()
                return None
            connection.auto_open = 0
            self._connections[at] = connection
        return self._connections[at]


class Coordinating:
    """Clients that call while the test does harm; :meth:`problems` says whether what happened can be.

    Args:
        brokers: of one registry.
        calls: how many there are at most.
        clients: how many call at once.
    """

    def __init__(self, brokers: Sequence[RunningBroker], calls: int, clients: int = 6) -> None:
        self.brokers = brokers
        self.islands: list[Island] = [
            kind(f"{kind.__name__.lower()}{number}") for kind in (Locks, Numbers, Secrets, Pairs) for number in range(2)
        ]
        self.stopping = threading.Event()
        self.answers: Counter[tuple[str, int]] = Counter()
        self._left = calls
        self._done: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._clients = [_Client(self, number) for number in range(clients)]

    @contextmanager
    def at_work(self) -> Iterator[Coordinating]:
        """Let all clients call during the block."""
        for client in self._clients:
            client.start()
        try:
            yield self
        finally:
            self.stopping.set()
            for client in self._clients:
                client.join(60)

    def begin_one(self) -> bool:
        """Return whether there may be another call."""
        with self._changed:
            self._left -= 1
            return self._left >= 0

    def took(self, at: int, kind: str, answer: Answer) -> None:
        """Count an answer."""
        with self._changed:
            self.answers[kind, answer[0]] += 1
            if answer not in (UNKNOWN, NOTHING):
                self._done[at] += 1
                self._changed.notify_all()

    def await_progress(self, *at: int, answers: int = 40) -> None:
        """Wait until these brokers, or all, have given so many more answers."""
        wanted = at or tuple(range(len(self.brokers)))
        with self._changed:
            before = dict(self._done)
            done = self._changed.wait_for(
                lambda: all(self._done[each] >= before.get(each, 0) + answers for each in wanted), PROGRESS_SECS
            )
        assert done, f"no progress: {before} became {dict(self._done)}; {self.answers}"

    def await_end(self) -> None:
        """Wait until all calls are made."""
        for client in self._clients:
            client.join(PROGRESS_SECS)
        assert not any(client.is_alive() for client in self._clients), self.answers

    def problems(self) -> list[str]:
        """Return what cannot have been, a text for each island."""
        found = ((island, contradiction(island.history.calls)) for island in self.islands)
        return [f"{island.name}: {problem}" for island, problem in found if problem]

    def __str__(self) -> str:
        calls = [call for island in self.islands for call in island.history.calls]
        unsure = sum(call.answer == UNKNOWN and call.kind not in READING for call in calls)
        return f"{len(calls)} calls, {unsure} of them uncertain; {dict(self.answers)}"

"""Clients that coordinate through one broker or several, all at once, and the histories of what they did."""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tests.support.coordination import (
    MOST_POINTS,
    NOTHING,
    READING,
    UNKNOWN,
    Answer,
    Call,
    History,
    Told,
    Writes,
    contradiction,
    untold,
)
from tests.support.crowd import own
from tests.support.running import RunningBroker

_JSON: Final = {"Content-Type": "application/json"}
PROGRESS_SECS: Final = 60.0


def parameters_of(kind: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the method of a call and its parameters as HTTP takes them."""
    if kind == "Batch":
        operations = [{"method": each, **parameters_of(each, own_args)[1]} for each, own_args in args["operations"]]
        return "Batch", {"operations": operations, **({"id": args["id"]} if "id" in args else {})}
    if kind == "Together":
        return "Batch", {"operations": [{"method": "Get", "name": name} for name in args["names"]]}
    sent = {key: value for key, value in args.items() if key not in ("value", "id")}
    if kind == "Enter":
        kind = "Lock"
    if "value" in args:
        sent["data"] = {"v": args["value"]}
    if kind == "Open":
        sent.setdefault("ttl", 300)
    return kind, sent


def meaning(kind: str, status: int, document: Mapping[str, Any]) -> Answer:
    """Return what of an answer counts."""
    if status in (503, 504):
        # A Lock that waits and is refused may have a place by then.
        unknown = status == 504 or kind == "Enter" or "not known" in document["message"]
        return UNKNOWN if unknown else NOTHING
    data = document.get("data") or {}
    if status != 200:
        return status, None
    if kind in ("Get", "Take"):
        return status, own(data)["v"]
    if kind in ("Lock", "Enter"):
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

    def choose(self, chance: random.Random, tokens: dict[str, int], client: int) -> tuple[str, dict[str, Any]]:
        """Return the next call of a client, by its number, that knows these tokens."""
        raise NotImplementedError

    def note(self, kind: str, args: Mapping[str, Any], answer: Answer, revision: int) -> None:
        """Take what became of a call; the revision is 0 if it has none."""

    def value(self) -> int:
        """Return a value that was never written."""
        with self._lock:
            self._count += 1
            return self._count


class Locks(Island):
    """A lock, its sessions, an entry that it protects, and entries of the sessions."""

    behind = False
    """Whether brokers may not know yet what a session has that they close: an entry of it then goes a moment later."""

    def choose(self, chance: random.Random, tokens: dict[str, int], client: int) -> tuple[str, dict[str, Any]]:
        del client
        lock, session = f"{self.name}/lock", f"{self.name}-s{chance.randrange(3)}"
        kind = chance.choice(
            ("Open", "Open", "Renew", "Close", "Lock", "Lock", "Lock", "Lock", "Unlock", "Unlock", "Holder",
             "fenced", "fenced", "Get", "Register", "mine", "mine")
        )  # fmt: skip
        if self.behind and kind in ("Register", "mine"):
            kind = "Get"
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


class Queues(Island):
    """A lock for which clients wait, each with a session of its own, and an entry that it protects."""

    def choose(self, chance: random.Random, tokens: dict[str, int], client: int) -> tuple[str, dict[str, Any]]:
        lock, session = f"{self.name}/lock", f"{self.name}-c{client}"
        if f"{session} open" not in tokens:
            tokens[f"{session} open"] = 1
            return "Open", {"session": session}
        if lock in tokens:  # it held the lock, and others wait now
            kind = chance.choice(("Unlock", "Unlock", "fenced", "Close"))
            if kind == "fenced":
                return "Replace", {"name": f"{self.name}/a", "value": self.value(), "lock": f"{lock}:{tokens[lock]}"}
            del tokens[lock]
            if kind == "Close":
                del tokens[f"{session} open"]
                return kind, {"session": session}
            return kind, {"name": lock, "session": session}
        kind = chance.choice(("Enter", "Enter", "Enter", "Enter", "Lock", "Holder", "Renew"))
        if kind == "Enter":
            return kind, {"name": lock, "session": session, "id": self.value(), "wait": chance.choice((0.02, 0.2, 1.0))}
        if kind == "Lock":
            return kind, {"name": lock, "session": session}
        return kind, {"session": session} if kind == "Renew" else {"name": lock}


class Numbers(Island):
    """A pool with fewer numbers than owners, and a counter."""

    def choose(self, chance: random.Random, tokens: dict[str, int], client: int) -> tuple[str, dict[str, Any]]:
        del tokens, client
        pool, owner = f"{self.name}/pool", f"o{chance.randrange(6)}"
        kind = chance.choice(("Allocate", "Allocate", "Allocate", "with", "with", "free", "Release", "Next", "Next"))
        allocated = {"pool": pool, "owner": owner, "from": 1, "to": 4}
        if kind == "Allocate":
            return kind, allocated
        if kind == "with":  # it may be refused by either part: then no number is given, and none is free
            first = chance.choice((("Allocate", allocated), ("Release", {"pool": pool, "owner": owner})))
            other = ("Register", {"name": f"{self.name}/z", "value": self.value()})
            return "Batch", {"operations": (first, other)}
        if kind == "free":
            return "Delete", {"name": f"{self.name}/z"}
        if kind == "Release":
            return kind, {"pool": pool, "owner": owner}
        named = {"owner": f"once{chance.randrange(30)}"} if chance.random() < 0.5 else {}
        return kind, {"name": f"{self.name}/count", **named}


class Secrets(Island):
    """An entry that is made, taken and acknowledged again and again."""

    def choose(self, chance: random.Random, tokens: dict[str, int], client: int) -> tuple[str, dict[str, Any]]:
        del tokens, client
        name = f"{self.name}/secret"
        kind = chance.choice(("Register", "Register", "Replace", "Take", "Take", "Take", "Ack", "Get", "Delete"))
        if kind in ("Register", "Replace"):
            return kind, {"name": name, "value": self.value()}
        if kind in ("Take", "Ack"):
            return kind, {"name": name, "receiver": f"r{chance.randrange(2)}"}
        return kind, {"name": name}


class Pairs(Island):
    """Two entries that are only ever written together."""

    def choose(self, chance: random.Random, tokens: dict[str, int], client: int) -> tuple[str, dict[str, Any]]:
        del tokens, client
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


class Watched(Island):
    """Entries that each have one writer, and that are watched."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.writes = Writes()

    def choose(self, chance: random.Random, tokens: dict[str, int], client: int) -> tuple[str, dict[str, Any]]:
        del tokens
        kind = chance.choice(("Replace", "Replace", "Register", "Delete", "Get"))
        if kind == "Get":
            return kind, {"name": f"{self.name}/c{chance.randrange(client + 1)}"}
        name = f"{self.name}/c{client}"
        return kind, {"name": name} if kind == "Delete" else {"name": name, "value": self.value()}

    def note(self, kind: str, args: Mapping[str, Any], answer: Answer, revision: int) -> None:
        with self._lock:
            if kind != "Get" and answer == UNKNOWN:
                self.writes.unsure.add((args["name"], args.get("value")))
            elif kind != "Get" and answer[0] == 200 and revision:
                self.writes.done[args["name"], revision] = args.get("value")

    @property
    def newest(self) -> int:
        """The highest revision of a write."""
        with self._lock:
            return max((revision for _, revision in self.writes.done), default=0)


class _Watcher(threading.Thread):
    """Watches an island at one broker after the other, from cursor to cursor."""

    def __init__(self, crowd: Coordinating, island: Watched, at: int) -> None:
        super().__init__(daemon=True)
        self._crowd = crowd
        self._island = island
        self._at = at
        self._cursor = ""
        self._began = 0
        self._events: list[tuple[int, str, int | None]] = []
        self.told: list[Told] = []
        self.watching = threading.Event()
        self.failure = ""

    def run(self) -> None:
        crowd, end = self._crowd, float("inf")
        while not (crowd.ended.is_set() and self._revision >= self._island.newest):
            if crowd.ended.is_set():
                end = min(end, time.monotonic() + PROGRESS_SECS)
                if time.monotonic() > end:
                    self.failure = f"a watch that began at {self._began} stays at {self._cursor}"
                    break
            connection = crowd.brokers[self._at % len(crowd.brokers)].connect()
            try:
                self._watch(connection)
            except (OSError, http.client.HTTPException, ssl.SSLError, ValueError):
                self._at += 1  # from the same cursor, at another broker if there is one
                time.sleep(0.02)
            finally:
                connection.close()
        self._end_part()

    @property
    def _revision(self) -> int:
        return int(self._cursor.rpartition(":")[2] or 0)

    def _watch(self, connection: http.client.HTTPSConnection) -> None:
        while not (self._crowd.ended.is_set() and self._revision >= self._island.newest):
            asked = {"prefix": f"{self._island.name}/", "wait": 1, "limit": 3}
            if self._cursor:
                asked["since"] = self._cursor
            connection.request("POST", "/services/Watch/", json.dumps(asked), _JSON)
            response = connection.getresponse()
            document = json.loads(response.read())
            if response.status == 410:  # the broker was started since: from here on, as a client does
                self._end_part()
                self._begin(document["data"]["cursor"])
            elif response.status != 200:
                raise ValueError(document)
            elif not self._cursor:
                self._begin(document["data"]["cursor"])
            else:
                for event in document["data"]["events"]:
                    value = None if event["type"] == "delete" else own(event["entry"])["v"]
                    self._events.append((event["revision"], event["name"], value))
                self._cursor = document["data"]["cursor"]
            self.watching.set()

    def _begin(self, cursor: str) -> None:
        self._cursor = cursor
        self._began, self._events = self._revision, []

    def _end_part(self) -> None:
        if self._cursor:
            self.told.append(Told(self._began, self._revision, tuple(self._events)))

    def problems(self) -> Iterator[str]:
        """Yield what it should have told, and did not, or the other way."""
        if self.failure:
            yield self.failure
        yield from filter(None, (untold(each, self._island.writes) for each in self.told))


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
            while not crowd.stopping.is_set():
                at = self._random.randrange(len(crowd.brokers)) if crowd.roam else self._number % len(crowd.brokers)
                connection = self._connect(at)
                if connection is None:  # that it takes long to come back uses up no calls
                    crowd.stopping.wait(0.02)
                elif not crowd.begin_one():
                    break
                else:
                    island = self._random.choice(crowd.islands)
                    self._call(connection, island, *island.choose(self._random, self._tokens, self._number), at)
        finally:
            for connection in self._connections.values():
                connection.close()

    def _call(
        self, connection: http.client.HTTPSConnection, island: Island, kind: str, args: Mapping[str, Any], at: int
    ) -> None:
        call = island.history.begin(kind, args, self._number)
        try:
            self._exchange(connection, island, call, at)
        finally:
            if kind == "Enter":
                island.history.waited(call)

    def _exchange(self, connection: http.client.HTTPSConnection, island: Island, call: Call, at: int) -> None:
        kind, args = call.kind, call.args
        method, sent = parameters_of(kind, args)
        try:
            connection.request("POST", f"/services/{method}/", json.dumps(sent), _JSON)
            response = connection.getresponse()
            document = json.loads(response.read())
        except (OSError, http.client.HTTPException, ssl.SSLError, ValueError):
            self._connections.pop(at).close()
            island.note(kind, args, UNKNOWN, 0)
            return
        answer = meaning(kind, response.status, document)
        if kind in ("Lock", "Enter") and answer[0] == 200:
            self._tokens[args["name"]] = answer[1]
        island.history.end(call, answer)
        island.note(kind, args, answer, document.get("revision", 0))
        self._crowd.took(at, kind, answer)

    def _connect(self, at: int) -> http.client.HTTPSConnection | None:
        if at not in self._connections:
            connection = self._crowd.brokers[at].connected()
            if connection is None:
                return None
            self._connections[at] = connection
        return self._connections[at]


class Coordinating:
    """Clients that call while the test does harm; :meth:`problems` says whether what happened can be.

    Args:
        brokers: of one registry.
        calls: how many there are at most.
        clients: how many call at once.
        roam: whether each client calls all brokers; else each has its own, and one that stands still may be behind.
    """

    def __init__(self, brokers: Sequence[RunningBroker], calls: int, clients: int = 6, *, roam: bool = True) -> None:
        self.brokers = brokers
        self.roam = roam
        kinds: tuple[type[Island], ...] = (Locks, Queues, Numbers, Secrets, Pairs)
        watched = Watched("watched")
        self.islands: list[Island] = [
            *(kind(f"{kind.__name__.lower()}{number}") for kind in kinds for number in range(2)),
            watched,
        ]
        for island in self.islands:
            if isinstance(island, Locks):
                island.behind = not roam
        self.stopping, self.ended = threading.Event(), threading.Event()
        self._watchers = [_Watcher(self, watched, at) for at in range(len(brokers))]
        self.answers: Counter[tuple[str, int]] = Counter()
        self._left = calls
        self._done: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._clients = [_Client(self, number) for number in range(clients)]

    @contextmanager
    def at_work(self) -> Iterator[Coordinating]:
        """Let all clients call during the block."""
        for watcher in self._watchers:
            watcher.start()
        assert all(watcher.watching.wait(PROGRESS_SECS) for watcher in self._watchers)
        for client in self._clients:
            client.start()
        try:
            yield self
        finally:
            self.stopping.set()
            for client in self._clients:
                client.join(60)
            self.ended.set()
            for watcher in self._watchers:
                watcher.join(2 * PROGRESS_SECS)

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

    def died(self) -> None:
        """Note that the only broker has died: what it was asked and has not answered is done by now, or never is."""
        assert len(self.brokers) == 1
        for island in self.islands:
            island.history.done_by(time.monotonic())

    def await_end(self) -> None:
        """Wait until all calls are made."""
        for client in self._clients:
            client.join(PROGRESS_SECS)
        assert not any(client.is_alive() for client in self._clients), self.answers

    def problems(self, most_points: int = MOST_POINTS) -> list[str]:
        """Return what cannot have been, a text for each island; one that cannot be decided is among them."""
        found = ((island, contradiction(island.history.calls, None, most_points)) for island in self.islands)
        return [
            *(f"{island.name}: {problem}" for island, problem in found if problem),
            *(f"watch: {problem}" for watcher in self._watchers for problem in watcher.problems()),
        ]

    def __str__(self) -> str:
        calls = [call for island in self.islands for call in island.history.calls]
        unsure = sum(call.answer == UNKNOWN and call.kind not in READING for call in calls)
        granted = sum(call.kind == "Granted" for call in calls)
        told = [part for watcher in self._watchers for part in watcher.told]
        return (
            f"{len(calls)} calls, {unsure} of them uncertain, {granted} locks granted to who waited,"
            f" {sum(len(part.events) for part in told)} events in {len(told)} parts; {dict(self.answers)}"
        )

"""Bursts of calls that are decided in one turn and committed together, next to a plain model that takes one at a time.

Each answer has to be that of the model, with all that a refusal tells of tokens, tags and owners: whatever rests on
calls before it in the same burst has its real number. So has what is there afterwards, and what a watch tells. Some
commits fail: then nothing of the burst ever was.
"""

from __future__ import annotations

import json
import random
from bisect import insort
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.errors import RequestError, StorageFull, Unavailable
from bpbroker.messages import ALWAYS, Condition, Delete, Deleted, Get, List, Ping, Register, Replace, Update
from bpbroker.record import Record
from bpbroker.registry import locks
from bpbroker.registry.changes import Group, Outcome
from bpbroker.registry.requests import (
    Ack,
    Allocate,
    Batch,
    BatchDone,
    Check,
    CheckEmpty,
    Close,
    Done,
    Holder,
    Lock,
    Next,
    Open,
    Release,
    Take,
    Unlock,
    Watch,
)
from tests.support.extent import examples

if TYPE_CHECKING:
    from tests.actors.conftest import Asked, Ledger

IP = "10.0.0.1"
SESSIONS = ("s1", "s2", "s3", "s4")
NAMES = ("a/1", "a/2", "b")
LIMITS = {"l": 1, "m": 2}
"""Lock to how many may hold it."""

Number = int | tuple[int, int]
"""A revision; of a call of this burst its place: the call, and the operation in its batch."""


@dataclass
class Refused(Exception):
    """What a call is refused with."""

    status: int
    entry: Number | None = None
    holders: list[tuple[str, Number]] | None = None
    owners: dict[str, int] | None = None
    failed: int | None = None


@dataclass
class Entry:
    value: dict[str, Any]
    session: str
    revision: Number


@dataclass
class State:
    """All that there is."""

    sessions: dict[str, Number] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    taken: dict[str, tuple[str, dict[str, Any], Number]] = field(default_factory=dict)
    locks: dict[str, list[tuple[str, Number]]] = field(default_factory=lambda: {"l": [], "m": []})
    owners: dict[str, int] = field(default_factory=dict)
    pool: Number = 0
    counter: int = 0
    counted: dict[str, tuple[int, Number]] = field(default_factory=dict)
    events: dict[str, tuple[str, Number]] = field(default_factory=dict)
    """Name to what happened last in this burst."""
    secrets: set[str] = field(default_factory=set)
    """Values that were taken, and that no watch may tell any more."""


class Model:
    """Takes one call after the other."""

    def __init__(self) -> None:
        self.now = State()
        self.at: Number = 0
        self.durable = 0
        """The last call of the bursts before."""

    def holders(self, name: str) -> list[tuple[str, Number]]:
        return self.now.locks[name][: LIMITS[name]]

    def take(self, message: Any, at: Number) -> tuple[str, Any]:
        """Return the kind of an answer and what it tells; raise Refused."""
        self.at = at
        before = deepcopy(self.now)
        try:
            return self._decide(message)
        except Refused:
            self.now = before
            raise

    def _decide(self, message: Any) -> tuple[str, Any]:
        is_new = isinstance(message, (Register, Replace, Update)) and message.name not in self.now.entries
        if is_new and message.name in self.now.taken:
            raise Refused(409)
        condition = getattr(message, "condition", ALWAYS)
        if condition.lock is not None:
            name, token = condition.lock
            if token not in [held for _, held in self.holders(name)]:
                raise Refused(412, holders=self.holders(name))
        there = self.now.entries.get(getattr(message, "name", ""))
        tags = [int(tag.strip('"')) for tag in condition.match or ()]
        if condition.match is not None and (there is None or there.revision not in tags):
            raise Refused(412, None if there is None else there.revision)
        if condition.none_match is not None and there is not None:
            raise Refused(412, there.revision)
        rule: Callable[[Any], tuple[str, Any]] = getattr(self, f"_{type(message).__name__.lower()}")
        return rule(message)

    def _put(self, message: Any, value: dict[str, Any]) -> tuple[str, Any]:
        there = self.now.entries.get(message.name)
        session = message.session
        if session and session not in self.now.sessions:
            raise Refused(404)
        if session is None:
            session = there.session if there is not None else ""
        self.now.entries[message.name] = Entry(value, session, self.at)
        self.now.events[message.name] = "put", self.at
        return "record", (value, self.at)

    def _register(self, message: Register) -> tuple[str, Any]:
        if message.name in self.now.entries:
            raise Refused(409, self.now.entries[message.name].revision)
        return self._put(message, dict(message.data))

    def _replace(self, message: Replace) -> tuple[str, Any]:
        return self._put(message, dict(message.data))

    def _update(self, message: Update) -> tuple[str, Any]:
        there = self.now.entries.get(message.name)
        return self._put(message, {**(there.value if there is not None else {}), **message.data})

    def _delete(self, message: Delete) -> tuple[str, Any]:
        if message.name not in self.now.entries:
            if self.now.taken.pop(message.name, None) is not None:
                self.destroyed(message.name)
            return "deleted", 0
        del self.now.entries[message.name]
        self.now.events[message.name] = "delete", self.at
        return "deleted", self.at

    def _get(self, message: Get) -> tuple[str, Any]:
        there = self.now.entries.get(message.name)
        if there is None:
            raise Refused(404)
        return "record", (there.value, there.revision)

    def _list(self, message: List) -> tuple[str, Any]:
        found = [
            (name, each.value, each.revision)
            for name, each in sorted(self.now.entries.items())
            if name.startswith(message.prefix)
        ]
        return "records", found

    def _check(self, _: Check) -> tuple[str, Any]:
        return "done", {}

    def _checkempty(self, message: CheckEmpty) -> tuple[str, Any]:
        if any(name.startswith(message.prefix) for name in self.now.entries):
            raise Refused(412)
        return "done", {}

    def _open(self, message: Open) -> tuple[str, Any]:
        self.now.sessions.setdefault(message.session, self.at)
        return "done", {"revision": self.now.sessions[message.session]}

    def _close(self, message: Close) -> tuple[str, Any]:
        if self.now.sessions.pop(message.session, None) is None:
            return "done", {"revision": 0}
        for name, entry in list(self.now.entries.items()):
            if entry.session == message.session:
                del self.now.entries[name]
                self.now.events[name] = "delete", self.at
        for name in self.now.locks:
            self._leave(name, message.session)
        return "done", {"revision": self.at}

    def _leave(self, name: str, session: str) -> bool:
        left = [place for place in self.now.locks[name] if place[0] != session]
        there = len(left) < len(self.now.locks[name])
        self.now.locks[name] = left
        return there

    def _lock(self, message: Lock) -> tuple[str, Any]:
        if message.session not in self.now.sessions:
            raise Refused(404)
        places = self.now.locks[message.name]
        if message.session not in [session for session, _ in places]:
            if len(places) >= message.limit and message.wait_secs <= 0:
                raise Refused(409, holders=self.holders(message.name))
            places.append((message.session, self.at))
            if len(places) <= message.limit:
                return "token", self.at
        held = dict(self.holders(message.name)).get(message.session)
        durable = isinstance(held, int) or (held is not None and held[0] <= self.durable)
        return ("token", held) if durable else ("waits", None)

    def _unlock(self, message: Unlock) -> tuple[str, Any]:
        return "done", {"revision": self.at if self._leave(message.name, message.session) else 0}

    def _allocate(self, message: Allocate) -> tuple[str, Any]:
        number = self.now.owners.get(message.owner)
        if number is None:
            free = set(range(message.low, message.high + 1)) - set(self.now.owners.values())
            if not free:
                raise Refused(409, owners=dict(self.now.owners))
            number = self.now.owners[message.owner] = min(free)
            self._pool_changed()
        return "done", {"number": number, "revision": self.now.pool}

    def _release(self, message: Release) -> tuple[str, Any]:
        number = self.now.owners.pop(message.owner, None)
        if number is None:
            return "done", {"revision": 0}
        self._pool_changed()
        return "done", {"number": number, "revision": self.at}

    def _pool_changed(self) -> None:
        self.now.pool = self.at
        self.now.events["pool"] = "put", self.at

    def _next(self, message: Next) -> tuple[str, Any]:
        if message.owner in self.now.counted:
            number, revision = self.now.counted[message.owner]
            return "done", {"number": number, "revision": revision}
        self.now.counter += 1
        if message.owner:
            self.now.counted[message.owner] = self.now.counter, self.at
        self.now.events["count"] = "put", self.at
        return "done", {"number": self.now.counter, "revision": self.at}

    def _take(self, message: Take) -> tuple[str, Any]:
        if message.name in self.now.taken:
            receiver, value, revision = self.now.taken[message.name]
            if receiver != message.receiver:
                raise Refused(409)
            return "record", (value, revision)
        there = self.now.entries.pop(message.name, None)
        if there is None:
            raise Refused(404)
        self.now.taken[message.name] = message.receiver, there.value, self.at
        self.now.secrets.add(json.dumps(there.value))
        self.now.events[message.name] = "take", self.at
        return "record", (there.value, self.at)

    def _ack(self, message: Ack) -> tuple[str, Any]:
        if message.name not in self.now.taken:
            return "done", {"revision": 0}
        if self.now.taken[message.name][0] != message.receiver:
            raise Refused(409)
        del self.now.taken[message.name]
        self.destroyed(message.name)
        return "done", {"revision": self.at}

    def destroyed(self, name: str) -> None:
        kind, at = self.now.events.get(name, ("", 0))
        if kind == "take":  # in the same commit it is taken and destroyed, as one that is deleted
            self.now.events[name] = "delete", at

    def _batch(self, message: Batch) -> tuple[str, Any]:
        call = self.at[0] if isinstance(self.at, tuple) else 0
        if not message.atomic:
            found: list[Any] = []
            for number, operation in enumerate(message.operations):
                try:
                    found.append(self.take(operation, (call, number)))
                except Refused as refused:
                    found.append(refused)
            return "results", found
        before = deepcopy(self.now)
        results: list[Any] = [None] * len(message.operations)
        numbered = list(enumerate(message.operations))
        # Readers see the state after all of it.
        for number, operation in sorted(numbered, key=lambda each: isinstance(each[1], (Get, List))):
            try:
                results[number] = self._decide(operation)
            except Refused as refused:
                refused.failed = number
                raise
        return "together", (results, self.at if self.now != before else 0)


class Answers:
    """Compares answers with the model's."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, int], int] = {}
        """What the calls' places in their bursts turned out to be."""
        self._order: list[tuple[int, int]] = []

    def same(self, wanted: Number, got: int) -> bool:
        """Return whether a revision is right; those of later calls are higher."""
        if isinstance(wanted, int):
            return wanted == got
        if wanted not in self.numbers:
            self.numbers[wanted] = got
            insort(self._order, wanted)
        at = self._order.index(wanted)
        near = [self.numbers[each] for each in self._order[max(0, at - 1) : at + 2]]
        return self.numbers[wanted] == got and near == sorted(set(near))

    def refusal(self, wanted: Refused, got: Any) -> bool:
        if not isinstance(got, RequestError) or got.status != wanted.status or got.failed != wanted.failed:
            return False
        if (wanted.entry is None) != (got.entry_revision is None):
            return False
        if wanted.entry is not None and not self.same(wanted.entry, got.entry_revision or 0):
            return False
        if wanted.status == 412 and wanted.entry is not None and f'"{got.entry_revision}"' not in str(got):
            return False
        data = got.data or {}
        if wanted.holders is not None:
            shown = [(each["session"], each["token"]) for each in data["holders"]]
            if [each for each, _ in shown] != [each for each, _ in wanted.holders]:
                return False
            if not all(self.same(w, g) for (_, w), (_, g) in zip(wanted.holders, shown, strict=True)):
                return False
            if data["token"] != max((token for _, token in shown), default=None):
                return False
        return wanted.owners is None or data == {"owners": wanted.owners}

    def or_failed(self, wanted: Any, got: Any) -> bool:
        """Return whether an answer is right where the commit of what comes before it failed."""
        if isinstance(got, BatchDone) and not isinstance(wanted, Refused):
            tells = wanted[1] if wanted[0] == "results" else wanted[1][0]
            return all(self.or_failed(w, g) for w, g in zip(tells, got.results, strict=True))
        return isinstance(got, Unavailable) or self.answer(wanted, got)

    def answer(self, wanted: Any, got: Any) -> bool:
        if isinstance(wanted, Refused):
            return self.refusal(wanted, got)
        kind, tells = wanted
        if kind == "record":
            return isinstance(got, Record) and own(got) == tells[0] and self.same(tells[1], got.revision)
        if kind == "records":
            return [(each.name, own(each)) for each in got] == [each[:2] for each in tells] and all(
                self.same(w[2], g.revision) for w, g in zip(tells, got, strict=True)
            )
        if kind == "deleted":
            return isinstance(got, Deleted) and self.same(tells, got.revision)
        if kind == "token":
            return isinstance(got, Done) and self.same(tells, got.data["token"])
        if kind == "together":
            return self.answer(("results", tells[0]), got) and self.same(tells[1], got.revision)
        if kind == "results":
            return isinstance(got, BatchDone) and all(
                self.answer(w, g) for w, g in zip(tells, got.results, strict=True)
            )
        assert kind == "done"
        if not isinstance(got, Done) or ("number" in tells and got.data["number"] != tells["number"]):
            return False
        return "revision" not in tells or self.same(tells["revision"], got.revision)


def own(record: Record) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(record.json)
    return {key: each for key, each in value.items() if not key.startswith("last_write_")}


class Driver:
    """Makes up calls."""

    def __init__(self, chance: random.Random, model: Model) -> None:
        self.chance = chance
        self.model = model
        self.value = 0
        self.known: dict[str, list[int]] = {name: [] for name in NAMES}
        self.tokens: dict[str, list[int]] = {name: [] for name in LIMITS}

    def condition(self, name: str | None) -> Condition:
        choice = self.chance.random()
        if choice < 0.15:
            lock = self.chance.choice(list(LIMITS))
            return Condition(lock=(lock, self.chance.choice([*self.tokens[lock][-3:], self.chance.randrange(40)])))
        if name is None or choice > 0.4:
            return ALWAYS
        if choice < 0.22:
            return Condition(none_match=("*",))
        return Condition(match=(f'"{self.chance.choice([*self.known[name][-2:], self.chance.randrange(40)])}"',))

    def operation(self, *, reads: bool, name: str = "") -> Any:
        chance, name = self.chance, name or self.chance.choice(NAMES)
        kinds = ["Register", "Replace", "Update", "Delete", "Take", "Ack", "Allocate", "Release", "Next"]
        kind = chance.choice([*kinds, *(("Get", "List", "Check", "CheckEmpty") if reads else ())])
        if kind in ("Register", "Replace", "Update"):
            self.value += 1
            data = {chance.choice("xyz"): self.value}
            session = chance.choice([None, None, "", chance.choice(SESSIONS)])
            types: dict[str, Any] = {"Register": Register, "Replace": Replace, "Update": Update}
            return types[kind](name, data, IP, self.condition(name), session=session)
        if kind == "Delete":
            return Delete(name, self.condition(name))
        if kind in ("Take", "Ack"):
            return (Take if kind == "Take" else Ack)(name, chance.choice(["r1", "r2"]), self.condition(None))
        if kind == "Allocate":
            return Allocate("pool", chance.choice("opqrs"), IP, 1, 3, condition=self.condition(None))
        if kind == "Release":
            return Release("pool", chance.choice("opqrs"), IP, condition=self.condition(None))
        if kind == "Next":
            return Next("count", IP, owner=chance.choice(["", "", *"opq"]), condition=self.condition(None))
        if kind == "Get":
            return Get(name)
        if kind == "Check":
            return Check(name, self.condition(name))
        return List("a/") if kind == "List" else CheckEmpty(chance.choice(["a/", "b", "none/"]))

    def call(self) -> Any:
        chance, session, lock = self.chance, self.chance.choice(SESSIONS), self.chance.choice(list(LIMITS))
        kind = chance.choice(["Open", "Close", "Lock", "Lock", "Wait", "Unlock", *["one"] * 6, "Batch", "Each"])
        if kind == "Open":
            return Open(session, 60, IP)
        if kind == "Close":
            return Close(session)
        if kind in ("Lock", "Wait"):
            return Lock(lock, session, IP, LIMITS[lock], wait_secs=60.0 if kind == "Wait" else 0.0)
        if kind == "Unlock":
            return Unlock(lock, session)
        if kind == "one":
            return self.operation(reads=False)
        names = chance.sample(NAMES, chance.randrange(1, 4))
        return Batch("", tuple(self.operation(reads=True, name=name) for name in names), kind == "Batch")


class Run:
    """Bursts to one registry, and what is there between them."""

    def __init__(self, asked: Asked, ledger: Ledger, seed: int) -> None:
        self.asked = asked
        self.ledger = ledger
        self.chance = random.Random(seed)  # noqa: S311 - for chance, not for secrets
        self.model = Model()
        self.answers = Answers()
        self.driver = Driver(self.chance, self.model)
        self.waiting: list[tuple[Lock, Future[Any]]] = []
        self.count = 0
        self.first = self.cursor = asked(Watch()).cursor
        self._fails, self._plain = False, ledger.commit
        ledger.commit = self._commit  # type: ignore[method-assign]  # one that fails when it shall

    def _commit(self, groups: Sequence[Group]) -> Sequence[Outcome]:
        if self._fails and [change.name for group in groups for change in group.changes] != ["under way"]:
            self._fails = False
            raise StorageFull("full")
        return self._plain(groups)

    def burst(self) -> None:
        """Send calls that are decided together."""
        before, fails = deepcopy(self.model.now), self.chance.random() < 0.1
        messages = [self.driver.call() for _ in range(self.chance.randrange(1, 14))]
        self.ledger.hold()
        first = self.asked.send(Replace("under way", {"n": self.count}, IP))
        self.ledger.await_commit()
        self._fails = fails
        calls = [self.asked.send(message) for message in messages]
        self.ledger.release()
        first.result(10)
        self.model.now.events, self.model.durable = {}, self.count
        wanted: list[Any] = []
        for message in messages:
            self.count += 1
            try:
                wanted.append(self.model.take(message, (self.count, 0)))
            except Refused as refused:
                wanted.append(refused)
        self.quiet()
        if fails and not self._fails:  # it was: what rests on nothing in it may have its answer
            self.model.now = before
            self.model.now.events = {}
            for message, want, call in zip(messages, wanted, calls, strict=True):
                if not isinstance(want, Refused) and want[0] == "waits":
                    if not (call.done() and isinstance(call.exception(), Unavailable)):
                        self.waiting.append((message, call))  # in a place that it had before
                    continue
                error = call.exception(10)
                got = error if error is not None else call.result(10)
                assert self.answers.or_failed(want, got), (want, got)
            messages = []
        self._fails = False
        for message, want, call in zip(messages, wanted, calls, strict=False):
            if not isinstance(want, Refused) and want[0] == "waits":
                self.waiting.append((message, call))
                continue
            error = call.exception(10)
            got = error if error is not None else call.result(10)
            assert self.answers.answer(want, got), (message, want, got, getattr(got, "data", None), messages)
        self.settle()
        self.events()
        self.look()

    def quiet(self) -> None:
        """Wait until the registry has nothing to do: each step of what it does for a call is behind those before."""
        for _ in range(8):
            self.asked(Ping())

    def settle(self) -> None:
        """Compare the queues; a call whose place was given back by another one of its session has taken a new one."""
        self.quiet()
        for name, places in self.model.now.locks.items():
            shown = self.asked(Holder(name)).data
            sessions = [each["session"] for each in (*shown["holders"], *shown["waiting"])]
            assert sessions[: len(places)] == [each for each, _ in places], (name, shown, places)
            anew = {
                message.session
                for message, _ in self.waiting
                if message.name == name and message.session in self.model.now.sessions
            } - {each for each, _ in places}
            late = sessions[len(places) :]
            assert set(late) <= anew
            wait = {message.session for message, _ in self.waiting if message.name == name and message.wait_secs}
            assert wait & anew <= set(late)
            for session in late:
                self.count += 1
                places.append((session, (self.count, 0)))
            held = self.model.holders(name)
            assert [each["session"] for each in shown["holders"]] == [each for each, _ in held]
            for (_, token), each in zip(held, shown["holders"], strict=True):
                assert self.answers.same(token, each["token"]), (name, shown, held)
                self.driver.tokens[name].append(each["token"])
            places[: len(held)] = [(each["session"], each["token"]) for each in shown["holders"]]
        still = []
        for message, call in self.waiting:
            holders = dict(self.model.holders(message.name))
            if not message.wait_secs and getattr(call.exception(10), "status", None) == 409:
                continue  # it had a place that did not hold the lock; others may have left in the same commit
            if message.session not in self.model.now.sessions:
                assert getattr(call.exception(10), "status", None) == 404, (message, call)
            elif message.session in holders:
                assert self.answers.same(holders[message.session], call.result(10).data["token"]), message
            else:
                assert not call.done(), (message, call)
                still.append((message, call))
        self.waiting = still

    def events(self) -> None:
        watched = self.asked(Watch(since=self.cursor))
        self.cursor = watched.cursor
        told = [event for event in watched.events if event.name != "under way"]
        wanted = self.model.now.events
        assert {event.name: event.type for event in told} == {name: kind for name, (kind, _) in wanted.items()}
        assert len(told) == len(wanted)
        for event in told:
            assert self.answers.same(wanted[event.name][1], event.revision), (event, wanted)
        assert [event.revision for event in told] == sorted(event.revision for event in told)

    def look(self) -> None:
        """Compare all entries."""
        there = {record.name: record for record in self.asked(List(""))}
        for name in NAMES:
            entry, record = self.model.now.entries.get(name), there.get(name)
            assert (entry is None) == (record is None), (name, entry, record)
            if entry is not None and record is not None:
                assert (own(record), record.session) == (entry.value, entry.session)
                assert self.answers.same(entry.revision, record.revision)
                entry.revision = record.revision
                self.driver.known[name].append(record.revision)
        for event in self.asked(Watch(since=self.first, limit=100_000)).events:
            assert event.record is None or json.dumps(own(event.record)) not in self.model.now.secrets, event


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("near", [1, 8])
def test_bursts(registry: Asked, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, seed: int, near: int) -> None:
    monkeypatch.setattr(locks, "NEAR", near)
    run = Run(registry, ledger, seed)
    for _ in range(examples(240)):
        run.burst()

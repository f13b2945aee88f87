"""Sessions, locks, numbers, taking and batches next to a specification, over both stores, with clocks that move.

The registry is the product's own actor. On the embedded store its clock is the test's, and it is stopped, killed and
started; on etcd there are two of them on a real cluster, and a session's time is over when its lease is taken back.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from bpbroker.actors import base, registry, registry_sessions, registry_waiting
from bpbroker.actors.inbox import Wake
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.actors.registry_shared import SharedBackend
from bpbroker.config import layers
from bpbroker.errors import Gone, RequestError
from bpbroker.messages import Condition, Delete, Exists, Get, Register, Replace, Snapshot, SnapshotSaved
from bpbroker.registry import ages
from bpbroker.registry.requests import (
    Ack,
    Allocate,
    Batch,
    Close,
    Holder,
    Lock,
    Lost,
    Next,
    Open,
    Release,
    Renew,
    Take,
    Unlock,
    Watch,
    Watched,
)
from bpbroker.storage import config_file
from bpbroker.storage.embedded import revisions
from bpbroker.storage.embedded.journal import journal_path
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.store import EtcdStore
from tests.support.coordination import Answer, answers, outcomes, without_session
from tests.support.etcd_cluster import PREFIX, EtcdCluster, needs_etcd
from tests.support.extent import examples

if TYPE_CHECKING:
    pass

BROKERS = st.integers(0, 1)
SESSIONS = st.sampled_from(["s1", "s2", "s3"])
NAMES = st.sampled_from(["a", "b", "c"])
LOCKS = st.sampled_from(["l", "m"])
OWNERS = st.sampled_from(["o1", "o2", "o3"])
OTHERS = frozenset({"pool", "count", "rest"})
"""Entries whose values the specification does not have."""
STEP_SECS = 0.4
"""Of the clock; below what the registry takes for a time in which it heard nobody."""
YEAR_SECS = 366 * 86_400


class Clock:
    """Takes the place of the module ``time`` in the registry."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.wall = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.passed

    def time(self) -> float:
        return time.time() + self.passed + self.wall

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


class Machine(RuleBasedStateMachine):
    """What both stores have in common."""

    ttls: Mapping[str, float]
    """Session to its ttl in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Mapping[str, Any] = {}
        self.addresses: list[base.ActorAddress] = []
        self.revision = 0
        self.values = itertools.count(1)
        self.tokens: dict[str, list[int]] = {"l": [], "m": []}
        self.cursor: str | None = None
        self.told = 0
        """The revision of the last event."""
        self.followed: dict[str, Any] = {}
        """The entries as the watch has told them."""

    def ask(self, broker: int, message: Any) -> Any:
        return base.wait_for(self.addresses[broker % len(self.addresses)].ask(message, 20), 20)

    def call(self, broker: int, kind: str, message: Any, args: Mapping[str, Any]) -> Any:
        """Ask, and hold the answer against the specification; return the reply."""
        reply: Any = None
        try:
            reply = self.ask(broker, message)
            status, revision = 200, getattr(reply, "revision", 0)
        except RequestError as error:
            status, revision = error.status, 0
        answer = (status, self.shown(kind, reply) if status == 200 else None)
        self.take(kind, args, answer)
        if status == 200 and kind in ("Replace", "Register"):
            assert revision > self.revision, "a revision that is not higher than all before"
            self.revision = revision
        return reply

    def take(self, kind: str, args: Mapping[str, Any], answer: Answer) -> None:
        following = list(outcomes(self.state, kind, args, answer))
        assert following, f"{kind} {args}: {answer}, not one of {answers(self.state, kind, args)} at {self.state}"
        (self.state,) = following

    @staticmethod
    def shown(kind: str, reply: Any) -> Any:
        if kind in ("Get", "Take"):
            return json.loads(reply.json)["v"]
        if kind == "Lock":
            return reply.data["token"]
        if kind == "Holder":
            holder = next(iter(reply.data["holders"]), None)
            return None if holder is None else (holder["session"], holder["token"])
        if kind in ("Allocate", "Next"):
            return reply.data["number"]
        if kind == "Together":
            return tuple(json.loads(each.json)["v"] for each in reply.results)
        return None

    # --- what clients do ---

    @rule(broker=BROKERS, session=SESSIONS)
    def open(self, broker: int, session: str) -> None:
        self.call(broker, "Open", Open(session, self.ttls[session], "i"), {"session": session})
        self.renewed(session)

    @rule(broker=BROKERS, session=SESSIONS)
    def renew(self, broker: int, session: str) -> None:
        self.call(broker, "Renew", Renew(session), {"session": session})
        self.renewed(session)

    def renewed(self, session: str) -> None:
        """Hear that a session, if it lives, lives on from now."""

    @rule(broker=BROKERS, session=SESSIONS)
    def close(self, broker: int, session: str) -> None:
        self.call(broker, "Close", Close(session), {"session": session})

    @rule(broker=BROKERS, name=NAMES, session=st.none() | SESSIONS, kind=st.sampled_from([Register, Replace]))
    def write(self, broker: int, name: str, session: str | None, kind: Any) -> None:
        value = next(self.values)
        args = {"name": name, "value": value, **({"session": session} if session else {})}
        self.call(broker, kind.__name__, kind(name, {"v": value}, "i", session=session), args)

    @rule(broker=BROKERS, name=NAMES, lock=LOCKS, which=st.integers(0, 3))
    def write_fenced(self, broker: int, name: str, lock: str, which: int) -> None:
        if self.tokens[lock]:
            token, value = self.tokens[lock][-1 - which % len(self.tokens[lock])], next(self.values)
            message = Replace(name, {"v": value}, "i", Condition(lock=(lock, token)))
            self.call(broker, "Replace", message, {"name": name, "value": value, "lock": f"{lock}:{token}"})

    @rule(broker=BROKERS, name=NAMES)
    def delete(self, broker: int, name: str) -> None:
        self.call(broker, "Delete", Delete(name), {"name": name})

    @rule(broker=BROKERS, name=NAMES)
    def get(self, broker: int, name: str) -> None:
        self.call(broker, "Get", Get(name), {"name": name})

    @rule(broker=BROKERS, name=LOCKS, session=SESSIONS)
    def lock(self, broker: int, name: str, session: str) -> None:
        reply = self.call(broker, "Lock", Lock(name, session, "i"), {"name": name, "session": session})
        if reply is not None and reply.data["token"] not in self.tokens[name]:
            self.tokens[name].append(reply.data["token"])

    @rule(broker=BROKERS, name=LOCKS, session=SESSIONS)
    def unlock(self, broker: int, name: str, session: str) -> None:
        self.call(broker, "Unlock", Unlock(name, session), {"name": name, "session": session})

    @rule(broker=BROKERS, name=LOCKS)
    def holder(self, broker: int, name: str) -> None:
        self.call(broker, "Holder", Holder(name), {"name": name})

    @rule(broker=BROKERS, name=LOCKS, first=SESSIONS, second=SESSIONS)
    def wait_for_lock(self, broker: int, name: str, first: str, second: str) -> None:
        """Who waits on one broker gets what is given back on another one."""
        held = self.state.get(f"lock/{name}", ())
        alive = all(f"session/{session}" in self.state for session in (first, second))
        if first == second or not alive or (held and held[0][0] != first):
            return
        self.lock(broker, name, first)
        waiting = self.addresses[broker % len(self.addresses)].ask(Lock(name, second, "i", wait_secs=20.0), 30)
        self.ask(broker, Exists("none"))
        self.unlock(broker + 1, name, first)
        token = waiting.result(30).data["token"]
        self.take("Lock", {"name": name, "session": second}, (200, token))
        self.tokens[name].append(token)

    @rule(broker=BROKERS, owner=OWNERS, free=st.booleans())
    def number(self, broker: int, owner: str, free: bool) -> None:
        args = {"pool": "pool", "owner": owner, "from": 1, "to": 2}
        if free:
            self.call(broker, "Release", Release("pool", owner, "i"), args)
        else:
            self.call(broker, "Allocate", Allocate("pool", owner, "i", 1, 2), args)

    @rule(broker=BROKERS, owner=st.sampled_from(["", "o1", "o2"]))
    def count(self, broker: int, owner: str) -> None:
        self.call(broker, "Next", Next("count", "i", 1, owner), {"name": "count", "owner": owner})

    @rule(broker=BROKERS, name=NAMES, receiver=st.sampled_from(["r1", "r2"]), kind=st.sampled_from([Take, Ack]))
    def take_or_ack(self, broker: int, name: str, receiver: str, kind: Any) -> None:
        self.call(broker, kind.__name__, kind(name, receiver), {"name": name, "receiver": receiver})

    @rule(broker=BROKERS, names=st.lists(NAMES, min_size=1, max_size=3, unique=True), refused=st.booleans())
    def batch(self, broker: int, names: list[str], refused: bool) -> None:
        value = next(self.values)
        operations = [(Replace, name) for name in names[:-1]] + [(Register if refused else Replace, names[-1])]
        message = Batch(f"id{value}", tuple(kind(name, {"v": value}, "i") for kind, name in operations))
        args = {"operations": [(kind.__name__, {"name": name, "value": value}) for kind, name in operations]}
        self.call(broker, "Batch", message, args)
        if all(f"entry/{name}" in self.state for name in names):
            read = Batch("", tuple(Get(name) for name in names))
            self.call(broker + 1, "Together", read, {"names": tuple(names)})

    # --- what is there in the end ---

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        if not self.addresses:
            return
        stored = self.ask(0, Snapshot()).entries
        entries = {name for name in stored if not name.startswith("_")} - OTHERS
        assert entries == {key.removeprefix("entry/") for key in self.state if key.startswith("entry/")}
        for kind in ("session", "taken", "lock"):
            found = {name.partition("/")[2] for name in stored if name.startswith(f"_{kind}/")}
            wanted = {key.partition("/")[2] for key in self.state if key.startswith(f"{kind}/")}
            assert found == wanted, kind
        self.watch()

    def watch(self) -> None:
        """Follow what has changed from the cursor on; it leads to the same entries."""
        wanted = {key.removeprefix("entry/"): value[0] for key, value in self.state.items() if key[:6] == "entry/"}
        end = time.monotonic() + 30
        while True:
            try:
                watched = self.ask(0, Watch(since=self.cursor))
            except Gone as gone:  # the registry was started since: a client lists anew
                assert gone.data is not None
                watched, self.followed = Watched((), gone.data["cursor"]), dict(wanted)
            for event in watched.events:
                assert event.revision >= self.told, "a revision that is lower than one before"
                assert event.revision > int((self.cursor or ":0").rpartition(":")[2]), "told a second time"
                self.told = event.revision
                if event.record is not None:
                    self.followed[event.name] = json.loads(event.record.json).get("v")
                else:
                    # What is told of a taken entry before is nothing, so it may not be known.
                    assert event.name in self.followed or event.type == "take"
                    self.followed.pop(event.name, None)
            if self.cursor is None:
                self.followed = dict(wanted)
            self.cursor = watched.cursor
            if {name: self.followed[name] for name in self.followed if name not in OTHERS} == wanted:
                return
            # On etcd it is told a moment later.
            assert len(self.addresses) > 1, f"followed to {self.followed}, not {wanted}"
            assert time.monotonic() < end, f"followed to {self.followed}, not {wanted}"
            time.sleep(0.005)


class Embedded(Machine):
    ttls = MappingProxyType({"s1": 2.0, "s2": 5.0, "s3": 300.0})

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        for module in (ages, registry, registry_sessions, registry_waiting, revisions):
            self.patch.setattr(module, "time", self.clock)
        self.since: dict[str, float] = {}
        self.quarantined: dict[int, float] = {}
        """Number to when it may be given away again, at the earliest."""

    @property
    def file(self) -> Path:
        return self.folder / "b.json"

    @initialize()
    def begin(self) -> None:
        config_file.write(self.file, layers.DEFAULTS, {})
        self.start()

    def start(self) -> None:
        def store() -> EmbeddedStore:
            return EmbeddedStore(journal_path(self.file), lambda: config_file.read(self.file)[1])

        launched = base.launch(Registry, LocalBackend(store), layers.DEFAULTS)
        self.addresses = [base.ActorAddress("registry", launched)]
        for session in self.ttls:  # a broker that was down heard nobody
            self.renewed(session)

    def teardown(self) -> None:
        for address in self.addresses:
            assert address.stop(10)
        self.patch.undo()
        shutil.rmtree(self.folder)

    def renewed(self, session: str) -> None:
        self.since[session] = self.clock.monotonic()

    @rule(secs=st.sampled_from([0.8, 1.6, 1.6, 2.4, 5.0, 12.0]))
    def time_passes(self, secs: float) -> None:
        for _ in range(round(secs / STEP_SECS)):
            self.clock.passed += STEP_SECS
            self.addresses[0].tell(Wake())
            self.ask(0, Exists("none"))
        stored = self.ask(0, Snapshot()).entries
        now = self.clock.monotonic()
        for session, ttl_secs in self.ttls.items():
            if f"session/{session}" not in self.state:
                continue
            age = now - self.since[session]
            alive = f"_session/{session}" in stored
            assert alive or age >= ttl_secs, f"{session} ended after {age} s"
            assert not alive or age <= 2 * ttl_secs + STEP_SECS, f"{session} lives after {age} s"
            if not alive:
                mine = [key for key, value in self.state.items() if key.startswith("entry/") and value[1] == session]
                self.state = without_session(self.state, session)
                lost = {record.name: json.loads(record.json)["session"] for record in self.ask(0, Lost())}
                assert {key.removeprefix("entry/"): session for key in mine}.items() <= lost.items()

    @rule(years=st.sampled_from([10, -10, 1, -1]))
    def clock_is_set(self, years: int) -> None:
        self.clock.wall += years * YEAR_SECS
        if abs(self.clock.wall) > 20 * YEAR_SECS:
            self.clock.wall = 0.0

    @rule(owner=OWNERS)
    def number_rests(self, owner: str) -> None:
        """A pool of its own; what was given back with a rest is given to no other owner meanwhile."""
        now = self.clock.monotonic()
        number = self.ask(0, Allocate("rest", owner, "i")).data["number"]
        assert self.quarantined.get(number, 0.0) <= now
        self.ask(0, Release("rest", owner, "i", 10.0))
        self.quarantined[number] = self.clock.monotonic() + 10.0

    @rule(told=st.booleans())
    def save(self, told: bool) -> None:
        taken = self.ask(0, Snapshot())
        config_file.write(self.file, layers.DEFAULTS, taken.entries)
        if told:
            self.ask(0, SnapshotSaved(taken.sequence))

    @rule()
    def stop_and_start(self) -> None:
        assert self.addresses[0].stop(10)
        self.start()

    @rule()
    def kill_and_start(self) -> None:
        """A copy of the files as they are is what a kill would leave."""
        folder = Path(tempfile.mkdtemp())
        for path in self.folder.iterdir():
            if not path.name.endswith("-shm"):
                shutil.copy(path, folder)
        assert self.addresses[0].stop(10)
        shutil.rmtree(self.folder)
        self.folder = folder
        self.start()


TestEmbedded = Embedded.TestCase
TestEmbedded.settings = settings(max_examples=examples(25), stateful_step_count=40, deadline=None)


# --- on etcd ---

_cluster: list[EtcdCluster] = []
_registries = itertools.count()
_LEASED = MappingProxyType({"s1": 300.0, "s2": 301.0, "s3": 302.0})


class Shared(Machine):
    """Two registries; each call goes to one of them."""

    ttls = _LEASED

    def __init__(self) -> None:
        super().__init__()
        self.section = _cluster[0].configuration(f"{PREFIX}coordination{next(_registries)}")
        self.stores: list[EtcdStore] = []

    @initialize()
    def begin(self) -> None:
        self.addresses = [self.start(), self.start()]

    def start(self) -> base.ActorAddress:
        def store() -> EtcdStore:
            self.stores.append(EtcdStore(EtcdOptions.of({"_registry": self.section})))
            return self.stores[-1]

        return base.ActorAddress("registry", base.launch(Registry, SharedBackend(store), layers.DEFAULTS))

    def teardown(self) -> None:
        for address in self.addresses:
            assert address.stop(10)

    @rule(session=SESSIONS)
    def lease_runs_out(self, session: str) -> None:
        """What etcd's clock does, at once."""
        if f"session/{session}" not in self.state:
            return
        lease = self.stores[0]._lease(session, int(self.ttls[session]))
        _cluster[0].etcdctl("lease", "revoke", f"{int(lease):x}")
        mine = [key for key, value in self.state.items() if key.startswith("entry/") and value[1] == session]
        before, self.state = self.state, without_session(self.state, session)
        end = time.monotonic() + 30
        while any(key.removeprefix("entry/") in self.ask(0, Snapshot()).entries for key in mine) or (
            any(session in str(before[key]) and session in self.places(key) for key in before if key[:5] == "lock/")
        ):
            assert time.monotonic() < end, "what the session had is still there"
            time.sleep(0.02)
        lost = {record.name: json.loads(record.json)["session"] for record in self.ask(0, Lost())}
        assert {key.removeprefix("entry/"): session for key in mine}.items() <= lost.items()

    def places(self, key: str) -> str:
        return str(self.ask(0, Snapshot()).entries.get(f"_{key}", b""))

    @rule(broker=BROKERS)
    def restart(self, broker: int) -> None:
        assert self.addresses[broker].stop(10)
        self.addresses[broker] = self.start()


@needs_etcd
def test_two_registries_on_etcd(etcd: EtcdCluster) -> None:
    _cluster[:] = [etcd]
    run_state_machine_as_test(
        Shared, settings=settings(max_examples=examples(8), stateful_step_count=30, deadline=None)
    )

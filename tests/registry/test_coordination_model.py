"""Sessions, locks, numbers and taking next to a model: several writes share a commit, and some commits fail."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bpbroker.errors import RequestError
from bpbroker.messages import Delete, Register, Replace
from bpbroker.record import INDEX_MAX
from bpbroker.registry import locks
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.requests import Ack, Allocate, Close, Expire, Lock, Open, Release, Take, Unlock
from bpbroker.registry.view import Limits
from tests.support.extent import examples

SESSIONS = st.sampled_from(["s1", "s2", "s3", "s4", "s5"])
NAMES = st.sampled_from(["a", "b", "c"])
LOCKS = st.sampled_from(["l", "m"])


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.memory = Memory()
        self.revision = 2 * INDEX_MAX
        self.pending: list[tuple[PendingWrite, Any]] = []
        self.tokens: dict[str, set[int]] = {"l": set(), "m": set()}
        """Every token that a durable state of a lock had."""
        self.places: dict[tuple[str, str], int] = {}
        self.receivers: dict[str, str] = {}
        self.numbers: dict[str, int] = {}

    @initialize(near=st.sampled_from([1, 1, 2, 8]))
    def begin(self, near: int) -> None:
        """With a few places in the lock's own record the others have records of their own."""
        self.patch.setattr(locks, "NEAR", near)
        for session in ("s1", "s2", "s3", "s4", "s5"):
            self.write(Open(session, 10, "i"))

    def teardown(self) -> None:
        self.patch.undo()

    def write(self, message: Any) -> PendingWrite:
        write = PendingWrite(message, None)
        self.memory.decide(write, 1000.0, Limits())
        self.pending.append((write, message))
        return write

    @rule(session=SESSIONS)
    def open(self, session: str) -> None:
        self.write(Open(session, 10, "i"))

    @rule(session=SESSIONS, kind=st.sampled_from([Close, Expire]))
    def end(self, session: str, kind: Any) -> None:
        self.write(kind(session))

    @rule(name=NAMES, session=st.none() | SESSIONS, kind=st.sampled_from([Register, Replace]))
    def put(self, name: str, session: str | None, kind: Any) -> None:
        self.write(kind(name, {"x": 1}, "i", session=session))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.write(Delete(name))

    @rule(name=LOCKS, session=SESSIONS, wait=st.sampled_from([0.0, 5.0, 5.0]))
    def lock(self, name: str, session: str, wait: float) -> None:
        self.write(Lock(name, session, "i", wait_secs=wait))

    @rule(name=LOCKS, session=SESSIONS)
    def unlock(self, name: str, session: str) -> None:
        self.write(Unlock(name, session))

    @rule(name=NAMES, receiver=st.sampled_from(["r1", "r2"]), kind=st.sampled_from([Take, Ack]))
    def take(self, name: str, receiver: str, kind: Any) -> None:
        self.write(kind(name, receiver))

    @rule(owner=st.sampled_from(["o1", "o2", "o3"]), free=st.booleans())
    def number(self, owner: str, free: bool) -> None:
        self.write(Release("pool", owner, "i") if free else Allocate("pool", owner, "i", 1, 2))

    @rule()
    def fail(self) -> None:
        """The commit fails: nothing of it ever was."""
        self.memory.take_batch()
        self.pending.clear()

    @rule()
    def commit(self) -> None:
        batch = self.memory.take_batch()
        base = self.revision + 1
        for name, after in batch.staged.items():
            self.memory.put(name, after.at(base) if after is not None else None)
            self.revision = max(self.revision, base + batch.indexes[name])
        pending, self.pending = self.pending, []
        taken: dict[str, str] = {}
        for write, message in pending:
            refused = isinstance(write.decision, RequestError)
            if isinstance(message, Allocate) and not refused:
                self.numbers[message.owner] = write.decision.data["number"]
            elif isinstance(message, Release):
                self.numbers.pop(message.owner, None)
            elif isinstance(message, Take) and not refused:
                # Until it is acknowledged, deleted or made anew, one receiver alone gets it.
                assert taken.setdefault(message.name, message.receiver) == message.receiver
            elif isinstance(message, (Ack, Delete)):
                taken.pop(message.name, None)
        for name, seen in self.tokens.items():
            places = self.queue(name)
            tokens = [place.token for place in places]
            assert tokens == sorted(set(tokens))
            for place in places:
                assert place.token >= INDEX_MAX
                known = self.places.get((name, place.session))
                assert place.token == known or place.token > max(seen, default=0)
                self.places[name, place.session] = place.token
            there = {place.session for place in places}
            self.places = {key: token for key, token in self.places.items() if key[0] != name or key[1] in there}
            seen |= {token for key, token in self.places.items() if key[0] == name}

    def queue(self, name: str) -> list[locks.Place]:
        """Return the places in a lock's queue, those with records of their own too."""
        queue = locks.parse(self.memory.get(f"_lock/{name}"))
        far = list(locks.far_places(name, queue, self.memory.get))
        assert len(far) == (queue.far.count if queue.far is not None else 0)
        assert len(list(self.memory.names(f"{locks.FAR}{name}/"))) == len(far)
        assert not far or len(queue.places) > queue.limit
        return [*queue.places, *far]

    @invariant()
    def nothing_is_left_of_a_session_that_is_over(self) -> None:
        alive = {name.removeprefix("_session/") for name in self.memory.names("_session/")}
        for record in self.memory.entries.matching(""):
            assert not record.session or record.session in alive, record
        for record in self.memory.own.matching("_lock/"):
            assert {place.session for place in locks.parse(record).places} <= alive
        assert set(self.memory.belongings) <= alive

    @invariant()
    def sessions_are_counted(self) -> None:
        assert self.memory.sessions == len(list(self.memory.names("_session/")))

    @invariant()
    def what_was_taken_is_no_entry(self) -> None:
        for name in self.memory.names("_taken/"):
            assert self.memory.get(name.removeprefix("_taken/")) is None

    @invariant()
    def each_owner_has_a_number_of_its_own(self) -> None:
        if not self.pending:
            assert len(set(self.numbers.values())) == len(self.numbers)


TestCoordination = Machine.TestCase
TestCoordination.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)

"""How many names the operations of a batch have, where the store limits the size of a commit."""

from __future__ import annotations

import pytest

from bpbroker.messages import Condition, Delete, Register, Replace, Update
from bpbroker.record import Record
from bpbroker.registry import locks
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.requests import Ack, Allocate, Batch, Check, Done, Next, Release, Take
from bpbroker.registry.room import NAMES_OF_OPERATION
from bpbroker.registry.view import Limits

HELD = Condition(lock=("l", 8000))
OPERATIONS = (
    *(kind("n", {}, "i", HELD, "s") for kind in (Register, Replace, Update)),
    Delete("n", HELD),
    Check("n", HELD),
    Allocate("n", "o", "i", condition=HELD),
    Release("n", "o", "i", 5.0, condition=HELD),
    Next("n", "i", owner="o", condition=HELD),
    Take("n", "r", HELD),
    Ack("n", "r", HELD),
)


def memory_with(there: dict[str, bytes]) -> Memory:
    """Return the memory of a shared registry that has a lock, and these records."""
    memory = Memory()
    memory.version = lambda name: 1 if memory.get(name) is not None else 0
    queue = locks.Queue(1, (locks.Place("h", 8000, 1, None, "b"),))
    known = {"_session/s": b'{"nonce": "a"}', "_session/h": b'{"nonce": "b"}', "_lock/l": locks.encode(queue, 0)}
    for name, value in {**known, **there}.items():
        memory.put(name, Record(name, value, 9000))
    return memory


def test_the_names_of_an_operation_are_counted() -> None:
    """With a lock, a session and an owner, whatever is there already."""
    most = 0
    for there in (
        {},
        {"n": b'{"value": 1}'},
        {"n": b'{"o": 1}', "_pool/n": b'{"7": {"secs": 5, "of": "z", "when": 1}}'},
        {"_taken/n": b'{"receiver": "r", "entry": {}, "when": 1}', "_counters/n": b'{"life": 1}'},
    ):
        for operation in OPERATIONS:
            write = PendingWrite(Batch("", (operation,)), None)
            memory_with(there).decide(write, 0.0, Limits(ended_in_parts=True))
            assert len(write.names) <= NAMES_OF_OPERATION, (operation, write.names)
            most = max(most, len(write.names))
    assert most == NAMES_OF_OPERATION


@pytest.mark.parametrize("kind", [Register, Replace])
def test_a_session_that_holds_many_locks_is_compared_once(kind: type[Register | Replace]) -> None:
    held = {
        f"_lock/l{number}": locks.encode(locks.Queue(1, (locks.Place("h", 8000 + number, 1, None, "b"),)), 0)
        for number in range(20)
    }
    operations = tuple(kind(f"n{n}", {}, "i", Condition(lock=(f"l{n}", 8000 + n))) for n in range(20))
    write = PendingWrite(Batch("", operations), None)
    memory = memory_with(held)
    memory.decide(write, 0.0, Limits(ended_in_parts=True))
    (group,) = memory.take_batch().groups()
    compared = [name for name, _ in group.compared]
    assert compared.count("_session/h") == 1
    assert len(compared) == len({*compared}) == 41  # what was taken, the locks, the session
    assert isinstance(write.decision.results[0], (Record, Done))

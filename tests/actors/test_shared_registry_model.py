"""L12 beyond one machine: two registries on one real etcd cluster, asked in turn, and a dict, side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bpbroker.actors import base
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_shared import SharedBackend
from bpbroker.config import layers
from bpbroker.errors import NotFound
from bpbroker.messages import Delete, Deleted, Exists, Get, List, Register, Replace, Snapshot, Update
from bpbroker.registry import entry_values
from bpbroker.registry.stored import split
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.store import EtcdStore
from tests.actors.test_registry_model import CONDITIONS, DATA, NAMES, Model, condition
from tests.support.etcd_cluster import PREFIX, needs_etcd
from tests.support.extent import examples

if TYPE_CHECKING:
    from tests.support.etcd_cluster import EtcdCluster

pytestmark = needs_etcd

BROKERS = st.integers(0, 1)
KINDS = st.sampled_from([Register, Replace, Update, Delete])

_cluster: list[EtcdCluster] = []
_registries = itertools.count()


@pytest.fixture(autouse=True, scope="module")
def cluster(etcd: EtcdCluster) -> Iterator[None]:
    _cluster.append(etcd)
    yield
    _cluster.clear()


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.section = _cluster[0].configuration(f"{PREFIX}model{next(_registries)}")
        self.model = Model()
        self.tags: dict[str, str] = {}
        self.addresses: list[base.ActorAddress] = []

    def start(self) -> base.ActorAddress:
        options = EtcdOptions.of({"_registry": self.section})
        launched = base.launch(Registry, SharedBackend(lambda: EtcdStore(options)), layers.DEFAULTS)
        return base.ActorAddress("registry", launched)

    @initialize()
    def begin(self) -> None:
        self.addresses = [self.start(), self.start()]

    def teardown(self) -> None:
        for address in self.addresses:
            assert address.stop(10)

    def ask(self, broker: int, message: Any) -> Any:
        return base.wait_for(self.addresses[broker].ask(message, 10), 10)

    @rule(
        broker=BROKERS, kind=st.sampled_from([Register, Replace, Update, Delete]), name=NAMES, data=DATA, on=CONDITIONS
    )
    def write(self, broker: int, kind: type[Any], name: str, data: Mapping[str, Any], on: str) -> None:
        wanted, holds = condition(on, name in self.model.entries, self.tags.get(name, '"none yet"'))
        message = Delete(name, wanted) if kind is Delete else kind(name, data, "10.0.0.1", wanted)
        expected = self.model.apply(message, holds)
        reply = self.addresses[broker].ask(message, 10)
        error = reply.exception(10)
        if isinstance(expected, type):
            assert isinstance(error, expected), (name, expected, error)
            return
        assert error is None
        if expected is None:
            assert isinstance(reply.result(), Deleted)
            self.tags.pop(name, None)
        else:
            self.tags[name] = reply.result().etag

    @rule(broker=BROKERS, name=NAMES)
    def get(self, broker: int, name: str) -> None:
        try:
            record = self.ask(broker, Get(name))
        except NotFound:
            assert name not in self.model.entries
        else:
            assert entry_values.without_stamp(json.loads(record.json)) == self.model.entries[name]
            assert record.etag == self.tags[name]
        assert bool(self.ask(broker, Exists(name))) is (name in self.model.entries)  # it has just been looked at

    @rule(broker=BROKERS, name=NAMES)
    def wait(self, broker: int, name: str) -> None:
        """Who waits on one broker for what the other one changes."""
        waiting = self.addresses[broker].ask(Get(name, 10.0, self.tags.get(name)), 20)
        self.write(1 - broker, Replace, name, {"new": self.tags.get(name, "")}, "none")
        assert waiting.result(20).etag == self.tags[name]

    @rule(broker=BROKERS, prefix=st.sampled_from(["", "a", "ab", "c", "node-"]))
    def list_names(self, broker: int, prefix: str) -> None:
        names = [record.name for record in self.ask(broker, List(prefix))]
        assert names == sorted(name for name in self.model.entries if name.startswith(prefix))

    @rule(broker=BROKERS)
    def restart(self, broker: int) -> None:
        assert self.addresses[broker].stop(10)
        self.addresses[broker] = self.start()

    @invariant()
    def same_state(self) -> None:
        if self.addresses:
            found = [split(name, stored) for name, stored in self.ask(0, Snapshot()).entries.items()]
            assert {
                each.name: entry_values.without_stamp(json.loads(each.json)) for each in found
            } == self.model.entries
            assert {each.name: each.etag for each in found} == self.tags


TestSharedRegistry = Machine.TestCase
TestSharedRegistry.settings = settings(max_examples=examples(15), stateful_step_count=20, deadline=None)

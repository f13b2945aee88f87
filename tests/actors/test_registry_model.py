"""L12 at the actor: a registry on a real journal and a dict, side by side; killed, saved and restarted in between."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bpbroker.actors import base
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.config import layers
from bpbroker.errors import AlreadyExists, NotFound, PreconditionFailed, RequestError
from bpbroker.messages import (
    Condition,
    Delete,
    Deleted,
    Exists,
    Get,
    List,
    Register,
    Replace,
    Snapshot,
    SnapshotSaved,
    Update,
)
from bpbroker.registry import entry_values
from bpbroker.storage import config_file
from bpbroker.storage.embedded.journal import journal_path
from bpbroker.storage.embedded.store import EmbeddedStore
from tests.support.extent import examples

NAMES = st.sampled_from(["a", "ab", "abc", "b", "ä", "node-1"])
DATA = st.dictionaries(st.sampled_from("xyz"), st.recursive(
    st.integers() | st.text(max_size=3) | st.none(), lambda inner: st.dictionaries(st.sampled_from("xy"), inner)
), max_size=3)  # fmt: skip
CONDITIONS = st.sampled_from(["none", "exists", "absent", "same", "other", "not same"])


class Model:
    """What the registry should do, in a few lines: values are own keys only."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}

    def apply(
        self, message: Register | Replace | Update | Delete, holds: bool
    ) -> dict[str, Any] | type[RequestError] | None:
        name = message.name
        if not holds:
            return PreconditionFailed
        if isinstance(message, Delete):
            self.entries.pop(name, None)
            return None
        if isinstance(message, Register) and name in self.entries:
            return AlreadyExists
        data = dict(message.data)
        self.entries[name] = self._merged(self.entries.get(name, {}), data) if isinstance(message, Update) else data
        return self.entries[name]

    def _merged(self, old: Any, new: Any) -> Any:
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return new
        return {key: self._merged(old.get(key), new[key]) if key in new else old[key] for key in (*old, *new)}


def condition(kind: str, there: bool, tag: str) -> tuple[Condition, bool]:
    """Return a condition of some kind on an entry that is there or not, and whether it holds."""
    return {
        "none": (Condition(), True),
        "exists": (Condition(match=("*",)), there),
        "absent": (Condition(none_match=("*",)), not there),
        "same": (Condition(match=('"x"', tag)), there),
        "other": (Condition(match=('"x"',)), False),
        "not same": (Condition(none_match=(tag,)), not there),
    }[kind]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.file = self.folder / "b.json"
        self.model = Model()
        self.tags: dict[str, str] = {}

    @initialize()
    def begin(self) -> None:
        config_file.write(self.file, layers.DEFAULTS, {})
        self.start()

    def start(self) -> None:
        self.address = base.ActorAddress("registry", base.launch(Registry, LocalBackend(self.store), layers.DEFAULTS))

    def store(self) -> EmbeddedStore:
        return EmbeddedStore(journal_path(self.file), lambda: config_file.read(self.file)[1])

    def teardown(self) -> None:
        if hasattr(self, "address"):
            assert self.address.stop(10)
        shutil.rmtree(self.folder)

    def ask(self, message: Any) -> Any:
        return base.wait_for(self.address.ask(message, 10), 10)

    @rule(
        writes=st.lists(
            st.tuples(st.sampled_from([Register, Replace, Update, Delete]), NAMES, DATA, CONDITIONS),
            min_size=1,
            max_size=8,
        )
    )
    def write(self, writes: list[tuple[type[Any], str, Mapping[str, Any], str]]) -> None:
        """Several at once: they are decided in order, whatever batches they fall into."""
        replies = []
        for kind, name, data, conditional in writes:
            # A tag is known only of what was answered; within a burst the others are used.
            if conditional in ("same", "not same") and len(writes) > 1:
                conditional = "none"  # noqa: PLW2901 - the loop's own
            wanted, holds = condition(conditional, name in self.model.entries, self.tags.get(name, '"none yet"'))
            message = Delete(name, wanted) if kind is Delete else kind(name, data, "10.0.0.1", wanted)
            replies.append((name, self.address.ask(message, 10), self.model.apply(message, holds)))
        for name, reply, expected in replies:
            error = reply.exception(10)
            if isinstance(expected, type):
                assert isinstance(error, expected), (name, expected, error)
                continue
            assert error is None
            if expected is None:
                assert isinstance(reply.result(), Deleted)
                self.tags.pop(name, None)
            else:
                record = reply.result()
                assert entry_values.without_stamp(json.loads(record.json)) is not None
                self.tags[name] = record.etag

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        assert bool(self.ask(Exists(name))) is (name in self.model.entries)
        try:
            record = self.ask(Get(name))
        except NotFound:
            assert name not in self.model.entries
        else:
            assert entry_values.without_stamp(json.loads(record.json)) == self.model.entries[name]
            assert record.etag == self.tags[name]

    @rule(prefix=st.sampled_from(["", "a", "ab", "c", "node-"]))
    def list_names(self, prefix: str) -> None:
        names = [record.name for record in self.ask(List(prefix))]
        assert names == sorted(name for name in self.model.entries if name.startswith(prefix))

    @rule(told=st.booleans())
    def save(self, told: bool) -> None:
        """The config store's part; it may be killed before it tells the registry."""
        taken = self.ask(Snapshot())
        config_file.write(self.file, layers.DEFAULTS, taken.entries)
        if told:
            self.ask(SnapshotSaved(taken.sequence))

    @rule()
    def stop_and_start(self) -> None:
        assert self.address.stop(10)
        self.start()

    @rule()
    def crash_and_start(self) -> None:
        """A copy of the files as they are is what a kill would leave."""
        before = self.address
        folder = Path(tempfile.mkdtemp())
        for path in self.folder.iterdir():
            if not path.name.endswith("-shm"):
                shutil.copy(path, folder)
        assert before.stop(10)
        shutil.rmtree(self.folder)
        self.folder, self.file = folder, folder / "b.json"
        self.start()

    @invariant()
    def same_names(self) -> None:
        if hasattr(self, "address"):
            found = {record.name: json.loads(record.json) for record in self.ask(List())}
            assert {name: entry_values.without_stamp(value) for name, value in found.items()} == self.model.entries


TestRegistry = Machine.TestCase
TestRegistry.settings = settings(max_examples=examples(40), stateful_step_count=30, deadline=None)

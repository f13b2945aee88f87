"""Actors that died or are stuck and were replaced: what they leave behind does not add up."""

from __future__ import annotations

import gc
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bpbroker.actors.backup import Backup
from bpbroker.actors.base import ActorAddress, _actors, launch, wait_for
from bpbroker.actors.config_store import ConfigStore
from bpbroker.actors.discovery import Discovery, bind_udp
from bpbroker.actors.extension import Extension
from bpbroker.actors.inbox import Envelope
from bpbroker.actors.ownership import Owned
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.actors.registry_shared import SharedBackend
from bpbroker.config import layers
from bpbroker.errors import Unavailable
from bpbroker.frontend.extension_calls import understand
from bpbroker.messages import BackupNow, Call, Get, List, Ping, Register, Save
from bpbroker.registry.requests import Lock, Open, Watch
from bpbroker.storage.embedded.journal import journal_path
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.store import EtcdStore
from bpbroker.storage.sources import Sources
from tests.support.etcd_cluster import needs_etcd
from tests.support.witness import eventually

TIMES = 4
IP = "10.0.0.1"
Factory = Callable[[], Any]


class _Hold:
    """The message that holds an actor."""


class _Fault:
    """Looks like an envelope, and is not to be opened: the actor's thread ends as after a fault."""

    reply_to = None

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        """The thread that it ends."""

    @property
    def message(self) -> NoReturn:
        self.threads.append(threading.current_thread())
        raise RuntimeError("sabotage")


class Part:
    """A part of the broker that is harmed and replaced, as the healthcheck does it."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.address = ActorAddress("part", factory())
        self.released = threading.Event()
        self.stuck: list[threading.Thread] = []
        """The threads of actors that are held."""

    def replace(self, harm: str) -> None:
        """Harm the actor and put a fresh one in its place."""
        assert self.address._ref is not None
        actor = _actors[self.address._ref.actor_urn]
        if harm == "dies":
            fault = _Fault()
            actor.actor_inbox._queue.put(fault)
            assert actor.actor_stopped.wait(30)
            # SQLite closes nothing while another connection is open, and keeps a few descriptors for the next one. So
            # this store closes its own before the next one opens its.
            for thread in fault.threads:
                thread.join(30)
                assert not thread.is_alive()
        else:
            begun = threading.Event()

            def hold(_: _Hold) -> None:
                self.stuck.append(threading.current_thread())
                begun.set()
                self.released.wait(60)

            actor.handlers[_Hold] = hold
            actor.actor_ref.tell(Envelope(_Hold()))
            assert begun.wait(30)
        self.address.abandon()
        self.address.replace(self.factory())
        self(Ping())

    def __call__(self, message: Any) -> Any:
        return wait_for(self.address.ask(message, 30), 30)


@pytest.fixture
def make() -> Iterator[Callable[[Factory], Part]]:
    """Makes parts; they, and whatever is stuck in them, end after the test."""
    with ExitStack() as after:

        def make(factory: Factory) -> Part:
            part = Part(factory)
            after.callback(part.address.stop, 30)
            after.callback(part.released.set)
            return part

        yield make


def threads(but: list[threading.Thread]) -> Counter[str]:
    return Counter(thread.name.partition("-")[0] for thread in threading.enumerate() if thread not in but)


def descriptors() -> int:
    gc.collect()  # what a thread that has ended had opened is closed with it
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def check(
    part: Part, harm: str, use: Callable[[], object] = lambda: None, files_of_stuck: int = 0, files_of_closed: int = 0
) -> None:
    """Replace the part again and again.

    A stuck thread keeps ``files_of_stuck``, which only it can close, and ``files_of_closed`` of them stay open then.
    """
    use()
    part.replace(harm)
    use()
    before, had, stuck = threads(part.stuck), descriptors(), len(part.stuck)
    for _ in range(TIMES):
        part.replace(harm)
        use()
    eventually(lambda: threads(part.stuck) <= before)  # those of an earlier test may have ended meanwhile
    eventually(lambda: descriptors() <= had + (len(part.stuck) - stuck) * files_of_stuck)
    part.released.set()
    for thread in part.stuck:
        thread.join(30)
        assert not thread.is_alive()
    eventually(lambda: threads([]) <= before and descriptors() <= had + len(part.stuck) * files_of_closed)


dies_or_hangs = pytest.mark.parametrize("harm", ["dies", "hangs"])
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")


@needs_etcd
@dies_or_hangs
def test_a_registry_on_etcd(make: Callable[[Factory], Part], etcd_section: dict[str, Any], harm: str) -> None:
    options, names = EtcdOptions.of({"_registry": etcd_section}), iter(range(100))
    part = make(lambda: launch(Registry, SharedBackend(lambda: EtcdStore(options)), layers.freeze(layers.DEFAULTS)))

    def use() -> None:
        name = f"name-{next(names)}"
        part(Register(name, {}, IP))
        part(Get(name))

    check(part, harm, use)


@dies_or_hangs
def test_an_embedded_registry(make: Callable[[Factory], Part], tmp_path: Path, harm: str) -> None:
    (tmp_path / "b.json").write_text("{}")
    journal, names = tmp_path / "b.json.journal", iter(range(100))
    backend = partial(LocalBackend, lambda: EmbeddedStore(journal, dict))
    part = make(lambda: launch(Registry, backend(), layers.freeze(layers.DEFAULTS)))
    # SQLite closes no descriptor of a file while another connection to it is open: its locks would go with it. It
    # takes the descriptor for the next connection.
    check(part, harm, lambda: part(Register(f"name-{next(names)}", {}, IP)), 4, files_of_closed=1)


@dies_or_hangs
def test_discovery_on_a_quiet_network(make: Callable[[Factory], Part], harm: str) -> None:
    sockets = bind_udp("127.0.0.1", 0)
    try:
        registry = ActorAddress("registry")
        part = make(lambda: launch(Discovery, sockets, registry, layers.freeze(layers.DEFAULTS), "ab" * 32))
        check(part, harm)
    finally:
        part.released.set()
        part.address.stop(30)
        for sock in sockets:
            sock.close()


@pytest.mark.program
@dies_or_hangs
def test_an_extension(make: Callable[[Factory], Part], tmp_path: Path, harm: str) -> None:
    (tmp_path / "demo.py").write_text("def Hello(rh):\n    rh.data = 'hello'\n")
    settings = layers.freeze({**layers.DEFAULTS, "demo": {}})
    registry = ActorAddress("registry")
    part = make(lambda: launch(Extension, "demo", tmp_path, settings, registry, understand))
    check(part, harm, lambda: part(Call("Hello", {}, IP, "id")), files_of_stuck=4)


@dies_or_hangs
def test_a_config_store_and_a_backup(make: Callable[[Factory], Part], tmp_path: Path, harm: str) -> None:
    path = tmp_path / "b.json"
    path.write_text("{}")
    settings = layers.freeze(layers.DEFAULTS)
    registry = make(lambda: launch(Registry, LocalBackend(lambda: EmbeddedStore(journal_path(path), dict)), settings))
    sources = Sources(path)
    owned, folder = Owned(sources.load()), Owned(None)
    store = make(lambda: launch(ConfigStore, sources, owned, registry.address))
    backup = make(lambda: launch(Backup, path, folder, store.address, settings))
    check(store, harm, lambda: store(Save()))
    check(backup, harm, lambda: backup(BackupNow()))


@dies_or_hangs
def test_calls_that_wait_are_told_at_once_that_the_registry_is_replaced(
    make: Callable[[Factory], Part], tmp_path: Path, harm: str
) -> None:
    (tmp_path / "b.json").write_text("{}")
    journal = tmp_path / "b.json.journal"
    settings = layers.freeze(layers.DEFAULTS)
    part = make(lambda: launch(Registry, LocalBackend(lambda: EmbeddedStore(journal, dict)), settings))
    part(Open("s1", 60, IP))
    part(Open("s2", 60, IP))
    part(Lock("l", "s1", IP))
    cursor = part(Watch()).cursor
    waiting = [
        part.address.ask(message, 3600)
        for message in (
            Get("none", wait_secs=3600),
            List("none/", at_least=1, wait_secs=3600),
            Watch("a/", since=cursor, wait_secs=3600),
            Lock("l", "s2", IP, wait_secs=3600),
        )
    ]
    eventually(lambda: part(Ping()).figures["waiting"] == len(waiting))
    part.replace(harm)
    for reply in waiting:
        with pytest.raises(Unavailable, match="being replaced"):
            reply.result(30)

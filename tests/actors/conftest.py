"""A registry on a store that does what a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from bpbroker.actors import base
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.actors.registry_shared import SharedBackend
from bpbroker.config import layers
from bpbroker.durations import STORAGE_SECS, Durations
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry.changes import ANYTHING, Changes, Committed, Conflict, Group, News, Outcome, Seen, State
from bpbroker.registry.stored import joined, split
from bpbroker.storage.etcd.commits import fitting, refusal


class Ledger:
    """A store in memory. A test may hold its commits and make them fail."""

    def __init__(self, entries: Mapping[str, bytes] | None = None) -> None:
        self.entries = dict(entries or {})
        self.commits: list[tuple[str, ...]] = []
        self.sequence = 1_000_000
        self.figures: Mapping[str, Any] = {}
        self.syncs = Durations(STORAGE_SECS).shown()
        self.failures: list[BaseException] = []
        """Raised by the next commits, one each."""
        self.probe_failure: BaseException | None = None
        self.pieces = 1
        """How many calls of forget() one SnapshotSaved takes."""
        self.forgotten: list[int] = []
        self.closed = False
        self._may_commit = threading.Event()
        self._may_commit.set()
        self._in_commit = threading.Event()

    def hold(self) -> None:
        """Let the next commit wait until :meth:`release`."""
        self._in_commit.clear()
        self._may_commit.clear()

    def await_commit(self) -> None:
        """Wait until the registry is in a commit."""
        assert self._in_commit.wait(10)

    def release(self) -> None:
        self._may_commit.set()

    def load(self) -> Mapping[str, bytes]:
        return dict(self.entries)

    def commit(self, groups: Sequence[Group]) -> Sequence[Outcome]:
        self._in_commit.set()
        assert self._may_commit.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        changes = [change for group in groups for change in group.changes]
        self.commits.append(tuple(change.name for change in changes))
        revision = self.sequence + 1
        for change in changes:
            self.sequence = max(self.sequence, revision + change.place)
            if change.after is None:
                self.entries.pop(change.name, None)
            else:
                self.entries[change.name] = joined(change.after.at(revision))
        return [Committed(revision, revision)] * len(groups)

    def probe(self) -> None:
        if self.probe_failure is not None:
            raise self.probe_failure

    def forget(self, sequence: int) -> bool:
        self.forgotten.append(sequence)
        self.pieces -= 1
        return self.pieces > 0

    def close(self) -> None:
        self.closed = True


class SharedLedger:
    """A shared store in memory. A test is another broker, and may make the store fail or keep its news back."""

    registry_id = "5" * 32

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.entries: dict[str, tuple[bytes, int]] = {}
        self.version = 1
        self.commits: list[tuple[str, ...]] = []
        self.reads: list[tuple[str, ...]] = []
        self.renewals: list[tuple[str, ...]] = []
        self.failures: list[BaseException] = []
        """Raised by the next commits, one each."""
        self.away: BaseException | None = None
        """Raised by every call."""
        self.before_commit: Callable[[], None] = lambda: None
        self.before_read: Callable[[], None] = lambda: None
        self.before_reached: Callable[[], None] = lambda: None
        self.before_scan_at: Callable[[], None] = lambda: None
        self.history: dict[int, dict[str, tuple[bytes, int]]] = {}
        self.closed = threading.Event()
        self.abandoned = False
        self.quiet = False
        """Whether changes by :meth:`put` are not told."""
        self._take: Callable[[News], None] | None = None

    # --- as another broker ---

    def put(self, name: str, value: bytes | None) -> None:
        """Change an entry; the registry hears of it unless the ledger is :attr:`quiet`."""
        with self.lock:
            seen = self._put(name, value)
            if self._take is not None and not self.quiet:
                self._take(Changes((seen,), self.version * INDEX_MAX + INDEX_MAX - 1))

    def tell(self, news: News) -> None:
        assert self._take is not None
        self._take(news)

    def _put(self, name: str, value: bytes | None) -> Seen:
        self.version += 1
        if value is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = value, self.version
        self.history[self.version] = dict(self.entries)
        return self._seen(name)

    def _seen(self, name: str) -> Seen:
        value, version = self.entries.get(name, (None, 0))
        fault = "" if value is None or value.startswith(b"{") else f"Entry '{name}' in etcd is no JSON object"
        record = None if value is None else split(name, value, version * INDEX_MAX)
        return Seen(name, record, version, self.version, fault)

    # --- a store ---

    def _check_away(self) -> None:
        if self.away is not None:
            raise self.away

    def open(self) -> State:
        return self.scan()

    def scan(self, prefix: str = "", *, entries: bool = False, at: int | None = None) -> State:
        self._check_away()
        if at is not None:
            self.before_scan_at()
            with self.lock:
                now = self.entries, self.version
                self.entries, self.version = self.history[at], at
                try:
                    return self.scan(prefix, entries=entries)
                finally:
                    self.entries, self.version = now
        with self.lock:
            names = sorted(
                name for name in self.entries if name.startswith(prefix) and not (entries and name[0] == "_")
            )
            return State(
                tuple(self._seen(name) for name in names), self.version, self.registry_id, self.version * INDEX_MAX
            )

    def read(self, names: Sequence[str]) -> Sequence[Seen]:
        self.before_read()
        self._check_away()
        with self.lock:
            self.reads.append(tuple(names))
            return [self._seen(name) for name in names]

    def check(self) -> None:
        self._check_away()

    def reached(self) -> int:
        self._check_away()
        self.before_reached()
        with self.lock:
            return self.version * INDEX_MAX + INDEX_MAX - 1

    def probe(self) -> None:
        self._check_away()

    def commit(self, groups: Sequence[Group]) -> Sequence[Outcome]:
        self.before_commit()
        self._check_away()
        if self.failures:
            raise self.failures.pop(0)
        with self.lock:
            self.commits.append(tuple(change.name for group in groups for change in group.changes))
            self.version += 1
            changed: list[str] = []
            outcomes = [refusal(fitting(group)) or self._group(group, changed) for group in groups]
            self.history[self.version] = dict(self.entries)
            if self._take is not None and not self.quiet and changed:
                self._take(Changes(tuple(self._seen(name) for name in changed), self.version * INDEX_MAX + 4095))
            return outcomes

    def _group(self, group: Group, changed: list[str]) -> Outcome:
        expected = [(change.name, change.expects) for change in group.changes if change.expects is not ANYTHING]
        full = any(name.startswith(group.empty) and name[:1] != "_" for name in self.entries) if group.empty else False
        if full or any(self._seen(name).version != version for name, version in (*expected, *group.compared)):
            inside = [name for name in self.entries if group.empty and name.startswith(group.empty)][:11]
            return Conflict(tuple(self._seen(name) for name in (*group.names, *inside)))
        for change in group.changes:
            changed.append(change.name)
            if change.after is None:
                self.entries.pop(change.name, None)
            else:
                self.entries[change.name] = joined(change.after), self.version
        return Committed(self.version, self.version * INDEX_MAX)

    def open_session(self, _session: str, _ttl: int, record: Record) -> Outcome:
        self._check_away()
        with self.lock:
            if record.name in self.entries:
                return Conflict((self._seen(record.name),))
            self.put(record.name, record.json)
            return Committed(self.version, self.version * INDEX_MAX)

    def renew_sessions(self, session_ids: Sequence[str]) -> Sequence[int | None]:
        self._check_away()
        with self.lock:
            self.renewals.append(tuple(session_ids))
            return [60 if f"_session/{each}" in self.entries else None for each in session_ids]

    def follow(self, after: int | None, take: Callable[[News], None]) -> None:
        self._take = take
        if after is None:
            while self.away is not None and not self.closed.wait(0.01):
                pass
            take(self.scan())
        take(Changes())
        self.closed.wait()

    def hurry(self) -> None:
        pass

    def abandon(self) -> None:
        self.abandoned = True
        self.closed.set()

    def close(self) -> None:
        self.closed.set()


class Asked:
    """An actor's address with short ways to ask it."""

    def __init__(self, address: base.ActorAddress) -> None:
        self.address = address

    def send(self, message: Any) -> Any:
        """Ask; gives the future."""
        return self.address.ask(message, 10)

    def __call__(self, message: Any) -> Any:
        """Ask and wait."""
        return base.wait_for(self.send(message), 10)

    def workers_end(self) -> bool:
        """Wait for the threads beside an actor that was given up."""
        assert self.address._ref is not None
        return all(worker.join(10) for worker in base._actors[self.address._ref.actor_urn].workers)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def run() -> Iterator[Callable[..., Asked]]:
    """Starts an actor; all are stopped after the test."""
    started: list[base.ActorAddress] = []

    def run(actor: type[base.Actor], *args: Any) -> Asked:
        started.append(base.ActorAddress(actor.__name__.lower(), base.launch(actor, *args)))
        return Asked(started[-1])

    yield run
    for address in reversed(started):
        assert address.stop(10)


@pytest.fixture
def registry(ledger: Ledger, run: Callable[..., Asked]) -> Iterator[Asked]:
    """A registry on :func:`ledger`."""
    yield run(Registry, LocalBackend(lambda: ledger), layers.freeze(layers.DEFAULTS))
    ledger.release()


@pytest.fixture
def shared_ledger() -> SharedLedger:
    return SharedLedger()


@pytest.fixture
def shared_registry(shared_ledger: SharedLedger, run: Callable[..., Asked]) -> Asked:
    """A registry on :func:`shared_ledger`."""
    return run(Registry, SharedBackend(lambda: shared_ledger), layers.freeze(layers.DEFAULTS))

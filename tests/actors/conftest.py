"""A registry on a store that does what a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from bpbroker import config, entry
from bpbroker.actors import base
from bpbroker.actors.registry import Registry
from bpbroker.stores import ANYTHING, Change, Committed, Conflict, Outcome


class Ledger:
    """A store in memory. A test may hold its commits, make them fail, and write to it behind the registry's back."""

    def __init__(self, entries: Mapping[str, bytes] | None = None) -> None:
        self.entries = dict(entries or {})
        self.commits: list[tuple[str, ...]] = []
        self.sequence = 0
        self.figures: Mapping[str, Any] = {}
        self.failures: list[BaseException] = []
        """Raised by the next commits, one each."""
        self.probe_failure: BaseException | None = None
        self.pieces = 1
        """How many calls of forget() one SnapshotSaved takes."""
        self.forgotten: list[int] = []
        self.shared = False
        """Whether it looks what a change expects to find."""
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

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        self._in_commit.set()
        assert self._may_commit.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        self.commits.append(tuple(change.name for change in changes))
        self.sequence += 1
        return [self._change(change) for change in changes]

    def _change(self, change: Change) -> Outcome:
        there = self.entries.get(change.name)
        tag = None if there is None else entry.etag(there)
        if self.shared and change.expects is not ANYTHING and change.expects != tag:
            return Conflict(there)
        if change.value is None:
            self.entries.pop(change.name, None)
        else:
            self.entries[change.name] = change.value
        return Committed()

    def probe(self) -> None:
        if self.probe_failure is not None:
            raise self.probe_failure

    def forget(self, sequence: int) -> bool:
        self.forgotten.append(sequence)
        self.pieces -= 1
        return self.pieces > 0

    def close(self) -> None:
        self.closed = True


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
    yield run(Registry, lambda: ledger, config.freeze(config.DEFAULTS))
    ledger.release()
